"""How good a score is for parts of the customers: its metrics where a column has a certain value."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ml.encoding import column_type
from ml.metrics import Kind, evaluate

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_VALUES = 20  # of a column that makes slices
# Of a slice: the metrics of fewer rows are noise, and so are those of a probability with fewer rows of an outcome.
LEAST_ROWS = 50
LEAST_OUTCOMES = 10
UNKNOWN = "unknown"  # the slice of the rows where a column is null


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """The held-out rows where a column has a value, as text, and the metrics on them; `baseline` are those of the naive
    forecast, where it was measured too."""

    column: str
    value: str
    rows: int
    metrics: dict[str, float]
    baseline: dict[str, float] = {}


def sliced(
    kind: Kind,
    rows: pa.Table,
    label: "NDArray[Any]",
    score: "NDArray[Any]",
    columns: Iterable[str],
    naive: "NDArray[Any] | None" = None,
) -> list[Slice]:
    """The slices of these columns of `rows`, in the order of the columns and of the values' names.

    `label` and `score`, and what the naive forecast says, are as in `evaluate`, of the same rows. There are those that
    `large_parts` gives.
    """
    return [
        Slice(
            column=column,
            value=value,
            rows=int(is_in.sum()),
            metrics=evaluate(kind, label[is_in], score[is_in]),
            baseline={} if naive is None else evaluate(kind, label[is_in], naive[is_in]),
        )
        for column, value, is_in in large_parts(kind, rows, label, columns)
    ]


def large_parts(
    kind: Kind, rows: pa.Table, label: "NDArray[Any]", columns: Iterable[str]
) -> "Iterator[tuple[str, str, NDArray[np.bool_]]]":
    """Column, value and rows of each slice that has enough rows to be measured on.

    A column with more than 20 values makes none, a value with fewer than 50 rows neither, nor, of a probability, one
    with fewer than 10 rows of either outcome.
    """
    for column in columns:
        for value, is_in in _parts(rows.column(column)):
            if _is_enough(kind, label[is_in]):
                yield column, value, is_in


def _is_enough(kind: Kind, label: "NDArray[Any]") -> bool:
    both = kind != "probability" or LEAST_OUTCOMES <= label.sum() <= len(label) - LEAST_OUTCOMES
    return len(label) >= LEAST_ROWS and both


def slicing_columns(rows: pa.Table, columns: Sequence[str]) -> list[str]:
    """Those of the columns that make slices by themselves: texts and booleans of 2 to 20 values."""
    return [
        name
        for name in columns
        if column_type(rows.schema.field(name).type) in ("category", "boolean") and len(_parts(rows.column(name))) > 1
    ]


def _parts(values: pa.ChunkedArray) -> "list[tuple[str, NDArray[np.bool_]]]":
    """Each value of a column with the rows that have it, null last; empty if there are more than 20."""
    codes = values.combine_chunks().dictionary_encode()
    if isinstance(codes, pa.ChunkedArray):
        codes = codes.combine_chunks()
    if len(codes.dictionary) > MOST_VALUES:
        return []
    names = [_text(value) for value in codes.dictionary]
    places = np.asarray(pc.fill_null(codes.indices, -1).to_numpy(zero_copy_only=False))
    parts = [(name, places == place) for place, name in enumerate(names)]
    parts = [part for part in sorted(parts, key=lambda part: part[0]) if part[1].any()]
    return [*parts, (UNKNOWN, places == -1)] if (places == -1).any() else parts


def _text(value: pa.Scalar) -> str:
    plain = value.as_py()
    return str(plain).lower() if isinstance(plain, bool) else str(plain)
