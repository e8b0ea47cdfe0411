"""Scores of rows: the numbers of a booster, and the batch of predictions with bands and reasons to be written down."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ml import explanation
from ml.encoding import EncodingError, encode

if TYPE_CHECKING:
    from catboost import CatBoost
    from numpy.typing import NDArray

    from ml.declarations import Kind, Score
    from ml.registry import Model


def predict(
    booster: "CatBoost", kind: "Kind", features: "NDArray[np.float32]", lowest: float | None
) -> "NDArray[np.float64]":
    """The scores (rows,) of an encoded matrix (rows, columns): the probability of outcome 1, or the amount.

    An amount is raised to `lowest`, which is 0 where no label of the training was negative.
    """
    if not len(features):
        return np.empty(0)
    if kind == "probability":
        return np.asarray(booster.predict(features, prediction_type="Probability")[:, 1], dtype=np.float64)
    amounts = np.asarray(booster.predict(features), dtype=np.float64)
    return amounts if lowest is None else np.maximum(amounts, lowest)


def score_rows(model: "Model", rows: "pa.Table | pa.RecordBatch") -> "NDArray[np.float64]":
    """The scores (rows,) of these rows alone, without reasons. Raises `EncodingError` if they lack a feature."""
    card = model.card
    return predict(model.booster, card.kind, encode(card.encoder, rows), card.lowest)


def score_batch(
    model: "Model", score: "Score", rows: pa.RecordBatch, scored_at: datetime, reasons: int = 3
) -> pa.RecordBatch:
    """The predictions of these feature rows, in their order; the same numbers whatever the size of the batch.

    Columns: the entity columns as they are; as_of_date, the as-of column as it is; score double; band varchar, null
    below the lowest band; reasons list<struct<feature, value, contribution>>, the strongest first, contributions in
    log-odds of a probability or in the unit of an amount; model_version integer; scored_at timestamp UTC. Raises
    `EncodingError` if a key or feature is missing or mistyped, `ValueError` if `scored_at` has no time zone.
    """
    if scored_at.tzinfo is None:
        raise ValueError(f"scored_at is {scored_at}, without a time zone")
    absent = [name for name in (*score.entity, score.as_of) if name not in rows.schema.names]
    if absent:
        raise EncodingError(f"the rows lack their key: {', '.join(absent)}")
    card = model.card
    matrix = encode(card.encoder, rows)
    scores = predict(model.booster, card.kind, matrix, card.lowest)
    keys = {name: rows.column(name) for name in score.entity}
    length = rows.num_rows
    return pa.RecordBatch.from_pydict(
        {
            **keys,
            "as_of_date": rows.column(score.as_of),
            "score": pa.array(scores, pa.float64()),
            "band": bands_of(scores, score.bands),
            "reasons": _reasons(model, rows, matrix, reasons),
            "model_version": pa.array(np.full(length, card.version, dtype=np.int32)),
            "scored_at": pa.repeat(pa.scalar(scored_at.astimezone(UTC), pa.timestamp("us", "UTC")), length),
        }
    )


def _reasons(model: "Model", rows: pa.RecordBatch, matrix: "NDArray[np.float32]", most: int) -> pa.Array:
    if most <= 0:
        return pa.nulls(rows.num_rows, pa.list_(explanation.REASON))
    return explanation.reasons(model.booster, model.card.encoder, rows, matrix, most)


def bands_of(scores: "NDArray[Any]", bands: Mapping[str, float]) -> pa.Array:
    """For each score the highest band that starts at or below it; null below the lowest, or without bands."""
    lowest_first = sorted(bands, key=lambda name: bands[name])
    place = np.searchsorted([bands[name] for name in lowest_first], scores, side="right") - 1
    return pa.array(lowest_first, pa.string()).take(pa.array(place, pa.int64(), mask=place < 0))
