"""The audit log: who asked what, when, and how it was answered. Lines of JSON, without features and without bodies."""

import logging
import os
from collections import deque
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import msgspec

from serving.problems import short

log = logging.getLogger("serving")

MOST_WAITING = 200_000  # lines in memory, while the disk is slow
# Of a query only what names a score or a customer is kept.
_KEPT = ("score", "customer_id")


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was answered, as the guard saw it."""

    at: float  # seconds since 1970
    key_id: str | None
    key: str
    method: str
    route: str | None
    path: bytes  # as it was sent, percent-encoded
    query: bytes
    score: str | None
    customers: int | None
    status: int
    seconds: float
    client: str | None


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the log. `key_id` is null where no key was needed, or none was good."""

    at: datetime
    key_id: str | None
    key: str
    method: str
    route: str | None
    path: str
    score: str | None
    customers: int | None
    status: int
    ms: float
    client: str | None


def audited_customers(scope: Any, customers: int) -> None:
    """Has the log tell of how many customers a request, given its ASGI scope, was, where its address does not."""
    scope["customers"] = customers


def line_of(asked: Asked) -> Line:
    """A request as the log tells it."""
    query = []
    if asked.query:
        query = [(name, value) for name, value in parse_qsl(asked.query.decode("latin-1")) if name in _KEPT]
    path = short(asked.path.partition(b"?")[0].decode("latin-1"), 2_000)
    named = dict(query)
    customers = asked.customers
    if customers is None and asked.status < 400 and (path.partition("/customers/")[2] or named.get("customer_id")):
        customers = 1
    return Line(
        at=datetime.fromtimestamp(asked.at, UTC),
        key_id=asked.key_id,
        key=asked.key,
        method=asked.method,
        route=asked.route,
        path=f"{path}?{short(urlencode(query), 2_000)}" if query else path,
        score=asked.score or named.get("score"),
        customers=customers,
        status=asked.status,
        ms=round(asked.seconds * 1000, 3),
        client=asked.client,
    )


class Audit:
    """The log of this process: `<folder>/<day>-<pid>.jsonl`, kept for `days` days.

    `note` costs an append in memory; `flush`, to be called off the event loop, writes. What can't be written is lost:
    requests are answered all the same, and the server's log tells it.
    """

    def __init__(self, folder: Path, days: int) -> None:
        self._folder, self._days = folder, days
        self._waiting: deque[Asked] = deque(maxlen=MOST_WAITING)
        self._day: date | None = None
        self._file: int | None = None
        self._lost = 0
        self.note = self._waiting.append

    def flush(self) -> None:
        """Writes what has been noted."""
        lines: list[bytes] = []
        day = None
        for _ in range(len(self._waiting)):
            line = line_of(self._waiting.popleft())
            if day not in (None, line.at.date()):
                self._write(day or line.at.date(), lines)
                lines = []
            day = line.at.date()
            lines.append(msgspec.json.encode(line))
        if day:
            self._write(day, lines)

    def close(self) -> None:
        self.flush()
        self._close()

    def _write(self, day: date, lines: list[bytes]) -> None:
        try:
            file = self._file_of(day)
            size = os.fstat(file).st_size
            left = memoryview(b"\n".join(lines) + b"\n")
            try:
                while left:
                    left = left[os.write(file, left) :]
            except OSError:
                with suppress(OSError):
                    os.ftruncate(file, size)  # no half line
                raise
        except OSError as error:
            if not self._lost:
                log.error("the audit log can't be written: %s; requests are answered on", error)
            self._lost += len(lines)
            self._close()
            return
        if self._lost:
            log.error("the audit log is written again; %d lines are lost", self._lost)
            self._lost = 0

    def _file_of(self, day: date) -> int:
        if self._file is None or day != self._day:
            self._close()
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{day}-{os.getpid()}.jsonl"
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            if day != self._day:
                self._remove_old(day)
            self._day = day
        return self._file

    def _remove_old(self, today: date) -> None:
        oldest = today - timedelta(days=self._days - 1)
        for path in self._folder.glob("????-??-??-*.jsonl"):
            with suppress(ValueError, OSError):
                if date.fromisoformat(path.name[:10]) < oldest:
                    path.unlink()

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
