"""Measures what predictions were worth once their labels have matured, beside what was promised: table `ml.realised`.

A score's versions are measured on the as-of dates after their held-out ones, each date once, and again when its
predictions or labels have changed. On held-out dates the metric is the promise itself.
"""

import json
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from ml.declarations import Score
from ml.realised import Promise, RealisedDate, RealisedMetric, realised_metrics
from orchestration import versions, warehouse
from orchestration.model_files import card_of
from orchestration.project import Paths
from orchestration.training import SEED
from orchestration.training_sets import ScoringError
from orchestration.warehouse import Connection

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ml.registry import Card

# Rows of a date that are measured at most, drawn by a hash of the entity: their errors are told, and are small.
SAMPLED = 200_000
# What else decides a measurement: another text, and all dates are measured again.
RECIPE = f"1 {SAMPLED} {SEED}"
TABLE = """
    create schema if not exists ml;
    create table if not exists ml.realised (
        score varchar, model_version integer, as_of_date date, metric varchar,
        realised double, realised_low double, realised_high double,
        promised double, promised_low double, promised_high double,
        low double, high double, verdict varchar,
        rows bigint, sampled bigint, label_rate double, mean_score double,
        served_version integer, made_from varchar, measured_at timestamptz
    )
"""


def measure(connection: Connection, score: Score, today: date, where: Paths) -> list[tuple[int, date]]:
    """Measures what is due of a score; gives the versions and as-of dates that were measured now.

    Each date is replaced whole. What was withdrawn of the predictions is withdrawn here too. A version whose card is
    damaged, of a category, waits until it is back. Raises `ScoringError` naming version and date if labels are such
    that nothing can be measured.
    """
    connection.execute(TABLE)
    connection.execute(
        """
        delete from ml.realised where score = ? and (model_version, as_of_date) not in (
            select (model_version, as_of_date) from ml.scored_dates where score = ?
        )
        """,
        [score.name, score.name],
    )
    measured = []
    cards: dict[int, Card | None] = {}
    due = _due(connection, score, today)
    served = served_versions(connection, score) if due else {}
    for row in due:
        version = row["version"]
        if version not in cards:
            cards[version] = card_of(where, score, version)
        card = cards[version]
        if score.kind == "category" and card is None:
            continue
        found = _measured(connection, score, row, card, served.get(row["as_of_date"]))
        if found is not None:
            _record(connection, score, found, row["made_from"])
            measured.append((version, row["as_of_date"]))
    return measured


def _due(connection: Connection, score: Score, today: date) -> list[dict[str, Any]]:
    """The scored dates after a version's held-out ones whose labels have all matured, if they are new or have changed:
    the version's metrics and held-out rows, as_of_date, made_from."""
    label, as_of = warehouse.name(score.label_schema, score.label), warehouse.name(score.as_of)
    keys = warehouse.names([*score.entity, score.as_of])
    row = warehouse.WHOLE_ROW
    return warehouse.rows(
        connection,
        f"""
        with scored as (
            select
                versions.version, versions.metrics, versions.holdout_rows, dates.as_of_date,
                dates.made_from as made_from
            from ml.scored_dates as dates
            inner join ml.model_versions as versions
                on versions.score = dates.score and versions.version = dates.model_version
            where dates.score = ? and versions.kind = ? and dates.as_of_date > versions.holdout_to
        ),

        labels as (
            select
                {as_of}::date as as_of_date,
                max(matures_on)::date as matures_on,
                count(*) || '-' || sum(hash({row})::hugeint) as content
            from (
                select {keys}, label, matures_on from {label}
                where {as_of}::date in (select as_of_date from scored)
            ) as {row}
            group by 1
        ),

        matured as (
            select
                scored.* exclude (made_from),
                scored.made_from || ' ' || labels.content || ' {RECIPE}' as made_from
            from scored
            inner join labels on labels.as_of_date = scored.as_of_date
            where labels.matures_on <= ?
        )

        select * from matured
        where (version, as_of_date, made_from) not in (
            select (model_version, as_of_date, made_from) from ml.realised where score = ?
        )
        order by version, as_of_date
        """,
        [score.name, score.kind, today, score.name],
    )


def outcomes_of(score: Score, version: int, day: date, columns: str) -> str:
    """SQL of these columns of a version's predictions for an as-of date beside their labels."""
    same_entity = " and ".join(
        f"labels.{column} = predictions.{column}" for column in map(warehouse.name, score.entity)
    )
    return f"""
        select {columns} from {warehouse.name("predictions", score.name)} as predictions
        inner join {warehouse.name(score.label_schema, score.label)} as labels
            on labels.{warehouse.name(score.as_of)} = predictions.as_of_date and {same_entity}
        where predictions.model_version = {version} and predictions.as_of_date::date = date '{day}'
            and labels.label is not null
    """


def _measured(
    connection: Connection, score: Score, row: dict[str, Any], card: "Card | None", served: int | None
) -> RealisedDate | None:
    """A date measured; None if nobody who was scored has a label."""
    version, day = row["version"], row["as_of_date"]
    classes = card.classes if card else ()
    (rows,) = warehouse.one(connection, outcomes_of(score, version, day, "count(*)"))
    if not rows:
        return None
    label, scores = _outcomes(connection, score, version, day, classes)
    promise = Promise(
        metrics=json.loads(row["metrics"]), intervals=card.intervals if card else {}, rows=row["holdout_rows"]
    )
    try:
        metrics = realised_metrics(score.kind, label, scores, promise, SEED)
    except ValueError as error:
        raise ScoringError(
            f"score '{score.name}': what version {version} said for {day} can't be measured by its labels in"
            f" {score.label_schema}.{score.label}: {error}"
        ) from None
    is_category = score.kind == "category"
    return RealisedDate(
        as_of_date=day,
        model_version=version,
        served_version=served,
        rows=rows,
        sampled=len(label),
        label_rate=None if is_category else float(label.mean()),
        mean_score=float((scores.max(axis=1) if is_category else scores).mean()),
        drifted=None,
        metrics=metrics,
    )


def _outcomes(
    connection: Connection, score: Score, version: int, day: date, classes: tuple[str, ...]
) -> "tuple[NDArray[np.float64], NDArray[np.float64]]":
    """Labels and scores of a date, as `evaluate` takes them: of a category the places of classes, -1 for one that the
    version does not know, and their probabilities."""
    import numpy as np

    if score.kind == "category":
        listed = warehouse.literal(classes)
        columns = [f"coalesce(list_position({listed}, labels.label::varchar), 0) - 1 as label"]
        columns += [
            f"coalesce(predictions.probabilities[{warehouse.literal(name)}], 0) as p{place}"
            for place, name in enumerate(classes)
        ]
    else:
        columns = ["labels.label::double as label", "predictions.score"]
    entity = warehouse.names(score.entity, "predictions")
    found = connection.sql(
        f"{outcomes_of(score, version, day, ', '.join(columns))} order by hash({entity}, {SEED}), {entity}"
        f" limit {SAMPLED}"
    ).fetchnumpy()
    label, *scores = (np.asarray(column, dtype=np.float64) for column in found.values())
    return label, np.column_stack(scores) if score.kind == "category" else scores[0]


def _record(connection: Connection, score: Score, found: RealisedDate, made_from: str) -> None:
    of_date = {
        "score": score.name,
        **{name: getattr(found, name) for name in ("as_of_date", "model_version", "served_version", "rows")},
        **{name: getattr(found, name) for name in ("sampled", "label_rate", "mean_score")},
        "made_from": made_from,
        "measured_at": datetime.now(UTC),
    }
    with warehouse.transaction(connection):
        connection.execute(
            "delete from ml.realised where score = ? and model_version = ? and as_of_date = ?",
            [score.name, found.model_version, found.as_of_date],
        )
        for metric in found.metrics:
            row = of_date | msgspec.structs.asdict(metric)
            connection.execute("insert into ml.realised by name select unnest(?)", [row])


def realised_dates(connection: Connection, score: Score, newest: int, version: int | None = None) -> list[RealisedDate]:
    """What has been measured of the newest as-of dates, the oldest first; of a date a version after the other, or one
    version alone."""
    connection.execute(TABLE)
    found = warehouse.rows(
        connection,
        """
        select realised.* from ml.realised as realised
        inner join ml.model_versions as versions
            on versions.score = realised.score and versions.version = realised.model_version
        where realised.score = ? and versions.kind = ? and realised.model_version = coalesce(?, realised.model_version)
        qualify dense_rank() over (order by as_of_date desc) <= ?
        order by as_of_date, model_version, realised.rowid
        """,
        [score.name, score.kind, version, newest],
    )
    dates: dict[tuple[date, int], RealisedDate] = {}
    for row in found:
        key = (row["as_of_date"], row["model_version"])
        if key not in dates:
            of_date = {name: row[name] for name in RealisedDate.__struct_fields__ if name in row}
            dates[key] = RealisedDate(**of_date, drifted=None, metrics=[])
        dates[key].metrics.append(RealisedMetric(**{name: row[name] for name in RealisedMetric.__struct_fields__}))
    return list(dates.values())


def served_versions(connection: Connection, score: Score) -> dict[date, int]:
    """As-of date -> the version that was champion when the date was first scored, where that can be told."""
    promotions = versions.promotions(connection, score)
    first = connection.execute(
        "select as_of_date, min(scored_at) from ml.scored_dates where score = ? group by 1", [score.name]
    ).fetchall()
    served = {}
    for day, scored_at in first:
        before = [one["version"] for one in promotions if one["promoted_at"] <= scored_at]
        if before:
            served[day] = before[-1]
    return served
