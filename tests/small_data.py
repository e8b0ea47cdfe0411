"""A shop's customers, week by week, and the score of who leaves it: the smallest rows that a model learns from."""

from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import Any

import duckdb
import msgspec
import numpy as np
import pyarrow as pa
from catboost import CatBoost, Pool

from ml import registry
from ml.cards import make_card
from ml.declarations import Feature, Kind, Score
from ml.encoding import encode
from ml.fitting import PARAMS
from ml.registry import Model
from ml.training import Candidate, train
from orchestration import versions
from orchestration.project import Paths

FIRST_DAY = date(2024, 1, 1)
DAYS_TO_MATURE = 14
TRAINED_AT = datetime(2024, 5, 1, 6, 30, tzinfo=UTC)
COLOURS = ("blue", "green", "red")
TYPES: dict[str, pa.DataType] = {
    "days_away": pa.int32(),
    "spend": pa.float64(),
    "member": pa.bool_(),
    "colour": pa.string(),
    "joined_on": pa.date32(),
    "seen_at": pa.timestamp("us", "UTC"),
}


def a_score(kind: Kind = "probability", **changes: Any) -> Score:
    """The declaration of the score, which reads `some_rows` of the same kind."""
    declared: dict[str, Any] = {
        "name": "leaving",
        "title": "Leaving",
        "description": "Leaves within two weeks.",
        "owner": "Shop",
        "email": "shop@example.com",
        "kind": kind,
        "features": "customer_features",
        "features_schema": "features",
        "features_id": "model.shop.customer_features",
        "label": "customer_left",
        "label_schema": "labels",
        "label_id": "model.shop.customer_left",
        "entity": ("customer_id",),
        "as_of": "week",
        "columns": tuple(Feature(name=name, data_type=str(kept), description="") for name, kept in TYPES.items()),
        "gate": ("true",),
        "bands": {"high": 0.6, "low": 0.1},
        "fresh_for_days": 8.0,
    }
    told = declared | changes
    return Score(**{"model_columns": told["columns"], "features_file": "models/features.yml", **told})


def a_score_of(*features: str, kind: Kind = "probability") -> Score:
    """The same score of these features alone."""
    return a_score(kind, columns=tuple(Feature(name=name, data_type="", description="") for name in features))


def some_rows(weeks: int = 16, customers: int = 20, kind: Kind = "probability", seed: int = 7) -> pa.Table:
    """A row per customer × week. Who has been away for long leaves, or brings in the less, with some noise."""
    random = np.random.default_rng(seed)
    length = weeks * customers
    week = [FIRST_DAY + timedelta(weeks=number) for number in range(weeks) for _ in range(customers)]
    away = random.integers(0, 60, length)
    spend = np.round(random.gamma(2, 20, length), 2)
    left = (away + random.normal(0, 12, length) > 35).astype(int)
    amount = np.round(np.maximum(0, 90 - 2 * away + 0.2 * spend + random.normal(0, 5, length)), 2)
    mood = away + spend + np.random.default_rng(seed + 1).normal(0, 6, length)
    moods = np.array(["keen", "wary", "lost"])[np.digitize(mood, [45, 85])]
    labels = {"probability": left, "amount": amount, "category": moods}
    features = {
        "days_away": [None if number % 11 == 0 else int(days) for number, days in enumerate(away)],
        "spend": [None if number % 7 == 0 else float(dollars) for number, dollars in enumerate(spend)],
        "member": [None if number % 13 == 0 else bool(days % 2) for number, days in enumerate(away)],
        "colour": [None if number % 17 == 0 else str(random.choice(COLOURS)) for number in range(length)],
        "joined_on": [FIRST_DAY - timedelta(days=int(days)) for days in random.integers(1, 900, length)],
        "seen_at": [
            datetime(day.year, day.month, day.day, 17, 30, tzinfo=UTC) - timedelta(days=int(days))
            for day, days in zip(week, away, strict=True)
        ],
    }
    return pa.table(
        {
            "customer_id": pa.array(list(range(customers)) * weeks, pa.int64()),
            "week": pa.array(week, pa.date32()),
            **{name: pa.array(values, TYPES[name]) for name, values in features.items()},
            "label": pa.array(labels[kind]),
            "matures_on": pa.array([day + timedelta(days=DAYS_TO_MATURE) for day in week], pa.date32()),
        }
    )


def with_column(rows: pa.Table, name: str, values: Any) -> pa.Table:
    """The rows with this column added, or in place of the one of that name."""
    column = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
    place = rows.schema.get_field_index(name)
    return rows.append_column(name, column) if place < 0 else rows.set_column(place, name, column)


@cache
def a_candidate(kind: Kind = "probability") -> Candidate:
    return train(some_rows(kind=kind), a_score(kind))


def a_model(kind: Kind = "probability", **changes: Any) -> Model:
    """Version 3 of the score, with the card changed as asked."""
    candidate = a_candidate(kind)
    card = make_card(
        candidate, a_score(kind), version=3, training_set="f" * 64, trained_at=TRAINED_AT, trained_on=TRAINED_AT.date()
    )
    return Model(candidate.booster, msgspec.structs.replace(card, **changes))


CLASSES = ("later", "never", "soon")


@cache
def a_model_of_classes() -> Model:
    """Version 3 of a score of kind category: when a customer comes back, by how long they have been away."""
    rows, like = some_rows(), a_model()
    away = rows.column("days_away").to_numpy()
    label = np.where(away > 40, 1, np.where(away > 20, 0, 2))  # places of the classes; where it is not known, soon
    booster = CatBoost(PARAMS | {"loss_function": "MultiClass", "iterations": 30})
    booster.fit(Pool(encode(like.card.encoder, rows), label, feature_names=list(like.card.encoder.names)))
    return Model(booster, msgspec.structs.replace(like.card, kind="category", classes=CLASSES))


def a_warehouse(connection: duckdb.DuckDBPyConnection, where: Paths, score: Score, customer_id: str, rows: int) -> None:
    """A champion, version 3, and the features of this many customers at 2024-05-06, of which it has scored none.

    `customer_id` is SQL of a customer's id, from their number `n`.
    """
    model = a_model_of_classes() if score.kind == "category" else a_model()
    card = registry.save(where.models / score.name / "3", model.booster, model.card)
    versions.create_tables(connection)
    versions.record_version(connection, card, "engine")
    versions.record_gate(connection, score, 3, [])
    connection.execute(
        f"""
        create schema features;
        create table features.{score.features} as select
            {customer_id} as customer_id, date '2024-05-06' as {score.as_of}, (n % 60)::integer as days_away,
            case when n % 7 > 0 then n / 4 end as spend, n % 2 = 0 as member, 'red' as colour,
            date '2024-01-01' - (n % 900)::integer as joined_on,
            timestamptz '2024-05-05 17:30+00' - n * interval 1 minute as seen_at
        from range({rows}) as numbers (n)
        """
    )


def another_version(
    connection: duckdb.DuckDBPyConnection, where: Paths, score: Score, version: int, seed: int = 8, **changes: Any
) -> None:
    """A later version of the score, of other rows, on disk and in the warehouse, which no gate has judged."""
    candidate = train(some_rows(seed=seed), a_score())
    card = make_card(candidate, score, version=version, training_set="e" * 64, trained_at=TRAINED_AT)
    changes = {"champion": a_model().card.metrics, "champion_version": 3, "trigger": "new labels", **changes}
    card = msgspec.structs.replace(card, **changes)
    saved = registry.save(where.models / score.name / str(version), candidate.booster, card)
    versions.record_version(connection, saved, "engine")
