"""Reads what a version said of an as-of date, what came of it, and what was known of the customers on that day."""

from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING

import msgspec

from ml.declarations import Score
from orchestration import warehouse
from orchestration.warehouse import Connection

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

# Rows of a date that are measured at most, drawn by a hash of the entity: their errors are told, and are small.
SAMPLED = 200_000


class Outcomes(msgspec.Struct, frozen=True, kw_only=True):
    """A date's labels and scores as `evaluate` takes them (of a category the places of classes, -1 for one that the
    version does not know, and their probabilities), and columns of the feature model, of the same rows."""

    label: "NDArray[np.float64]"
    score: "NDArray[np.float64]"
    features: "pa.Table"


def predictions_of(score: Score, version: int, day: date, columns: str) -> str:
    """SQL of these columns of a version's predictions for an as-of date."""
    return f"""
        select {columns} from {warehouse.name("predictions", score.name)} as predictions
        where predictions.model_version = {version} and predictions.as_of_date::date = date '{day}'
    """


def outcomes_of(score: Score, version: int, day: date, columns: str, with_features: bool = False) -> str:
    """SQL of these columns of a version's predictions for an as-of date beside their labels, and if asked beside the
    features of that date, where there are any."""
    features = f"""
        left join {warehouse.name(score.features_schema, score.features)} as features
            on features.{warehouse.name(score.as_of)} = predictions.as_of_date and {_same_entity(score, "features")}
    """
    return f"""
        select {columns} from {warehouse.name("predictions", score.name)} as predictions
        inner join {warehouse.name(score.label_schema, score.label)} as labels
            on labels.{warehouse.name(score.as_of)} = predictions.as_of_date and {_same_entity(score, "labels")}
        {features if with_features else ""}
        where predictions.model_version = {version} and predictions.as_of_date::date = date '{day}'
            and labels.label is not null
    """


def _same_entity(score: Score, table: str) -> str:
    return " and ".join(f"{table}.{column} = predictions.{column}" for column in map(warehouse.name, score.entity))


def read_outcomes(
    connection: Connection,
    score: Score,
    version: int,
    day: date,
    classes: Sequence[str],
    features: Sequence[str],
    most: int,
    seed: int,
) -> Outcomes:
    """At most so many outcomes of a date, always the same, with these columns of the feature model; without any if it
    has no row of that date any more, as all customers would have nulls then."""
    label = "labels.label::double"
    if score.kind == "category":
        label = f"coalesce(list_position({warehouse.literal(classes)}, labels.label::varchar), 0)::double - 1"
    scores = _scores(score, classes)
    columns = [label, *scores, *(f"features.{warehouse.name(name)}" for name in features)]
    if features:
        columns.append(f"features.{warehouse.name(score.as_of)} is not null")
    named = ", ".join(f"{column} as c{place}" for place, column in enumerate(columns))
    query = outcomes_of(score, version, day, named, with_features=bool(features))
    found = connection.sql(f"{query} {_drawn(score, most, seed)}").to_arrow_table()
    known = list(features) if features and any(found.column(len(columns) - 1).to_pylist()) else []
    first = 1 + len(scores)
    return Outcomes(
        label=found.column(0).to_numpy(),
        score=_matrix(score, found.select(range(1, first))),
        features=found.select(range(first, first + len(known))).rename_columns(known),
    )


def read_scores(
    connection: Connection, score: Score, version: int, day: date, classes: Sequence[str], most: int, seed: int
) -> "NDArray[np.float64]":
    """At most so many scores of a date, always the same, as `evaluate` takes them."""
    named = ", ".join(f"{column} as c{place}" for place, column in enumerate(_scores(score, classes)))
    query = predictions_of(score, version, day, named)
    return _matrix(score, connection.sql(f"{query} {_drawn(score, most, seed)}").to_arrow_table())


def _scores(score: Score, classes: Sequence[str]) -> list[str]:
    if score.kind != "category":
        return ["predictions.score::double"]
    return [f"coalesce(predictions.probabilities[{warehouse.literal(name)}], 0)::double" for name in classes]


def _drawn(score: Score, most: int, seed: int) -> str:
    entity = warehouse.names(score.entity, "predictions")
    return f"order by hash({entity}, {seed}), {entity} limit {most}"


def _matrix(score: Score, columns: "pa.Table") -> "NDArray[np.float64]":
    import numpy as np

    found = [np.asarray(column.to_numpy(), dtype=np.float64) for column in columns.columns]
    return np.column_stack(found) if score.kind == "category" else found[0]
