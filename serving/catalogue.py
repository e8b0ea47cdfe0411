"""The scores that a server serves at this moment, and how new generations replace old ones without a failed request.

Looking for new generations reads the disk and runs in a thread; taking them over is one assignment on the event loop.
Handlers of lookups are synchronous functions on the same loop, so none is between two reads of a store when an old
one is closed.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from serving.answers import FeaturesAnswer, Readiness, ScoreReadiness, ScoreSummary, summarise
from serving.generations.addresses import without_login
from serving.generations.generation import StoreUnavailable
from serving.generations.opening import Lookups
from serving.generations.pulling import nothing_pulled, pull_fault
from serving.generations.store import CorruptGeneration, current, declared, open_store, published_scores
from serving.revalidation import Validators
from serving.scorers import NoScorer, broken_scorer, load_scorer
from serving.watching.counting import looked_up

if TYPE_CHECKING:
    from ml.on_demand import Scorer

log = logging.getLogger("serving")

DAY = 86_400
RETRY_SECONDS = 5.0  # a refused generation is read again this often: it may be a copy under way

Clock = Callable[[], float]  # seconds since 1970
T = TypeVar("T")
NOTHING_PUBLISHED = "No score is published yet: run the pipeline (make run); it is picked up without a restart."


class Served:
    """One score as it is served: an open store, and what only the day can tell, computed once a day."""

    def __init__(self, store: Lookups, clock: Clock = time.time) -> None:
        self.store = store
        self.generation = store.generation
        self.scorer: Scorer | NoScorer | None = None  # None: it is not loaded yet
        self._clock = clock
        names = [msgspec.json.encode(feature.name) + b":" for feature in self.generation.features]
        self._names = [name if place == 0 else b"," + name for place, name in enumerate(names)]
        self._begin_day()

    @property
    def name(self) -> str:
        """The name of the generation."""
        return self.generation.generation

    def customer(self, customer_id: str) -> bytes | None:
        """The JSON of a `CustomerAnswer`: the stored bytes with their closing brace replaced by what the day tells."""
        stored = self.store.get(customer_id)
        if stored is None:
            return None
        looked_up(self.generation.score, 1, 0)
        self._keep_up()
        return stored[:-1] + self._tail

    def customers(self, ids: Sequence[str]) -> tuple[list[bytes], list[str]]:
        """The JSON of a `CustomerAnswer` for each id that is known, in their order, and the ids that are not."""
        self._keep_up()
        tail, found, missing = self._tail, [], []
        for customer_id, stored in zip(ids, self.store.get_many(ids), strict=True):
            if stored is None:
                missing.append(customer_id)
            else:
                found.append(stored[:-1] + tail)
        looked_up(self.generation.score, len(found), len(missing))
        return found, missing

    def ranked(self, band: str | None, start: int, count: int) -> list[bytes]:
        """The JSON of a `RankedCustomer` for each of `count` places from `start`, counted from 0, of the call list."""
        self._keep_up()
        return [
            b'{"rank":%d,' % place + stored[1:-1] + self._tail
            for place, stored in enumerate(self.store.ranked(band, start, count), start + 1)
        ]

    @property
    def validators(self) -> Validators:
        """What tells today's answers from those of before."""
        self._keep_up()
        return self._validators

    def features(self, customer_id: str) -> bytes | None:
        """The JSON of a `FeaturesAnswer`: the stored values, not decoded, behind the names of their features."""
        stored = self.store.features(customer_id)
        if stored is None:
            return None
        self._keep_up()
        values = msgspec.json.decode(stored, type=list[msgspec.Raw])
        named = chain.from_iterable(zip(self._names, values, strict=True))
        return b"".join([self._before_id, msgspec.json.encode(customer_id), self._after_id, *named, b"}}"])

    def refusal(self) -> str | None:
        """Why lookups of this score are not answered today; None if they are."""
        told = self.summary()
        if told.freshness == "fresh" or told.when_stale == "serve":
            return None
        return (
            f"Score '{told.name}' is stale, and its owner has it refused then: it speaks for {told.as_of_date}, and was"
            f" fresh until {told.fresh_until}. Ask {told.owner}{f' ({told.email})' if told.email else ''}."
        )

    def summary(self) -> ScoreSummary:
        self._keep_up()
        return self._summary

    def _keep_up(self) -> None:
        if self._clock() >= self._next_day:
            self._begin_day()

    def ages(self) -> tuple[float, int]:
        """Seconds since the generation was made, and days since its as-of date, on the project's clock."""
        now = self._clock()
        today = self.generation.today or datetime.fromtimestamp(now, UTC).date()
        return now - self.generation.published_at.timestamp(), (today - self.generation.as_of_date).days

    def _begin_day(self) -> None:
        now, today = self._clock(), self.generation.today
        self._next_day = math.inf if today else (now // DAY + 1) * DAY
        self._summary = summarise(self.generation, today or datetime.fromtimestamp(now, UTC).date())
        stale = self._summary.freshness == "stale"
        self._tail = b',"stale":' + msgspec.json.encode(stale) + b"}"
        changed_at = self.generation.published_at
        if stale:  # which it has been since the day after its last fresh one
            since = datetime.combine(self._summary.fresh_until + timedelta(days=1), datetime.min.time(), UTC)
            changed_at = max(changed_at, since)
        self._validators = Validators(f"{self.name}{'-stale' if stale else ''}", changed_at)
        answer = FeaturesAnswer(
            score=self.generation.score,
            customer_id="",
            generation=self.name,
            model_version=self.generation.model_version,
            as_of_date=self.generation.as_of_date,
            fresh_until=self._summary.fresh_until,
            stale=stale,
            features={},
        )
        self._before_id, self._after_id = msgspec.json.encode(answer).removesuffix(b"}}").split(b'""', 1)


class Found(msgspec.Struct):
    """What a look at a score's folder brought: a generation to serve, or a fault, or neither where all is as it was."""

    score: str
    served: Served | None = None
    fault: str | None = None
    gone: bool = False  # whether even the generation that was served is there no more


class Shelf(Protocol):
    """Where generations are kept. All may raise `StoreUnavailable`."""

    @property
    def waits(self) -> bool: ...  # whether a lookup waits for a network: then handlers run in threads
    def pointers(self) -> dict[str, Hashable]: ...  # score -> what differs when its CURRENT does
    def current(self, score: str) -> str | None: ...
    def holds(self, score: str, name: str) -> bool: ...  # whether a generation that is open can be read on
    def open(self, score: str, name: str) -> Lookups: ...


class Folder:
    """Generations in a folder, as `serving.generations.store` keeps them."""

    waits = False

    def __init__(self, root: Path) -> None:
        self.root = root

    def pointers(self) -> dict[str, Hashable]:
        """Score -> identity of the file CURRENT."""
        found: dict[str, Hashable] = {}
        for score in published_scores(self.root):
            with suppress(OSError):
                status = (self.root / score / "CURRENT").stat()
                found[score] = (status.st_mtime_ns, status.st_ino)
        return found

    def current(self, score: str) -> str | None:
        return current(self.root, score)

    def holds(self, score: str, name: str) -> bool:
        """Always: what is open stays, whatever is removed."""
        return True

    def open(self, score: str, name: str) -> Lookups:
        return open_store(self.root / score / name)


def shelf_at(root: Path, url: str) -> Shelf:
    """The shelf of SCOREHOUSE_STORE: a Redis, or the folder if it is empty. `StoreUnavailable` if it is neither."""
    if not url:
        return Folder(root)
    from serving.generations.redis_store import SCHEMES, RedisShelf

    if not url.startswith(SCHEMES):
        raise StoreUnavailable(f"SCOREHOUSE_STORE is '{without_login(url)}'; possible: {'…, '.join(SCHEMES)}…")
    return RedisShelf(url)


class Catalogue:
    """The scores on a shelf of generations (without one, in the folder), kept up to date while `serving` runs."""

    def __init__(
        self, root: Path, *, shelf: Shelf | None = None, clock: Clock = time.time, look_every: float = 0.25
    ) -> None:
        self.root = root
        self.shelf = shelf or Folder(root)
        self.down: str | None = None  # why the shelf cannot be looked at just now
        self.scores: dict[str, Served] = {}
        self.faults: dict[str, str] = {}  # score -> why its newest generation is not served
        self.refusals: dict[str, int] = {}  # score -> how often one was refused
        self._declared: set[str] = set()
        self._clock = clock
        self._look_every = look_every
        self._pointers: dict[str, Hashable] = {}  # score -> the CURRENT last acted upon
        self._retry_at: dict[str, float] = {}

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Load what is published, follow what is published later, and close all at the end."""
        self.take_over(await asyncio.to_thread(self.look))
        stop = asyncio.Event()
        following = asyncio.create_task(self._follow(stop))
        try:
            yield
        finally:
            stop.set()
            await following
            for served in self.scores.values():
                served.store.close()
            self.scores = {}

    async def read(self, function: Callable[..., T], *arguments: object) -> T:
        """What a function reads of a store: at once where that is a file, in a thread where it waits for a network."""
        if self.shelf.waits:
            return await asyncio.to_thread(function, *arguments)
        return function(*arguments)

    async def _follow(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                await asyncio.to_thread(self._load_scorers)
                self.take_over(await asyncio.to_thread(self.look))
            except Exception:  # whatever it is, the scores at hand are served on
                log.exception("could not look for new generations")
            try:
                await asyncio.wait_for(stop.wait(), self._look_every)
            except TimeoutError:
                continue

    def look(self) -> list[Found]:
        """Open and verify the generations that CURRENT newly names. Reads the disk; handlers see nothing of it yet."""
        found: list[Found] = []
        self._declared = declared(self.root)
        try:
            pointers = self.shelf.pointers()
            self._look_at_each(pointers, found)
            down = None
        except StoreUnavailable as error:
            down = str(error)
        if down != self.down:
            log.error("%s", down) if down else log.info("the store of generations can be reached again")
        self.down = down
        return found

    def _look_at_each(self, pointers: dict[str, Hashable], found: list[Found]) -> None:
        for score in sorted({*pointers, *self.scores}):
            pointer = pointers.get(score)
            is_as_before = score in self._pointers and pointer == self._pointers[score]
            if is_as_before and time.monotonic() < self._retry_at.get(score, math.inf):
                continue
            found.append(self._look_at(score))
            self._pointers[score] = pointer
            self._retry_at[score] = time.monotonic() + RETRY_SECONDS if found[-1].fault else math.inf

    def _look_at(self, score: str) -> Found:
        served = self.scores.get(score)
        try:
            name = self.shelf.current(score)
            if name is None:
                raise CorruptGeneration(f"{score}/CURRENT: is missing")
            if served and served.name == name and self.shelf.holds(score, name):
                return Found(score)
            found = Served(self.shelf.open(score, name), self._clock)
            if served:  # which serves on meanwhile; else lookups come first
                found.scorer = load_scorer(found.store)
            return Found(score, served=found)
        except CorruptGeneration as error:
            gone = served is not None and not self.shelf.holds(score, served.name)
            return Found(score, fault=str(error), gone=gone)
        except StoreUnavailable:
            raise
        except Exception as error:  # a fault of one score must not stop the others
            log.exception("%s: could not be read", score)
            return Found(score, fault=f"{score}: could not be read ({type(error).__name__})")

    def _load_scorers(self) -> None:
        """Load what predicts on demand of the scores that were served without it, as lookups could begin earlier so."""
        for served in self.scores.values():
            if served.scorer is None:
                with suppress(StoreUnavailable):  # as the look that follows tells; the next one tries again
                    served.scorer = load_scorer(served.store)

    def take_over(self, found: list[Found]) -> None:
        """Serve what `look` has found. To be called on the event loop."""
        known = bool(self.scores)  # what is there from the start has been told then
        for one in found:
            if one.gone:
                self.scores = {score: served for score, served in self.scores.items() if score != one.score}
            if one.fault is not None:
                if self.faults.get(one.score) != one.fault:
                    self.refusals[one.score] = self.refusals.get(one.score, 0) + 1
                    kept = self.scores.get(one.score)
                    log.error("%s; %s", one.fault, f"{kept.name} is served on" if kept else "not served")
                self.faults[one.score] = one.fault
                continue
            self.faults.pop(one.score, None)
            if one.served is not None:
                old = self.scores.get(one.score)
                self.scores = dict(sorted({**self.scores, one.score: one.served}.items()))
                if old:
                    log.info("%s: %s replaces %s", one.score, one.served.name, old.name)
                    old.store.close()
                elif known:
                    log.info("%s: %s is served from now on", one.score, one.served.name)

    def readiness(self) -> Readiness:
        """What is served and what is wrong, for /health/ready."""
        scores: list[ScoreReadiness] = []
        if self.down:
            return Readiness(status="unavailable", detail=f"{self.down}. It is tried again.", scores=scores)
        for score in sorted({*self.scores, *self.faults}):
            served = self.scores.get(score)
            summary = served.summary() if served else None
            scores.append(
                ScoreReadiness(
                    score=score,
                    generation=summary.generation if summary else None,
                    as_of_date=summary.as_of_date if summary else None,
                    freshness=summary.freshness if summary else None,
                    fault=self.faults.get(score) or (broken_scorer(served.scorer) if served else None),
                )
            )
        if not scores:
            detail = nothing_pulled(self.root) or NOTHING_PUBLISHED
            return Readiness(status="unavailable", detail=detail, scores=[])
        missing = [one.score for one in scores if one.generation is None]
        if missing:
            detail = f"Without a generation that can be served: {', '.join(missing)}. Publish anew or roll back."
            return Readiness(status="unavailable", detail=detail, scores=scores)
        if self.faults:
            detail = f"Served from an older generation: {', '.join(sorted(self.faults))}. Publish anew or roll back."
            return Readiness(status="degraded", detail=detail, scores=scores)
        if unable := [one.score for one in scores if one.fault]:
            detail = f"Looked up, but not predicted on demand: {', '.join(unable)}. Publish anew or roll back."
            return Readiness(status="degraded", detail=detail, scores=scores)
        if unpulled := pull_fault(self.root):
            return Readiness(status="degraded", detail=f"{unpulled}. What is here is served.", scores=scores)
        if unpublished := sorted(self._declared - self.scores.keys()):
            detail = f"Declared, but not published yet: {', '.join(unpublished)}. The others are served."
            return Readiness(status="degraded", detail=detail, scores=scores)
        refused = sum(served.refusal() is not None for served in self.scores.values())
        told = f", of which lookups of {refused} are refused, as they are stale" if refused else ""
        return Readiness(status="ready", detail=f"{len(scores)} scores are served{told}.", scores=scores)
