"""Tells how a score has drifted: figures of every row, incidents with their alerts, and a page to read."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from ml.declarations import Project, Score
from orchestration import drift_tables, versions, warehouse
from orchestration.alerting import tell_people
from orchestration.cataloguing import tell_features
from orchestration.checks import IN_ORDER, refuse_unsound
from orchestration.drift_metrics import BAND, PREDICTION, measure_drift
from orchestration.drift_pages import FIGURES, PAGE, remove_page, write_pages
from orchestration.incidents import PROMISE, Known, open_incidents, update_incidents
from orchestration.judging import current_champion
from orchestration.model_files import load_card
from orchestration.project import Paths, page_url, read_json, replaced
from orchestration.training_sets import ScoringError, clock
from orchestration.warehouse import Connection
from reports.faults import Fault

if TYPE_CHECKING:
    from ml.registry import Card


def report_drift(connection: Connection, project: Project, score: Score, where: Paths) -> dict[str, Any]:
    """Measures the drift of what the champion has scored, and writes what is not told yet: its newest day, the path of
    its page (None if the score's owner wants none), metrics, incidents, whether anything is new.

    The files are drift.json of each date and drift.html, see `write_pages`, in `reports/<score>/<as-of date>`.
    Raises `ScoringError` if the score has no predictions.
    """
    champion = current_champion(connection, score)
    version = champion["version"]
    scored = versions.scored_dates(connection, score, version)
    if not scored:
        raise ScoringError(
            f"score '{score.name}': version {version} has scored nobody yet; materialize predictions/{score.name} first"
        )
    card = load_card(where, score, version)
    measured = measure_drift(connection, score, champion, where)
    # Of all dates what their figures are to be made from: the counts, and the rule by which an incident is one.
    counts = drift_tables.counted(connection, score, version)
    of = {day: f"{counts.get(day)} {score.alerts.impact} {score.alerts.dates}" for day in scored}
    there = {folder: read_json(folder / FIGURES) for folder in sorted((where.reports / score.name).glob("????-??-??"))}
    _forget_withdrawn(version, there, scored, where)
    first = min([*measured, *_untold(version, there, of)], default=None)  # those after it are compared with it
    incidents = update_incidents(connection, project, score, version, card, first, where)
    newest = max(scored)
    for day in sorted(day for day in scored if first is not None and day >= first):
        write_figures(connection, score, champion, card, day, of[day], where)
    changed = write_pages(connection, score, champion, card, newest, clock(project), where)
    page = where.reports / score.name / str(newest) / PAGE
    return {
        "day": newest,
        "path": page if page.is_file() else None,
        "metrics": read_json(where.reports / score.name / str(newest) / FIGURES)["metrics"],
        "incidents": incidents,
        "measured": measured,
        "changed": bool(measured or changed),
    }


def _forget_withdrawn(
    version: int, there: Mapping[Path, Mapping[str, Any]], scored: Iterable[date], where: Paths
) -> None:
    """Removes the figures and pages of dates that the version has scored no more."""
    for folder, known in there.items():
        if known.get("model_version") == version and folder.name not in map(str, scored):
            remove_page(folder, where)
            (folder / FIGURES).unlink()


def _untold(version: int, there: Mapping[Path, Mapping[str, Any]], of: Mapping[date, str]) -> list[date]:
    """The dates whose figures are not there as they are to be.

    Figures are written last of all, so where they are a date is told: else a run that was stopped in between would have
    measured it, and no other would tell of it. Those of a version before may be there too.
    """
    told = {folder.name: (known.get("model_version"), known.get("of")) for folder, known in there.items()}
    return [day for day, made_from in of.items() if told.get(str(day)) != (version, made_from)]


def write_figures(
    connection: Connection,
    score: Score,
    champion: Mapping[str, Any],
    card: "Card",
    day: date,
    of: str,
    where: Paths,
) -> None:
    """Writes drift.json of a date: what was compared with what, and of each column its figures and verdict.

    `of` is what they were counted from. What is known of the date's page stays known.
    """
    rows = warehouse.rows(
        connection,
        """
        select
            -- of both references the one that it is further from; else of training, the last by its name
            column_name, max_by(distance, (effect, reference)) as distance, max_by(psi, (effect, reference)) as psi,
            max(effect) as effect,
            bool_or(is_drifted) as is_drifted, any_value(drifted_since) as since, any_value(fault) as fault,
            any_value(told) as told, max(rows) as rows
        from monitoring.drift_metrics
        where score = ? and model_version = ? and as_of_date = ? and segment_column is null
        group by 1 order by max(importance) desc, 1
        """,
        [score.name, champion["version"], day],
    )
    found = {row["column_name"]: row for row in rows}
    drifted = [name for name, row in found.items() if row["is_drifted"]]
    metrics: dict[str, Any] = {
        "reference": f"what version {champion['version']} learned from,"
        f" {champion['train_from']} to {champion['train_to']}",
        "current": f"the customers scored at {day}",
        "reference_rows": champion["train_rows"],
        "current_rows": max((row["rows"] for row in rows), default=0),
        "compared_columns": len(found),
        "drifted_columns": len(drifted),
        "share_of_drifted_columns": len(drifted) / len(found) if found else 0.0,
    }
    for name in [PREDICTION, BAND, *card.importance]:
        row = found.get(name)
        if row is None:
            metrics[f"column.{name}.verdict"] = "not compared"
            continue
        metrics |= {f"column.{name}.{key}": row[key] for key in ("distance", "psi", "effect")}
        metrics[f"column.{name}.verdict"] = "drifted" if row["is_drifted"] else "stable"
        if row["is_drifted"]:
            metrics |= {
                f"column.{name}.since": str(row["since"]),
                f"column.{name}.fault": row["told"],
                f"column.{name}.is_broken": Fault(row["fault"], row["told"]).is_breakage,
            }
    file = where.reports / score.name / str(day) / FIGURES
    before = read_json(file)
    known = {"model_version": champion["version"], "of": of, "metrics": metrics}
    page = before.get("page")
    with replaced(file) as staged:
        staged.write_text(json.dumps({**known, **({"page": page} if page else {})}, indent=1, default=str))


def _verdict(incidents: Sequence[Known]) -> str:
    if not incidents:
        return "in order: nothing has drifted that weighs enough, long enough"
    return "; ".join(one.told + (f"; {one.origin}" if one.origin else "") for one in incidents)


def drift_asset(score: Score, project: Project, where: Paths) -> dg.AssetsDefinition:
    """The asset of a score's drift: its figures, its page, and the check that nothing has drifted that matters."""
    key = dg.AssetKey(["reports", f"{score.name}_drift"])

    @dg.asset(
        key=key,
        deps=[dg.AssetKey(["predictions", score.name])],
        group_name=score.name,
        owners=[score.email] if score.email else [],
        kinds={"duckdb", "evidently"},
        description=f"How the customers that `{score.name}` scores differ from those its model learned from: rows of"
        " `monitoring.drift_metrics` for every column, incidents, and a page.",
        check_specs=[
            dg.AssetCheckSpec(
                IN_ORDER,
                asset=key,
                description="No feature that matters has drifted on so many as-of dates in a row as the score's"
                " `alerts` say. An error is likely a fault of the data, a warning a move of the customers; it stops"
                " nothing.",
            )
        ],
        pool="warehouse",
    )
    def drift(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        refuse_unsound(context)
        try:
            with warehouse.open_warehouse(where.warehouse) as connection:
                report = report_drift(connection, project, score, where)
                tell_features(connection, project, score, where)
        except Exception:  # a page that can't be written keeps no alert back
            for fault in _tell_what_is_open(score, where):
                context.log.warning(f"· reports.{score.name}_drift: {fault}")
            raise
        incidents: list[Known] = report["incidents"]
        unsent = tell_people(where, score, incidents, report["day"])
        for fault in unsent:
            context.log.warning(f"· reports.{score.name}_drift: {fault}")
        yield dg.MaterializeResult(
            metadata={
                **_links(score, report["day"], report["path"]),
                "as-of date": str(report["day"]),
                "as-of dates measured now": ", ".join(map(str, report["measured"])) or "none: nothing has changed",
                "verdict": _verdict(incidents),
                "alerts not sent": "; ".join(unsent) or "none",
                "figures": dg.MetadataValue.json(report["metrics"]),
                "changed": report["changed"],
            },
            check_results=[
                dg.AssetCheckResult(
                    passed=not incidents,
                    check_name=IN_ORDER,
                    severity=dg.AssetCheckSeverity.ERROR
                    if any(one.severity == "error" for one in incidents)
                    else dg.AssetCheckSeverity.WARN,
                    description=_verdict(incidents),
                    metadata={f"{one.kind} {one.incident}": one.told for one in incidents},
                )
            ],
        )

    return drift


def _tell_what_is_open(score: Score, where: Paths) -> list[str]:
    with warehouse.open_warehouse(where.warehouse) as connection:
        drift_tables.create_tables(connection)
        incidents = [one for one in open_incidents(connection, score) if one.kind != PROMISE]
    return tell_people(where, score, incidents, max((one.last_seen_on for one in incidents), default=date.min))


def _links(score: Score, day: date, page: Path | None) -> dict[str, dg.MetadataValue[Any]]:
    """Where the reports are: the score's own page, and that of the date."""
    found: dict[str, dg.MetadataValue[Any]] = {"report": dg.MetadataValue.url(page_url(f"reports/{score.name}"))}
    if page is not None:
        found["page"] = dg.MetadataValue.url(page_url(f"reports/{score.name}/{day}/{page.name}"))
        found["path"] = dg.MetadataValue.path(str(page))
    return found
