"""Why a row scores as it does: the features that moved its score most, signed and exact (SHAP values)."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ml.encoding import column_type
from ml.leaf_table import LeafTable, added_by_features

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ml.encoding import Encoder

REASON = pa.struct([("feature", pa.string()), ("value", pa.string()), ("contribution", pa.float64())])
SIGNIFICANT_DIGITS = 6


def contributions(
    table: LeafTable, features: "NDArray[np.float32]"
) -> "tuple[NDArray[np.float64], float | NDArray[np.float64]]":
    """What each feature adds to each row's raw score, (rows, columns), and what the raw score is without any.

    Of a category (rows, classes, columns) and (classes,). A row's contributions and the expected score sum to its raw
    score: log-odds of a probability, the amount itself, or what the softmax of a category is taken of.
    Exact (Lundberg, Erion and Lee 2018, arXiv:1802.03888), and the same in any batch.
    """
    classes = len(table.expected)
    if classes == 1:
        return added_by_features(table, features), float(table.expected[0])
    of_class = [np.full(len(features), place) for place in range(classes)]
    return np.stack([added_by_features(table, features, place) for place in of_class], axis=1), table.expected


def reasons(
    table: LeafTable,
    encoder: "Encoder",
    rows: "pa.Table | pa.RecordBatch",
    features: "NDArray[np.float32]",
    most: int,
    of_class: "NDArray[np.int64] | None" = None,
    who: "NDArray[np.bool_] | None" = None,
) -> pa.ListArray:
    """For each row its reasons, list<struct<feature, value, contribution>>: at most `most`, the strongest first.

    `value` is the feature's value in this row as text, null where it is null. A feature that moved nothing is no
    reason. Of a category they are what moved the raw score of the row's `of_class`. A row that is not among `who`
    (all, if not given) has an empty list.
    """
    explained = np.arange(len(features)) if who is None else np.flatnonzero(who)
    if len(explained) < len(features):
        features = features[explained]
        of_class = None if of_class is None else of_class[explained]
    strongest, sizes = _strongest(added_by_features(table, features, of_class), most)
    is_reason = sizes != 0  # zeros are the weakest, so they are last
    place, _ = np.nonzero(is_reason)
    feature = strongest[is_reason]
    struct = pa.StructArray.from_arrays(
        [
            pa.DictionaryArray.from_arrays(pa.array(feature, pa.int32()), pa.array(encoder.names)).dictionary_decode(),
            _values(encoder, rows, explained[place], feature),
            pa.array(sizes[is_reason], pa.float64()),
        ],
        fields=list(REASON),
    )
    counts = np.zeros(rows.num_rows, dtype=np.int32)
    counts[explained] = is_reason.sum(axis=1)
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)), struct)


def no_reasons(rows: int) -> pa.ListArray:
    """Empty lists, of the type that `reasons` gives."""
    return pa.ListArray.from_arrays(pa.array(np.zeros(rows + 1, dtype=np.int32)), pa.array([], REASON))


def _strongest(added: "NDArray[np.float64]", most: int) -> "tuple[NDArray[np.int64], NDArray[np.float64]]":
    """The places (rows, most) of each row's largest contributions, the first of equals first, and what they are."""
    most = min(most, added.shape[1])
    # A feature at a time, as the contributions lie in memory: rows sorted one by one take three times as long.
    left = np.abs(added.T)
    rows = np.arange(len(added))
    places = np.empty((len(added), most), dtype=np.int64)
    for rank in range(most):
        places[:, rank] = left.argmax(axis=0)
        left[places[:, rank], rows] = -1
    return places, np.take_along_axis(added, places, axis=1)


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
