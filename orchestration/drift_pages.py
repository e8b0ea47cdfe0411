"""Writes the page to read about an as-of date's drift: Evidently's, of a sample that is drawn with a seed."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml.declarations import Score
from orchestration import warehouse
from orchestration.distributions import sampled
from orchestration.drift_metrics import BAND, PREDICTION, scored_rows, trained_rows
from orchestration.incidents import PROMISE, Known, all_incidents
from orchestration.model_files import load_model
from orchestration.project import Paths, read_json, replaced
from orchestration.training import SEED
from orchestration.warehouse import Connection
from reports.incidents import rule_of

if TYPE_CHECKING:
    import pyarrow as pa

    from ml.registry import Card
    from reports.evidently_page import Shown

# Rows of either side that the page shows: enough to see a shift of a few percent, few enough for any table's size.
SAMPLED = 2000
# Features with charts, besides the score: the time and size of Evidently's page grow with the columns, not the rows.
CHARTED = 10
KEPT = 52  # as-of dates whose pages stay; the warehouse keeps all figures
FIGURES, PAGE = "drift.json", "drift.html"
LABEL = "the label"


def write_pages(
    connection: Connection,
    score: Score,
    champion: Mapping[str, Any],
    card: "Card",
    newest: date,
    today: date,
    where: Paths,
) -> list[date]:
    """Writes drift.html of the newest as-of date, and once more of those whose labels have matured since: with the
    label then. Gives the dates of those that were not there yet. Pages beyond the newest 52 go.

    Of a score whose owner wants no page the newest date has none. Raises `ScoringError` if a page is to be written and
    the rows that the version has learned from are lost.
    """
    folder = where.reports / score.name
    if not score.alerts.report:
        remove_page(folder / str(newest), where)
        return []
    matured = _matured(connection, score, champion, today)
    due = {newest: newest in matured}
    for day in matured:
        page = read_json(folder / str(day) / FIGURES).get("page") or {}
        # The label of the newest may be corrected yet.
        if (folder / str(day) / PAGE).is_file() and (day == matured[-1] or not page.get("has_label")):
            due[day] = True
    written = [
        day for day, with_label in due.items() if _write(connection, score, champion, card, day, with_label, where)
    ]
    for old in sorted(page.parent for page in folder.glob(f"????-??-??/{PAGE}"))[:-KEPT]:
        remove_page(old, where)
    return written


def remove_page(folder: Path, where: Paths) -> None:
    """Removes the page of a date, and Evidently's snapshot of it; none is no matter."""
    if (folder / PAGE).is_file():
        from orchestration.evidently_history import forget_snapshot

        forget_snapshot(where.evidently, (read_json(folder / FIGURES).get("page") or {}).get("evidently"))
        (folder / PAGE).unlink(missing_ok=True)


def _matured(connection: Connection, score: Score, champion: Mapping[str, Any], today: date) -> list[date]:
    """The as-of dates that a version has scored and whose labels have matured, the oldest first."""
    as_of, label = warehouse.name(score.as_of), warehouse.name(score.label_schema, score.label)
    query = f"""
        select dates.as_of_date from ml.scored_dates as dates
        inner join (select {as_of}::date as as_of_date, max(matures_on)::date as matures_on from {label} group by 1)
            as labels using (as_of_date)
        where dates.score = ? and dates.model_version = ? and labels.matures_on <= ? order by 1
    """
    return [day for (day,) in connection.execute(query, [score.name, champion["version"], today]).fetchall()]


def _write(
    connection: Connection,
    score: Score,
    champion: Mapping[str, Any],
    card: "Card",
    day: date,
    with_label: bool,
    where: Paths,
) -> bool:
    """Writes the page of a date, unless it is there as it would be, or nobody to be shown; whether it was written."""
    folder = where.reports / score.name / str(day)
    figures = read_json(folder / FIGURES)
    known, metrics = figures.get("page") or {}, figures["metrics"]
    features = _shown_features(card, metrics)
    scored = scored_rows(score, champion["version"], features, [day])
    current = _drawn(connection, score, _with_labels(score, scored) if with_label else scored, "as_of_date")
    rows, content = warehouse.content_hash(connection, current)
    if with_label and not rows:  # all labels are other customers'
        return _write(connection, score, champion, card, day, False, where)
    if not rows:
        return False
    alerted = [
        one
        for one in all_incidents(connection, score, day)
        if one.kind != PROMISE and one.alerted_on <= day < (one.closed_on or date.max)
    ]
    head = _head(score, metrics, features, day, alerted)
    mark = [champion["version"], champion["training_set"], content, features, with_label, metrics, head, score.title]
    of = hashlib.sha256(json.dumps(mark).encode()).hexdigest()
    if known.get("of") == of and (folder / PAGE).is_file() and (folder / PAGE).stat().st_size == known.get("bytes"):
        return False

    from orchestration.evidently_history import forget_snapshot, keep_snapshot
    from reports.evidently_page import evidently_page

    types = {column.name: column.type for column in card.encoder.columns}
    columns: dict[str, Shown] = {PREDICTION: "category" if score.kind == "category" else "number"}
    if with_label:
        columns[LABEL] = "number" if score.kind == "amount" else "category"
    columns |= {name: "category" if types[name] in ("category", "boolean") else "number" for name in features}
    learned = connection.sql(
        _drawn(connection, score, trained_rows(connection, score, champion, where), score.as_of)
    ).to_arrow_table()
    page = evidently_page(
        _as_scored(learned, score, champion["version"], where),
        _said(connection.sql(current).to_arrow_table(), score),
        title=f"{score.title}: drift at {day}",
        day=day,
        columns=columns,
        head=head,
    )
    ids = keep_snapshot(where.evidently, score, page.snapshot) if page.snapshot is not None else None
    forget_snapshot(where.evidently, known.get("evidently"))
    with replaced(folder / PAGE) as staged:
        staged.write_text(page.html)
    # The figures say what the page was made of, so they come last.
    with replaced(folder / FIGURES) as staged:
        size = (folder / PAGE).stat().st_size  # of another one it is damaged
        told = {"of": of, "bytes": size, "has_label": with_label, "evidently": ids}
        staged.write_text(json.dumps({**figures, "page": told}, indent=1))
    return True


def _shown_features(card: "Card", metrics: Mapping[str, Any]) -> list[str]:
    """The features with charts: those that drifted, the weightiest first, then the weightiest others."""

    def rank(name: str) -> tuple[bool, float, str]:
        drifted = metrics.get(f"column.{name}.verdict") == "drifted"
        effect = metrics.get(f"column.{name}.effect", 1.0) if drifted else 1.0
        return not drifted, -effect * card.importance[name], name

    return sorted(card.importance, key=rank)[:CHARTED]


def _drawn(connection: Connection, score: Score, rows: str, as_of: str) -> str:
    """SQL of a sample that is the same whenever it is drawn from the same rows."""
    keys = f"{warehouse.names([*score.entity, as_of])}, {SEED}"
    return f"select * from ({sampled(connection, rows, keys, SAMPLED)}) order by hash({keys}) limit {SAMPLED}"


def _with_labels(score: Score, scored: str) -> str:
    same = " and ".join(f"labels.{column} = scored.{column}" for column in map(warehouse.name, score.entity))
    return f"""
        select scored.*, labels.label as {warehouse.name(LABEL)} from ({scored}) as scored
        inner join {warehouse.name(score.label_schema, score.label)} as labels
            on labels.{warehouse.name(score.as_of)}::date = scored.as_of_date and {same}
    """


def _as_scored(learned: "pa.Table", score: Score, version: int, where: Paths) -> "pa.Table":
    """The rows that a version learned from with what it says of them, and their label, as the page shows them."""
    import pyarrow as pa

    from ml import prediction

    model = load_model(where, score, version)
    said = prediction.score_rows(model, learned)
    classes = model.card.classes
    told = pa.array(classes, pa.string()).take(said.argmax(axis=1)) if classes else pa.array(said)
    return learned.rename_columns([LABEL if name == "label" else name for name in learned.column_names]).append_column(
        PREDICTION, told
    )


def _said(scored: "pa.Table", score: Score) -> "pa.Table":
    """Of a category the likeliest class is what the page shows of the score."""
    if score.kind != "category":
        return scored
    place = scored.column_names.index(PREDICTION)
    return scored.set_column(place, PREDICTION, scored.column(BAND))


def _head(
    score: Score, metrics: Mapping[str, Any], features: Sequence[str], day: date, incidents: Sequence[Known]
) -> dict[str, str]:
    """What the page says above its charts."""
    verdicts = {
        key.removeprefix("column.").removesuffix(".verdict"): verdict
        for key, verdict in metrics.items()
        if key.endswith(".verdict")
    }
    drifted = [
        f"{name} ({metrics[f'column.{name}.fault']})" for name, verdict in verdicts.items() if verdict == "drifted"
    ]
    lines = {
        "Reference": f"{metrics['reference']}: {metrics['reference_rows']:,} rows",
        "Current": f"{metrics['current']}: {metrics['current_rows']:,} rows",
        "Sample": f"the charts are of {SAMPLED:,} rows of either at most, drawn with seed {SEED}; figures are of all",
    }
    # One that went on after the date is told with figures of later dates, which are none of this page.
    told = [
        f"{one.kind}, since {one.began_on} (incident {one.incident})"
        if one.last_seen_on > day
        else one.told + (f"; {one.origin}" if one.origin else "")
        for one in incidents
    ]
    lines["Alert"] = " — ".join(told) or "none"
    lines["Drifted"] = f"{len(drifted)} of {metrics['compared_columns']} columns" + (
        f": {'; '.join(drifted)}" if drifted else ""
    )
    lines["What would change this"] = _what_would_change(score, metrics, verdicts)
    lines["Charts"] = (
        f"the score and {len(features)} features: those that drifted, then those that move it most. Evidently's"
        " verdicts below are by its defaults, which know neither what is usual nor what a feature weighs"
    )
    return lines


def _what_would_change(score: Score, metrics: Mapping[str, Any], verdicts: Mapping[str, str]) -> str:
    rule = rule_of(score.alerts)
    effects = {
        name: effect
        for name, verdict in verdicts.items()
        # what goes on with the calendar is beyond the line, and none the less in order
        if verdict == "stable" and (effect := metrics[f"column.{name}.effect"]) < score.alerts.effect
    }
    if not effects:
        return rule
    nearest = max(sorted(effects), key=lambda name: effects[name])
    return f"{rule}; next would be {nearest}, of which {effects[nearest]:.2%} are"
