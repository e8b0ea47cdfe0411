"""The format and protocol of generations: how scores are published so that they can be served at any instant.

    <root>/<score>/<generation>/   one immutable, published bundle of a score
        generation.json            `Generation`: what it is, with the sha256 of every file below
        generation.json.sha256     its own checksum, as `sha256sum --check` reads it
        store.mdb                  LMDB, customer id -> `CustomerScore` as JSON, sorted
        features.mdb               LMDB, customer id -> JSON array of the values of `features` of generation.json,
                                   each as `ml.values` says; not there in generations of old
        ranking.mdb                LMDB, rank from 0 in 4 bytes -> customer id: band by band, the best first, who has
                                   no band last; not there in generations of old
        model.cbm, card.json, ...  what was attached
    <root>/declared.json           the scores that the project declares
    <root>/<score>/CURRENT         the name of the generation that is served
    <root>/<score>/.verified-...   notes that a generation was found whole: see `serving.generations.verified`
    <root>/<score>/withdrawn.json  the generations that were rolled back: see `serving.generations.withdrawing`

`write` stages a bundle beside the others and renames it, `verify` reads it back, `flip` puts its name into CURRENT.
A publisher killed at any instant leaves CURRENT as it was, and at worst a dot-folder that `prune` removes.
Nothing in a published generation may be edited in place: store.mdb is mapped into the memory of the server's processes,
and to cut it short kills them (SIGBUS). To remove its folder is safe: they go on with the file that they have open.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import lmdb
import msgspec

from serving.durable import sync
from serving.generations.generation import (
    NAME,
    RANKING,
    BadCustomerId,
    CorruptGeneration,
    CustomerScore,
    Generation,
    PublicationError,
    Reason,
    customer_key,
    payload,
    read_manifest,
    sha256_of,
)
from serving.generations.lmdb_file import append, by_customer, by_rank
from serving.generations.opening import Store, open_store
from serving.generations.verified import PREFIX

DECLARED = "declared.json"

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
    "declare",
    "declared",
    "flip",
    "generations_of",
    "is_alive",
    "kept_generations",
    "open_store",
    "payload",
    "prune",
    "published_scores",
    "verify",
    "write",
]


def write(
    root: Path,
    generation: Generation,
    customers: Iterable[tuple[str, bytes]],
    attachments: Mapping[str, Path],
    features: Iterable[tuple[str, bytes]] = (),
    ranking: Iterable[str] | None = None,
) -> Path:
    """Write a generation beside the others, and give its folder; CURRENT does not change.

    `customers` are (`customer_key`, `payload`), `features`, where the generation names some, (`customer_key`, JSON
    array) of the same customers, both sorted by the UTF-8 bytes of the key. `ranking` are the same keys, band by band
    in the order of `band_counts`, the best first. They are streamed in turns, never held.
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
            sync(root)
        staging.mkdir()
        streams = {staging / "store.mdb": by_customer(customers)}
        if generation.features:
            streams[staging / "features.mdb"] = by_customer(features, ending=b"]")
        if ranking is not None:
            streams[staging / RANKING] = by_rank(ranking)
        written = {file.name: number for file, number in append(streams).items()}
        rows = written["store.mdb"]
        if not rows or rows != (generation.rows or rows):
            raise PublicationError(f"{score}/{name}: {rows} customers came, {generation.rows or 'some'} were announced")
        for kind, what in (("features.mdb", "features"), (RANKING, "ranks")):
            if written.get(kind, rows) != rows:
                raise PublicationError(f"{score}/{name}: {what} of {written[kind]} customers came, scores of {rows}")
        for attached, source in attachments.items():
            shutil.copyfile(source, staging / _checked(attached))
        bundle = sorted(staging.iterdir())
        with ThreadPoolExecutor() as threads:
            checksums = threads.map(_settled, bundle)
            files = {file.name: sha256 for file, sha256 in zip(bundle, checksums, strict=True)}
        manifest = msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(generation, rows=rows, files=files)))
        (staging / "generation.json").write_bytes(manifest)
        (staging / "generation.json.sha256").write_text(f"{hashlib.sha256(manifest).hexdigest()}  generation.json\n")
        for file in (staging / "generation.json", staging / "generation.json.sha256"):
            sync(file)
        sync(staging)
        os.rename(staging, folder)
        sync(home)
    except (OSError, lmdb.Error) as error:
        raise PublicationError(f"{score}/{name} could not be written: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _settled(file: Path) -> str:
    """The checksum of a file, once it is on the disk."""
    sync(file)
    return sha256_of(file)


def verify(folder: Path) -> Generation:
    """Read a generation back: checksums of all files, the number of customers, and a sample of what is stored.

    Reading it all also warms the page cache. Raises `CorruptGeneration` naming the file and the fault.
    """
    with open_store(folder, again=True) as store:
        return store.generation


def flip(root: Path, score: str, generation: str) -> None:
    """Make a generation the one that is served, atomically; an older one is a rollback."""
    home = root / _checked(score)
    if not (home / _checked(generation) / "generation.json").is_file():
        raise PublicationError(f"{score}/{generation} is not published (there are: {', '.join(generations_of(home))})")
    try:
        replace_file(home / "CURRENT", f"{generation}\n".encode())
    except OSError as error:
        raise PublicationError(f"{score}/CURRENT could not be set to {generation}: {error}") from error


def replace_file(path: Path, content: bytes) -> None:
    """Give a file another content, durably, and whole at any instant."""
    staged = path.parent / f".{path.name}-{os.getpid()}"
    try:
        staged.write_bytes(content)
        sync(staged)
        os.replace(staged, path)
        sync(path.parent)
    finally:
        staged.unlink(missing_ok=True)


def current(root: Path, score: str) -> str | None:
    """The name of the generation that is served, None before the first. Raises `CorruptGeneration` if it is no name."""
    try:
        name = (root / score / "CURRENT").read_bytes().decode(errors="replace").removesuffix("\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CorruptGeneration(f"{score}/CURRENT: cannot be read: {error.strerror}") from error
    if not NAME.fullmatch(name):
        raise CorruptGeneration(f"{score}/CURRENT: {name[:100]!r} is no name of a generation")
    return name


def declare(root: Path, scores: Iterable[str]) -> None:
    """Note which scores a project declares, so that a server can tell that one of them is not published yet."""
    content = msgspec.json.encode(sorted(scores)) + b"\n"
    with suppress(FileNotFoundError):
        if (root / DECLARED).read_bytes() == content:
            return
    root.mkdir(parents=True, exist_ok=True)
    replace_file(root / DECLARED, content)


def declared(root: Path) -> set[str]:
    """The scores that the project declares, as far as anybody has noted them."""
    with suppress(OSError, msgspec.MsgspecError):
        return set(msgspec.json.decode((root / DECLARED).read_bytes(), type=list[str]))
    return set()


def published_scores(root: Path) -> list[str]:
    """The scores that have a CURRENT, sorted."""
    return sorted(path.parent.name for path in root.glob("*/CURRENT") if NAME.fullmatch(path.parent.name))


def kept_generations() -> int:
    """How many generations of a score are kept, here and wherever they are carried: SCOREHOUSE_KEEP_GENERATIONS.

    Raises `PublicationError` if that is no such number.
    """
    setting = os.environ.get("SCOREHOUSE_KEEP_GENERATIONS") or "3"
    if not re.fullmatch("[0-9]{1,9}", setting) or not int(setting):
        raise PublicationError(
            f"SCOREHOUSE_KEEP_GENERATIONS is {setting!r}, not a whole number from 1 on: how many generations of a score"
            " are kept to roll back to, with the one that is served"
        )
    return int(setting)


def prune(root: Path, score: str, keep: int = 3) -> list[str]:
    """Remove all but the newest `keep` generations, never the current one, and what dead publishers left.

    Gives the names of the removed. A server goes on reading a store that it has open.
    Raises `CorruptGeneration` if CURRENT cannot be read.
    """
    home, serving = root / _checked(score), current(root, score)
    doomed = [name for name in generations_of(home)[: -keep or None] if name != serving]
    for name in doomed:  # renamed first: a prune that is killed leaves no half generation under a good name
        with suppress(FileNotFoundError):  # another prune was faster, here and below
            os.rename(home / name, home / f".removed-{name}-{os.getpid()}")
    for path in home.glob(".*"):
        kind, publisher = path.name[1:].partition("-")[0], path.name.rpartition("-")[2]
        if kind == "removed" or (kind == "staging" and not is_alive(publisher)):
            with suppress(FileNotFoundError):
                shutil.rmtree(path)
        elif (kind == "verified" and not (home / path.name.removeprefix(PREFIX)).is_dir()) or (
            kind in ("CURRENT", "withdrawn.json") and not is_alive(publisher)
        ):
            path.unlink(missing_ok=True)
    return doomed


def generations_of(home: Path) -> list[str]:
    """The generations of a score, the oldest first; one whose manifest cannot be read counts as oldest."""

    def age(name: str) -> tuple[float, str]:
        try:
            return read_manifest(home / name).published_at.timestamp(), name
        except CorruptGeneration:
            return 0.0, name

    return sorted((path.name for path in home.glob("*/") if NAME.fullmatch(path.name)), key=age)


def _checked(name: str) -> str:
    if not NAME.fullmatch(name) or name == "CURRENT":
        raise PublicationError(f"{name!r} cannot be a name here: letters, digits, '.', '_' and '-', at most 100")
    return name


def is_alive(process: str) -> bool:
    """Whether there is a process of this number on this machine."""
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
