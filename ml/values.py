"""What a feature's value is in JSON, and how rows of such values become the Arrow columns that models read.

| type of the feature                        | JSON                                                                   |
|--------------------------------------------|------------------------------------------------------------------------|
| BOOLEAN                                    | true or false                                                          |
| TINYINT to HUGEINT, UTINYINT to UHUGEINT   | a number without fraction, exact however large: 9007199254740993       |
| DECIMAL(p, s)                              | text, with all places of the scale: "12.50"                            |
| FLOAT, DOUBLE                              | a number, or the text "NaN", "Infinity", "-Infinity"                   |
| DATE                                       | text: "2024-03-04"                                                     |
| TIMESTAMP (also _S, _MS, _NS)              | text: "2024-03-04T05:06:07", with a fraction only where there is one   |
| TIMESTAMP WITH TIME ZONE                   | the same in UTC, with "Z": "2024-03-04T05:06:07.25Z"                   |
| VARCHAR                                    | text as it is                                                          |

Null is null. The ends of time are "Infinity" and "-Infinity"; a year has more than four digits where it needs them,
and one before the year 1 is told by (BC): "0044-03-15(BC)". A reader also takes an offset ("+02:00") for a Z,
and 12.0 for 12.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from ml.declarations import Feature

NUMBERS = (int, float)
NOT_KNOWN = "is not known"
MOST_TOLD = 20  # faults that a message lists
LARGEST_FLOAT = float(np.finfo(np.float32).max)
LARGEST_EXACT = 2**53  # of the integers that are told with a point: beyond it not all are doubles
LARGEST_DOUBLE = float(np.finfo(np.float64).max)

TYPES: dict[str, pa.DataType] = {
    "BOOLEAN": pa.bool_(),
    "TINYINT": pa.int8(),
    "SMALLINT": pa.int16(),
    "INTEGER": pa.int32(),
    "BIGINT": pa.int64(),
    "HUGEINT": pa.decimal128(38, 0),
    "UTINYINT": pa.uint8(),
    "USMALLINT": pa.uint16(),
    "UINTEGER": pa.uint32(),
    "UBIGINT": pa.uint64(),
    "UHUGEINT": pa.decimal128(38, 0),
    "FLOAT": pa.float32(),
    "DOUBLE": pa.float64(),
    "DATE": pa.date32(),
    "TIMESTAMP_S": pa.timestamp("s"),
    "TIMESTAMP_MS": pa.timestamp("ms"),
    "TIMESTAMP": pa.timestamp("us"),
    "TIMESTAMP_NS": pa.timestamp("ns"),
    "TIMESTAMP WITH TIME ZONE": pa.timestamp("us", "UTC"),
    "VARCHAR": pa.string(),
}
TEXTS = ("ENUM", "UUID", "JSON")  # what the warehouse tells apart and models read as text
DECIMALS = {"s": 0, "ms": 3, "us": 6, "ns": 9}  # places of a second that a timestamp's unit holds
LAST_DAY, LAST_MOMENT = 2**31 - 1, 2**63 - 1  # where the warehouse's Arrow has its infinity

_DECIMAL_TYPE = re.compile(r"DECIMAL\((\d+),(\d+)\)")
_DECIMAL = re.compile(r"(-?)(\d+)(?:\.(\d+))?")
_DAY = r"(\d{4,7})-(\d\d)-(\d\d)(\(BC\))?"
_DATE = re.compile(_DAY)
_MOMENT = re.compile(_DAY + r"T([01]\d|2[0-3]):([0-5]\d):([0-5]\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?")

# From a JSON value that is not null to what Arrow stores; raises `ValueError` with what would have been right.
Reader = Callable[[Any], Any]


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with one value, or with a name, of the rows asked about."""

    row: int  # from 1
    feature: str
    fault: str


class UnknownType(ValueError):
    """A type that a feature can't have."""


class WrongValues(ValueError):
    """Rows that don't fit the features: every unknown, missing and mistyped name of every row."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        told = [f"row {fault.row}: feature '{fault.feature}' {fault.fault}" for fault in faults[:MOST_TOLD]]
        more = [f"and {len(faults) - MOST_TOLD} more"] if len(faults) > MOST_TOLD else []
        super().__init__("; ".join(told + more))


def read_rows(rows: Sequence[Mapping[str, Any]], features: Sequence[Feature]) -> pa.RecordBatch:
    """The rows as Arrow, a column for each feature, in their order and of exactly their types, as `encode` takes them.

    `rows` are decoded JSON: name of a feature -> value; every feature has to be there, be it null. Raises
    `WrongValues` with all that is wrong with them, `UnknownType` if a feature has a type that no feature can have.
    """
    known = {feature.name for feature in features}
    faults = [
        Fault(row=number, feature=_short(name).strip('"'), fault=NOT_KNOWN)
        for number, row in enumerate(rows, 1)
        for name in row
        if name not in known
    ]
    columns = [_column(rows, feature, faults) for feature in features]
    if faults:
        raise WrongValues(sorted(faults, key=lambda fault: fault.row))
    return pa.RecordBatch.from_arrays(columns, names=[feature.name for feature in features])


def _column(rows: Sequence[Mapping[str, Any]], feature: Feature, faults: list[Fault]) -> pa.Array:
    """A feature's column; what is wrong with a value is added to the faults, and the value left out."""
    kind = arrow_type(feature.data_type)
    read = reader(feature.data_type)
    name = feature.name
    stored: list[Any] = []
    for number, row in enumerate(rows, 1):
        if name not in row:
            faults.append(Fault(row=number, feature=name, fault="is missing"))
            continue
        value = row[name]
        try:
            stored.append(None if value is None else read(value))
        except ValueError as expected:
            told = f"is {_short(value)}, {expected} (its type: {feature.data_type})"
            faults.append(Fault(row=number, feature=name, fault=told))
    return decimals(stored, kind) if pa.types.is_decimal(kind) else pa.array(stored, kind)


def decimals(unscaled: Sequence[int | None], kind: pa.DataType) -> pa.Array:
    """Decimals from their digits. As bytes, since HUGEINT, 39 digits, comes as a decimal of 38 from the warehouse."""
    valid = pa.array([number is not None for number in unscaled], pa.bool_())
    data = b"".join((number or 0).to_bytes(16, "little", signed=True) for number in unscaled)
    return pa.Array.from_buffers(kind, len(unscaled), [valid.buffers()[1], pa.py_buffer(data)])


def read_as(data_type: str) -> str:
    """The type that a column of the warehouse is published and read as: its own, or text."""
    return "VARCHAR" if data_type.startswith(TEXTS) else data_type


@cache
def arrow_type(data_type: str) -> pa.DataType:
    """The Arrow type of a warehouse's type, the same as the warehouse itself gives. Raises `UnknownType`."""
    if decimal := _DECIMAL_TYPE.fullmatch(data_type):
        return pa.decimal128(int(decimal[1]), int(decimal[2]))
    if data_type not in TYPES:
        raise UnknownType(f"{data_type} can't be the type of a feature (possible: {', '.join(TYPES)}, DECIMAL(p,s))")
    return TYPES[data_type]


@cache
def reader(data_type: str) -> Reader:
    """What reads a JSON value of this type."""
    if decimal := _DECIMAL_TYPE.fullmatch(data_type):
        return _decimal_reader(int(decimal[1]), int(decimal[2]))
    kind = arrow_type(data_type)
    if pa.types.is_boolean(kind):
        return _boolean
    if pa.types.is_floating(kind):
        return _number_reader(LARGEST_FLOAT if data_type == "FLOAT" else LARGEST_DOUBLE)
    if pa.types.is_date(kind):
        return _date
    if pa.types.is_timestamp(kind):
        return _timestamp_reader(DECIMALS[kind.unit], zoned=kind.tz is not None)
    if pa.types.is_string(kind):
        return _text
    return _integer_reader(*integer_range(data_type))


def integer_range(data_type: str) -> tuple[int, int]:
    """The least and the largest number of an integer type."""
    # A UHUGEINT of 128 bits is negative in the warehouse's own Arrow, so it could not be trained on.
    bits = 128 if data_type.endswith("HUGEINT") else arrow_type(data_type).bit_width
    signed = not data_type.startswith("U") or bits == 128
    most = (1 << (bits - signed)) - 1
    return 0 if data_type.startswith("U") else -most - 1, most


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("not true or false")
    return value


def _integer_reader(least: int, most: int) -> Reader:
    def integer(value: Any) -> int:
        if isinstance(value, float) and value.is_integer() and abs(value) <= LARGEST_EXACT:
            value = int(value)  # 12.0 is an integer by JSON Schema
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError("not a number without fraction")
        if not least <= value <= most:
            raise ValueError(f"not from {least} to {most}")
        return value

    return integer


def _number_reader(largest: float) -> Reader:
    def number(value: Any) -> float:
        if isinstance(value, NUMBERS) and not isinstance(value, bool):
            if -largest <= value <= largest:
                return float(value)
            raise ValueError(f"beyond {largest:.8g}")
        if value in ("NaN", "Infinity", "-Infinity"):
            return float(value)
        raise ValueError('not a number, "NaN", "Infinity" or "-Infinity"')

    return number


def _decimal_reader(precision: int, scale: int) -> Reader:
    example = f"{'12.' + '5'.ljust(scale, '0') if scale else '12'}"

    def decimal(value: Any) -> int:
        match = _DECIMAL.fullmatch(value) if isinstance(value, str) and value.isascii() else None
        if match is None:
            raise ValueError(f'not a decimal as text (write "{example}")')
        places = match[3] or ""
        digits = (match[2] + places[:scale].ljust(scale, "0")).lstrip("0")
        if places[scale:].strip("0"):
            raise ValueError(f"with more than {scale} decimal places")
        if len(digits) > precision:
            raise ValueError(f"with more than {precision - scale} digits before the point")
        return int(match[1] + (digits or "0"))

    return decimal


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("no valid Unicode") from None
    return value


def _date(value: Any) -> int:
    """Days since 1970."""
    if value in ("Infinity", "-Infinity"):
        return LAST_DAY if value == "Infinity" else -LAST_DAY
    match = _DATE.fullmatch(value) if isinstance(value, str) and value.isascii() else None
    if match:
        day = _day(match)
        if day is not None and abs(day) < LAST_DAY:
            return day
    raise ValueError('not a date (write "2024-12-31")')


def _timestamp_reader(places: int, zoned: bool) -> Reader:
    example = "2024-12-31T23:59:59" + ("Z" if zoned else "")

    def timestamp(value: Any) -> int:
        """Since 1970, in units of 10^-places seconds."""
        if value in ("Infinity", "-Infinity"):
            return LAST_MOMENT if value == "Infinity" else -LAST_MOMENT
        match = _MOMENT.fullmatch(value) if isinstance(value, str) and value.isascii() else None
        day = _day(match) if match else None
        if match is None or day is None:
            raise ValueError(f'not a timestamp (write "{example}")')
        hour, minute, second, fraction, zone = match.groups()[4:]
        if zoned != (zone is not None):
            fault = "without a time zone" if zoned else "with a time zone, which its type has none for"
            raise ValueError(f'{fault} (write "{example}")')
        fraction = fraction or ""
        if fraction[places:].strip("0"):
            raise ValueError(f"with more than {places} decimal places of a second")
        seconds = ((day * 24 + int(hour)) * 60 + int(minute)) * 60 + int(second) - _offset(zone or "Z")
        moment: int = seconds * 10**places + int(fraction[:places].ljust(places, "0") or 0)
        if abs(moment) >= LAST_MOMENT:
            raise ValueError("beyond what its type holds")
        return moment

    return timestamp


def _day(match: "re.Match[str]") -> int | None:
    """Days since 1970 of a matched date, None if the calendar has no such day."""
    year, month, day = int(match[1]), match[2], match[3]
    if match[4]:
        year = 1 - year
    try:
        return int(np.datetime64(f"{'-' if year < 0 else ''}{abs(year):04d}-{month}-{day}", "D").astype(np.int64))
    except ValueError:
        return None


def _offset(zone: str) -> int:
    """Seconds that a zone's clock is ahead of UTC."""
    if zone == "Z":
        return 0
    seconds = int(zone[1:3]) * 3600 + int(zone[4:6]) * 60
    return seconds if zone[0] == "+" else -seconds


def _short(value: Any) -> str:
    """A caller's value as a message repeats it."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = json.dumps(value, ensure_ascii=False).encode(errors="replace").decode()
    return text if len(text) <= 60 else text[:60] + "…"
