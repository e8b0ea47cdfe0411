"""What applications ask for most, answered before Litestar, whose way to a handler costs several lookups.

It is `GET /scores/{score}/customers/{customer_id}` of a customer who is there, with an id that needs no encoding, and
`POST /scores/{score}/predict` with a short body. Whatever else is asked goes on to the handlers, and so does what was
wrong with a prediction: they alone tell it. Tests hold the answers of both ways together.
"""

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
            asked["path_template"] = PREDICT
            try:
                body, rows = await predictor.answer(score, await _body(receive), caller_of(scope))
            except Exception as fault:
                await app(scope, _raising(fault), send)
                return
            audited_customers(scope, rows)
            headers = [JSON, (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body, "more_body": False})
        else:
            await app(scope, receive, send)

    return answer


async def _body(receive: Receive) -> bytes:
    """The body of a request as a whole. Raises what the guard's `receive` does of one that breaks off."""
    pieces = []
    while True:
        message: Any = await receive()
        pieces.append(message["body"])
        if not message.get("more_body"):
            return b"".join(pieces)


def _raising(fault: Exception) -> Receive:
    """A `receive` with which the handler meets, as it asks for the body, what has been met already: it is told, and
    logged, as any fault of the handler's own."""

    async def receive() -> Any:
        raise fault

    return receive


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
    if len(parts) != 4 or parts[1] != b"scores" or parts[3] != b"predict" or b"%" in sent or b"?" in sent:
        return None
    length = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    is_short = len(length) < 6 and length.isdigit() and int(length) <= FEW_BYTES
    return parts[2].decode("latin-1") if is_short else None
