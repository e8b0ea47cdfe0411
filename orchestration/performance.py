"""Tells people what became of a score's promise: the asset that measures it, its check, and the files of its report."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import msgspec

from ml.declarations import Project, Score
from ml.estimation import EstimatedDate
from ml.metrics import without_nan
from ml.outlook import estimate_errors, expected_metrics, verdict_lines
from ml.realised import Line, Performance, Promise, RealisedDate, drifted_share
from orchestration import versions, warehouse
from orchestration.alerting import tell_people
from orchestration.checks import AS_PROMISED, refuse_unsound
from orchestration.estimating import estimated_dates
from orchestration.judging import current_champion
from orchestration.model_files import card_of
from orchestration.outcomes import SAMPLED
from orchestration.project import Paths, page_url, read_json, replaced
from orchestration.promise_incidents import update_promise
from orchestration.promises import Kept, drift_figures, kept, told_with_causes
from orchestration.realised import measure, realised_dates, served_versions, slices_and_gains
from orchestration.training import SEED
from orchestration.training_sets import clock
from orchestration.warehouse import Connection
from serving.pages.performance import FIGURES

if TYPE_CHECKING:
    from ml.registry import Card

SHOWN = 60  # as-of dates in the report and the API; the tables of `monitoring` have them all
PAGE = "performance.html"


def report_performance(connection: Connection, score: Score, today: date, where: Paths) -> dict[str, Any]:
    """Writes the report on promised and realised of what has been measured, unless it is there: its day, path (None
    where there is nothing yet to draw), what it says, and whether it is new.

    The files are performance.json and performance.html in `reports/<score>/<newest scored as-of date>`. Raises
    `ScoringError` if there is no champion.
    """
    champion = current_champion(connection, score)
    performance = performance_of(connection, score, champion, today, where)
    (day,) = warehouse.one(
        connection,
        "select coalesce(max(as_of_date), ?) from ml.scored_dates where score = ? and model_version = ?",
        [champion["holdout_to"], score.name, champion["version"]],
    )
    folder = where.reports / score.name / str(day)
    figures, page = folder / FIGURES, folder / PAGE
    content = msgspec.json.encode(performance)
    of = hashlib.sha256(content).hexdigest()
    has_page = bool(performance.dates or performance.estimates)
    found = {"day": day, "path": page if has_page else None, "performance": performance}
    if read_json(figures).get("of") == of and (page.is_file() or not has_page):
        return {**found, "changed": False}
    if has_page:
        from reports.performance import performance_page

        with replaced(page) as staged:
            staged.write_text(performance_page(performance, title=f"{score.title}: promised and realised"))
    # The figures say what the page was made of, so they come last.
    with replaced(figures) as staged:
        staged.write_bytes(msgspec.json.format(msgspec.json.encode({"of": of, "performance": msgspec.Raw(content)})))
    return {**found, "changed": True}


def performance_of(
    connection: Connection, score: Score, champion: dict[str, Any], today: date, where: Paths
) -> Performance:
    """What has been estimated and measured of a score, and whether its champion keeps what was promised."""
    card = card_of(where, score, champion["version"])
    judged = kept(connection, score, champion, where)
    dates = _with_drift(realised_dates(connection, score, SHOWN), score, where)
    estimates = estimated_dates(connection, score, SHOWN, served_versions(connection, score))
    newest = _newest(dates, champion["version"])
    slices, gains = slices_and_gains(connection, score, newest.model_version, newest.as_of_date) if newest else ([], [])
    promised = card.evaluation.gains.get("score", ()) if card and card.evaluation and score.kind != "category" else ()
    return Performance(
        score=score.name,
        kind=score.kind,
        model_version=champion["version"],
        holdout_from=champion["holdout_from"],
        holdout_to=champion["holdout_to"],
        promised=without_nan(json.loads(champion["metrics"])),
        intervals=card.intervals if card else {},
        verdict=judged.verdict,
        told=judged.told,
        causes=judged.causes,
        next_matures_on=next_maturity(connection, score, champion, today),
        dates=dates,
        estimates=estimates,
        of_estimates=estimate_errors(dates),
        baseline_name=champion["baseline"],
        baseline=without_nan(json.loads(champion["baseline_metrics"])),
        newest=(newest.as_of_date, newest.model_version) if newest else None,
        slices=slices,
        gains=gains,
        promised_gains=promised,
        contact=score.contact,
        lines=_lines(score, champion, card, newest, estimates),
        most_sampled=SAMPLED,
        seed=SEED,
    )


def _newest(dates: Sequence[RealisedDate], champion: int) -> RealisedDate | None:
    """The newest date of the champion; before it has one, that of the version that served."""
    own = [one for one in dates if one.model_version == champion]
    served = [one for one in dates if one.model_version == one.served_version]
    return next(reversed(own or served or dates), None)


def _lines(
    score: Score,
    champion: dict[str, Any],
    card: "Card | None",
    newest: RealisedDate | None,
    estimates: Sequence[EstimatedDate],
) -> list[Line]:
    """Where the champion's next date would be worse than promised: if it is like the newest, or before there is one, by
    the error of the promise and the number of customers that it was given for."""
    if newest and newest.model_version == champion["version"]:
        return verdict_lines(newest.metrics)
    rows = [one.sampled for one in estimates if one.model_version == champion["version"]]
    if card is None or not rows:
        return []
    promise = Promise(metrics=card.metrics, intervals=card.intervals, rows=card.rows["holdout"])
    return verdict_lines(expected_metrics(promise, rows[-1], score.kind))


def _with_drift(dates: Sequence[RealisedDate], score: Score, where: Paths) -> list[RealisedDate]:
    """The dates with what their drift reports said of the same version, where there are any."""
    if not dates:
        return []
    known = drift_figures(score, where, first=dates[0].as_of_date)
    reports = {(day, figures.get("model_version")): figures for day, figures in known}
    cards = {version: card_of(where, score, version) for version in {one.model_version for one in dates}}
    found = []
    for one in dates:
        figures, card = reports.get((one.as_of_date, one.model_version)), cards[one.model_version]
        drift = drifted_share(figures.get("metrics", {}), card.importance) if figures and card else None
        found.append(msgspec.structs.replace(one, drifted=drift[0] if drift else None))
    return found


def next_maturity(connection: Connection, score: Score, champion: dict[str, Any], today: date) -> date | None:
    """When the labels of the next date mature that a champion has scored after its held-out ones.

    Of a date without labels, by as many days as those of the newest date that has some have taken.
    """
    label, as_of = warehouse.name(score.label_schema, score.label), warehouse.name(score.as_of)
    (found,) = warehouse.one(
        connection,
        f"""
        with labels as (
            select {as_of}::date as as_of_date, max(matures_on)::date as matures_on from {label} group by 1
        ),

        usual as (
            select max_by(matures_on - as_of_date, as_of_date)::integer as days from labels
        ),

        dates as (
            select coalesce(labels.matures_on, dates.as_of_date + usual.days) as matures_on
            from ml.scored_dates as dates
            cross join usual
            left join labels on labels.as_of_date = dates.as_of_date
            where dates.score = ? and dates.model_version = ? and dates.as_of_date > ?
        )

        select min(matures_on) from dates where matures_on > ?
        """,
        [score.name, champion["version"], champion["holdout_to"], today],
    )
    return found if isinstance(found, date) else None


def performance_asset(score: Score, label: dg.AssetKey, project: Project, where: Paths) -> dg.AssetsDefinition:
    """The asset of a score's realised performance, with the check on its promise."""
    key = dg.AssetKey(["reports", f"{score.name}_performance"])

    @dg.asset(
        key=key,
        deps=[dg.AssetKey(["predictions", score.name]), label],
        group_name=score.name,
        owners=[score.email] if score.email else [],
        kinds={"duckdb"},
        description=f"What was promised of `{score.name}` when its versions were trained, and what was estimated"
        " and then realised as labels matured: tables `monitoring.estimated_performance`,"
        " `monitoring.realised_performance` and `monitoring.realised_gains`, and a report.",
        check_specs=[
            dg.AssetCheckSpec(
                AS_PROMISED,
                asset=key,
                description="On the newest date whose labels have matured the champion is as good as its held-out dates"
                " promised. A failure stops nothing, and names the likely causes.",
            )
        ],
        pool="warehouse",
    )
    def performance(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        refuse_unsound(context)
        today = clock(project)
        with warehouse.open_warehouse(where.warehouse) as connection:
            versions.create_tables(connection)
            measured = measure(connection, score, today, where)
            report = report_performance(connection, score, today, where)
            broken = update_promise(connection, score, report["performance"])
        unsent = tell_people(where, score, broken, report["day"])
        for fault in unsent:
            context.log.warning(f"· reports.{score.name}_performance: {fault}")
        found: Performance = report["performance"]
        yield dg.MaterializeResult(
            metadata={
                "as-of dates measured now": ", ".join(f"{day} (version {version})" for version, day in measured)
                or "none: nothing has matured or changed since",
                "estimated before labels mature": f"{len(found.estimates):,} of the newest dates",
                "champion": found.told,
                "next labels mature on": str(found.next_matures_on or "not known"),
                "alerts not sent": "; ".join(unsent) or "none",
                **_links(score, report["day"], report["path"]),
                "changed": report["changed"],
            },
            check_results=[
                dg.AssetCheckResult(
                    passed=found.verdict != "worse",
                    check_name=AS_PROMISED,
                    severity=dg.AssetCheckSeverity.WARN,
                    description=told_with_causes(Kept(verdict=found.verdict, told=found.told, causes=found.causes)),
                    metadata={cause.name: cause.told for cause in found.causes},
                )
            ],
        )

    return performance


def _links(score: Score, day: date, page: Path | None) -> dict[str, dg.MetadataValue]:
    if page is None:
        return {}
    return {
        "report": dg.MetadataValue.url(page_url(f"reports/{score.name}/{day}/{page.name}")),
        "path": dg.MetadataValue.path(str(page)),
    }
