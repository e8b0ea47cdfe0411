"""One encoder of types for training, batch and on-demand: Arrow columns in, the float32 matrix of the models out.

Numbers stay numbers, booleans become 0 and 1, dates and timestamps days since 1970, categories the ordinal codes 1..k
in alphabetical order, 0 for a category that was rare or unseen in training. Null is NaN, and so is NaN.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from numpy.typing import NDArray

ColumnType = Literal["number", "boolean", "category", "date", "timestamp"]

MOST_CATEGORIES = 255
LEAST_ROWS_OF_A_CATEGORY = 20
LARGEST = float(np.finfo(np.float32).max)
SECONDS_OF_A_DAY = 86_400


class Column(msgspec.Struct, frozen=True):
    """A feature as training saw it. `categories` are the kept ones, in alphabetical order; empty for other types."""

    name: str
    type: ColumnType
    categories: tuple[str, ...] = ()


class Encoder(msgspec.Struct, frozen=True):
    """The columns of the matrix, in order."""

    columns: tuple[Column, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)


class EncodingError(ValueError):
    """Rows that the encoder can't read: it names every missing or mistyped column."""


def column_type(arrow_type: pa.DataType) -> ColumnType | None:
    """How a column of this Arrow type is read, None if it can't be a feature (lists, structs, binaries, times, ...)."""
    kinds = pa.types
    if kinds.is_dictionary(arrow_type):
        return column_type(arrow_type.value_type)
    if kinds.is_boolean(arrow_type):
        return "boolean"
    if kinds.is_integer(arrow_type) or kinds.is_floating(arrow_type) or kinds.is_decimal(arrow_type):
        return "number"
    if kinds.is_string(arrow_type) or kinds.is_large_string(arrow_type) or kinds.is_string_view(arrow_type):
        return "category"
    if kinds.is_date(arrow_type):
        return "date"
    if kinds.is_timestamp(arrow_type):
        return "timestamp"
    return None


def sortable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column as Arrow can sort it: of a UUID its bytes."""
    if isinstance(column.type, pa.BaseExtensionType):
        return pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    return column


def learn_encoder(rows: pa.Table, features: Sequence[str]) -> Encoder:
    """The encoder of these columns, with the categories that occur in `rows`.

    A category keeps its own code if it is among the 255 most frequent (ties by name) and has 20 rows or more.
    Raises `EncodingError` naming every column that is missing, doubled, or of a type that can't be a feature.
    """
    _check(rows, [(name, None) for name in features])
    columns = []
    for name in features:
        values = _plain(rows.column(name))
        kind = column_type(values.type)
        assert kind is not None  # _check has seen to it
        columns.append(Column(name, kind, _frequent(values) if kind == "category" else ()))
    return Encoder(tuple(columns))


def encode(encoder: Encoder, rows: "pa.Table | pa.RecordBatch") -> "NDArray[np.float32]":
    """The float32 matrix (rows, columns) of these rows, in column-major order, which CatBoost reads without a copy.

    Other columns are ignored. A column of Arrow's null type (all values absent, as in a request) counts as any type.
    Infinite numbers and those beyond float32 become its largest finite ones. A timestamp is exact to about three
    minutes. Raises `EncodingError` naming every column that is missing, doubled or of another type than in training.
    """
    _check(rows, [(column.name, column.type) for column in encoder.columns])
    matrix = np.empty((rows.num_rows, len(encoder.columns)), dtype=np.float32, order="F")
    for position, column in enumerate(encoder.columns):
        values = _plain(rows.column(column.name))
        if pa.types.is_null(values.type):
            matrix[:, position] = np.nan
        elif column.type == "category":
            _write_codes(column, values, matrix[:, position])
        else:
            with np.errstate(over="ignore"):  # what becomes infinite is made finite again
                matrix[:, position] = as_numbers(column.type, values)
            np.clip(matrix[:, position], -LARGEST, LARGEST, out=matrix[:, position])
    return matrix


def _check(rows: "pa.Table | pa.RecordBatch", expected: Sequence[tuple[str, ColumnType | None]]) -> None:
    faults = []
    for name, kind in expected:
        places = rows.schema.get_all_field_indices(name)
        if len(places) != 1:
            faults.append(
                f"column '{name}' is missing" if not places else f"column '{name}' occurs {len(places)} times"
            )
            continue
        arrow_type = rows.schema.field(places[0]).type
        found = column_type(arrow_type)
        if kind is None and found is None:
            faults.append(
                f"column '{name}' has type {arrow_type}, which can't be a feature"
                " (possible: numbers, booleans, text, dates, timestamps)"
            )
        elif kind is not None and found != kind and not pa.types.is_null(arrow_type):
            faults.append(f"column '{name}' has type {arrow_type}, but the model was trained with a {kind}")
    if faults:
        raise EncodingError("; ".join(faults))


def _plain(values: Any) -> Any:
    """One plain Arrow array: without chunks, without dictionary."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.ChunkedArray):  # some types and zero chunks stay chunked in some pyarrow versions
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], type=values.type)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    # pyarrow can count and filter no views yet
    return values.cast(pa.string()) if pa.types.is_string_view(values.type) else values


def _frequent(values: pa.Array) -> tuple[str, ...]:
    """The categories that keep a code of their own, in alphabetical order."""
    counts = values.drop_null().value_counts()
    pairs = zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True)
    enough = sorted(
        (pair for pair in pairs if pair[1] >= LEAST_ROWS_OF_A_CATEGORY), key=lambda pair: (-pair[1], pair[0])
    )
    return tuple(sorted(name for name, _ in enough[:MOST_CATEGORIES]))


def _write_codes(column: Column, values: pa.Array, codes: "NDArray[np.float32]") -> None:
    known = pc.index_in(values, value_set=pa.array(column.categories, values.type))
    np.add(known.fill_null(-1).to_numpy(), 1, out=codes, casting="unsafe")
    if values.null_count:
        codes[values.is_null().to_numpy(zero_copy_only=False)] = np.nan


def as_numbers(kind: ColumnType, values: pa.Array) -> "NDArray[Any]":
    """The values as numpy floats, NaN where null."""
    numbers = values
    if kind == "date":
        numbers = values.cast(pa.date32()).cast(pa.int32())
    elif kind == "timestamp":
        seconds = values.cast(pa.timestamp("s", values.type.tz), safe=False).cast(pa.int64())
        numbers = pc.divide(seconds.cast(pa.float64(), safe=False), float(SECONDS_OF_A_DAY))
    floats = numbers.cast(pa.float64(), safe=False)
    return np.asarray(floats.fill_null(np.nan) if floats.null_count else floats)  # numpy's own way takes twice as long
