"""Writes a score's own page, /reports/<score>, of what has been measured: the asset, and what the page is made of."""

import hashlib
from collections.abc import Callable, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

import dagster as dg
import msgspec

from ml.declarations import Project, Score
from ml.metrics import METRICS
from orchestration import drift_tables, versions, warehouse
from orchestration.checks import refuse_unsound
from orchestration.distributions import Counted
from orchestration.drift_metrics import BAND, PREDICTION
from orchestration.drift_pages import CHARTED, KEPT, SAMPLED
from orchestration.drift_tables import SCORED, TRAINED
from orchestration.incidents import all_incidents
from orchestration.judging import current_champion
from orchestration.model_files import load_card
from orchestration.performance import performance_of
from orchestration.project import Paths, page_url, read_json, replaced
from orchestration.realised import served_versions
from orchestration.training import SEED
from orchestration.training_sets import clock
from orchestration.warehouse import Connection
from reports.distances import Bins, Distribution, merged, shares
from reports.incidents import rule_of
from reports.overview import FEATURES, DriftedColumn, FeatureSeries, Mark, OnDate, Overview, Trouble, overview_page
from serving.pages.monitoring import FILE, PAGE, Incident, Summary

if TYPE_CHECKING:
    from ml.registry import Card

SHOWN = 60  # as-of dates, the newest
LISTED = 200  # drifted columns
LEAST = 0.0003  # effect × importance of a drift that has a picture before the features that weigh most


def write_overview(connection: Connection, score: Score, project: Project, where: Paths) -> dict[str, Any]:
    """Writes the page and its summary for the newest as-of date, unless they are there: the day, its path, the summary,
    whether it is new.

    The files are overview.html and overview.json in `reports/<score>/<as-of date>`. Those of later dates go, whose
    predictions were withdrawn, and all but the newest 52 pages.
    """
    drift_tables.create_tables(connection)
    champion = current_champion(connection, score)
    overview = _overview(connection, score, champion, project, where)
    folder = where.reports / score.name / str(overview.as_of_date)
    page, summary = folder / PAGE, folder / FILE
    of = hashlib.sha256(msgspec.json.encode(overview)).hexdigest()
    told = _summary(score, overview, of)
    found = {"day": overview.as_of_date, "path": page, "summary": told}
    for later in (where.reports / score.name).glob("????-??-??"):
        if later.name > folder.name:
            for name in (PAGE, FILE):
                (later / name).unlink(missing_ok=True)
    if read_json(summary).get("of") == of and page.is_file():
        return {**found, "changed": False}
    with replaced(page) as staged:
        staged.write_text(overview_page(overview))
    # The figures say what the page was made of, so they come last.
    with replaced(summary) as staged:
        staged.write_bytes(msgspec.json.format(msgspec.json.encode(told)))
    for name in (PAGE, "performance.html"):
        for old in sorted((where.reports / score.name).glob(f"????-??-??/{name}"))[:-KEPT]:
            old.unlink(missing_ok=True)
    return {**found, "changed": True}


def _overview(
    connection: Connection, score: Score, champion: dict[str, Any], project: Project, where: Paths
) -> Overview:
    version = champion["version"]
    card = load_card(where, score, version)
    dates = _dates(connection, score, version, where)
    performance = performance_of(connection, score, champion, clock(project), where)
    return Overview(
        score=score.name,
        title=score.title,
        description=score.description,
        as_of_date=dates[-1].as_of_date,
        performance=performance,
        dates=dates,
        marks=_marks(connection, score, dates, where),
        troubles=[
            Trouble(**{name: getattr(one, name) for name in Trouble.__struct_fields__})
            for one in reversed(all_incidents(connection, score, dates[0].as_of_date))
        ],
        features=_features(connection, score, version, card),
        drifted=_drifted_columns(connection, score, version),
        rule=rule_of(score.alerts),
        sample=f"Drift is counted on all rows. The charts of single dates are of {SAMPLED:,} rows of either side at"
        f" most, {CHARTED} features and the score, drawn with seed {SEED}. Metrics are of {performance.most_sampled:,}"
        f" customers of a date at most, drawn with seed {performance.seed}.",
        reference=f"What version {version} learned from, {champion['train_from']} to {champion['train_to']}"
        f" ({champion['train_rows']:,} rows), of the score what it said of its held-out dates,"
        f" {champion['holdout_from']} to {champion['holdout_to']}. A column is also compared with the newest date"
        " before on which it was in order.",
    )


def _dates(connection: Connection, score: Score, champion: int, where: Paths) -> list[OnDate]:
    """The newest as-of dates, each by the version that served it or else the champion."""
    served = served_versions(connection, score)
    scored = connection.execute(
        "select as_of_date, model_version, rows from ml.scored_dates where score = ? order by 1, 2", [score.name]
    ).fetchall()
    by_date: dict[date, dict[int, int]] = {}
    for day, version, rows in scored:
        by_date.setdefault(day, {})[version] = rows
    drifted = _drifted(connection, score)
    found = []
    for day, versions_of in sorted(by_date.items())[-SHOWN:]:
        version = next((one for one in (served.get(day), champion) if one in versions_of), max(versions_of))
        share, weighs, columns = drifted.get((day, version), (None, None, 0))
        pages = (where.reports / score.name / str(day)).glob("*.html")
        found.append(
            OnDate(
                as_of_date=day,
                model_version=version,
                customers=versions_of[version],
                drifted=share,
                weighs=weighs,
                drifted_columns=columns,
                pages=tuple(sorted(file.name for file in pages if file.name != PAGE)),
            )
        )
    return found


def _drifted(connection: Connection, score: Score) -> dict[tuple[date, int], tuple[float | None, float | None, int]]:
    """As-of date and version -> the share of the importance that drifted features have, that by how much they have, and
    how many columns these are, the score among them."""
    found = connection.execute(
        """
        with columns as (
            select
                as_of_date, model_version, column_name, bool_or(is_drifted) as is_drifted,
                case when column_name in ($score_column, $band) then 0 else max(importance) end as importance,
                max(effect) as effect
            from monitoring.drift_metrics
            where score = $score and segment_column is null
            group by 1, 2, 3
        )

        select
            as_of_date, model_version,
            round(coalesce(sum(importance) filter (is_drifted), 0) / nullif(sum(importance), 0), 9),
            round(coalesce(sum(importance * effect) filter (is_drifted), 0), 9), count(*) filter (is_drifted)
        from columns group by 1, 2 -- rounded, as sums of several threads differ in their last digits
        """,
        {"score": score.name, "score_column": PREDICTION, "band": BAND},
    ).fetchall()
    return {(day, version): tuple(figures) for day, version, *figures in found}


def _drifted_columns(connection: Connection, score: Score, version: int) -> list[DriftedColumn]:
    """All that has drifted at the newest date, the score first, then the weightiest."""
    return [
        DriftedColumn(**row)
        for row in warehouse.rows(
            connection,
            """
            with measured as (
                select *, max(as_of_date) over () as newest from monitoring.drift_metrics
                where score = $score and model_version = $version and segment_column is null
            )

            select
                column_name as name, if(column_name in ($p, $b), null, max(importance)) as importance,
                max(effect) as effect, any_value(drifted_since) as since, any_value(told) as told
            from measured where as_of_date = newest and drifted_since is not null
            group by 1 order by max(importance) * max(effect) desc, 1 limit $most
            """,
            {"score": score.name, "version": version, "p": PREDICTION, "b": BAND, "most": LISTED},
        )
    ]


def _marks(connection: Connection, score: Score, dates: Sequence[OnDate], where: Paths) -> list[Mark]:
    """Where another version begins to serve, and the generations that can be served."""
    from serving.generations.generation import CorruptGeneration, read_manifest
    from serving.generations.store import generations_of

    why = {row["version"]: row["how"] for row in versions.promotions(connection, score)}
    marks, before = [], None
    for one in dates:
        if one.model_version != before:
            how = f" ({why[one.model_version]})" if one.model_version in why else ""
            marks.append(Mark(one.as_of_date, f"version {one.model_version} serves{how}", True))
            before = one.model_version
    home = where.generations / score.name
    for name in generations_of(home) if home.is_dir() else []:
        try:
            known = read_manifest(home / name)
        except CorruptGeneration:  # which the generation's own step tells
            continue
        when = f"{known.published_at:%Y-%m-%d %H:%M}"
        marks.append(Mark(known.as_of_date, f"generation {name}, version {known.model_version}, made {when}", False))
    return marks


def _features(connection: Connection, score: Score, version: int, card: "Card") -> list[FeatureSeries]:
    """The features that have drifted, the weightiest first, and then those that move the score most."""
    newest = warehouse.rows(
        connection,
        """
        select
            column_name, max(importance) as importance, max(effect) as effect, any_value(drifted_since) as since,
            any_value(told) as told
        from monitoring.drift_metrics
        where score = $score and model_version = $version and segment_column is null and column_name not in ($p, $b)
            and as_of_date = (
                select max(as_of_date) from monitoring.drift_metrics where score = $score and model_version = $version
            )
        group by 1
        order by
            -- a drift that weighs nothing is for the tables
            coalesce(since is not null and max(importance) * max(effect) >= $least, false) desc,
            max(importance) * (case when since is null then 1 else max(effect) end) desc, 1
        limit $most
        """,
        {"score": score.name, "version": version, "p": PREDICTION, "b": BAND, "most": FEATURES, "least": LEAST},
    )
    names = [row["column_name"] for row in newest]
    bins = {one.name: one for one in drift_tables.bins_of(connection, score, version)[0]}
    trained, scored = (
        _by_column(drift_tables.distributions(connection, score, version, part, columns=names))
        for part in (TRAINED, SCORED)
    )
    found = []
    for row in newest:
        name = row["column_name"]
        seen, learned = scored.get(name, []), trained.get(name, [])
        what, value = _followed(bins[name], seen, learned)
        range_of = [number for _, one in learned if (number := value(one)) is not None]
        points = tuple((day, number) for day, one in seen[-SHOWN:] if (number := value(one)) is not None)
        if not points and not range_of:
            continue
        found.append(
            FeatureSeries(
                name=name,
                what=what,
                importance=row["importance"],
                low=min(range_of, default=points[0][1] if points else 0.0),
                high=max(range_of, default=points[0][1] if points else 0.0),
                points=points,
                nulls=tuple((day, one.null_share) for day, one in seen[-SHOWN:]),
                effect=row["effect"],
                since=row["since"],
                told=row["told"],
            )
        )
    return found


def _by_column(counted: Sequence[Counted]) -> dict[str, list[tuple[date, Distribution]]]:
    found: dict[str, list[tuple[date, Distribution]]] = {}
    for one in counted:
        found.setdefault(one.column, []).append((one.key, one.distribution))
    return found


def _followed(
    bins: Bins, seen: Sequence[tuple[date, Distribution]], learned: Sequence[tuple[date, Distribution]]
) -> tuple[str, Callable[[Distribution], float | None]]:
    """What a picture follows of a column, in words, and how it is had: the mean; of a category the share of the value
    that has moved most."""
    if not bins.is_category:
        return "mean", lambda one: one.mean
    values = [*map(repr, bins.categories), "other values"]
    place = 0
    if seen and learned:
        moved = shares(seen[-1][1]) - shares(merged([one for _, one in learned]))
        place = int(abs(moved[:-1]).argmax())
    if bins.type == "boolean":
        place = bins.categories.index("true")
    return f"share of {values[place]}", lambda one: float(shares(one)[place])


def _summary(score: Score, overview: Overview, of: str) -> Summary:
    """What the list of all scores says of one."""
    name = next(iter(METRICS[score.kind]))
    performance = overview.performance
    version = performance.model_version
    realised = [one.metrics for one in performance.dates if one.model_version == version][-1:]
    estimated = [one.metrics for one in performance.estimates if one.model_version == version][-1:]
    return Summary(
        of=of,
        score=score.name,
        title=score.title,
        as_of_date=overview.as_of_date,
        model_version=version,
        metric=name,
        promised=performance.promised.get(name),
        estimated=next((one.estimated for metrics in estimated for one in metrics if one.metric == name), None),
        realised=next((one.realised for metrics in realised for one in metrics if one.metric == name), None),
        verdict=performance.verdict,
        told=performance.told,
        drifted=overview.dates[-1].drifted,
        weighs=overview.dates[-1].weighs,
        alerted_from=score.alerts.impact,
        incidents=[
            Incident(severity=one.severity, told=one.told, origin=one.origin, began_on=one.began_on)
            for one in overview.open
        ],
    )


def overview_asset(score: Score, project: Project, where: Paths) -> dg.AssetsDefinition:
    """The asset of a score's own page."""

    @dg.asset(
        key=["reports", score.name],
        deps=[dg.AssetKey(["reports", f"{score.name}_{part}"]) for part in ("drift", "performance")],
        group_name=score.name,
        owners=[score.email] if score.email else [],
        kinds={"duckdb"},
        description=f"The page of `{score.name}`: its metric as promised, estimated and realised, its drift, volume and"
        " incidents over time, and links to the reports of each date.",
        pool="warehouse",
    )
    def overview(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        refuse_unsound(context)
        with warehouse.open_warehouse(where.warehouse) as connection:
            written = write_overview(connection, score, project, where)
        summary: Summary = written["summary"]
        return dg.MaterializeResult(
            metadata={
                "report": dg.MetadataValue.url(page_url(f"reports/{score.name}")),
                "page": dg.MetadataValue.url(page_url(f"reports/{score.name}/{written['day']}/{PAGE}")),
                "path": dg.MetadataValue.path(str(written["path"])),
                "incidents": "; ".join(one.told for one in summary.incidents) or "none",
                "performance": summary.told,
                "changed": written["changed"],
            }
        )

    return overview
