"""LMDB files: written once by appending sorted customers, then only read."""

import operator
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import lmdb

from serving.generations.generation import BadCustomerId, PublicationError

LONGEST_ID = 511  # bytes; LMDB's limit for a key
CHUNK = 5_000  # customers in one write transaction: what is copied is still in the processor's cache
FIRST_MAP_SIZE = 1 << 30  # bytes; grows when full

FileIdentity = tuple[int, int]  # device and inode
Pairs = list[tuple[bytes, bytes]]


def append(files: Mapping[Path, Iterable[Pairs]]) -> dict[Path, int]:
    """Append sorted pairs to new LMDB files, each chunk in a transaction, and give the number of pairs in each file.

    The files take turns, so that what makes the chunks of one can go on while those of another are written. One thread
    writes all, as LMDB's wrapper lets go of the interpreter at each pair: two would take it from each other.
    """
    rows = dict.fromkeys(files, 0)
    with ExitStack() as opened:
        environments = []
        for file in files:
            environment = lmdb.open(str(file), subdir=False, lock=False, sync=False, map_size=FIRST_MAP_SIZE)
            opened.callback(environment.close)
            environments.append(environment)
        for turn in zip_longest(*files.values(), fillvalue=[]):
            for file, environment, chunk in zip(files, environments, turn, strict=True):
                if chunk:
                    _put(environment, chunk)
                rows[file] += len(chunk)
    return rows


def _put(environment: lmdb.Environment, chunk: Pairs) -> None:
    while True:
        try:
            with environment.begin(write=True) as transaction:
                transaction.cursor().putmulti(chunk, append=True)
            return
        except lmdb.MapFullError:
            environment.set_mapsize(2 * environment.info()["map_size"])


def by_customer(customers: Iterable[tuple[str, bytes]], ending: bytes = b"}") -> Iterator[Pairs]:
    """Chunks of sorted customers, with their ids as bytes.

    What is stored of each is JSON that ends with `ending`: an object, or an array. Raises `BadCustomerId` for an id
    that LMDB or a URL could not hold, or that is out of order, `PublicationError` for what is no such JSON.
    """
    pairs, previous = iter(customers), b""
    while chunk := list(islice(pairs, CHUNK)):
        try:
            keys = [customer_id.encode() for customer_id, _ in chunk]
        except UnicodeEncodeError:
            keys = []
        if not _are_sound(keys, previous) or not all(stored.endswith(ending) for _, stored in chunk):
            _refuse(chunk, previous, ending)
        yield list(zip(keys, (stored for _, stored in chunk), strict=True))
        previous = keys[-1]


def by_rank(customer_ids: Iterable[str]) -> Iterator[Pairs]:
    """Chunks of rank -> customer id, of ids from the best on. A rank is 4 bytes from 0 on, so that it sorts."""
    ids, rank = iter(customer_ids), 0
    while chunk := list(islice(ids, CHUNK)):
        yield [(rank_key(place), customer_id.encode()) for place, customer_id in enumerate(chunk, rank)]
        rank += len(chunk)


def rank_key(rank: int) -> bytes:
    """The key of a rank."""
    return rank.to_bytes(4)


def _are_sound(keys: list[bytes], previous: bytes) -> bool:
    """Whether all of a chunk's keys can be kept, told by a few passes over all of them: one by one takes as long as
    writing them."""
    return (
        bool(keys)
        and keys[0] > previous
        and all(map(operator.lt, keys, islice(keys, 1, None)))
        and max(map(len, keys)) <= LONGEST_ID
        and b"\0" not in b"".join(keys)
    )


def _refuse(chunk: list[tuple[str, bytes]], previous: bytes, ending: bytes) -> None:
    """Raises the error of the first pair that can't be kept, naming it."""
    for customer_id, stored in chunk:
        try:
            key = customer_id.encode()
        except UnicodeEncodeError:
            raise BadCustomerId(f"customer id {customer_id!r} is no valid Unicode") from None
        if key <= previous:
            if not key:
                raise BadCustomerId("a customer id is empty")
            if key == previous:
                raise BadCustomerId(f"customer id '{customer_id}' comes twice")
            raise BadCustomerId(f"customer id '{customer_id}' comes after '{previous.decode()}': not sorted by bytes")
        if len(key) > LONGEST_ID:
            raise BadCustomerId(f"customer id '{customer_id[:60]}...' has {len(key)} bytes, {LONGEST_ID} are possible")
        if b"\0" in key:
            raise BadCustomerId(f"customer id {customer_id!r} contains a NUL")
        if not stored.endswith(ending):
            kind = "object" if ending == b"}" else "array"
            raise PublicationError(f"customer '{customer_id}': its payload is no JSON {kind}")
        previous = key


def pairs_of(file: Path) -> Iterator[tuple[bytes, bytes]]:
    """All pairs of a file, sorted by key."""
    identity, environment = open_shared(file)
    try:
        with environment.begin() as transaction:
            yield from transaction.cursor()
    finally:
        close_shared(identity)


# LMDB lets a process open a file only once, so its readers share it: file -> [environment, number of readers]
_shared: dict[FileIdentity, list[Any]] = {}
_sharing = threading.Lock()


def open_shared(file: Path) -> tuple[FileIdentity, lmdb.Environment]:
    with _sharing:
        status = file.stat()
        key = (status.st_dev, status.st_ino)
        if key not in _shared:
            _shared[key] = [lmdb.open(str(file), subdir=False, lock=False, readonly=True, create=False), 0]
        _shared[key][1] += 1
        return key, _shared[key][0]


def close_shared(key: FileIdentity) -> None:
    with _sharing:
        _shared[key][1] -= 1
        if not _shared[key][1]:
            _shared.pop(key)[0].close()
