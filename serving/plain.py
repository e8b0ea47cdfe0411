"""What applications ask for most, answered before Litestar, whose way to a handler costs several lookups.

It is `GET /scores/{score}/customers/{customer_id}` of a customer who is there, with an id that needs no encoding, and
`POST /scores/{score}/predict` with a short body that can be predicted. Whatever else is asked goes on to the handlers,
which alone say what is wrong; tests hold the two answers together.
"""

from collections.abc import Iterator
from typing import Any

from litestar.types import ASGIApp, Receive, Scope, Send

from serving.catalogue import Catalogue
from serving.guarding.audit import audited_customers
from serving.guarding.callers import caller_of
from serving.predicting.predictor import FEW_BYTES, Predictor
from serving.revalidation import Published

LOOKUP = "/scores/{score}/customers/{customer_id}"  # as Litestar puts it into the scope
PREDICT = "/scores/{score}/predict"
JSON = (b"content-type", b"application/json")


def answering_plainly(app: ASGIApp, catalogue: Catalogue, predictor: Predictor) -> ASGIApp:
    """The app, with plain lookups and predictions answered before it."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        asked: Any = scope
        if asked["type"] != "http" or asked["query_string"]:
            await app(scope, receive, send)
        elif asked["method"] == "GET" and (published := _published(scope, catalogue)) is not None:
            asked["path_template"] = LOOKUP
            await published(scope, receive, send)
        elif asked["method"] == "POST" and (score := _to_predict(scope)) is not None:
            heard = _Heard(receive)
            predicted = await _predicted(scope, score, heard, predictor)
            if predicted is None:
                await app(scope, heard.again, send)
                return
            asked["path_template"] = PREDICT
            length = (b"content-length", str(len(predicted)).encode())
            await send({"type": "http.response.start", "status": 200, "headers": [JSON, length]})
            await send({"type": "http.response.body", "body": predicted, "more_body": False})
        else:
            await app(scope, receive, send)

    return answer


class _Heard:
    """What a request's `receive` has told so far, for a handler to hear once more."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._told: list[Any] = []  # messages, or the fault that ended them
        self._replayed: Iterator[Any] | None = None

    async def body(self) -> bytes:
        """The body as a whole. Raises what `receive` raises."""
        pieces = []
        while True:
            try:
                message: Any = await self._receive()
            except Exception as fault:
                self._told.append(fault)
                raise
            self._told.append(message)
            pieces.append(message["body"])
            if not message.get("more_body"):
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def again(self) -> Any:
        if self._replayed is None:
            self._replayed = iter(self._told)
        told = next(self._replayed, None)
        if isinstance(told, Exception):
            raise told
        return await self._receive() if told is None else told


def _published(scope: Scope, catalogue: Catalogue) -> Published | None:
    """The answer about the customer that is asked for, None where the handler is to answer."""
    try:
        return _plain_lookup(scope, catalogue)
    except Exception:  # the handler meets it too, and answers as to any fault inside
        return None


def _plain_lookup(scope: Any, catalogue: Catalogue) -> Published | None:
    sent: bytes = scope["raw_path"]
    parts = sent.split(b"/")
    if len(parts) != 5 or parts[1] != b"scores" or parts[3] != b"customers" or b"%" in sent or b"?" in sent:
        return None
    score = parts[2].decode("latin-1")
    served = catalogue.scores.get(score)
    if served is None or catalogue.shelf.waits or not caller_of(scope).may_see(score) or served.refusal() is not None:
        return None
    body = served.customer(parts[4].decode("latin-1"))
    return None if body is None else Published(body, served.validators, scope)


def _to_predict(scope: Any) -> str | None:
    """The score that a short body is to be predicted by, None if it is not such a request."""
    sent: bytes = scope["raw_path"]
    parts = sent.split(b"/")
    if len(parts) != 4 or parts[1] != b"scores" or parts[3] != b"predict" or b"%" in sent:
        return None
    length = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    return parts[2].decode("latin-1") if length.isdigit() and int(length) <= FEW_BYTES else None


async def _predicted(scope: Scope, score: str, heard: _Heard, predictor: Predictor) -> bytes | None:
    """The answer with the predictions, None where the handler is to answer."""
    try:
        body, rows = await predictor.answer(score, await heard.body(), caller_of(scope))
    except Exception:  # the handler meets it too, and tells what is wrong
        return None
    audited_customers(scope, rows)
    return body
