"""Why a row scores as it does: the features that moved its score most, signed and exact (SHAP values)."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ml.encoding import column_type

if TYPE_CHECKING:
    from catboost import CatBoost
    from numpy.typing import NDArray

    from ml.encoding import Encoder

REASON = pa.struct([("feature", pa.string()), ("value", pa.string()), ("contribution", pa.float64())])
SIGNIFICANT_DIGITS = 6


def contributions(booster: "CatBoost", features: "NDArray[np.float32]") -> "tuple[NDArray[np.float64], float]":
    """What each feature adds to each row's raw score, (rows, columns), and what the raw score is without any.

    A row's contributions and the expected score sum to its raw score: log-odds of a probability, or the amount itself.
    Exact (Lundberg, Erion and Lee 2018, arXiv:1802.03888, as CatBoost's ShapValues), and the same in any batch.
    """
    from catboost import Pool

    if not len(features):
        return np.empty((0, features.shape[1])), 0.0
    pool = Pool(features, feature_names=booster.feature_names_)
    values = np.asarray(booster.get_feature_importance(pool, type="ShapValues"), dtype=np.float64)
    return values[:, :-1], float(values[0, -1])


def reasons(
    booster: "CatBoost",
    encoder: "Encoder",
    rows: "pa.Table | pa.RecordBatch",
    features: "NDArray[np.float32]",
    most: int,
) -> pa.ListArray:
    """For each row its reasons, list<struct<feature, value, contribution>>: at most `most`, the strongest first.

    `value` is the feature's value in this row as text, null where it is null. A feature that moved nothing is no
    reason.
    """
    added, _ = contributions(booster, features)
    strongest = np.argsort(-np.abs(added), axis=1, kind="stable")[:, :most]
    sizes = np.take_along_axis(added, strongest, axis=1)
    counts = (sizes != 0).sum(axis=1)  # zeros are the weakest, so they are last
    kept = np.flatnonzero(sizes.ravel() != 0)
    row, feature = kept // max(1, strongest.shape[1]), strongest.ravel()[kept]
    struct = pa.StructArray.from_arrays(
        [
            pa.array(encoder.names, pa.string()).take(pa.array(feature)),
            _values(encoder, rows, row, feature),
            pa.array(sizes.ravel()[kept], pa.float64()),
        ],
        fields=list(REASON),
    )
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), struct)


def _values(
    encoder: "Encoder", rows: "pa.Table | pa.RecordBatch", row: "NDArray[np.int64]", feature: "NDArray[np.int64]"
) -> pa.Array:
    """The text of `rows[row[i], feature[i]]` for every i: a column at a time, then back in the order asked for."""
    by_feature = np.argsort(feature, kind="stable")
    parts = [pa.array([], pa.string())]
    for place in np.unique(feature):
        chosen = row[
            by_feature[
                np.searchsorted(feature[by_feature], place, "left") : np.searchsorted(
                    feature[by_feature], place, "right"
                )
            ]
        ]
        parts.append(as_text(rows.column(encoder.names[place]).take(pa.array(chosen))))
    back = np.empty(len(feature), dtype=np.int64)
    back[by_feature] = np.arange(len(feature))
    return pa.concat_arrays(parts).take(pa.array(back))


def as_text(values: Any) -> pa.Array:
    """The values as people read them, null where they are null (or NaN).

    Integers exactly, other numbers to six significant digits, but never coarser than hundredths; dates as 2017-12-31,
    timestamps to the second.
    """
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_decimal(values.type):
        values = values.cast(pa.float64())
    if pa.types.is_floating(values.type):
        values = _rounded(values)
    elif column_type(values.type) == "timestamp":
        values = values.cast(pa.timestamp("s", values.type.tz), safe=False)
    return values.cast(pa.string())


def _rounded(values: pa.Array) -> pa.Array:
    numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    plain = np.isfinite(numbers) & (numbers != 0)
    magnitude = np.floor(np.log10(np.abs(numbers, where=plain, out=np.ones_like(numbers))))
    scale = 10.0 ** np.clip(SIGNIFICANT_DIGITS - 1 - magnitude, 2, 22)
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = np.round(numbers * scale) / scale
    rounded = np.where(np.isfinite(rounded), rounded, numbers) + 0.0  # no "-0"
    return pa.array(rounded, mask=np.isnan(numbers))
