"""The lookup that applications make most, answered before Litestar, whose way to a handler costs several such lookups.

It is `GET /scores/{score}/customers/{customer_id}` of a customer who is there, with an id that needs no encoding.
Whatever else is asked goes on to the handler, which alone says what is wrong; a test holds the two answers together.
"""

from typing import Any

from litestar.types import ASGIApp, Receive, Scope, Send

from serving.catalogue import Catalogue
from serving.guarding.callers import caller_of
from serving.revalidation import Published

ROUTE = "/scores/{score}/customers/{customer_id}"  # as Litestar puts it into the scope


def answering_plain_lookups(app: ASGIApp, catalogue: Catalogue) -> ASGIApp:
    """The app, with plain lookups answered before it."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            published = _plain(scope, catalogue)
        except Exception:  # the handler meets it too, and answers as to any fault inside
            published = None
        if published is None:
            await app(scope, receive, send)
            return
        scope["path_template"] = ROUTE
        await published(scope, receive, send)

    return answer


def _plain(scope: Any, catalogue: Catalogue) -> Published | None:
    """The answer about the customer that is asked for, None where the handler is to answer."""
    if scope["type"] != "http" or scope["method"] != "GET" or scope["query_string"]:
        return None
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
