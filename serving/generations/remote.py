"""Generations on a file system that hosts share, as fsspec knows it: a folder, s3://bucket/prefix, and others.

They lie there as on the disk: <url>/<score>/<generation>/<file>, and <url>/<score>/CURRENT, which is written last.
Keys and endpoints of an object store come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...).
"""

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from serving.generations.addresses import without_login
from serving.generations.generation import NAME, CorruptGeneration, PublicationError, parsed_manifest
from serving.generations.store import current, kept_generations, verify

MANIFEST = ("generation.json", "generation.json.sha256")
CHUNK = 8 << 20  # bytes at a time: bounds memory


class RemoteFault(Exception):
    """What is wrong with one file of a generation that was to be copied. The message names the file and the fault."""


class Unreachable(Exception):
    """The file system itself cannot be read or written. The message says which, without secrets, and why."""


class Remote:
    """A folder of generations somewhere, by its URL. Make it with `remote`."""

    def __init__(self, url: str, system: Any, path: str) -> None:
        self.told = without_login(url)
        self._system = system
        self._path = path.rstrip("/")

    def scores(self) -> list[str]:
        """The folders there that may be scores. Raises `Unreachable`."""
        try:
            self._system.invalidate_cache()
            found = self._system.ls(self._path, detail=False)
        except Exception as error:  # each file system has its own
            raise Unreachable(f"{self.told}: {_why(error)}") from None
        names = (str(path).rstrip("/").rpartition("/")[2] for path in found)
        return sorted(name for name in names if NAME.fullmatch(name))

    def read(self, name: str) -> bytes | None:
        """The content of a small file such as <score>/CURRENT; None if there is none. Raises `Unreachable`."""
        try:
            content: bytes = self._system.cat_file(f"{self._path}/{name}")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        except Exception as error:
            raise Unreachable(f"{self.told}/{name}: {_why(error)}") from None
        return content

    def copy(self, name: str, to: Path, sha256: str) -> None:
        """Copy a file here, checking it on the way. Raises `RemoteFault` if it is missing or not whole."""
        digest, size = hashlib.sha256(), 0
        try:
            with self._system.open(f"{self._path}/{name}", "rb", cache_type="none") as source, to.open("wb") as copy:
                while chunk := source.read(CHUNK):
                    digest.update(chunk)
                    size += len(chunk)
                    copy.write(chunk)
        except FileNotFoundError:
            raise RemoteFault(f"{self.told}/{name}: is missing") from None
        except Exception as error:  # each file system has its own; the disk here may be full
            raise RemoteFault(f"{self.told}/{name}: {_why(error)}") from None
        if digest.hexdigest() != sha256:
            raise RemoteFault(f"{self.told}/{name}: its checksum is wrong: changed or incomplete ({size:,} bytes)")

    def push(self, root: Path, score: str) -> bool:
        """Bring what is served here there: its files first, CURRENT last. Gives whether anything was to be done.

        Raises `CorruptGeneration` if it is not sound here, and `PublicationError` if it cannot be brought.
        """
        name = current(root, score)
        if name is None:
            raise PublicationError(f"score '{score}' is not published in {root}")
        folder, there = root / score / name, f"{score}/{name}"
        generation = verify(folder)
        try:
            # The checksum of the manifest goes last: where it is, and is this one, all files are.
            is_there = self.read(f"{there}/{MANIFEST[1]}") == (folder / MANIFEST[1]).read_bytes()
            if is_there and self.read(f"{score}/CURRENT") == f"{name}\n".encode():
                return False
            if not is_there:
                self._system.makedirs(f"{self._path}/{there}", exist_ok=True)
                for file in (*generation.files, *MANIFEST):
                    self._system.put_file(str(folder / file), f"{self._path}/{there}/{file}")
            self._system.pipe_file(f"{self._path}/{score}/CURRENT", f"{name}\n".encode())
            self._prune(score, name)
        except Unreachable as error:
            raise PublicationError(f"{score}/{name} was not pushed: {error}") from None
        except Exception as error:  # each file system has its own
            raise PublicationError(f"{score}/{name} was not pushed to {self.told}: {_why(error)}") from None
        return True

    def _prune(self, score: str, served: str) -> None:
        """Remove all but the newest generations that are there whole, never the one that is served.

        What is not whole stays: another publisher may be at it, and who pushes it again writes it anew.
        """
        found = []
        for path in self._system.ls(f"{self._path}/{score}", detail=False):
            name = str(path).rstrip("/").rpartition("/")[2]
            manifest, checksum = (self.read(f"{score}/{name}/{file}") for file in MANIFEST)
            with suppress(CorruptGeneration):
                about = parsed_manifest(manifest or b"", (checksum or b"").decode(errors="replace"), score, name)
                found.append((about.published_at, name))
        for _, name in sorted(found)[: -kept_generations()]:
            if name != served:  # its manifest first: from then on it is not whole
                self._system.rm_file(f"{self._path}/{score}/{name}/{MANIFEST[1]}")
                self._system.rm(f"{self._path}/{score}/{name}", recursive=True)


def remote(url: str) -> Remote:
    """The folder of generations at a URL or a path. Raises `Unreachable` if no file system here reads such URLs."""
    import fsspec

    # What others write must be seen at once, and a store that is down be told soon.
    s3 = {"use_listings_cache": False, "config_kwargs": {"connect_timeout": 10, "retries": {"max_attempts": 1}}}
    try:
        system, path = fsspec.core.url_to_fs(url, **(s3 if url.startswith(("s3://", "s3a://")) else {}))
    except Exception as error:
        raise Unreachable(f"{without_login(url)}: {_why(error)}") from None
    return Remote(url, system, path)


def _why(error: BaseException) -> str:
    """What a file system says is wrong, in a line."""
    if isinstance(error, FileNotFoundError):
        return "no such folder"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
