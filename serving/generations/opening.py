"""Opening a generation for lookups, which verifies it: what `serving.generations.store` wrote, read back."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Protocol, Self

import lmdb
import msgspec

from serving.generations.generation import RANKING, CorruptGeneration, CustomerScore, Generation, read_manifest
from serving.generations.lmdb_file import LONGEST_ID, close_shared, open_shared, rank_key
from serving.generations.verified import check_files

_SAMPLES = 1000  # customers whose JSON is decoded


class Lookups(Protocol):
    """What an open generation can be asked, wherever it is kept. Ids as texts, answers as the stored JSON."""

    generation: Generation
    rows: int
    has_ranking: bool

    def get(self, customer_id: str) -> bytes | None: ...
    def get_many(self, ids: Sequence[str]) -> list[bytes | None]: ...
    def features(self, customer_id: str) -> bytes | None: ...
    def attachment(self, name: str) -> bytes: ...
    def ranked(self, band: str | None, start: int, count: int) -> list[bytes]: ...
    def rows_of_features(self) -> int: ...
    def rows_of_ranking(self) -> int: ...
    def sample(self, size: int) -> Iterator[tuple[str, bytes]]: ...
    def close(self) -> None: ...


def places(generation: Generation, band: str | None) -> tuple[int, int]:
    """The first rank of a band, from 0, and that behind its last; of all customers, also those without a band.

    Raises `KeyError` if there is no such band.
    """
    if band is None:
        return 0, generation.rows
    counts = generation.band_counts
    first = sum(counts[one] for one in list(counts)[: list(counts).index(band)]) if band in counts else 0
    return first, first + counts[band]


class Store:
    """An open generation. `get`, `features` and `ranked` give the stored JSON of customers, from any thread.

    Use `open_store` to make one.
    """

    def __init__(self, generation: Generation, folder: Path) -> None:
        self.generation = generation
        self.has_ranking = RANKING in generation.files
        self._folder = folder
        with ExitStack() as opened:

            def environment(name: str) -> lmdb.Environment:
                identity, found = open_shared(folder / name)
                opened.callback(close_shared, identity)
                return found

            self._environment = environment("store.mdb")
            self._features = environment("features.mdb") if generation.features else None
            self._ranking = environment(RANKING) if self.has_ranking else None
            self._opened = opened.pop_all()
        self.rows: int = self._environment.stat()["entries"]

    def get(self, customer_id: str) -> bytes | None:
        """The JSON of a customer, None if there is none; no id is bad enough to raise."""
        return _value(self._environment, customer_id)

    def get_many(self, ids: Sequence[str]) -> list[bytes | None]:
        """The JSON of each of many customers, None for one that there is not, all read at one moment."""
        keys = [_key(customer_id) for customer_id in ids]
        with self._environment.begin() as transaction:
            get = transaction.get
            return [None if key is None else get(key) for key in keys]

    def features(self, customer_id: str) -> bytes | None:
        """The JSON array of a customer's features, None if there is no such customer or no features at all."""
        return None if self._features is None else _value(self._features, customer_id)

    def ranked(self, band: str | None, start: int, count: int) -> list[bytes]:
        """The JSON of up to `count` customers of a band, or of all bands, the best first; `start` is counted from 0
        within the band.

        Raises `KeyError` if there is no such band, `LookupError` if the generation has no ranking (`has_ranking`).
        """
        if self._ranking is None:
            raise LookupError(f"generation {self.generation.generation} was published without a ranking")
        first, last = places(self.generation, band)
        keys = [rank_key(rank) for rank in range(first + start, min(first + start + count, last))]
        with self._ranking.begin() as ranking, self._environment.begin() as customers:
            # Verified at opening, of a sample: each id is there.
            return [customers.get(ranking.get(key, b"\0"), b"") for key in keys]

    def attachment(self, name: str) -> bytes:
        """The content of a file that was attached, such as model.cbm. Raises `KeyError` if there is none such."""
        if name not in self.generation.files:
            raise KeyError(name)
        return (self._folder / name).read_bytes()

    def rows_of_features(self) -> int:
        return 0 if self._features is None else int(self._features.stat()["entries"])

    def rows_of_ranking(self) -> int:
        return 0 if self._ranking is None else int(self._ranking.stat()["entries"])

    def sample(self, size: int) -> Iterator[tuple[str, bytes]]:
        """About `size` customers, spread evenly over all of them."""
        step = max(1, self.generation.rows // max(1, size))
        with self._environment.begin() as transaction:
            for key in islice(transaction.cursor().iternext(values=False), 0, None, step):
                yield key.decode(errors="replace"), transaction.get(key, b"")

    def close(self) -> None:
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _value(environment: lmdb.Environment, customer_id: str) -> bytes | None:
    key = _key(customer_id)
    if key is None:
        return None
    with environment.begin() as transaction:
        found: bytes | None = transaction.get(key)
    return found


def _key(customer_id: str) -> bytes | None:
    """The key of a customer, None for an id that can be none."""
    try:
        key = customer_id.encode()
    except UnicodeEncodeError:
        return None
    return key if 0 < len(key) <= LONGEST_ID else None


def open_store(folder: Path, again: bool = False) -> Store:
    """Verify a generation and open it for lookups. Raises `CorruptGeneration`.

    Checksums of files that were found right before are taken to be so still, but `again`.
    """
    generation = read_manifest(folder)
    where = f"{folder.parent.name}/{folder.name}"
    check_files(folder, generation, again)
    try:
        store = Store(generation, folder)
    except lmdb.Error as error:
        why = str(error).removeprefix(f"{folder}/")  # callers are told it, and not where the files are
        raise CorruptGeneration(f"{where}: cannot be opened: {why}") from error
    try:
        check_contents(store)
    except BaseException as error:
        store.close()
        if isinstance(error, (lmdb.Error, ValueError)):
            raise CorruptGeneration(f"{where}/{error}") from error
        raise
    return store


def check_contents(store: Lookups) -> None:
    """Count the customers, and decode a sample. Raises `ValueError` with file and fault."""
    generation = store.generation
    if store.rows != generation.rows:
        raise ValueError(f"store.mdb: has {store.rows} customers, generation.json says {generation.rows}")
    if generation.features and store.rows_of_features() != generation.rows:
        raise ValueError(f"features.mdb: has {store.rows_of_features()} customers, store.mdb {generation.rows}")
    for key, stored in store.sample(_SAMPLES):
        try:
            customer = msgspec.json.decode(stored, type=CustomerScore)
        except msgspec.MsgspecError as error:
            raise ValueError(f"store.mdb: customer '{key}': {error}") from error
        for name, found, expected in (
            ("score", customer.score, generation.score),
            ("generation", customer.generation, generation.generation),
            ("customer_id", customer.customer_id, key),
        ):
            if found != expected:
                raise ValueError(f"store.mdb: customer '{key}': {name} is {found!r}, expected {expected!r}")
        if generation.features:
            _check_features(key, store.features(key), len(generation.features))
    if store.has_ranking:
        _check_ranking(store)


def _check_ranking(store: Lookups) -> None:
    """Whether as many are ranked as there are customers, and of a sample each stands in their band, none above a
    better one."""
    generation = store.generation
    if store.rows_of_ranking() != generation.rows:
        raise ValueError(f"{RANKING}: has {store.rows_of_ranking()} customers, store.mdb {generation.rows}")
    banded = sum(generation.band_counts.values())
    if banded > generation.rows:
        raise ValueError(f"generation.json: its bands have {banded} customers, store.mdb {generation.rows}")
    ranks = range(0, generation.rows, max(1, generation.rows // _SAMPLES))
    for band in (*generation.band_counts, None):
        first, last = places(generation, band) if band is not None else (banded, generation.rows)
        above = float("inf")
        for rank in (rank for rank in ranks if first <= rank < last):
            (stored,) = store.ranked(None, rank, 1)
            if not stored:
                raise ValueError(f"{RANKING}: rank {rank} is of a customer that store.mdb has not")
            customer = msgspec.json.decode(stored, type=CustomerScore)
            if customer.band != band and (band is not None or customer.band in generation.band_counts):
                raise ValueError(
                    f"{RANKING}: customer '{customer.customer_id}' at rank {rank} is of band {customer.band}, but those"
                    f" from {first} to {last - 1} are of {band}"
                )
            if customer.value > above:
                raise ValueError(f"{RANKING}: customer '{customer.customer_id}' at rank {rank} is above a better one")
            above = customer.value


def _check_features(customer_id: str, stored: bytes | None, expected: int) -> None:
    if stored is None:
        raise ValueError(f"features.mdb: has no customer '{customer_id}', store.mdb has")
    try:
        found = msgspec.json.decode(stored, type=list[bool | int | float | str | None])
    except msgspec.MsgspecError as error:
        raise ValueError(f"features.mdb: customer '{customer_id}': {error}") from error
    if len(found) != expected:
        raise ValueError(
            f"features.mdb: customer '{customer_id}' has {len(found)} values, generation.json names {expected} features"
        )
