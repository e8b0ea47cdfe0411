"""Pushed events: `POST /events/{source}` appends them to a durable log, from which a load takes them.

The log of a source is a folder of segments, files of one JSON object per line. Each process writes segments of its own
and no two requests at once. What has been answered 202 is on the disk.
"""

import logging
import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import msgspec
from litestar import Request, post
from litestar.concurrency import sync_to_thread
from litestar.exceptions import (
    ClientException,
    HTTPException,
    NotFoundException,
    ServiceUnavailableException,
)
from litestar.exceptions.http_exceptions import RequestEntityTooLarge
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import ResponseSpec
from litestar.openapi.spec import Example, Schema
from litestar.openapi.spec.enums import OpenAPIType
from litestar.params import Parameter

from serving.answers import PROBLEM, Accepted, Problem
from serving.bodies import operation_with_body
from serving.contracts import Contract, faults_of, shortened
from serving.event_log import Log
from serving.guarding.bounds import MOST_BYTES

log = logging.getLogger("serving")

MOST_EVENTS = 10_000  # of one request

Event = dict[str, Any]

_decoder = msgspec.json.Decoder(float_hook=Decimal)
_encoder = msgspec.json.Encoder(decimal_format="number")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")


class BadEvents(HTTPException):
    """Events that don't meet their contract: how many, and what is wrong with the first."""

    status_code = 422


class PushedEvents:
    """The sources that events can be pushed to, from the contracts under a folder, and the logs they are kept in."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._logs: dict[str, Log] = {}

    def contract(self, source: str) -> Contract:
        """What is asked of a source's events. Raises a 404 that lists the sources there are."""
        if _NAME.fullmatch(source):
            with suppress(FileNotFoundError, NotADirectoryError):
                return msgspec.json.decode((self._folder / source / "contract.json").read_bytes(), type=Contract)
        known = sorted(file.parent.name for file in self._folder.glob("*/contract.json"))
        raise NotFoundException(
            detail=f"Unknown source '{shortened(source)}'. Known sources of events: {', '.join(known) or 'none yet'}.",
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


_EVENTS = Schema(
    one_of=[_OBJECT, Schema(type=OpenAPIType.ARRAY, items=_OBJECT, max_items=MOST_EVENTS)],
    description=f"One event or up to {MOST_EVENTS:,} of them.",
)
_EXAMPLE = Example(summary="Two events", value=[{"visit_id": 1, "amount": 2.5}, {"visit_id": 2, "amount": None}])

_ANSWERS = {
    400: "The body is no JSON.",
    404: "The source is not known; `known_sources` lists those that are.",
    413: f"More than {MOST_EVENTS:,} events or {MOST_BYTES:,} bytes in one request.",
    422: "Events break the contract of the source: `errors` lists the first faults. Nothing of the request is kept.",
    503: "The events can't be written to the disk; `detail` says why. Send them again later.",
}
_ABOUT = """Keeps events for the next load of their table. They are on the disk when the answer comes.

All events of a request are kept, or none. A repetition changes nothing: an event is known by the key of its source.
What a column is and which are required is declared in the dbt project; null is allowed where nothing is required.

    curl -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" \\
         -d '[{"visit_id": 1, "amount": 2.5}]' http://127.0.0.1:8000/events/visits
"""


def push_handler(pushed: PushedEvents) -> HTTPRouteHandler:
    """The handler of `POST /events/{source}`."""

    @post(
        "/events/{source:str}",
        status_code=202,
        tags=["events"],
        summary="Push events",
        description=_ABOUT,
        operation_class=operation_with_body(_EVENTS, events=_EXAMPLE),
        responses={
            status: ResponseSpec(Problem, generate_examples=False, description=description, media_type=PROBLEM)
            for status, description in _ANSWERS.items()
        },
    )
    async def push_events(
        request: Request[Any, Any, Any],
        source: Annotated[str, Parameter(description="Name of a source of events: the dbt project declares it.")],
    ) -> Accepted:
        contract = await sync_to_thread(pushed.contract, source)
        body = await request.body()
        return await sync_to_thread(pushed.take, contract, body)  # it waits for the disk

    return push_events
