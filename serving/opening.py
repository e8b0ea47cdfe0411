"""Opening a generation for lookups, which verifies it: what `serving.store` wrote, read back."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Self

import lmdb
import msgspec

from serving.generation import NAME, CorruptGeneration, CustomerScore, Generation, read_manifest, sha256_of
from serving.lmdb_file import LONGEST_ID, close_shared, open_shared

_SAMPLES = 1000  # customers whose JSON is decoded


class Store:
    """An open generation. `get` and `features` give the stored JSON of a customer, from any thread.

    Use `open_store` to make one.
    """

    def __init__(self, generation: Generation, folder: Path) -> None:
        self.generation = generation
        self._file, self._environment = open_shared(folder / "store.mdb")
        self.rows: int = self._environment.stat()["entries"]
        self._features_file, self._features = None, None
        if generation.features:
            try:
                self._features_file, self._features = open_shared(folder / "features.mdb")
            except BaseException:
                close_shared(self._file)
                raise

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

    def rows_of_features(self) -> int:
        return 0 if self._features is None else int(self._features.stat()["entries"])

    def sample(self, size: int) -> Iterator[tuple[str, bytes]]:
        """About `size` customers, spread evenly over all of them."""
        step = max(1, self.generation.rows // max(1, size))
        with self._environment.begin() as transaction:
            for key in islice(transaction.cursor().iternext(values=False), 0, None, step):
                yield key.decode(errors="replace"), transaction.get(key, b"")

    def close(self) -> None:
        close_shared(self._file)
        if self._features_file is not None:
            close_shared(self._features_file)

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


def open_store(folder: Path) -> Store:
    """Verify a generation as `store.verify` does, and open it for lookups. Raises `CorruptGeneration`."""
    generation = read_manifest(folder)
    where = f"{folder.parent.name}/{folder.name}"
    for name, sha256 in generation.files.items():
        if not NAME.fullmatch(name):
            raise CorruptGeneration(f"{where}/generation.json: {name!r} is no name of a file")
        try:
            actual = sha256_of(folder / name)
        except FileNotFoundError:
            raise CorruptGeneration(f"{where}/{name}: is missing") from None
        except OSError as error:
            raise CorruptGeneration(f"{where}/{name}: cannot be read: {error.strerror}") from error
        if actual != sha256:
            size = (folder / name).stat().st_size
            raise CorruptGeneration(f"{where}/{name}: its checksum is wrong: changed or incomplete ({size} bytes)")
    try:
        store = Store(generation, folder)
    except lmdb.Error as error:
        raise CorruptGeneration(f"{where}: cannot be opened: {error}") from error
    try:
        _check_contents(store)
    except BaseException as error:
        store.close()
        if isinstance(error, (lmdb.Error, ValueError)):
            raise CorruptGeneration(f"{where}/{error}") from error
        raise
    return store


def _check_contents(store: Store) -> None:
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
