"""What stands before the API: who asks and may he, how often, how much at most; and what each answer is sent with.

One ASGI middleware around Litestar, as a guard of Litestar's own costs a multiple. It decides by method and path alone,
so that an endpoint that is added is guarded without a word of its own: it needs `read`.
"""

import asyncio
import ipaddress
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from itertools import chain
from typing import Any

import msgspec
from litestar.enums import ScopeType
from litestar.exceptions import (
    ClientException,
    HTTPException,
    NotAuthorizedException,
    PermissionDeniedException,
    TooManyRequestsException,
)
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from serving.answers import PROBLEM
from serving.guarding.audit import Asked, Audit
from serving.guarding.bounds import Bounds, bounded
from serving.guarding.callers import ANYBODY, Caller, Permission
from serving.guarding.known_keys import KnownKey, KnownKeys
from serving.problems import problem_of, short, unknown_score

log = logging.getLogger("serving")

MOST_HEADER_BYTES = 16_384
MOST_TARGET_BYTES = 4_096  # of a path and its query, as they are sent; the longest id takes 1,533 of them
HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})
PAGES = frozenset({"pages", "reports", "models", "features", "sources", "docs"})  # what people open; and /
OF_A_SCORE = frozenset({"scores", "pages", "models", "reports"})  # the next part of the path is a score
OF_ALL_SCORES = frozenset({"features", "sources", "metrics"})  # what these show can't be told apart by score
_SAFE = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
    (b"cache-control", b"private, no-cache"),
]
SAFE = frozenset(name for name, _ in _SAFE)

# Who asks for /health without a key where one is needed.
NOBODY = Caller(name="nobody", permissions=frozenset(), scores=frozenset())

Answered = Callable[[str | None, str, int, float], None]  # route, method, status, seconds


class HeadersTooLarge(HTTPException):
    status_code = 431


class TargetTooLong(HTTPException):
    status_code = 414


def needed(method: str, parts: list[str]) -> tuple[Permission, ...]:
    """The permissions of which a request needs one, by its method and the parts of its path."""
    first = parts[0] if parts else ""
    of_score = parts[2] if first == "scores" and len(parts) > 2 else ""
    if first == "jobs" or of_score == "jobs":
        return ("jobs",)
    if method == "POST" and first == "events":
        return ("events",)
    if method == "POST" and of_score == "predict" and len(parts) == 3:
        return ("predict",)
    if of_score == "contract":  # which says what a prediction's request has to be
        return ("read", "predict")
    return ("read",)


def guarded(
    app: ASGIApp,
    keys: KnownKeys,
    *,
    known_scores: Callable[[], Iterable[str]],
    bounds: Bounds,
    audit: Audit | None = None,
    answered: Answered | None = None,
) -> ASGIApp:
    """The app behind the guard. `answered` is told of each answer: route (None: no such), method, status, seconds."""

    def admit(scope: Any, parts: list[str], headers: dict[bytes, bytes]) -> Caller:
        """Who asks, if what he asks for may be answered to him. Raises the problem to answer with if not."""
        method: str = scope["method"]
        if method not in HARMLESS:
            _check_origin(headers)
        sent = headers.get(b"authorization")
        if parts and parts[0] == "health":
            found = keys.find(sent) if sent and keys.guarded else None
            if isinstance(found, KnownKey):
                return found.caller
            return NOBODY if keys.guarded or not _is_loopback(scope, headers) else ANYBODY
        if not keys.guarded:
            if not _is_loopback(scope, headers):
                raise PermissionDeniedException(
                    detail="This server has no API keys, so it answers on loopback alone, by that name (127.0.0.1,"
                    " [::1], localhost): make key NAME=crm MAY=read"
                )
            if method == "POST" and parts and parts[0] == "events":
                raise PermissionDeniedException(
                    detail="Pushing events is off, as this server has no key for it. Make one, which it takes without"
                    " a restart: make key NAME=shop MAY=events. From then on each request needs a key."
                )
            return ANYBODY
        known = _known(keys, sent, parts, headers)
        scope["key_id"] = known.key.id
        scope["caller"] = caller = known.caller
        if wait := known.wait():
            seconds = math.ceil(wait)
            raise TooManyRequestsException(
                detail=f"The key '{caller.name}' is good for {known.key.rate:g} requests a second, shared out evenly"
                " over the server's processes. Ask again in"
                f" {seconds} s.",
                headers={"Retry-After": str(seconds)},
            )
        permissions = needed(method, parts)
        if not any(caller.may(permission) for permission in permissions):
            may, needs = ", ".join(sorted(caller.permissions)), "' or '".join(permissions)
            raise PermissionDeniedException(
                detail=f"The key '{caller.name}' may not do this: it needs the permission '{needs}' and has {may}."
            )
        if caller.scores is not None and parts:
            # Of whatever is not its own, there or not, a key hears the same here: so it can't find out what is there.
            if len(parts) > 1 and parts[0] in OF_A_SCORE and parts[1] not in caller.scores:
                raise unknown_score(parts[1], list(known_scores()))
            if parts[0] in OF_ALL_SCORES:
                raise PermissionDeniedException(
                    detail=f"/{parts[0]} shows all scores, and the key '{caller.name}' may see some alone."
                )
        return caller

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await send({"type": "websocket.close", "code": 1008, "reason": None})  # there are no websockets
            return
        began = time.perf_counter()
        mine: Any = scope
        mine["caller"] = NOBODY
        method: str = scope["method"]
        status = 500
        parts: list[str] = []

        async def send_safely(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _safe(message["headers"])
            await send(message)

        try:
            try:
                headers = _headers(mine)
                parts = _parts(mine)
                mine["caller"] = admit(mine, parts, headers)
            except HTTPException as refusal:
                await _refuse(refusal, mine["caller"], send_safely)
            else:
                if method not in HARMLESS:
                    receive = bounded(receive, headers.get(b"content-length"), bounds.of(parts))
                await app(scope, receive, send_safely)
        finally:
            seconds = time.perf_counter() - began
            if answered is not None:
                answered(mine.get("path_template"), method, status, seconds)
            if audit is not None and not (parts and parts[0] in ("health", "docs")):
                client = scope.get("client")
                audit.note(
                    Asked(
                        at=time.time(),
                        key_id=mine.get("key_id"),
                        key=mine["caller"].name,
                        method=method,
                        route=mine.get("path_template"),
                        path=scope["raw_path"],
                        query=scope["query_string"],
                        score=parts[1] if len(parts) > 1 and parts[0] in OF_A_SCORE else None,
                        customers=mine.get("customers"),
                        status=status,
                        seconds=seconds,
                        client=client[0] if client else None,
                    )
                )

    return guard


@asynccontextmanager
async def guarding(keys: KnownKeys, audit: Audit | None, every: float) -> AsyncIterator[None]:
    """Follows the file of keys and writes the audit log, off the event loop, until left."""
    stop = asyncio.Event()

    def look() -> None:
        keys.look()
        if audit is not None:
            audit.flush()

    async def follow() -> None:
        while not stop.is_set():
            try:
                await asyncio.to_thread(look)
            except Exception:  # whatever it is, requests are answered on
                log.exception("could not look for new keys, or write the audit log")
            try:
                await asyncio.wait_for(stop.wait(), every)
            except TimeoutError:
                continue

    following = asyncio.create_task(follow())
    try:
        yield
    finally:
        stop.set()
        await following
        if audit is not None:
            await asyncio.to_thread(audit.close)


def _headers(scope: Any) -> dict[bytes, bytes]:
    """The headers of a request by name. Raises if they, or the path and query, are too long."""
    size = len(b"".join(chain.from_iterable(scope["headers"])))
    if size > MOST_HEADER_BYTES:
        raise HeadersTooLarge(detail=f"The headers have {size:,} bytes; {MOST_HEADER_BYTES:,} are possible.")
    size = len(scope["raw_path"].partition(b"?")[0]) + len(scope["query_string"])  # some servers have both in raw_path
    if size > MOST_TARGET_BYTES:
        raise TargetTooLong(detail=f"Path and query have {size:,} bytes; {MOST_TARGET_BYTES:,} are possible.")
    headers = dict(scope["headers"])
    if len(headers) < len(scope["headers"]) and sum(name == b"authorization" for name, _ in scope["headers"]) > 1:
        raise ClientException(detail="There are several Authorization headers: whose key counts can't be told.")
    return headers


def _parts(scope: Any) -> list[str]:
    """The parts of the path as the router will see them: decoded, without empty ones."""
    path: str = scope["path"]
    if root_path := scope.get("root_path"):
        path = path.split(root_path, maxsplit=1)[-1]
    parts = path.strip("/").split("/")
    return [part for part in parts if part] if "" in parts else parts


def _known(keys: KnownKeys, sent: bytes | None, parts: list[str], headers: dict[bytes, bytes]) -> KnownKey:
    found = keys.find(sent) if sent else None
    if isinstance(found, KnownKey):
        return found
    if sent is None:
        detail = "A key is needed: send the header Authorization: Bearer <key>. In a browser it is the password."
    else:
        detail = found or "The Authorization header has no key of this server. Send Bearer <key>."
    # A browser asks its user for the password if the page says so; it does not know of Bearer.
    person = not parts or parts[0] in PAGES or b"text/html" in headers.get(b"accept", b"")
    scheme = 'Basic realm="scorehouse", charset="UTF-8"' if person else 'Bearer realm="scorehouse"'
    raise NotAuthorizedException(detail=detail, headers={"WWW-Authenticate": scheme})


def _check_origin(headers: dict[bytes, bytes]) -> None:
    """Refuses what another site's page makes a browser send: on loopback, or with a password that the browser knows."""
    site = headers.get(b"sec-fetch-site")
    if site in (b"same-origin", b"none"):  # the browser's own word, which no page can forge
        return
    origin = headers.get(b"origin")
    if site == b"cross-site" or (origin is not None and origin.partition(b"://")[2] != headers.get(b"host")):
        told = short((origin or b"of another site").decode("latin-1"))
        raise PermissionDeniedException(detail=f"A page {told} may not change anything here.")


def _is_loopback(scope: Any, headers: dict[bytes, bytes]) -> bool:
    """Whether the server was asked on loopback, and by a name of it.

    A page whose own name resolves to 127.0.0.1 (DNS rebinding) would else read here what it likes, through a browser.
    """
    server = scope.get("server")
    try:
        address = ipaddress.ip_address(server[0]) if server else None
    except ValueError:
        return True  # a name, or a socket's file
    if address is None:
        return True
    host = headers.get(b"host", b"localhost").decode("latin-1")
    name = host.partition("]")[0][1:] if host.startswith("[") else host.partition(":")[0]
    try:
        by_name = name.lower() == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        by_name = False
    return address.is_loopback and by_name


def _safe(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of an answer, and those that keep it safe where it has none of its own."""
    all_of_them = list(headers)
    own = dict(all_of_them)
    return all_of_them + (_SAFE if SAFE.isdisjoint(own) else [safe for safe in _SAFE if safe[0] not in own])


async def _refuse(error: HTTPException, caller: Caller, send: Send) -> None:
    body = msgspec.json.encode(problem_of(error, caller))
    headers = [(b"content-type", PROBLEM.encode()), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()]
    await send({"type": "http.response.start", "status": error.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
