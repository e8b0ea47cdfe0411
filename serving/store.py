"""The format and protocol of generations: how scores are published so that they can be served at any instant.

    <root>/<score>/<generation>/   one immutable, published bundle of a score
        generation.json            `Generation`: what it is, with the sha256 of every file below
        generation.json.sha256     its own checksum, as `sha256sum --check` reads it
        store.mdb                  LMDB, customer id -> `CustomerScore` as JSON, sorted
        model.cbm, card.json, ...  what was attached
    <root>/<score>/CURRENT         the name of the generation that is served

`write` stages a bundle beside the others and renames it, `verify` reads it back, `flip` puts its name into CURRENT.
A publisher killed at any instant leaves CURRENT as it was, and at worst a dot-folder that `prune` removes.
Nothing in a published generation may be edited in place: store.mdb is mapped into the memory of the server's processes,
and to cut it short kills them (SIGBUS). To remove its folder is safe: they go on with the file that they have open.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Self

import lmdb
import msgspec

from serving.generation import (
    BadCustomerId,
    CorruptGeneration,
    CustomerScore,
    Generation,
    PublicationError,
    Reason,
    customer_key,
    payload,
    read_manifest,
)
from serving.lmdb_file import LONGEST_ID, append, close_shared, open_shared

__all__ = [
    "BadCustomerId",
    "CorruptGeneration",
    "CustomerScore",
    "Generation",
    "PublicationError",
    "Reason",
    "Store",
    "current",
    "customer_key",
    "flip",
    "open_store",
    "payload",
    "prune",
    "published_scores",
    "verify",
    "write",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SAMPLES = 1000  # payloads that `verify` decodes


def write(
    root: Path, generation: Generation, customers: Iterable[tuple[str, bytes]], attachments: Mapping[str, Path]
) -> Path:
    """Write a generation beside the others, and give its folder; CURRENT does not change.

    `customers` are (`customer_key`, `payload`), sorted by the UTF-8 bytes of the key. They are streamed, never held.
    Raises `BadCustomerId` naming the id, and `PublicationError` if the generation exists, has no customers or another
    number than `generation.rows` (unless that is 0), or cannot be written; no trace of it is left then.
    """
    score, name = _checked(generation.score), _checked(generation.generation)
    home = root / score
    folder, staging = home / name, home / f".staging-{name}-{os.getpid()}"
    if folder.exists():
        raise PublicationError(f"{score}/{name} is published already, and a generation never changes")
    try:
        if not home.is_dir():
            home.mkdir(parents=True)
            _sync(root)
        staging.mkdir()
        rows = append(staging / "store.mdb", customers)
        if not rows or rows != (generation.rows or rows):
            raise PublicationError(f"{score}/{name}: {rows} customers came, {generation.rows or 'some'} were announced")
        for attached, source in attachments.items():
            shutil.copyfile(source, staging / _checked(attached))
        files = {file.name: _sha256(file) for file in sorted(staging.iterdir())}
        manifest = msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(generation, rows=rows, files=files)))
        (staging / "generation.json").write_bytes(manifest)
        (staging / "generation.json.sha256").write_text(f"{hashlib.sha256(manifest).hexdigest()}  generation.json\n")
        for file in staging.iterdir():
            _sync(file)
        _sync(staging)
        os.rename(staging, folder)
        _sync(home)
    except (OSError, lmdb.Error) as error:
        raise PublicationError(f"{score}/{name} could not be written: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def verify(folder: Path) -> Generation:
    """Read a generation back: checksums of all files, the number of customers, and a sample of what is stored.

    Reading it all also warms the page cache. Raises `CorruptGeneration` naming the file and the fault.
    """
    with open_store(folder) as store:
        return store.generation


def flip(root: Path, score: str, generation: str) -> None:
    """Make a generation the one that is served, atomically; an older one is a rollback."""
    home = root / _checked(score)
    if not (home / _checked(generation) / "generation.json").is_file():
        raise PublicationError(f"{score}/{generation} is not published (there are: {', '.join(_published(home))})")
    pointer = home / f".CURRENT-{generation}-{os.getpid()}"
    try:
        pointer.write_text(generation + "\n")
        _sync(pointer)
        os.replace(pointer, home / "CURRENT")
        _sync(home)
    except OSError as error:
        raise PublicationError(f"{score}/CURRENT could not be set to {generation}: {error}") from error
    finally:
        pointer.unlink(missing_ok=True)


def current(root: Path, score: str) -> str | None:
    """The name of the generation that is served, None before the first. Raises `CorruptGeneration` if it is no name."""
    try:
        name = (root / score / "CURRENT").read_bytes().decode(errors="replace").removesuffix("\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CorruptGeneration(f"{score}/CURRENT: cannot be read: {error.strerror}") from error
    if not _NAME.fullmatch(name):
        raise CorruptGeneration(f"{score}/CURRENT: {name[:100]!r} is no name of a generation")
    return name


def published_scores(root: Path) -> list[str]:
    """The scores that have a CURRENT, sorted."""
    return sorted(path.parent.name for path in root.glob("*/CURRENT") if _NAME.fullmatch(path.parent.name))


def prune(root: Path, score: str, keep: int = 3) -> list[str]:
    """Remove all but the newest `keep` generations, never the current one, and what dead publishers left.

    Gives the names of the removed. A server goes on reading a store that it has open.
    Raises `CorruptGeneration` if CURRENT cannot be read.
    """
    home, serving = root / _checked(score), current(root, score)
    doomed = [name for name in _published(home)[: -keep or None] if name != serving]
    for name in doomed:  # renamed first: a prune that is killed leaves no half generation under a good name
        os.rename(home / name, home / f".removed-{name}-{os.getpid()}")
    for path in home.glob(".*"):
        kind, publisher = path.name[1:].partition("-")[0], path.name.rpartition("-")[2]
        if kind == "removed" or (kind == "staging" and not _is_alive(publisher)):
            shutil.rmtree(path)
        elif kind == "CURRENT" and not _is_alive(publisher):
            path.unlink()
    return doomed


class Store:
    """An open generation. `get` gives the stored JSON of a customer, from any thread; use `open_store` to make one."""

    def __init__(self, generation: Generation, file: Path) -> None:
        self.generation = generation
        self._file, self._environment = open_shared(file)
        self.rows: int = self._environment.stat()["entries"]

    def get(self, customer_id: str) -> bytes | None:
        """The JSON of a customer, None if there is none; no id is bad enough to raise."""
        try:
            key = customer_id.encode()
        except UnicodeEncodeError:
            return None
        if not 0 < len(key) <= LONGEST_ID:
            return None
        with self._environment.begin() as transaction:
            found: bytes | None = transaction.get(key)
        return found

    def sample(self, size: int) -> Iterator[tuple[str, bytes]]:
        """About `size` customers, spread evenly over all of them."""
        step = max(1, self.generation.rows // max(1, size))
        with self._environment.begin() as transaction:
            for key in islice(transaction.cursor().iternext(values=False), 0, None, step):
                yield key.decode(errors="replace"), transaction.get(key, b"")

    def close(self) -> None:
        close_shared(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_store(folder: Path) -> Store:
    """Verify a generation as `verify` does, and open it for lookups. Raises `CorruptGeneration`."""
    generation = read_manifest(folder)
    where = f"{folder.parent.name}/{folder.name}"
    for name, sha256 in generation.files.items():
        if not _NAME.fullmatch(name):
            raise CorruptGeneration(f"{where}/generation.json: {name!r} is no name of a file")
        try:
            actual = _sha256(folder / name)
        except FileNotFoundError:
            raise CorruptGeneration(f"{where}/{name}: is missing") from None
        except OSError as error:
            raise CorruptGeneration(f"{where}/{name}: cannot be read: {error.strerror}") from error
        if actual != sha256:
            size = (folder / name).stat().st_size
            raise CorruptGeneration(f"{where}/{name}: its checksum is wrong: changed or incomplete ({size} bytes)")
    try:
        store = Store(generation, folder / "store.mdb")
    except lmdb.Error as error:
        raise CorruptGeneration(f"{where}/store.mdb: cannot be opened: {error}") from error
    try:
        _check_contents(store)
    except BaseException as error:
        store.close()
        if isinstance(error, (lmdb.Error, ValueError)):
            raise CorruptGeneration(f"{where}/store.mdb: {error}") from error
        raise
    return store


def _check_contents(store: Store) -> None:
    """Count the customers, and decode a sample. Raises `ValueError` with the fault."""
    generation = store.generation
    if store.rows != generation.rows:
        raise ValueError(f"has {store.rows} customers, generation.json says {generation.rows}")
    for key, stored in store.sample(_SAMPLES):
        try:
            customer = msgspec.json.decode(stored, type=CustomerScore)
        except msgspec.MsgspecError as error:
            raise ValueError(f"customer '{key}': {error}") from error
        for name, found, expected in (
            ("score", customer.score, generation.score),
            ("generation", customer.generation, generation.generation),
            ("customer_id", customer.customer_id, key),
        ):
            if found != expected:
                raise ValueError(f"customer '{key}': {name} is {found!r}, expected {expected!r}")


def _published(home: Path) -> list[str]:
    """The generations of a score, the oldest first; one whose manifest cannot be read counts as oldest."""

    def age(name: str) -> tuple[float, str]:
        try:
            return read_manifest(home / name).published_at.timestamp(), name
        except CorruptGeneration:
            return 0.0, name

    return sorted((path.name for path in home.glob("*/") if _NAME.fullmatch(path.name)), key=age)


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name) or name == "CURRENT":
        raise PublicationError(f"{name!r} cannot be a name here: letters, digits, '.', '_' and '-', at most 100")
    return name


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Wait until a file or a directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
