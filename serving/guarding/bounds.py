"""How long the body of a request may be, and how long it may take."""

import asyncio
from typing import Any

import msgspec
from litestar.exceptions import HTTPException
from litestar.exceptions.http_exceptions import RequestEntityTooLarge
from litestar.types import Receive

MOST_BYTES = 10_000_000
DROPPED_BYTES = 90_000_000  # beyond its bound that a body is read on for
MOST_JOB_BYTES = 2_000_000_000
PATIENCE = 30.0  # seconds


class TooSlow(HTTPException):
    """A body did not come in time."""

    status_code = 408


class CutShort(HTTPException):
    """A body that ended before it was complete, as its sender went away: his doing, and no fault of the server's."""

    status_code = 400


class Bound(msgspec.Struct, frozen=True):
    """What a body may have: bytes, and seconds as a whole, or for its next piece where it may take its time."""

    bytes: int
    seconds: float = PATIENCE
    by_piece: bool = False


class Bounds(msgspec.Struct, frozen=True):
    """The bounds of bodies: of jobs' uploads, and of all else."""

    jobs: Bound = Bound(MOST_JOB_BYTES, by_piece=True)
    others: Bound = Bound(MOST_BYTES)

    def of(self, parts: list[str]) -> Bound:
        """The bound of a request by the parts of its path."""
        return self.jobs if len(parts) == 3 and parts[0] == "scores" and parts[2] == "jobs" else self.others


def bounded(receive: Receive, content_length: bytes | None, bound: Bound) -> Receive:
    """A request's `receive`, which raises a 413 or 408 where the body breaks its bound, a 400 where it is cut short.

    A body that is too long is read on for a while, and dropped: who still sends does not hear an answer. Not so an
    upload that announces it: who sends so much asks first (Expect: 100-continue), or can be cut off.
    """
    announced = int(content_length) if content_length and content_length.isdigit() else 0
    size = 0
    done = False
    deadline = 0.0

    async def next_piece() -> Any:
        nonlocal size, done, deadline
        if done:
            return await receive()  # of the end of the connection, which may take as long as it likes
        if not size and announced > bound.bytes + (0 if bound.by_piece else DROPPED_BYTES):
            raise _too_large(bound)
        now = asyncio.get_running_loop().time()
        if not deadline or bound.by_piece:
            deadline = now + bound.seconds
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                what = "did not go on" if bound.by_piece else "was not complete"
                raise TooSlow(detail=f"The body {what} within {bound.seconds:g} s. Send it again.") from None
            if message["type"] != "http.request":
                raise CutShort(detail="The body ended before it was complete. Send it again.")
            size += len(message["body"])
            done = not message.get("more_body")
            if max(size, announced) <= bound.bytes:
                return message
            if done or size > bound.bytes + DROPPED_BYTES:
                raise _too_large(bound)

    return next_piece


def _too_large(bound: Bound) -> RequestEntityTooLarge:
    what = "a job's file may have (SCOREHOUSE_JOB_BYTES)" if bound.by_piece else "one request may have"
    return RequestEntityTooLarge(detail=f"The body has more than the {bound.bytes:,} bytes that {what}. Send several.")
