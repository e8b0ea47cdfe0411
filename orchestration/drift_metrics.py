"""Measures how far the customers that a score scores are from those its model learned from: every row, every column.

Table `monitoring.drift_metrics`: a row per score × model version × as-of date × column × reference × segment. The
references are the rows that the version learned from, fixed with it, and the newest as-of date before on which the
column had not drifted. Of the score and its bands the reference is what the version said of its held-out dates, as it
is too sure of what it learned from.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from ml.declarations import Score
from ml.encoding import Column
from ml.slices import MOST_VALUES
from orchestration import drift_tables, versions, warehouse
from orchestration.distributions import SAMPLED, Counted, Segments, count, learn_bins, sampled
from orchestration.drift_tables import HELD_OUT, SCORED, TRAINED
from orchestration.model_files import load_card, load_model
from orchestration.project import Paths
from orchestration.training import SEED
from orchestration.training_sets import ScoringError, training_set_file
from orchestration.warehouse import Connection
from reports.comparing import Beside, Reference, State, compare_date, is_beyond, reference_of
from reports.distances import Bins, Distribution

if TYPE_CHECKING:
    from ml.registry import Card

# What the score and its bands are called beside the features, of which one may be called "score".
PREDICTION, BAND = "the score", "the band"
RECIPE = "1"  # another one, and all is counted again
LOOKED_BACK = timedelta(days=400)  # of earlier dates that a date may be compared with


def measure_drift(connection: Connection, score: Score, champion: dict[str, Any], where: Paths) -> list[date]:
    """Measures the as-of dates that a champion has scored anew since they were measured; gives them, and those that
    were withdrawn.

    Each date is compared with those before it, so the later ones are compared again too. What was withdrawn of the
    predictions is withdrawn here. Raises `ScoringError` if the rows that the version learned from are needed, as it was
    never measured before, and are lost.
    """
    version = champion["version"]
    drift_tables.create_tables(connection)
    card = load_card(where, score, version)
    scored = versions.scored_dates(connection, score, version)
    if not scored:
        return []
    reference, segments = _reference(connection, score, champion, card, sorted(scored), where)
    mark = f"{RECIPE} {score.alerts.effect} {score.alerts.rows}"
    known = drift_tables.counted(connection, score, version)
    due = sorted(day for day in scored if known.get(day) != f"{scored[day]} {mark}")
    gone = sorted(known.keys() - scored.keys())
    if not due and not gone:
        return []
    with warehouse.transaction(connection):
        drift_tables.forget_distributions(connection, score, version, SCORED, [*due, *gone])
        if due:
            bins = list(reference.bins.values())
            rows = scored_rows(score, version, [*reference.bins, *(one.column for one in segments)], due)
            counted = count(connection, rows, "as_of_date", bins, segments)
            made_from = {day: f"{scored[day]} {mark}" for day in due}
            drift_tables.keep_distributions(connection, score, version, SCORED, counted, made_from)
        _compare_from(connection, score, version, card, reference, min([*due, *gone]))
    return sorted([*due, *gone])


def _reference(
    connection: Connection,
    score: Score,
    champion: Mapping[str, Any],
    card: "Card",
    scored: Sequence[date],
    where: Paths,
) -> tuple[Reference, list[Segments]]:
    """What a version is compared with, counted once, and by which parts of the customers."""
    version = champion["version"]
    declared = score.alerts.segments
    kept = [name for name in card.importance if _is_segment(card, name)][:1] if declared is None else declared
    learned = f"{champion['training_set']} {champion['train_from']} {champion['train_to']} {champion['holdout_from']}"
    held_out_dates = [day for day in scored if champion["holdout_from"] <= day <= champion["holdout_to"]] or scored[:1]
    of = f"{RECIPE} {learned} {', '.join(kept)} {', '.join(map(str, held_out_dates))}"
    bins, made_from = drift_tables.bins_of(connection, score, version)
    trained = drift_tables.distributions(connection, score, version, TRAINED)
    if made_from != of or not trained:
        bins = _count_reference(connection, score, champion, card, held_out_dates, kept, of, where)
        trained = drift_tables.distributions(connection, score, version, TRAINED)
    dates: dict[str, dict[date, Distribution]] = {}
    held_out: dict[str, dict[date, Distribution]] = {}
    of_segments, values = {}, {name: set[str]() for name in kept}
    for one in drift_tables.distributions(connection, score, version, HELD_OUT):
        held_out.setdefault(one.column, {})[one.key] = one.distribution
    for one in trained:
        if one.segment_column is None or one.segment is None:
            dates.setdefault(one.column, {})[one.key] = one.distribution
        else:
            of_segments[one.column, one.segment_column, one.segment] = one.distribution
            values[one.segment_column].add(one.segment)
    # None of a column that the version's rows lack, as it came later.
    segments = [Segments(name, tuple(sorted(values[name]))) for name in kept if values[name]]
    return reference_of(bins, dates, of_segments, held_out), segments


def _is_segment(card: "Card", name: str) -> bool:
    column = next(column for column in card.encoder.columns if column.name == name)
    return column.type == "category" and 2 <= len(column.categories) <= MOST_VALUES


def _count_reference(
    connection: Connection,
    score: Score,
    champion: Mapping[str, Any],
    card: "Card",
    held_out: Sequence[date],
    segment_columns: Sequence[str],
    of: str,
    where: Paths,
) -> list[Bins]:
    """Counts the rows that a version learned from, and what it said of its held-out dates; gives the bins."""
    version = champion["version"]
    rows = trained_rows(connection, score, champion, where)
    as_of, keys = warehouse.name(score.as_of), warehouse.names([*score.entity, score.as_of])
    there = connection.sql(rows).columns
    learned = {column.name: column.categories for column in card.encoder.columns}
    segments = [
        # Of a column that nobody has named, the values that the model knows: there may be very many rare ones besides.
        Segments(name, learned[name]) if score.alerts.segments is None else _values(connection, score, name, rows)
        for name in segment_columns
        if name in there
    ]
    bins = learn_bins(connection, rows, card.encoder.columns, f"{keys}, {SEED}")
    trained = count(connection, rows, f"{as_of}::date", bins, segments, each=False)
    said = scored_rows(score, version, [], held_out)
    bands = tuple(sorted(card.classes or score.bands))
    of_score = learn_bins(
        connection,
        said,
        [Column(PREDICTION, "number"), Column(BAND, "category", bands)],
        f"as_of_date, {warehouse.names(score.entity)}, {SEED}",
    )
    drawn = sampled(connection, rows, f"{keys}, {SEED}", SAMPLED)
    with _said_again(connection, score, version, drawn, where) as training:
        trained += count(connection, training, "as_of_date", of_score)
    with warehouse.transaction(connection):
        for part, counted in ((TRAINED, trained), (HELD_OUT, count(connection, said, "as_of_date", of_score))):
            drift_tables.forget_distributions(connection, score, version, part)
            drift_tables.keep_distributions(connection, score, version, part, counted, {})
        # What was scored was counted beside another reference. Were it forgotten later, a run that is stopped before
        # would leave it beside this one for good.
        drift_tables.forget_distributions(connection, score, version, SCORED)
        drift_tables.keep_bins(connection, score, version, [*bins, *of_score], of)
    return [*bins, *of_score]


def trained_rows(connection: Connection, score: Score, champion: Mapping[str, Any], where: Paths) -> str:
    """SQL of the rows that a version learned from. Raises `ScoringError` if its training set is lost."""
    file = training_set_file(where.training_sets, score, champion["training_set"])
    if warehouse.frozen_rows(connection, file) is None:
        raise ScoringError(
            f"score '{score.name}': {file}, from which version {champion['version']} has learned, is missing or"
            " damaged, so its drift can't be told; bring a copy back. The next champion has a training set of its own"
        )
    as_of = warehouse.name(score.as_of)
    return f"""
        select * from read_parquet({warehouse.literal(str(file))})
        where {as_of}::date between date '{champion["train_from"]}' and date '{champion["train_to"]}'
            and matures_on::date <= date '{champion["holdout_from"]}'
    """


@contextmanager
def _said_again(connection: Connection, score: Score, version: int, rows: str, where: Paths) -> Iterator[str]:
    """SQL of what a version says of some of the rows that it learned from, as `scored_rows` gives it.

    It is too sure of them, but from date to date that moves as it does on any others.
    """
    import pyarrow as pa

    from ml import prediction

    model = load_model(where, score, version)
    learned = connection.sql(rows).to_arrow_table()
    said = prediction.score_rows(model, learned)
    classes = model.card.classes
    bands = pa.array(classes).take(said.argmax(axis=1)) if classes else prediction.bands_of(said, score.bands)
    told = pa.table(
        {"as_of_date": learned.column(score.as_of), PREDICTION: said.max(axis=1) if classes else said, BAND: bands}
    )
    connection.register("said_again", told)
    try:
        yield "select * replace (as_of_date::date as as_of_date) from said_again"
    finally:
        connection.unregister("said_again")


def _values(connection: Connection, score: Score, name: str, rows: str) -> Segments:
    query = f"select distinct {warehouse.name(name)}::varchar as value from ({rows}) order by 1 limit {MOST_VALUES + 2}"
    found = [value for (value,) in connection.execute(query).fetchall() if value is not None]
    if len(found) > MOST_VALUES:
        raise ScoringError(
            f"score '{score.name}': alerts: segments names '{name}', which has more than {MOST_VALUES} values; name one"
            " that has fewer"
        )
    return Segments(name, tuple(found))


def scored_rows(score: Score, version: int, columns: Iterable[str], days: Sequence[date]) -> str:
    """SQL of what a version has scored at some as-of dates: keys, as_of_date, the score, its band and columns of the
    feature model."""
    same_entity = " and ".join(
        f"predictions.{column} = features.{column}" for column in map(warehouse.name, score.entity)
    )
    asked = dict.fromkeys([*score.entity, *(name for name in columns if name not in (PREDICTION, BAND))])
    listed = ", ".join(f"date '{day}'" for day in days)
    as_of = warehouse.name(score.as_of)
    return f"""
        select
            predictions.as_of_date::date as as_of_date,
            predictions.score as {warehouse.name(PREDICTION)}, predictions.band as {warehouse.name(BAND)},
            {warehouse.names(list(asked), "features")}
        from {warehouse.name(score.features_schema, score.features)} as features
        inner join {warehouse.name("predictions", score.name)} as predictions
            on predictions.as_of_date = features.{as_of} and {same_entity}
        where predictions.model_version = {version} and features.{as_of}::date in ({listed})
    """


def _compare_from(
    connection: Connection, score: Score, version: int, card: "Card", reference: Reference, first: date
) -> None:
    """Compares all that is counted of a version from an as-of date on, in the place of what was told of it."""
    connection.execute(
        "delete from monitoring.drift_metrics where score = ? and model_version = ? and as_of_date >= ?",
        [score.name, version, first],
    )
    counted = drift_tables.distributions(connection, score, version, SCORED, first - LOOKED_BACK)
    states = _states_before(connection, score, version, first, counted)
    of_date: dict[date, dict[str, Distribution]] = {}
    parts: dict[date, dict[str, dict[tuple[str, str], Distribution]]] = {}
    for one in (one for one in counted if one.key >= first):
        if one.segment_column is None or one.segment is None:
            of_date.setdefault(one.key, {})[one.column] = one.distribution
        else:
            of_column = parts.setdefault(one.key, {}).setdefault(one.column, {})
            of_column[one.segment_column, one.segment] = one.distribution
    rows = []
    for day, columns in sorted(of_date.items()):
        for column in compare_date(reference, states, day, columns, parts.get(day, {}), score.alerts):
            which = {
                "score": score.name,
                "model_version": version,
                "as_of_date": day,
                "column_name": column.name,
                "importance": importance_of(card, column.name),
            }
            told = {
                "drifted_since": column.since,
                "fault": column.fault.kind if column.fault else None,
                "told": column.fault.told if column.fault else None,
            }
            rows += [which | told | _row(one, score, column.is_drifted) for one in column.beside]
            rows += [which | dict.fromkeys(told) | _row(one, score, column.is_drifted) for one in column.segments]
    drift_tables.write(connection, "drift_metrics", rows)


def importance_of(card: "Card", column: str) -> float:
    """A column's share of a version's importance, 0 to 1; the score is all of it."""
    return 1.0 if column in (PREDICTION, BAND) else card.importance.get(column, 0.0) / 100


def _row(one: Beside, score: Score, has_drifted: bool) -> dict[str, Any]:
    return {
        "reference": one.against,
        "reference_date": one.day,
        "segment_column": one.segment_column,
        "segment": one.segment,
        "rows": one.current.rows,
        "reference_rows": one.other.rows,
        "null_share": one.current.null_share,
        "reference_null_share": one.other.null_share,
        "mean": one.current.mean,
        "reference_mean": one.other.mean,
        "low": one.current.low,
        "high": one.current.high,
        "new_values": list(one.current.new),
        **msgspec.structs.asdict(one.comparison),
        "is_drifted": has_drifted and is_beyond(one, score.alerts),
    }


def _states_before(
    connection: Connection, score: Score, version: int, first: date, counted: Sequence[Counted]
) -> dict[str, State]:
    """What is known of each column before an as-of date."""
    states: dict[str, State] = {}
    for one in counted:
        if one.segment_column is None and one.key < first:
            states.setdefault(one.column, State()).seen[one.key] = one.distribution
    found = connection.execute(
        """
        select column_name, as_of_date, bool_or(is_drifted), any_value(drifted_since) from monitoring.drift_metrics
        where score = ? and model_version = ? and as_of_date >= ? and as_of_date < ? and segment_column is null
        group by all order by as_of_date
        """,
        [score.name, version, first - LOOKED_BACK, first],
    ).fetchall()
    for name, day, is_drifted, since in found:
        state = states.setdefault(name, State())
        state.in_order, state.since = (state.in_order, since) if is_drifted else (day, None)
    return states
