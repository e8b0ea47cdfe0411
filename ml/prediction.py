"""Scores of rows: the numbers of a booster, and the batch of predictions with bands and reasons to be written down."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ml import explanation
from ml.calibration import Calibration, calibrated
from ml.encoding import EncodingError, encode
from ml.trees import Trees, raw_scores_of_few

if TYPE_CHECKING:
    from catboost import CatBoost
    from numpy.typing import NDArray

    from ml.metrics import Kind
    from ml.registry import Model
    from ml.scores import Score


class Judged(NamedTuple):
    """What is said of rows: their scores (rows,) and the places (rows,) of their bands among the names, -1 for none.

    Of a category the score is the probability of the likeliest class, which is its band, and `by_class` (rows, classes)
    has the probability of each, in the order of the names; of others it is None.
    """

    scores: "NDArray[np.float64]"
    places: "NDArray[np.int64]"
    names: tuple[str, ...]
    by_class: "NDArray[np.float64] | None"

    def bands(self) -> pa.Array:
        return pa.array(self.names, pa.string()).take(pa.array(self.places, pa.int64(), mask=self.places < 0))


def raw_scores(booster: "CatBoost", features: "NDArray[np.float32]") -> "NDArray[np.float64]":
    """What the trees add up to for each row of an encoded matrix (rows, columns).

    (rows,): log-odds of outcome 1, or an amount; of a category (rows, classes), whose softmax are the probabilities.
    By one thread, as who has many rows scores several batches at a time.
    """
    return np.asarray(booster.predict(features, thread_count=1), dtype=np.float64)


def outcomes(
    kind: "Kind", raw: "NDArray[np.float64]", lowest: float | None, calibration: Calibration
) -> "NDArray[np.float64]":
    """The scores that raw scores stand for: calibrated probabilities (rows,), amounts (rows,), of a category the
    probability of each class (rows, classes).

    An amount is raised to `lowest`, which is 0 where no label of the training was negative.
    """
    if kind == "probability":
        return calibrated(calibration, raw)
    if kind == "category":
        from scipy.special import softmax

        # CatBoost lays many rows out class by class, and one row by row: of eight classes or more numpy adds up the one
        # in another order than the other, to other last bits.
        return np.asarray(softmax(np.ascontiguousarray(raw), axis=1), dtype=np.float64)
    return raw if lowest is None else np.maximum(raw, lowest)


def score_rows(model: "Model", rows: "pa.Table | pa.RecordBatch") -> "NDArray[np.float64]":
    """The scores of these rows alone, as `outcomes` gives them. Raises `EncodingError` if they lack a feature."""
    return _scores(model, encode(model.card.encoder, rows))


def _scores(model: "Model", matrix: "NDArray[np.float32]", trees: Trees | None = None) -> "NDArray[np.float64]":
    card = model.card
    if not len(matrix):
        return np.empty((0, len(card.classes)) if card.kind == "category" else 0)
    raw = raw_scores(model.booster, matrix) if trees is None else raw_scores_of_few(trees, matrix)
    return outcomes(card.kind, raw, card.lowest, card.calibration)


def score_batch(model: "Model", score: "Score", rows: pa.RecordBatch, scored_at: datetime) -> pa.RecordBatch:
    """The predictions of these feature rows, in their order; the same numbers whatever the size of the batch.

    Columns: the entity columns as they are; as_of_date, the as-of column as it is; score double; band varchar, null
    below the lowest band; reasons list<struct<feature, value, contribution>>, the strongest first, contributions in
    log-odds of a probability or in the unit of an amount, empty for who is not to be explained; model_version integer;
    scored_at timestamp UTC. Of a category, score is the probability of the likeliest class and band that class, which
    the reasons are of, and there is one more column, probabilities map<varchar, double>. Raises `EncodingError` if a
    key or feature is missing or mistyped, `ValueError` if `scored_at` has no time zone.
    """
    if scored_at.tzinfo is None:
        raise ValueError(f"scored_at is {scored_at}, without a time zone")
    absent = [name for name in (*score.entity, score.as_of) if name not in rows.schema.names]
    if absent:
        raise EncodingError(f"the rows lack their key: {', '.join(absent)}")
    card = model.card
    matrix = encode(card.encoder, rows)
    found = judged(model, matrix, score.bands)
    bands = found.bands()
    likeliest = found.places if card.kind == "category" else None
    more = {} if found.by_class is None else {"probabilities": by_class(card.classes, found.by_class)}
    keys = {name: rows.column(name) for name in score.entity}
    length = rows.num_rows
    return pa.RecordBatch.from_pydict(
        {
            **keys,
            "as_of_date": rows.column(score.as_of),
            "score": pa.array(found.scores, pa.float64()),
            "band": bands,
            "reasons": _reasons(model, score, rows, matrix, bands, likeliest),
            **more,
            "model_version": pa.array(np.full(length, card.version, dtype=np.int32)),
            "scored_at": pa.repeat(pa.scalar(scored_at.astimezone(UTC), pa.timestamp("us", "UTC")), length),
        }
    )


def judged(
    model: "Model", matrix: "NDArray[np.float32]", bands: Mapping[str, float], trees: Trees | None = None
) -> Judged:
    """What is said of the rows of an encoded matrix; `bands` are of no matter to a category.

    The `trees` of the model, if they are given, tell the same; of a few rows sooner than CatBoost.
    """
    scores = _scores(model, matrix, trees)
    if model.card.kind != "category":
        return Judged(scores, *_placed(scores, bands), None)
    likeliest = scores.argmax(axis=1)
    return Judged(scores[np.arange(len(scores)), likeliest], likeliest, model.card.classes, scores)


def by_class(classes: Sequence[str], scores: "NDArray[np.float64]") -> pa.MapArray:
    """Of each row its probabilities (rows, classes) by class."""
    names = pa.array(np.tile(np.arange(len(classes)), len(scores)), pa.int32())
    return pa.MapArray.from_arrays(
        pa.array(np.arange(len(scores) + 1, dtype=np.int32) * len(classes)),
        pa.array(classes, pa.string()).take(names),
        pa.array(scores.ravel(), pa.float64()),
    )


def _reasons(
    model: "Model",
    score: "Score",
    rows: pa.RecordBatch,
    matrix: "NDArray[np.float32]",
    bands: pa.Array,
    likeliest: "NDArray[np.int64] | None",
) -> pa.Array:
    told = score.explained
    who = None
    if told.bands is not None:
        who = pc.is_in(bands, value_set=pa.array(told.bands, pa.string())).to_numpy(zero_copy_only=False)
        if told.sample:
            who |= _drawn([rows.column(name) for name in score.entity], told.sample)
    if not told.top or not rows.num_rows or (who is not None and not who.any()):
        return explanation.no_reasons(rows.num_rows)
    return explanation.reasons(model.leaf_table, model.card.encoder, rows, matrix, told.top, likeliest, who)


def _drawn(keys: Sequence[pa.Array], share: float) -> "NDArray[np.bool_]":
    """Whether each row's customer is in a sample of this share: by a hash of the key as text, so the same always."""
    from pandas.util import hash_array

    parts = [map(str, key.to_pylist()) for key in keys]
    ids = np.array([",".join(key) for key in zip(*parts, strict=True)], dtype=object)
    return np.asarray(hash_array(ids, categorize=False) < share * 2.0**64)


def bands_of(scores: "NDArray[Any]", bands: Mapping[str, float]) -> pa.Array:
    """For each score the highest band that starts at or below it; null below the lowest, or without bands."""
    return Judged(scores, *_placed(scores, bands), None).bands()


def _placed(scores: "NDArray[Any]", bands: Mapping[str, float]) -> "tuple[NDArray[np.int64], tuple[str, ...]]":
    """The place of each score's band among the names, which are the lowest first; -1 for none."""
    lowest_first = sorted(bands, key=lambda name: bands[name])
    return np.searchsorted([bands[name] for name in lowest_first], scores, side="right") - 1, tuple(lowest_first)
