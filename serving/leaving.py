"""How a worker that is told to stop leaves without failing a request: nobody new gets in, and who is in is answered.

granian closes a connection that it has accepted and not read from yet, and so one that is kept alive. Before it is told
to stop, for `SECONDS`, the kernel lets a connection that begins wait (its client asks again after a second, and finds
the next server, or none), what has begun is answered, and each answer says that it is its connection's last.
"""

import asyncio
import ctypes
import os
import signal
import socket
import struct
import sys
from contextlib import suppress
from functools import partial

from litestar import Litestar
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = 0.5
SO_ATTACH_FILTER = 26  # of Linux; socket has no name for it

# Classic BPF: of a packet that has TCP's flag SYN nothing is kept, of another all.
NO_SYN = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load the byte of flags
        (0x45, 0, 1, 0x02),  # is it a SYN?
        (0x06, 0, 0, 0),  # then drop it
        (0x06, 0, 0, 0xFFFFFFFF),
    )
)


def leaves_in_peace(app: Litestar) -> None:
    """Makes a worker's app take its time when the worker is told to stop. A second SIGTERM, or a SIGINT, stops it at
    once."""
    app.on_startup.append(partial(_listen, app))


async def _listen(app: Litestar) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _leave, app)


def _leave(app: Litestar) -> None:
    loop = asyncio.get_running_loop()
    stop = partial(os.kill, os.getpid(), signal.SIGINT)  # granian hears that one too
    loop.add_signal_handler(signal.SIGTERM, stop)
    app.asgi_handler = _closing(app.asgi_handler)
    if sys.platform == "linux":
        _let_nobody_in()
    loop.call_later(SECONDS, stop)


def _closing(app: ASGIApp) -> ASGIApp:
    """The app, whose answers over HTTP/1 are the last of their connections."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        is_kept_alive = scope["type"] == ScopeType.HTTP and scope["http_version"].startswith("1")
        await app(scope, receive, send_last if is_kept_alive else send)

    return answer


def _let_nobody_in() -> None:
    """Has the sockets of this process that listen, which are granian's, ignore connections that begin."""
    code = ctypes.create_string_buffer(NO_SYN, len(NO_SYN))
    program = struct.pack("HP", len(NO_SYN) // 8, ctypes.addressof(code))
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # it is no socket; or filters may not be, and all is as it was
            one = socket.socket(fileno=int(number))
            try:
                if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    one.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
            finally:
                one.detach()
