"""Whether the files of a generation are as they were published. What was found so once is not hashed again.

Hashing gigabytes takes seconds, for each worker, at each start. So who has verified a generation notes beside it which
files they were, `.verified-<generation>`: device, inode, size, and when each was changed last (ctime, which the kernel
sets and nobody can set back). Who opens it next compares that alone; a file that was touched since is hashed again.
"""

import fcntl
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from serving.generations.generation import CorruptGeneration, Generation, sha256_of

PREFIX = ".verified-"

Stamps = dict[str, tuple[str | int, ...]]  # file -> its checksum, and what tells this very file from every other


def check_files(folder: Path, generation: Generation, again: bool = False) -> None:
    """Raises `CorruptGeneration` unless each file of a generation is as published. `again`: whatever was noted.

    Of several who ask at once one hashes, and the others wait for it.
    """
    with _noted(folder) as note:
        found = _stamps(folder, generation)
        if note is not None and not again and _read(note) == found:
            for name in found:
                _warm(folder / name)
            return
        with ThreadPoolExecutor() as threads:  # reading takes as long as hashing, and each file is as good as another
            for _ in threads.map(_check_file, [folder / name for name in generation.files], generation.files.values()):
                pass
        if note is not None and _stamps(folder, generation) == found:  # nobody has changed one meanwhile
            os.ftruncate(note, 0)
            os.pwrite(note, msgspec.json.encode(found), 0)


@contextmanager
def _noted(folder: Path) -> Iterator[int | None]:
    """The open note of a generation, held alone; None where it can't be written, as on a disk that is only read."""
    try:
        note = os.open(folder.parent / f"{PREFIX}{folder.name}", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:
        yield None
        return
    try:
        fcntl.flock(note, fcntl.LOCK_EX)
        yield note
    finally:
        os.close(note)


def _read(note: int) -> Stamps | None:
    with suppress(msgspec.MsgspecError, OSError):
        return msgspec.json.decode(os.pread(note, 1 << 20, 0), type=Stamps)
    return None


def _stamps(folder: Path, generation: Generation) -> Stamps:
    stamps: Stamps = {}
    for name, sha256 in generation.files.items():
        try:
            status = (folder / name).stat()
        except FileNotFoundError:
            raise CorruptGeneration(f"{_told(folder / name)}: is missing") from None
        except OSError as error:
            raise CorruptGeneration(f"{_told(folder / name)}: cannot be read: {error.strerror}") from error
        changed = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        stamps[name] = (sha256, status.st_dev, status.st_ino, *changed)
    return stamps


def _check_file(file: Path, sha256: str) -> None:
    try:
        actual = sha256_of(file)
    except FileNotFoundError:
        raise CorruptGeneration(f"{_told(file)}: is missing") from None
    except OSError as error:
        raise CorruptGeneration(f"{_told(file)}: cannot be read: {error.strerror}") from error
    if actual != sha256:
        size = file.stat().st_size
        raise CorruptGeneration(f"{_told(file)}: its checksum is wrong: changed or incomplete ({size} bytes)")


def _warm(file: Path) -> None:
    """Has the kernel read a file ahead, as hashing would have: lookups of what is not in memory wait for the disk."""
    with suppress(OSError):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)


def _told(file: Path) -> str:
    return f"{file.parent.parent.name}/{file.parent.name}/{file.name}"
