"""Files on the web or on S3: what is there, and how its content is told to have changed, through fsspec."""

import glob
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from ml.declarations import Source
from orchestration.addresses import scrubbed, without_secrets
from orchestration.batches import LoadError, Loading, told

REMOTE = ("http", "https", "s3")
TIMEOUT_SECONDS = 60  # in which a server must go on with its answer


class File(msgspec.Struct, frozen=True):
    """A file to load: what it is called in `_source`, where it is, and a mark that differs when its content does.

    The mark is empty where a server tells none: then it is the content's hash. `modified` is 0 for remote files, which
    are there whole once they are: nobody writes to them in place.
    """

    name: str
    path: str
    mark: str
    size: int
    modified: float


def remote_files(loading: Loading) -> list[File]:
    """The files at a URL (S3 may have * in it), with what the server says of their content."""
    source, system = loading.source, _system(loading)
    where = f"{told(source)}: load: from '{without_secrets(source.uri)}'"
    try:
        if source.scheme != "s3":
            found = [(without_secrets(source.uri), system.info(loading.uri))]
        elif glob.has_magic(loading.uri):
            listed = system.glob(loading.uri, detail=True).values()
            found = [(f"s3://{info['name']}", info) for info in listed if info["type"] == "file"]
        else:
            info = system.info(loading.uri)
            found = [(f"s3://{info['name']}", info)]
    except Exception as error:  # each file system has its own
        raise LoadError(f"{where}: {_unreachable(source, error)}") from None
    if not found:
        raise LoadError(f"{where}: no such file")
    return sorted(
        (File(name, info["name"], _remote_mark(info), int(info.get("size") or 0), 0.0) for name, info in found),
        key=lambda file: file.name,
    )


def _system(loading: Loading) -> Any:
    """The file system of a remote source, as fsspec has it, which keeps no listing from one load to the next."""
    import fsspec

    if loading.source.scheme == "s3":
        return fsspec.filesystem("s3", use_listings_cache=False)
    import aiohttp

    # A .gz file stays one even where its server calls the compression an encoding. The proxy is the environment's.
    # A download may last as long as it goes on: aiohttp's own limit is five minutes for all of it.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT_SECONDS, sock_read=TIMEOUT_SECONDS)
    return fsspec.filesystem(
        loading.source.scheme,
        headers={"Accept-Encoding": "identity"},
        client_kwargs={"auto_decompress": False, "trust_env": True, "timeout": timeout},
    )


def _unreachable(source: Source, error: BaseException) -> str:
    """Why a remote file can't be had, and what to do."""
    if isinstance(error, FileNotFoundError) and error.__cause__:  # fsspec says so whatever a web server has said
        error = error.__cause__
    status = getattr(error, "status", None)
    if status == 404 or isinstance(error, FileNotFoundError):
        return "no such file"
    if status:
        fault = f"HTTP {status} {getattr(error, 'message', '')}"
    else:
        fault = f"{type(error).__name__}: {scrubbed(source, str(error))}"
    refused = status in (401, 403) or isinstance(error, PermissionError) or "Credentials" in type(error).__name__
    return f"can't be had: {fault}; " + (
        "does the environment have the right key or password?"
        if refused
        else "is the address right, and the server there?"
    )


def _remote_mark(info: Mapping[str, Any]) -> str:
    """What a server says that differs when the content does; empty if it says nothing that would (a size may stay)."""
    for name in ("ETag", "Content-MD5", "Digest", "Last-Modified", "LastModified"):
        if info.get(name):
            return f"{info[name]} {info.get('size')}"
    return ""


@contextmanager
def downloaded(loading: Loading, file: File) -> Iterator[Path]:
    """A copy of a remote file on this disk, for the while. Raises `LoadError` unless it is whole."""
    system, where = _system(loading), f"{told(loading.source)}: {file.name}"
    folder = loading.data / "cache" / "downloads"
    # What a killed load has left there goes: only one at a time has the warehouse.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # Only the ending of its name: the rest may mean something to who reads it.
    endings = [ending for ending in PurePosixPath(file.name).suffixes[-2:] if ending[1:].isalnum()]
    path = folder / f"file{''.join(endings)}"
    try:
        try:
            system.get_file(file.path, str(path))
            # S3 gives a large file in parts, which are not of one content if it was replaced meanwhile.
            after = _remote_mark(system.info(file.path)) if loading.source.scheme == "s3" else file.mark
        except Exception as error:  # each file system has its own
            raise LoadError(f"{where}: the download broke off: {_unreachable(loading.source, error)}") from None
        size = path.stat().st_size
        if after != file.mark or (file.size and size != file.size):
            raise LoadError(
                f"{where}: the download broke off, or the file changed meanwhile ({size:,} bytes of {file.size:,});"
                " run again"
            )
        yield path
    finally:
        shutil.rmtree(folder, ignore_errors=True)
