"""Answers that are made of published bytes, which a client may keep and ask after: ETag, Last-Modified and 304."""

from collections.abc import Iterable
from datetime import datetime
from email.utils import format_datetime
from typing import Any

from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send

Headers = Iterable[tuple[bytes, bytes]]


class Validators:
    """What tells a client's copy of an answer from the one of now: the ETag and Last-Modified of a served score.

    One pair does for all its customers, as each has an address of its own. `changed_at` may go back, as a rollback
    brings back what was published earlier: so a date is compared for being the same, not for being later.
    """

    def __init__(self, tag: str, changed_at: datetime) -> None:
        self.etag = f'"{tag}"'.encode()
        self.last_modified = format_datetime(changed_at.replace(microsecond=0), usegmt=True).encode()
        self.headers: Headers = [
            (b"etag", self.etag),
            (b"last-modified", self.last_modified),
            (b"cache-control", b"private, no-cache"),
            (b"vary", b"authorization"),
        ]

    def match(self, asked: Headers) -> bool:
        """Whether the headers of a request say that the client has this answer (RFC 9110, 13.1)."""
        since = None
        for name, value in asked:
            if name == b"if-none-match":
                tags = [tag.strip().removeprefix(b"W/") for tag in value.split(b",")]
                return b"*" in tags or self.etag in tags
            if name == b"if-modified-since":
                since = value
        return since is not None and since == self.last_modified


class Published(ASGIResponse):
    """JSON that is ready to be sent, or 304 and no body where the client has it already."""

    def __init__(self, body: bytes, validators: Validators, scope: Scope) -> None:
        # Not the parent's: its headers are made name by name for each answer, which takes longer than a lookup.
        self._start: Any = {"type": "http.response.start", "status": 200}
        if validators.match(scope["headers"]):
            self._start = {"type": "http.response.start", "status": 304, "headers": list(validators.headers)}
            body = b""
        else:
            length = str(len(body)).encode()
            self._start["headers"] = [
                (b"content-type", b"application/json"),
                (b"content-length", length),
                *validators.headers,
            ]
        self._body: Any = {"type": "http.response.body", "body": body, "more_body": False}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(self._start)
        await send(self._body)
