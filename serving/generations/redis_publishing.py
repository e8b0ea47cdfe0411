"""Brings a published generation from the disk, which is the master, into Redis: all of it, or nothing that is seen.

Its content is written under a name of its own, read back, and only then its manifest and CURRENT. A publisher that is
killed, or finds Redis full, leaves the old generation serving; what it left, the next one removes.
"""

import hashlib
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

import msgspec
import redis

from serving.generations.addresses import without_login
from serving.generations.generation import CorruptGeneration, PublicationError, StoreUnavailable, read_manifest
from serving.generations.lmdb_file import pairs_of
from serving.generations.redis_store import STEP, Plan, RedisShelf, bucket_of, key_of, told
from serving.generations.store import current, is_alive, kept_generations, verify

PER_BUCKET = 1000  # customers in a hash, about
BATCH = 5000  # customers sent at once: bounds memory, and how long others wait for Redis
SAMPLES = 1000  # customers compared with the disk
LOCKED_SECONDS = 30  # since the last batch: then a publisher counts as dead


def publish_to_redis(root: Path, url: str, score: str) -> bool:
    """Serve in Redis what is served of a score on the disk. Gives whether anything was to be done.

    Raises `PublicationError` if it cannot be written, `CorruptGeneration` if it is not sound on the disk; what Redis
    served before serves on.
    """
    name = current(root, score)
    if name is None:
        raise PublicationError(f"score '{score}' is not published in {root}")
    try:
        shelf = RedisShelf(url)
        if shelf.current(score) == name and _is_whole(shelf, root, score, name):
            return False
        with _alone(shelf, score) as me:
            _remove_orphans(shelf, score)
            if not _is_whole(shelf, root, score, name):
                _remove(shelf, score, name)
                _write(shelf, root / score / name)
            shelf.open(score, name)
            with told(url):
                holder = (shelf.client.get(_lock_of(score)) or b"nobody").decode(errors="replace")
                if holder != me:
                    raise PublicationError(
                        f"{score}/{name}: another publisher, {holder}, has taken over; publish again"
                    )
                shelf.client.pipeline().set(key_of(score, "CURRENT"), name).sadd("scorehouse:scores", score).execute()
                kept = shelf.client.zrange(key_of(score, "generations"), -kept_generations(), -1)
                everything = shelf.client.zrange(key_of(score, "generations"), 0, -1)
            for old in everything:
                if old not in kept and old.decode() != name:
                    _remove(shelf, score, old.decode())
    except StoreUnavailable as error:
        raise PublicationError(f"{score}/{name} was not published to {error}") from error
    return True


def _is_whole(shelf: RedisShelf, root: Path, score: str, name: str) -> bool:
    """Whether the very generation of the disk is there with all its customers."""
    with told(shelf.url):
        found = shelf.client.get(key_of(score, name, "generation.json.sha256"))
    if found != (root / score / name / "generation.json.sha256").read_bytes():
        return False
    try:
        shelf.open(score, name)
    except CorruptGeneration:  # Redis has lost some of it
        return False
    return True


def _write(shelf: RedisShelf, folder: Path) -> None:
    """Write the content of a generation, compare it with the disk, and only then write its manifest."""
    generation = verify(folder)
    score, name, client = generation.score, generation.generation, shelf.client
    tables = [file for file in generation.files if file.endswith(".mdb")]
    files = [file for file in generation.files if file not in tables]
    plan = Plan(buckets=max(1, generation.rows // PER_BUCKET), tables=tables, files=files)
    _refuse_evicting(shelf)
    try:
        with told(shelf.url):
            # Before all else: so that what is written from here on can be found, and removed.
            begun = client.pipeline().zadd(key_of(score, "generations"), {name: generation.published_at.timestamp()})
            begun.set(key_of(score, name, "plan"), msgspec.json.encode(plan)).execute()
            for table in tables:
                for batch in _batches(folder / table):
                    _write_batch(shelf, score, name, table, plan, batch)
            for file in files:
                client.set(key_of(score, name, file), (folder / file).read_bytes())
            _compare(shelf, folder, plan)
            for file in ("generation.json", "generation.json.sha256"):
                client.set(key_of(score, name, file), (folder / file).read_bytes())
    except (StoreUnavailable, PublicationError) as error:
        with suppress(StoreUnavailable):  # then the next publication does
            _remove(shelf, score, name)
        if isinstance(error.__cause__, redis.OutOfMemoryError):
            raise StoreUnavailable(f"{error} (its memory is full: give it more, or keep less in it)") from error
        raise


def _batches(file: Path) -> Iterator[list[tuple[bytes, bytes]]]:
    pairs = pairs_of(file)
    while batch := list(islice(pairs, BATCH)):
        yield batch


def _write_batch(
    shelf: RedisShelf, score: str, name: str, table: str, plan: Plan, batch: list[tuple[bytes, bytes]]
) -> None:
    by_bucket: dict[int, list[bytes]] = {}
    for key, stored in batch:
        by_bucket.setdefault(bucket_of(key, plan.buckets), []).extend((key, stored))
    pipeline = shelf.client.pipeline(transaction=False)
    pipeline.expire(_lock_of(score), LOCKED_SECONDS)
    for bucket, items in by_bucket.items():
        pipeline.hset(key_of(score, name, table, str(bucket)), items=items)
    pipeline.execute()


def _compare(shelf: RedisShelf, folder: Path, plan: Plan) -> None:
    """Raises `PublicationError` unless Redis has as many customers as the disk, and of a sample of them, and in all
    other files, the same."""
    score, name = folder.parent.name, folder.name
    where, client = f"{without_login(shelf.url)}: {score}/{name}", shelf.client
    rows = read_manifest(folder).rows
    for table in plan.tables:
        found = 0
        for start in range(0, plan.buckets, STEP):
            pipeline = client.pipeline(transaction=False)
            pipeline.expire(_lock_of(score), LOCKED_SECONDS)
            for bucket in range(start, min(start + STEP, plan.buckets)):
                pipeline.hlen(key_of(score, name, table, str(bucket)))
            found += sum(pipeline.execute()[1:])
        if found != rows:
            raise PublicationError(f"{where}/{table}: {found} customers are there, {rows} were written")
        sample = list(islice(pairs_of(folder / table), 0, None, max(1, rows // SAMPLES)))
        pipeline = client.pipeline(transaction=False)
        for key, _ in sample:
            bucket = bucket_of(key, plan.buckets)
            pipeline.hget(key_of(score, name, table, str(bucket)), key)
        for (key, stored), read in zip(sample, pipeline.execute(), strict=True):
            if read != stored:
                raise PublicationError(f"{where}/{table}: {key!r} is not what was written")
    checksums = read_manifest(folder).files
    for file in plan.files:
        content: bytes | None = client.get(key_of(score, name, file))
        if hashlib.sha256(content or b"").hexdigest() != checksums[file]:
            raise PublicationError(f"{where}/{file}: is not what was written")


def _refuse_evicting(shelf: RedisShelf) -> None:
    """Raises `PublicationError` if Redis removes what it likes when it is full: customers would be unknown then."""
    with told(shelf.url):
        memory = shelf.client.info("memory")
    policy = str(memory.get("maxmemory_policy", ""))
    if memory.get("maxmemory") and policy.startswith("allkeys"):
        raise PublicationError(
            f"{without_login(shelf.url)} removes any key when its memory is full (maxmemory-policy {policy}), so it"
            " would lose customers; set noeviction, or a policy of volatile keys"
        )


def _remove_orphans(shelf: RedisShelf, score: str) -> None:
    """Remove what publishers that were killed left: generations without a manifest."""
    with told(shelf.url):
        names = [name.decode() for name in shelf.client.zrange(key_of(score, "generations"), 0, -1)]
    for name in names:
        if not shelf.holds(score, name):
            _remove(shelf, score, name)


def _remove(shelf: RedisShelf, score: str, name: str) -> None:
    """Remove a generation, its manifest first, in steps that keep nobody waiting; killed, the next one goes on."""
    client = shelf.client
    with told(shelf.url):
        client.unlink(key_of(score, name, "generation.json.sha256"), key_of(score, name, "generation.json"))
        plan = client.get(key_of(score, name, "plan"))
        if plan is not None:
            keys = msgspec.json.decode(plan, type=Plan).keys(score, name)
            while some := list(islice(keys, STEP)):
                client.unlink(*some)
        client.unlink(key_of(score, name, "plan"))
        client.zrem(key_of(score, "generations"), name)


def _lock_of(score: str) -> str:
    return key_of(score, "publishing")


@contextmanager
def _alone(shelf: RedisShelf, score: str) -> Iterator[str]:
    """Holds the right to publish a score, under the name that is given; waits while another publisher has it.

    Not for one that is dead: it wrote nothing for `LOCKED_SECONDS`, or was a process of this host that is no more.
    """
    me = f"{socket.gethostname()} {os.getpid()}"
    with told(shelf.url):
        while not shelf.client.set(_lock_of(score), me, nx=True, ex=LOCKED_SECONDS):
            host, _, process = (shelf.client.get(_lock_of(score)) or b"").decode(errors="replace").rpartition(" ")
            if host == socket.gethostname() and not is_alive(process):
                shelf.client.delete(_lock_of(score))
            else:
                time.sleep(0.2)
    try:
        yield me
    finally:
        with suppress(redis.RedisError):  # then it ends by itself
            if shelf.client.get(_lock_of(score)) == me.encode():
                shelf.client.delete(_lock_of(score))
