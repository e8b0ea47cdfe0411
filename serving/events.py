"""Pushed events: `POST /events/{source}` appends them to a durable log, from which a load takes them.

The log of a source is a folder of segments, files of one JSON object per line. Each process writes segments of its own
and no two requests at once. What has been answered 202 is on the disk.
"""

import hmac
import logging
import os
import re
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, post
from litestar.concurrency import sync_to_thread
from litestar.exceptions import (
    ClientException,
    HTTPException,
    NotAuthorizedException,
    NotFoundException,
    PermissionDeniedException,
    ServiceUnavailableException,
)
from litestar.exceptions.http_exceptions import RequestEntityTooLarge
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import ResponseSpec
from litestar.openapi.spec import Example, OpenAPIMediaType, Operation, RequestBody, Schema, SecurityScheme
from litestar.openapi.spec.enums import OpenAPIType
from litestar.params import Parameter

from serving.answers import PROBLEM, Accepted, EventFault, Problem

log = logging.getLogger("serving")

MOST_EVENTS = 10_000  # of one request
MOST_BYTES = 10_000_000  # of one request's body
SEGMENT_BYTES = 64 << 20  # a segment that has reached this size is followed by another
MOST_FAULTS = 20  # that an answer lists
KEY_SETTING = "SCOREHOUSE_EVENTS_KEY"
SECURITY = {"events": SecurityScheme(type="http", scheme="bearer", description=f"A key of {KEY_SETTING}.")}

Kind = Literal["integer", "number", "boolean", "text", "date", "timestamp", "timestamptz", "uuid", "any"]
Event = dict[str, Any]

_decoder = msgspec.json.Decoder(float_hook=Decimal)
_encoder = msgspec.json.Encoder(decimal_format="number")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_MOMENT = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?(Z|[+-]\d{2}:?\d{2})?")
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


class BadEvents(HTTPException):
    """Events that don't meet their contract: how many, and what is wrong with the first."""

    status_code = 422


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
            found.append((_shortened(name), f"is no column of the source (its columns: {', '.join(columns)})"))
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
    is_number = isinstance(value, int | Decimal) and not isinstance(value, bool)
    return _within(value, column) if is_number else "not a number"


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


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else text[:60] + "…"


def _short(value: Any) -> str:
    """A caller's value as a message repeats it."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return _shortened(_encoder.encode(value).decode())


def fsync_folder(folder: Path) -> None:
    """Makes sure that the names of the files in a folder survive a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Log:
    """The part of a source's log that this process writes: a segment at a time, which no other process appends to.

    A segment to which a write failed is cut back to what it held before, and never written again: a load may have read
    beyond the cut, and would not see what came to stand there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        self._path = folder
        self._file: int | None = None
        self._size = 0

    def append(self, lines: bytes) -> None:
        """Writes whole lines; on return they are on the disk. Raises `OSError`; nothing is acknowledged then."""
        with self._lock:
            if self._file is None or self._size >= SEGMENT_BYTES or not self._is_in_place(self._file):
                self.close()
                self._file = self._begin()
            try:
                left = memoryview(lines)
                while left:  # a write to a file is short only where the next one fails and says why
                    left = left[os.write(self._file, left) :]
                os.fsync(self._file)
                if not self._size:
                    fsync_folder(self.folder)
            except OSError:
                self._give_up(self._file)
                raise
            self._size += len(lines)

    def _begin(self) -> int:
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{os.getpid()}-{secrets.token_hex(3)}.jsonl"
        self._path, self._size = self.folder / name, 0
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o666)

    def _is_in_place(self, file: int) -> bool:
        """Whether the segment can still be found: who writes to a removed file keeps nothing."""
        with suppress(OSError):
            return os.path.samestat(os.stat(self._path), os.fstat(file))
        return False

    def _give_up(self, file: int) -> None:
        with suppress(OSError):
            os.ftruncate(file, self._size)
            if not self._size:
                self._path.unlink()
        self.close()

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                file, self._file = self._file, None
                with suppress(OSError):
                    os.close(file)


class PushedEvents:
    """The sources that events can be pushed to, from the contracts under a folder, and the logs they are kept in."""

    def __init__(self, folder: Path | None, keys: Sequence[str] = ()) -> None:
        self._folder = folder
        self._keys = [key.encode() for key in keys]
        self._lock = threading.Lock()
        self._logs: dict[str, Log] = {}

    def authorise(self, header: str | None) -> None:
        """Raises unless a request's Authorization names a key. Takes as long for a wrong one as for a right one."""
        if not self._keys:
            raise PermissionDeniedException(
                detail=f"Pushing events is off, as this server has no key for it. Set {KEY_SETTING} in its environment"
                " (several keys, as while they change, are separated by commas) and start it again."
            )
        scheme, _, key = (header or "").partition(" ")
        given = key.strip().encode("latin-1", "replace")
        matches = [hmac.compare_digest(given, known) for known in self._keys]
        if scheme.lower() != "bearer" or not any(matches):
            raise NotAuthorizedException(
                detail="Events are taken with a key alone: send the header Authorization: Bearer <key>."
                if header is None
                else f"The Authorization header has no key of this server's {KEY_SETTING}.",
                headers={"WWW-Authenticate": 'Bearer realm="events"'},
            )

    def contract(self, source: str) -> Contract:
        """What is asked of a source's events. Raises a 404 that lists the sources there are."""
        if self._folder and _NAME.fullmatch(source):
            with suppress(FileNotFoundError, NotADirectoryError):
                return msgspec.json.decode((self._folder / source / "contract.json").read_bytes(), type=Contract)
        known = sorted(file.parent.name for file in self._folder.glob("*/contract.json")) if self._folder else []
        raise NotFoundException(
            detail=f"Unknown source '{_shortened(source)}'. Known sources of events: {', '.join(known) or 'none yet'}.",
            extra={"known_sources": known},
        )

    def take(self, contract: Contract, body: bytes) -> Accepted:
        """Keeps the events of a request, all of them or none. Raises what the request or the disk has against it."""
        try:
            sent = _decoder.decode(body)
        except (ValueError, ArithmeticError, RecursionError) as error:
            raise ClientException(detail=f"The body is no JSON that can be read: {error or 'a number'}.") from None
        events = sent if isinstance(sent, list) else [sent]
        if len(events) > MOST_EVENTS:
            raise RequestEntityTooLarge(
                detail=f"The body has {len(events):,} events; one request may have {MOST_EVENTS:,}. Send several."
            )
        bad, faults = faults_of(events, contract)
        if bad:
            first = faults[0]
            what = " ".join(filter(None, [f"row {first.row}:", first.column, first.fault]))
            raise BadEvents(
                detail=f"{bad:,} of {len(events):,} events break the contract of '{contract.source}', so none is kept;"
                f" {what}.",
                extra={"errors": faults},
            )
        if events:
            try:
                self._log(contract.source).append(_lines(events, contract))
            except RecursionError:
                raise ClientException(detail="A value is nested too deeply.") from None
            except OSError as error:
                log.error("events of %s can't be kept: %s", contract.source, error)
                raise ServiceUnavailableException(
                    detail=f"The events can't be kept at the moment: {error.strerror or error}. Send them again later;"
                    " what is sent twice counts once.",
                    headers={"Retry-After": "10"},
                ) from None
        return Accepted(accepted=len(events))

    def _log(self, source: str) -> Log:
        assert self._folder
        with self._lock:
            return self._logs.setdefault(source, Log(self._folder / source))

    def close(self) -> None:
        for log in self._logs.values():
            log.close()


def _lines(events: Sequence[Event], contract: Contract) -> bytes:
    """Events as lines of the log. A number with a fraction is a text in them, so that no reader rounds it."""
    numbers = {column.name for column in contract.columns if column.kind == "number"}
    exact = [
        {name: str(value) if name in numbers and isinstance(value, Decimal) else value for name, value in event.items()}
        for event in events
    ]
    return _encoder.encode_lines(exact)


_OBJECT = Schema(type=OpenAPIType.OBJECT, description="Column -> value.", additional_properties=True)


@dataclass
class _PushOperation(Operation):
    """The operation with its body, which the handler reads itself."""

    def __post_init__(self) -> None:
        events = Schema(
            one_of=[_OBJECT, Schema(type=OpenAPIType.ARRAY, items=_OBJECT, max_items=MOST_EVENTS)],
            description=f"One event or up to {MOST_EVENTS:,} of them.",
        )
        example = Example(summary="Two events", value=[{"visit_id": 1, "amount": 2.5}, {"visit_id": 2, "amount": None}])
        self.request_body = RequestBody(
            content={"application/json": OpenAPIMediaType(schema=events, examples={"events": example})}, required=True
        )


_ANSWERS = {
    400: "The body is no JSON.",
    401: "The request has no key, or a wrong one.",
    403: "Pushing events is off: the server has no key.",
    404: "The source is not known; `known_sources` lists those that are.",
    413: f"More than {MOST_EVENTS:,} events or {MOST_BYTES:,} bytes in one request.",
    422: "Events break the contract of the source: `errors` lists the first faults. Nothing of the request is kept.",
    503: "The events can't be written to the disk; `detail` says why. Send them again later.",
}
_ABOUT = """Keeps events for the next load of their table. They are on the disk when the answer comes.

All events of a request are kept, or none. A repetition changes nothing: an event is known by the key of its source.
What a column is and which are required is declared in the dbt project; null is allowed where nothing is required.

    curl -H "Authorization: Bearer $SCOREHOUSE_EVENTS_KEY" -H "Content-Type: application/json" \\
         -d '[{"visit_id": 1, "amount": 2.5}]' http://127.0.0.1:8000/events/visits
"""


def push_handler(pushed: PushedEvents) -> HTTPRouteHandler:
    """The handler of `POST /events/{source}`."""

    @post(
        "/events/{source:str}",
        status_code=202,
        request_max_body_size=None,  # _body has a limit
        tags=["events"],
        summary="Push events",
        description=_ABOUT,
        security=[{"events": []}],
        operation_class=_PushOperation,
        responses={
            status: ResponseSpec(Problem, generate_examples=False, description=description, media_type=PROBLEM)
            for status, description in _ANSWERS.items()
        },
    )
    async def push_events(
        request: Request[Any, Any, Any],
        source: Annotated[str, Parameter(description="Name of a source of events: the dbt project declares it.")],
    ) -> Accepted:
        pushed.authorise(request.headers.get("authorization"))
        contract = await sync_to_thread(pushed.contract, source)
        body = await _body(request)
        return await sync_to_thread(pushed.take, contract, body)  # it waits for the disk

    return push_events


async def _body(request: Request[Any, Any, Any]) -> bytes:
    """The body of a request. One that is too long is read on for a while: who still sends does not hear an answer."""
    size = 0
    chunks: list[bytes] = []
    async for chunk in request.stream():
        size += len(chunk)
        if size <= MOST_BYTES:
            chunks.append(chunk)
        elif size > 10 * MOST_BYTES:
            break
    if size > MOST_BYTES:
        raise RequestEntityTooLarge(
            detail=f"The body has more than the {MOST_BYTES:,} bytes that one request may have. Send several."
        )
    return b"".join(chunks)
