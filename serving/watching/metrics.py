"""GET /metrics: what the API did and how its scores are, for Prometheus, summed over the workers of a server.

A few times a second a worker writes its counts to a file of its own beside those of the other workers, and before it
tells them to a scrape, so what was told is never lost and no counter goes back. The file of a dead worker stays, as its
counts do, until the server ends.
"""

import asyncio
import logging
import os
import shutil
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
from litestar import Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import ResponseSpec

from serving.catalogue import Catalogue
from serving.generations.store import is_alive
from serving.watching.counting import Counts, Key, counts
from serving.watching.exposition import State, exposition, state_of

log = logging.getLogger("serving")

WRITE_EVERY = 0.25  # seconds
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Counted = list[tuple[str, Key, list[float]]]  # Counts, as it can be JSON


class Shared:
    """The counts of all workers of a server, in a folder with a file of each; without one, of this process alone."""

    def __init__(self, folder: Path | None, catalogue: Catalogue) -> None:
        self._folder, self._catalogue = folder, catalogue
        # Not named by the process alone: one that is started later may have the number of one that died.
        self._file = folder and folder / f"{os.getpid()}-{uuid.uuid4().hex}.json"
        self._written: Counted | None = None
        self._is_failing = False
        self._writing = asyncio.Lock()  # an older state must not replace a newer

    async def write(self) -> Counted:
        """What this process has counted, put where the others read it; of a full disk they read it later."""
        async with self._writing:
            refusals: dict[Key, list[float]] = {(score,): [count] for score, count in self._catalogue.refusals.items()}
            told: Counts = {**counts, "refusals": refusals}
            own = [(name, key, [*values]) for name, counted in told.items() for key, values in [*counted.items()]]
            if self._file and own != self._written:
                try:
                    await asyncio.to_thread(_replace, self._file, msgspec.json.encode(own))
                except OSError as error:
                    if not self._is_failing:
                        log.error("metrics can't be written for the other workers: %s", error)
                    self._is_failing = True
                else:
                    self._written, self._is_failing = own, False
        return own

    def others(self) -> list[Counted]:
        """What the other workers have counted, those that are dead too."""
        files = [] if self._folder is None else [file for file in self._folder.glob("*.json") if file != self._file]
        return [msgspec.json.decode(file.read_bytes(), type=Counted) for file in files]

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Writes a few times a second, and in the end."""
        if self._folder is None:
            yield
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        stop = asyncio.Event()
        writing = asyncio.create_task(self._write_on(stop))
        try:
            yield
        finally:
            stop.set()
            await writing

    async def _write_on(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), WRITE_EVERY)
            await self.write()


def _replace(file: Path, content: bytes) -> None:
    beside = file.with_suffix(".new")
    beside.write_bytes(content)
    os.replace(beside, file)


def summed(counted: Iterable[Counted]) -> Counts:
    total: Counts = defaultdict(dict)
    for one in counted:
        for name, key, values in one:
            before = total[name].get(key)
            total[name][key] = values if before is None else [a + b for a, b in zip(before, values, strict=True)]
    return total


def metrics_handler(catalogue: Catalogue, shared: Shared) -> HTTPRouteHandler:
    """GET /metrics."""

    @get(
        "/metrics",
        tags=["health"],
        summary="Metrics for Prometheus",
        media_type="text/plain",
        responses={
            200: ResponseSpec(
                str,
                generate_examples=False,
                media_type="text/plain",
                description="Counters and histograms of all workers, and how the scores are at this moment.",
            )
        },
    )
    async def metrics() -> Response[bytes]:
        own, state = await shared.write(), state_of(catalogue)
        return Response(await asyncio.to_thread(_exposed, own, shared, state), media_type=CONTENT_TYPE)

    return metrics


def _exposed(own: Counted, shared: Shared, state: State) -> bytes:
    return exposition(summed([own, *shared.others()]), state)


def folder_of(data: Path, server: int) -> Path:
    """Where the workers of a server, given its process, keep their counts."""
    return data / "metrics" / str(server)


def begin(data: Path, server: int) -> Path:
    """An empty folder for the counts of a server that starts. Those of servers that are gone are removed."""
    for folder in (data / "metrics").glob("*/"):
        if not is_alive(folder.name):
            shutil.rmtree(folder, ignore_errors=True)
    folder = folder_of(data, server)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
