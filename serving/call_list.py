"""GET /scores/{score}/customers: the call list, which has a score's customers, the best first, by pages."""

import base64
import binascii
import csv
import io
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

import msgspec
from litestar import Request, Response, get
from litestar.exceptions import HTTPException, NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import ResponseSpec
from litestar.openapi.spec import OpenAPIMediaType, Operation, Schema
from litestar.openapi.spec.enums import OpenAPIType
from litestar.params import Parameter

from serving.answers import MOST_IDS, CallList, RankedCustomer
from serving.catalogue import Catalogue, Served
from serving.guarding.audit import audited_customers
from serving.guarding.callers import caller_of
from serving.lookups import (
    NOT_SERVED,
    Conflict,
    ScoreName,
    id_as_sent,
    problem_spec,
    score_to_look_up,
    unknown_customer,
)
from serving.problems import short

FORMS = ["application/json", "text/csv"]  # what an Accept header may ask for
COLUMNS = ("rank", "customer_id", "value", "band", "percentile", "as_of_date", "stale", "model_version", "generation")

encode = msgspec.json.encode
_decode = msgspec.json.Decoder(RankedCustomer).decode


class ListChanged(HTTPException):
    """A cursor of a generation that is not served any more."""

    status_code = 410


class _Cursor(msgspec.Struct, frozen=True, array_like=True):
    """Where the next page begins, and of which list."""

    generation: str
    band: str | None
    start: int


@dataclass
class _ListOperation(Operation):
    """The operation with the other form that it answers in."""

    def __post_init__(self) -> None:
        answer = (self.responses or {}).get("200")
        content = getattr(answer, "content", None)
        if content is not None:
            about = f"One line per customer: {', '.join(COLUMNS)}, reasons. The next page is in the Link header."
            content["text/csv"] = OpenAPIMediaType(schema=Schema(type=OpenAPIType.STRING, description=about))


Band = Annotated[
    str | None, Parameter(description="The customers of this band alone; of a category the name of a class.")
]
Limit = Annotated[int, Parameter(ge=1, le=MOST_IDS, description="Customers on a page.")]
After = Annotated[str | None, Parameter(description="`next` of the page before, as it is.")]
Form = Annotated[
    Literal["json", "csv"] | None,
    Parameter(description="The form of the answer; if it is not said, the Accept header decides."),
]


def call_list_handler(catalogue: Catalogue) -> HTTPRouteHandler:
    """The handler of call lists over a catalogue."""

    @get(
        "/scores/{score:str}/customers",
        sync_to_thread=catalogue.shelf.waits,
        tags=["customers"],
        summary="The customers of a score, the best first",
        description="By band, the highest first, in it by value. Pages follow by cursor, all of one generation.",
        operation_class=_ListOperation,
        responses={
            200: ResponseSpec(CallList, generate_examples=False, description="A page of the list."),
            404: problem_spec("Score or band are not known, or the cursor is none of this list; `detail` says which."),
            409: problem_spec("The score was published without the order of its customers."),
            410: problem_spec("The cursor is of a generation that is not served any more: begin anew without it."),
            503: NOT_SERVED,
        },
    )
    def call_list(
        request: Request[Any, Any, Any],
        score: ScoreName,
        band: Band = None,
        limit: Limit = 100,
        cursor: After = None,
        format: Form = None,
    ) -> Response[Any]:
        served = score_to_look_up(catalogue, score, caller_of(request.scope))
        if not request.scope["raw_path"].partition(b"?")[0].endswith(b"/customers"):
            # Somebody looks up an id that is empty, or has slashes alone, and is not to be sent all others.
            unknown_customer(served, id_as_sent(request, 4))
        if not served.store.has_ranking:
            raise Conflict(
                detail=f"Generation {served.name} of score '{score}' was published without the order of its customers;"
                " the next one that is published has it."
            )
        if cursor is not None:
            band, start = _place(served, cursor, band)
        else:
            start = 0
        total = _size(served, band)
        rows = served.ranked(band, start, limit)
        end = start + len(rows)
        audited_customers(request.scope, len(rows))
        next_page = _text(_Cursor(served.name, band, end)) if end < total else None
        headers = {}
        if next_page is not None:
            asked = {"cursor": next_page, "limit": limit} | ({"format": format} if format else {})
            headers["Link"] = f'<{request.scope["path"]}?{urlencode(asked)}>; rel="next"'
        if (format or request.accept.best_match(FORMS)) in ("csv", "text/csv"):
            return Response(_csv(rows), media_type="text/csv", headers=headers | {"Vary": "Accept"})
        told = [
            b'{"score":%b,"generation":%b,"band":%b,"total":%d,"customers":['
            % (encode(score), encode(served.name), encode(band), total),
            b",".join(rows),
            b'],"next":%b}' % encode(next_page),
        ]
        return Response(b"".join(told), media_type="application/json", headers=headers | {"Vary": "Accept"})

    return call_list


def _size(served: Served, band: str | None) -> int:
    """How many customers there are in a band, or in all. Raises the problem that there is no such band."""
    counts = served.generation.band_counts
    if band is None:
        return served.generation.rows
    if band not in counts:
        known = list(counts)
        detail = f"Unknown band '{short(band)}' of score '{served.generation.score}'."
        raise NotFoundException(
            detail=f"{detail} Known bands: {', '.join(known) or 'it has none'}.", extra={"known_bands": known}
        )
    return counts[band]


def _text(cursor: _Cursor) -> str:
    return base64.urlsafe_b64encode(encode(cursor)).decode().rstrip("=")


def _place(served: Served, text: str, band: str | None) -> tuple[str | None, int]:
    """The band and the place where the page of a cursor begins. Raises the problem with it."""
    try:
        padded = text.encode("ascii") + b"=" * (-len(text) % 4)
        cursor = msgspec.json.decode(base64.b64decode(padded, altchars=b"-_", validate=True), type=_Cursor)
    except (ValueError, binascii.Error, msgspec.MsgspecError):
        raise NotFoundException(detail=f"'{short(text)}' is no cursor of this list; take `next` as it is.") from None
    if cursor.generation != served.name:
        raise ListChanged(
            detail=f"The list of generation {short(cursor.generation)} is not served any more, {served.name} is:"
            " begin anew without a cursor."
        )
    if band is not None and band != cursor.band:
        of_band = f"band '{short(cursor.band)}'" if cursor.band is not None else "all customers"
        raise NotFoundException(detail=f"The cursor is of {of_band}, not of band '{short(band)}': begin anew.")
    if not 0 <= cursor.start <= _size(served, cursor.band):
        raise NotFoundException(detail=f"'{short(text)}' is no cursor of this list; take `next` as it is.")
    return cursor.band, cursor.start


def _csv(rows: list[bytes]) -> str:
    """The customers as lines, with the sentences of their reasons in the last column."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow([*COLUMNS, "reasons"])
    for row in rows:
        customer = _decode(row)
        told = [str(one).lower() if isinstance(one, bool) else one for one in (getattr(customer, c) for c in COLUMNS)]
        writer.writerow([*told, " ".join(reason.text for reason in customer.reasons)])
    return lines.getvalue()
