"""The encoder of a few rows: to the bit what `encode(encoder, read_rows(rows, features))` gives, ten times as fast.

Arrow costs tens of microseconds per column however few the rows are. So the readers of `ml.values` are called value by
value, and what the encoder makes of a column is made of each value, by rules that are told once per type here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa

from ml.declarations import Feature
from ml.encoding import LARGEST, SECONDS_OF_A_DAY, Column, Encoder, as_numbers, encode
from ml.values import DECIMALS, Reader, arrow_type, decimals, read_rows, reader

if TYPE_CHECKING:
    from numpy.typing import NDArray

NAN = float("nan")
EXACT = 2**53  # up to here a whole number is a float without loss

ToNumber = Callable[[Any], float]


class _Read(msgspec.Struct, frozen=True):
    """A feature, how its JSON is read, where it goes in the matrix (None: the model does not read it), and as what
    number."""

    name: str
    read: Reader
    place: int | None
    number: ToNumber


class FewRowsEncoder(msgspec.Struct, frozen=True):
    """A compiled encoder. Made by `few_rows_encoder`."""

    reads: tuple[_Read, ...]
    features: tuple[Feature, ...]
    columns: int


def few_rows_encoder(encoder: Encoder, features: Sequence[Feature]) -> FewRowsEncoder:
    """The encoder for rows of these features. Raises `EncodingError` if they are not what the encoder reads, and
    `UnknownType` if one has a type that no feature can have."""
    schema = pa.schema([(feature.name, arrow_type(feature.data_type)) for feature in features])
    encode(encoder, pa.RecordBatch.from_pylist([], schema=schema))  # it raises
    places = {name: place for place, name in enumerate(encoder.names)}
    reads = []
    for feature in features:
        place = places.get(feature.name)
        number: ToNumber = float
        if place is not None:
            number = _to_number(encoder.columns[place], schema.field(feature.name).type)
        reads.append(_Read(feature.name, reader(feature.data_type), place, number))
    return FewRowsEncoder(tuple(reads), tuple(features), len(places))


def encode_few(encoder: FewRowsEncoder, rows: Sequence[Mapping[str, Any]]) -> "NDArray[np.float32]":
    """The matrix (rows, columns) of decoded JSON rows. Raises `WrongValues` with all that is wrong, as `read_rows`."""
    matrix = np.empty((len(rows), encoder.columns), dtype=np.float32, order="F")
    for number, row in enumerate(rows):
        try:
            matrix[number] = _numbers(encoder, row)
        except (ValueError, KeyError):
            read_rows(rows, encoder.features)  # it tells all of it
            raise
    return matrix


def _numbers(encoder: FewRowsEncoder, row: Mapping[str, Any]) -> "NDArray[np.float64]":
    """A row's numbers, within float32. Raises `KeyError` or `ValueError` if anything is wrong with it."""
    if len(row) != len(encoder.reads):
        raise ValueError("names are missing or unknown")
    numbers = [NAN] * encoder.columns
    for feature in encoder.reads:
        value = row[feature.name]
        if value is not None:
            value = feature.read(value)
            if feature.place is not None:
                numbers[feature.place] = feature.number(value)
    row_of = np.array(numbers, dtype=np.float64)
    # Made finite before it is float32 and not after, as `encode` does it: the same, and without a warning.
    return np.minimum(np.maximum(row_of, -LARGEST, out=row_of), LARGEST, out=row_of)


def _to_number(column: Column, kind: pa.DataType) -> ToNumber:
    """From what `reader` gives of a value that is not null to the number that `encode` makes of it."""
    if column.type == "category":
        codes = {name: float(code) for code, name in enumerate(column.categories, 1)}
        return lambda text: codes.get(text, 0.0)
    if column.type == "timestamp":
        units = 10 ** DECIMALS[kind.unit]

        def days(moment: int) -> float:
            seconds = abs(moment) // units  # Arrow cuts off towards 1970
            return float(seconds if moment >= 0 else -seconds) / SECONDS_OF_A_DAY

        return days
    if pa.types.is_decimal(kind):
        unit = float(f"1e-{kind.scale}")

        def number(unscaled: int) -> float:
            if -EXACT <= unscaled <= EXACT:
                return unscaled * unit  # as Arrow does it; divided by 100, 1.15 would have another last bit
            return float(as_numbers("number", decimals([unscaled], kind))[0])

        return number
    return float
