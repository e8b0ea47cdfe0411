"""Generations in Redis or Valkey, for fleets that run one already: what `serving.generations.opening` is for files.

    scorehouse:scores                            set: the scores that are published
    scorehouse:<score>:CURRENT                   the name of the generation that is served
    scorehouse:<score>:generations               sorted set: all generations, by when they were published
    scorehouse:<score>:<generation>:plan         `Plan`: where its content is
    scorehouse:<score>:<generation>:<file>.mdb:<bucket>
                                                 hash: a part of the pairs of an LMDB file, as they are there
    scorehouse:<score>:<generation>:<file>       what else is in its folder: model.cbm, card.json, ..., generation.json
                                                 and, written last, generation.json.sha256

`serving.generations.redis_publishing` writes them. A table is in many hashes so that each may be removed in an instant.
"""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Self
from zlib import crc32

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from serving.generations.addresses import without_login
from serving.generations.generation import (
    NAME,
    RANKING,
    CorruptGeneration,
    Generation,
    StoreUnavailable,
    parsed_manifest,
)
from serving.generations.lmdb_file import LONGEST_ID, rank_key
from serving.generations.opening import check_contents, places

SCHEMES = ("redis://", "rediss://", "unix://")
TIMEOUT_SECONDS = 2.0
STEP = 500  # commands sent at once

Client = Any  # redis.Redis, whose own types leave open whether it gives bytes, and whether at once


class Plan(msgspec.Struct, frozen=True):
    """Where the content of a generation is: in how many hashes each table, and which other files there are."""

    buckets: int
    tables: list[str]
    files: list[str]

    def keys(self, score: str, name: str) -> Iterator[str]:
        """All keys of the content, the tables' first."""
        for table in self.tables:
            yield from (key_of(score, name, table, str(bucket)) for bucket in range(self.buckets))
        yield from (key_of(score, name, file) for file in self.files)


def key_of(score: str, *parts: str) -> str:
    return ":".join(["scorehouse", score, *parts])


def bucket_of(key: bytes, buckets: int) -> int:
    """The hash of a table that has a key."""
    return crc32(key) % buckets


def connect(url: str) -> Client:
    """A client of the Redis at a URL, which connects when first asked. Raises `StoreUnavailable` if it is none."""
    try:
        # Once more and at once: a connection that was idle while Redis started anew is found to be broken when used.
        return redis.Redis.from_url(
            url,
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 1),
        )
    except ValueError as error:
        raise StoreUnavailable(f"{without_login(url)} is no address of a Redis: {error}") from None


@contextmanager
def told(url: str) -> Iterator[None]:
    """Turns what the client raises into `StoreUnavailable`, which names the Redis and no secret."""
    try:
        yield
    except redis.RedisError as error:
        said = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise StoreUnavailable(f"Redis at {without_login(url)}: {said}") from error


class RedisStore:
    """A generation in Redis: as `serving.generations.opening.Store`, but each call waits for the network.

    Make it with `RedisShelf.open`. All raise `StoreUnavailable` if Redis is, or if the content is there no more.
    """

    def __init__(self, client: Client, url: str, generation: Generation, plan: Plan) -> None:
        self.generation = generation
        self._client, self._url, self._plan = client, url, plan
        self.rows = self._count("store.mdb")
        self.has_ranking = RANKING in plan.tables

    def get(self, customer_id: str) -> bytes | None:
        """The JSON of a customer, None if there is none; no id is bad enough to raise."""
        return self.get_many([customer_id])[0]

    def get_many(self, ids: Sequence[str]) -> list[bytes | None]:
        """The JSON of each of several customers, asked for together."""
        return self._values("store.mdb", [_key(customer_id) for customer_id in ids])

    def features(self, customer_id: str) -> bytes | None:
        """The JSON array of a customer's features, None if there is no such customer or no features at all."""
        if not self.generation.features:
            return None
        return self._values("features.mdb", [_key(customer_id)])[0]

    def ranked(self, band: str | None, start: int, count: int) -> list[bytes]:
        """The JSON of up to `count` customers of a band, or of all bands, the best first; `start` is from 0 within it.

        Raises `KeyError` if there is no such band, `LookupError` if the generation has no ranking.
        """
        if not self.has_ranking:
            raise LookupError(f"generation {self.generation.generation} was published without a ranking")
        first, last = places(self.generation, band)
        ranks = range(first + start, min(first + start + count, last))
        ids = self._values(RANKING, [rank_key(rank) for rank in ranks])
        found = self._values("store.mdb", [customer_id or b"" for customer_id in ids])
        return [stored or b"" for stored in found]

    def attachment(self, name: str) -> bytes:
        """The content of a file that was attached, such as model.cbm. Raises `KeyError` if there is none such."""
        if name not in self._plan.files:
            raise KeyError(name)
        with told(self._url):
            content: bytes | None = self._client.get(self._of(name))
        if content is None:
            raise self._gone(name)
        return content

    def rows_of_features(self) -> int:
        return self._count("features.mdb") if self.generation.features else 0

    def rows_of_ranking(self) -> int:
        return self._count(RANKING) if self.has_ranking else 0

    def sample(self, size: int) -> Iterator[tuple[str, bytes]]:
        """About `size` customers, spread over all of them."""
        chosen = range(0, self._plan.buckets, max(1, self._plan.buckets // max(1, size)))
        each = -(-size // len(chosen))
        for some in _steps(list(chosen)):
            with told(self._url):
                pipeline = self._client.pipeline(transaction=False)
                for bucket in some:
                    pipeline.hscan(self._of("store.mdb", bucket), 0, count=each)
                found = pipeline.execute()
            for _, pairs in found:
                for key, stored in islice(sorted(pairs.items()), each):
                    yield key.decode(errors="replace"), stored

    def close(self) -> None:
        """Nothing: all stores share a client."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def _of(self, file: str, bucket: int | None = None) -> str:
        parts = [file] if bucket is None else [file, str(bucket)]
        return key_of(self.generation.score, self.generation.generation, *parts)

    def _values(self, table: str, keys: list[bytes]) -> list[bytes | None]:
        found: list[bytes | None] = []
        for some in _steps(keys):
            hashes = [self._of(table, bucket_of(key, self._plan.buckets)) for key in some]
            with told(self._url):
                if len(some) == 1:
                    values: list[Any] = [self._client.hget(hashes[0], some[0])]
                else:
                    pipeline = self._client.pipeline(transaction=False)
                    for name, key in zip(hashes, some, strict=True):
                        pipeline.hget(name, key)
                    values = pipeline.execute()
                # A customer who is not there is unknown only if their hash is: Redis may have lost or evicted it.
                missing = {name for name, value in zip(hashes, values, strict=True) if value is None}
                if missing and self._client.exists(*missing) < len(missing):
                    raise self._gone(table)
            found += values
        return found

    def _count(self, table: str) -> int:
        rows = 0
        for some in _steps(list(range(self._plan.buckets))):
            with told(self._url):
                pipeline = self._client.pipeline(transaction=False)
                for bucket in some:
                    pipeline.hlen(self._of(table, bucket))
                rows += sum(pipeline.execute())
        return rows

    def _gone(self, file: str) -> StoreUnavailable:
        where = f"{self.generation.score}/{self.generation.generation}/{file}"
        return StoreUnavailable(f"Redis at {without_login(self._url)}: {where} is there no more, or not all of it")


class RedisShelf:
    """The generations in the Redis at a URL. All raise `StoreUnavailable` if it cannot be reached."""

    waits = True  # for the network: not to be asked on the event loop

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = connect(url)

    def pointers(self) -> dict[str, Hashable]:
        """Score -> the content of its CURRENT."""
        with told(self.url):
            scores = sorted(score.decode(errors="replace") for score in self.client.smembers("scorehouse:scores"))
            scores = [score for score in scores if NAME.fullmatch(score)]
            values = self.client.mget([key_of(score, "CURRENT") for score in scores]) if scores else []
        return {score: value for score, value in zip(scores, values, strict=True) if value is not None}

    def current(self, score: str) -> str | None:
        """The name of the generation that is served. Raises `CorruptGeneration` if it is no name."""
        with told(self.url):
            content: bytes | None = self.client.get(key_of(score, "CURRENT"))
        if content is None:
            return None
        name = content.decode(errors="replace")
        if not NAME.fullmatch(name):
            raise CorruptGeneration(f"{score}/CURRENT: {name[:100]!r} is no name of a generation")
        return name

    def holds(self, score: str, name: str) -> bool:
        """Whether a generation is there, whole."""
        with told(self.url):
            return bool(self.client.exists(key_of(score, name, "generation.json.sha256")))

    def open(self, score: str, name: str) -> RedisStore:
        """A generation for lookups, verified: its manifest, its number of customers, and a sample of them.

        Raises `CorruptGeneration`.
        """
        files = ("generation.json", "generation.json.sha256", "plan")
        with told(self.url):
            found = self.client.mget([key_of(score, name, file) for file in files])
        for file, content in zip(files, found, strict=True):
            if content is None:
                raise CorruptGeneration(f"{score}/{name}/{file}: is missing")
        manifest, checksum, plan = found
        generation = parsed_manifest(manifest, checksum.decode(errors="replace"), score, name)
        try:
            store = RedisStore(self.client, self.url, generation, msgspec.json.decode(plan, type=Plan))
            check_contents(store)
        except ValueError as error:
            raise CorruptGeneration(f"{score}/{name}/{error}") from error
        return store


def _key(customer_id: str) -> bytes:
    """A customer's key; one that no customer has, if it cannot be one."""
    try:
        key = customer_id.encode()
    except UnicodeEncodeError:
        return b""
    return key if len(key) <= LONGEST_ID else b""


def _steps(items: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(items), STEP):
        yield items[start : start + STEP]
