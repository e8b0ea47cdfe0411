"""Measures what predictions were worth once their labels have matured, beside what was promised, estimated, and said by
the naive forecast: tables `monitoring.realised_performance` and `monitoring.realised_gains`.

A score's versions are measured on the as-of dates after their held-out ones, each date once, and again when its
predictions or labels have changed. On held-out dates the metric is the promise itself.
"""

import json
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from ml.baseline import naive_forecast
from ml.declarations import Score
from ml.encoding import column_type
from ml.gains import Gain, gains
from ml.gate import sliced_columns
from ml.realised import Promise, RealisedDate, RealisedMetric, RealisedSlice, realised_metrics, realised_slices
from orchestration import versions, warehouse
from orchestration.estimating import estimate, estimates_of
from orchestration.model_files import card_of
from orchestration.outcomes import SAMPLED, Outcomes, outcomes_of, read_outcomes
from orchestration.performance_tables import GAINS, REALISED, create_tables, replace_date, withdraw
from orchestration.project import Paths
from orchestration.training import SEED
from orchestration.training_sets import ScoringError
from orchestration.warehouse import Connection

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ml.registry import Card

# What else decides a measurement: another text, and all dates are measured again.
RECIPE = f"2 {SAMPLED} {SEED}"


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A date measured: all its customers, slices of them, and what the highest scores held."""

    date: RealisedDate
    slices: list[RealisedSlice]
    gains: list[Gain]


def measure(connection: Connection, score: Score, today: date, where: Paths) -> list[tuple[int, date]]:
    """Measures what is due of a score; gives the versions and as-of dates that were measured now.

    Each date is replaced whole, and is estimated before. What was withdrawn of the predictions is withdrawn here too. A
    version whose card is damaged, of a category, waits until it is back. Raises `ScoringError` naming version and date
    if labels are such that nothing can be measured.
    """
    create_tables(connection)
    estimate(connection, score, where)
    for table in (REALISED, GAINS):
        withdraw(connection, table, score)
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
    _value(connection, score)
    return measured


def _value(connection: Connection, score: Score) -> None:
    """What the gains of all dates are worth by what is declared now: it may have changed since they were measured."""
    contact = score.contact
    per_contact = f"rate * {contact.value!r} - {contact.cost!r}" if contact else "null::double"
    connection.execute(
        f"""
        update {GAINS} set value_per_contact = {per_contact}, value_total = customers * ({per_contact})
        where score = ? and value_per_contact is distinct from {per_contact}
        """,
        [score.name],
    )


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
                versions.version, versions.metrics, versions.baseline_metrics, versions.holdout_rows, dates.as_of_date,
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
            select (model_version, as_of_date, made_from) from {REALISED} where score = ?
        )
        order by version, as_of_date
        """,
        [score.name, score.kind, today, score.name],
    )


def _measured(
    connection: Connection, score: Score, row: dict[str, Any], card: "Card | None", served: int | None
) -> Measured | None:
    """A date measured; None if nobody who was scored has a label."""
    version, day = row["version"], row["as_of_date"]
    (rows,) = warehouse.one(connection, outcomes_of(score, version, day, "count(*)"))
    if not rows:
        return None
    by, naive = _columns(connection, score, card)
    read = list(dict.fromkeys([*by, *([naive] if naive else [])]))
    came = read_outcomes(connection, score, version, day, card.classes if card else (), read, SAMPLED, SEED)
    promise = Promise(
        metrics=json.loads(row["metrics"]),
        intervals=card.intervals if card else {},
        rows=row["holdout_rows"],
        baseline=json.loads(row["baseline_metrics"]),
    )
    held_out = card.evaluation.slices if card and card.evaluation else ()
    try:
        said = _said(card, came, naive)
        metrics = realised_metrics(score.kind, came.label, came.score, promise, SEED, said)
        known = [name for name in by if name in came.features.column_names]
        slices = realised_slices(score.kind, came.features, came.label, came.score, held_out, known, SEED, said)
    except ValueError as error:
        raise ScoringError(
            f"score '{score.name}': what version {version} said for {day} can't be measured by its labels in"
            f" {score.label_schema}.{score.label}: {error}"
        ) from None
    is_category = score.kind == "category"
    estimated = estimates_of(connection, score, version, day)
    found = RealisedDate(
        as_of_date=day,
        model_version=version,
        served_version=served,
        rows=rows,
        sampled=len(came.label),
        label_rate=None if is_category else float(came.label.mean()),
        mean_score=float((came.score.max(axis=1) if is_category else came.score).mean()),
        drifted=None,
        metrics=[msgspec.structs.replace(one, estimated=estimated.get(one.metric)) for one in metrics],
    )
    curve = [] if is_category else gains(came.label, came.score, rows)
    return Measured(date=found, slices=slices, gains=curve)


def _columns(connection: Connection, score: Score, card: "Card | None") -> tuple[list[str], str | None]:
    """The columns that make slices, and the one that the naive forecast reads, if it reads any: where the table of
    features has them still.

    Slices are made by the columns of the gate, and by those of the held-out slices on the card, apart from its dates.
    """
    there = warehouse.columns(connection, score.features_schema, score.features)
    held_out = card.evaluation.slices if card and card.evaluation else ()
    asked = dict.fromkeys([*sliced_columns(score.gate), *(one.column for one in held_out if one.column != score.as_of)])
    feature = card.naive.feature if card and card.naive else None
    return [name for name in asked if name in there], feature if feature in there else None


def _said(card: "Card | None", came: Outcomes, feature: str | None) -> "NDArray[np.float64] | None":
    """What the naive forecast says of a date; None if it was not kept, or what it reads is gone."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    naive = card.naive if card else None
    if naive is None or naive.feature != feature:
        return None
    if feature is None:
        return naive_forecast(naive, np.zeros(len(came.label), dtype=np.float32))
    if feature not in came.features.column_names or column_type(came.features.schema.field(feature).type) != "number":
        return None
    values = pc.fill_null(came.features.column(feature).cast(pa.float64(), safe=False), np.nan)
    return naive_forecast(naive, values.to_numpy().astype(np.float32))


def _record(connection: Connection, score: Score, found: Measured, made_from: str) -> None:
    one = found.date
    of_date = {name: getattr(one, name) for name in ("served_version", "label_rate", "mean_score")}
    of_date |= {"made_from": made_from, "measured_at": datetime.now(UTC)}
    whole = {"slice_column": None, "slice_value": None, "rows": one.rows, "sampled": one.sampled}
    rows = [of_date | whole | msgspec.structs.asdict(metric) for metric in one.metrics]
    for part in found.slices:
        # Neither the mean label nor the mean score of a date is that of its slice.
        nothing = {"label_rate": None, "mean_score": None}
        of_slice = {"slice_column": part.column, "slice_value": part.value, "rows": part.rows, "sampled": part.rows}
        rows += [of_date | nothing | of_slice | msgspec.structs.asdict(metric) for metric in part.metrics]
    with warehouse.transaction(connection):
        replace_date(connection, REALISED, score, one.model_version, one.as_of_date, rows)
        curve = [msgspec.structs.asdict(gain) for gain in found.gains]
        replace_date(connection, GAINS, score, one.model_version, one.as_of_date, curve)


def realised_dates(connection: Connection, score: Score, newest: int, version: int | None = None) -> list[RealisedDate]:
    """What has been measured of the newest as-of dates, the oldest first; of a date a version after the other, or one
    version alone."""
    create_tables(connection)
    found = warehouse.rows(
        connection,
        f"""
        select realised.* from {REALISED} as realised
        inner join ml.model_versions as versions
            on versions.score = realised.score and versions.version = realised.model_version
        where realised.score = ? and versions.kind = ? and slice_column is null
            and realised.model_version = coalesce(?, realised.model_version)
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
        dates[key].metrics.append(_metric(row))
    return list(dates.values())


def _metric(row: dict[str, Any]) -> RealisedMetric:
    return RealisedMetric(**{name: row[name] for name in RealisedMetric.__struct_fields__})


def slices_and_gains(
    connection: Connection, score: Score, version: int, day: date
) -> tuple[list[RealisedSlice], list[Gain]]:
    """What has been measured of a version's date in slices, and what its highest scores held."""
    of_date = [score.name, version, day]
    query = "where score = ? and model_version = ? and as_of_date = ?"
    found = warehouse.rows(connection, f"from {REALISED} {query} and slice_column is not null order by rowid", of_date)
    slices: dict[tuple[str, str], RealisedSlice] = {}
    for row in found:
        column, value = row["slice_column"], row["slice_value"]
        if (column, value) not in slices:
            slices[column, value] = RealisedSlice(column=column, value=value, rows=row["rows"], metrics=[])
        slices[column, value].metrics.append(_metric(row))
    curve = warehouse.rows(connection, f"from {GAINS} {query} order by share", of_date)
    fields = Gain.__struct_fields__
    return list(slices.values()), [Gain(**{name: row[name] for name in fields}) for row in curve]


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
