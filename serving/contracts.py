"""What an event of a source must be: the contract that is published for the API, and what breaks it."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Literal

import msgspec

from serving.answers import EventFault

MOST_FAULTS = 20  # that an answer lists

Kind = Literal["integer", "number", "boolean", "text", "date", "timestamp", "timestamptz", "uuid", "any"]

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_MOMENT = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?(Z|[+-]\d{2}:?\d{2})?")
_DECIMAL = re.compile(r"(?:DECIMAL|DEC|NUMERIC)\b[^,]*(?:,\s*(\d+))?", re.IGNORECASE)
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class Column(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A column of a source: its type in the warehouse, the kind of JSON value that fits it and within which bounds."""

    name: str
    type: str
    kind: Kind
    required: bool = False
    description: str = ""
    least: Decimal | None = None
    most: Decimal | None = None


class Contract(msgspec.Struct, frozen=True, kw_only=True):
    """What an event of a source must be, published for the API as `<data>/events/<source>/contract.json`."""

    source: str
    table: str
    description: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]


def faults_of(events: Sequence[Any], contract: Contract) -> tuple[int, list[EventFault]]:
    """How many events break the contract, and what is wrong with the first; rows are counted from 1."""
    columns = {column.name: column for column in contract.columns}
    required = [column.name for column in contract.columns if column.required]
    bad = 0
    listed: list[EventFault] = []
    for row, event in enumerate(events, 1):
        found = _faults(event, columns, required)
        if found:
            bad += 1
            listed += [
                EventFault(row=row, column=column, fault=fault) for column, fault in found[: MOST_FAULTS - len(listed)]
            ]
    return bad, listed


def _faults(event: Any, columns: Mapping[str, Column], required: Sequence[str]) -> list[tuple[str | None, str]]:
    if not isinstance(event, dict):
        return [(None, f"is {_short(event)}, not an object")]
    found: list[tuple[str | None, str]] = [(name, "is missing") for name in required if name not in event]
    for name, value in event.items():
        column = columns.get(name)
        if column is None:
            found.append((shortened(name), f"is no column of the source (its columns: {', '.join(columns)})"))
        elif value is None:
            if column.required:
                found.append((name, "is null, but required"))
        elif fault := CHECKS[column.kind](value, column):
            found.append((name, f"is {_short(value)}, {fault}"))
    return found


def _within(value: int | Decimal, column: Column) -> str | None:
    if column.least is not None and value < column.least:
        return f"less than {column.least}, the least of {column.type}"
    if column.most is not None and value > column.most:
        return f"more than {column.most}, the most of {column.type}"
    return None


def _integer(value: Any, column: Column) -> str | None:
    return "not an integer" if not isinstance(value, int) or isinstance(value, bool) else _within(value, column)


def _number(value: Any, column: Column) -> str | None:
    if not isinstance(value, int | Decimal) or isinstance(value, bool):
        return "not a number"
    places = _DECIMAL.match(column.type)
    beyond = _within(value, column)
    if not beyond and places and isinstance(value, Decimal) and _places(value) > int(places[1] or 3):
        return f"with more decimal places than {column.type} has"
    return beyond


def _places(value: Decimal) -> int:
    """How many decimal places a number needs."""
    _, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int) or not value:
        return 0
    zeros = len(digits) - len("".join(map(str, digits)).rstrip("0"))
    return max(0, -exponent - zeros)


def _boolean(value: Any, _: Column) -> str | None:
    return None if isinstance(value, bool) else "not true or false"


def _text(value: Any, _: Column) -> str | None:
    return None if isinstance(value, str) else "not text"


def _date(value: Any, _: Column) -> str | None:
    if isinstance(value, str) and _DATE.fullmatch(value):
        with suppress(ValueError):
            date.fromisoformat(value)
            return None
    return "not a date (write 2024-12-31)"


def _zone(value: Any) -> str | None:
    """The zone that an ISO timestamp tells, empty if none; None for what is no timestamp."""
    match = _MOMENT.fullmatch(value) if isinstance(value, str) else None
    if match:
        with suppress(ValueError):
            datetime.fromisoformat(value)
            return match[1] or ""
    return None


def _timestamp(value: Any, column: Column) -> str | None:
    zone = _zone(value)
    if zone is None:
        return "not a timestamp (write 2024-12-31T06:00:00Z)"
    # The warehouse drops a zone that its column has no place for.
    return None if zone in ("", "Z") else f"not in UTC, and the column ({column.type}) keeps no time zone"


def _timestamptz(value: Any, _: Column) -> str | None:
    return "not a timestamp (write 2024-12-31T06:00:00Z)" if _zone(value) is None else None


def _uuid(value: Any, _: Column) -> str | None:
    return None if isinstance(value, str) and _UUID.fullmatch(value) else "not a UUID"


CHECKS: dict[Kind, Callable[[Any, Column], str | None]] = {
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "text": _text,
    "date": _date,
    "timestamp": _timestamp,
    "timestamptz": _timestamptz,
    "uuid": _uuid,
    "any": lambda *_: None,  # other types are judged when they are loaded
}


def shortened(text: str) -> str:
    return text if len(text) <= 60 else text[:60] + "…"


def _short(value: Any) -> str:
    """A caller's value as a message repeats it."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return shortened(str(value) if isinstance(value, Decimal) else msgspec.json.encode(value).decode())
