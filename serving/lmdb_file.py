"""LMDB files: written once by appending sorted customers, then only read."""

import threading
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import lmdb

from serving.generation import BadCustomerId, PublicationError

LONGEST_ID = 511  # bytes; LMDB's limit for a key
CHUNK = 20_000  # customers in one write transaction: bounds memory
FIRST_MAP_SIZE = 1 << 30  # bytes; grows when full

FileIdentity = tuple[int, int]  # device and inode


def append(file: Path, customers: Iterable[tuple[str, bytes]], ending: bytes = b"}") -> int:
    """Append sorted customers to a new LMDB file in transactions of bounded size, and give their number.

    What is stored of each is JSON that ends with `ending`: an object, or an array.
    """
    environment = lmdb.open(str(file), subdir=False, lock=False, sync=False, map_size=FIRST_MAP_SIZE)
    try:
        rows, pairs = 0, _checked_pairs(customers, ending)
        while chunk := list(islice(pairs, CHUNK)):
            while True:
                try:
                    with environment.begin(write=True) as transaction:
                        transaction.cursor().putmulti(chunk, append=True)
                    break
                except lmdb.MapFullError:
                    environment.set_mapsize(2 * environment.info()["map_size"])
            rows += len(chunk)
    finally:
        environment.close()
    return rows


def _checked_pairs(customers: Iterable[tuple[str, bytes]], ending: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The pairs with their keys as bytes. Raises `BadCustomerId` for one that LMDB or a URL could not hold."""
    previous = b""
    for customer_id, stored in customers:
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
        yield key, stored
        previous = key


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
