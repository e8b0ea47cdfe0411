"""Sources that are files: each new or changed one is a batch. Where they are is a path, a package, the web or S3."""

import glob
import hashlib
import importlib.util
import time
import zlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

import msgspec

from ml.declarations import Source
from orchestration import warehouse
from orchestration.batches import Batch, LoadError, Loading, told
from orchestration.json_lines import json_rows
from orchestration.remote_files import REMOTE, File, downloaded, remote_files
from orchestration.warehouse import Connection

ENDINGS = (".parquet", ".csv", ".jsonl", ".json")
# A text file may lack its last newline, and a file may grow: one touched this recently may not be whole yet.
SETTLED_SECONDS = 60
LITTLE = 1 << 10  # bytes of a file that may have no content
QUOTED = """quote = '"', escape = '"'"""
SNIFFED = 200_000  # rows of a CSV from which types are told; what has another type later is a bad row


def batches_of_files(loading: Loading) -> Iterator[Batch]:
    """A batch for each file that is new, or has changed since it was landed, oldest name first.

    What is still being written is left for the next run. Raises `LoadError` if no file is there, or one is no whole
    Parquet file though nobody writes to it.
    """
    source = loading.source
    found = remote_files(loading) if source.scheme in REMOTE else _local(source, loading.project)
    _one_kind(source, found)
    gone = sorted(loading.known_files().keys() - {file.name for file in found})
    if gone:
        loading.note(f"gone, their rows stay: {', '.join(gone)}")
    unfinished = yield from _changed(loading, found)
    # A row that a file gave up may be another's, too: those are forgotten then, and read again here.
    known = loading.known_files()
    yield from _changed(loading, [file for file in found if file.name not in {*known, *unfinished}])


def _changed(loading: Loading, files: list[File]) -> Generator[Batch, None, set[str]]:
    """A batch for each file that is new or has changed; the names of those that are still written to."""
    source, known = loading.source, loading.known_files()
    left: set[str] = set()
    for file in files:
        earlier = known.get(file.name)
        if file.mark and earlier and earlier[0] == _fingerprint(loading, file.mark):
            continue
        with _on_this_disk(loading, file) as path:
            fingerprint = _fingerprint(loading, file.mark or _content_hash(path))
            if earlier and earlier[0] == fingerprint:
                continue
            unfinished = _unfinished(path, file, source)
            if unfinished:
                loading.note(f"left for the next run: {file.name} {unfinished}")
                left.add(file.name)
                continue
            # The same content under another name is another batch.
            batch_id = hashlib.sha256(f"{file.name} {fingerprint}".encode()).hexdigest()[:12]
            read = _read(loading.connection, source, path, loading.wanted())
            yield msgspec.structs.replace(
                read,
                id=batch_id,
                source=file.name,
                fingerprint=fingerprint,
                bytes=path.stat().st_size,
                replaces=earlier[1] if earlier else (),
            )
            if source.scheme not in REMOTE and _mark(path) != file.mark:
                raise LoadError(f"{told(source)}: {file.name} changed while it was read; run again")
    return left


def find_files(source: Source, project: Path) -> list[Path]:
    """The files a source's URI names: `package://<package>/<path or glob in it>`, or one from the dbt project.

    Raises `LoadError` if the package is not installed or no file matches.
    """
    where = f"{told(source)}: load: from '{source.uri}'"
    if source.scheme == "package":
        package, _, inside = source.uri.partition("://")[2].partition("/")
        found = importlib.util.find_spec(package) if package.isidentifier() else None
        if found is None or found.origin is None:
            raise LoadError(
                f"{where}: there is no installed package '{package}'; add it to pyproject.toml or give a path"
            )
        pattern = str(Path(found.origin).parent / inside)
    else:
        pattern = str(project / source.uri)
    files = sorted(Path(file) for file in glob.glob(pattern, recursive=True) if Path(file).is_file())
    if not files:
        raise LoadError(f"{where}: no such file (looked for {pattern})")
    return files


def _local(source: Source, project: Path) -> list[File]:
    """The files on this machine, called by their path from the dbt project, or from the package on."""
    package = source.uri.partition("://")[2].partition("/")[0] if source.scheme == "package" else None

    def called(path: Path) -> str:
        if package:
            return str(path)[str(path).rindex(f"/{package}/") + 1 :]
        with suppress(ValueError):
            return str(path.relative_to(project))
        return str(path)

    return [
        File(called(path), str(path), _mark(path), path.stat().st_size, path.stat().st_mtime)
        for path in find_files(source, project)
    ]


def _mark(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _on_this_disk(loading: Loading, file: File) -> AbstractContextManager[Path]:
    return downloaded(loading, file) if loading.source.scheme in REMOTE else nullcontext(Path(file.path))


def _fingerprint(loading: Loading, mark: str) -> str:
    return hashlib.sha256(f"{loading.declaration} {mark}".encode()).hexdigest()


def _content_hash(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _ending(name: str) -> str:
    return next((suffix for suffix in reversed(Path(name).suffixes) if suffix != ".gz"), "")


def _one_kind(source: Source, files: list[File]) -> None:
    endings = {_ending(file.name) for file in files}
    if len(endings) != 1 or not endings <= set(ENDINGS):
        found = ", ".join(sorted(ending or "nothing" for ending in endings))
        raise LoadError(
            f"{told(source)}: files end in {found}; one kind of {', '.join(ENDINGS)} can be read"
            " (csv and json also .gz)"
        )


def _unfinished(path: Path, file: File, source: Source) -> str | None:
    """Why a file seems to be still written to, None if it is whole. Raises `LoadError` for one that never will be."""
    settled = not file.modified or time.time() - file.modified > SETTLED_SECONDS
    size = path.stat().st_size
    if size != file.size and file.modified:
        return "is growing"
    with path.open("rb") as content:
        head = content.read(4)
        content.seek(max(0, size - 4))
        tail = content.read(4)
    ending = _ending(file.name)
    if not size:
        fault = "has no content"
    elif ending == ".parquet" and (head != b"PAR1" or tail != b"PAR1"):
        fault = "has no Parquet footer"
    elif path.suffix == ".gz" and not _is_whole_gzip(path):
        fault = "is a gzip file that breaks off, or none at all"
    elif size <= LITTLE and ending != ".parquet" and not _text(path).strip():
        fault = "has no content"
    elif ending == ".json" and path.suffix != ".gz" and tail.strip()[-1:] not in (b"]", b"}"):
        fault = "ends before its JSON does"
    elif ending in (".csv", ".jsonl") and path.suffix != ".gz" and not tail.endswith((b"\n", b"\r")):
        return None if settled else f"does not end in a new line, and was written to in the last {SETTLED_SECONDS} s"
    else:
        return None
    if settled:
        raise LoadError(f"{told(source)}: {file.name} {fault}; the table stays as it was")
    return fault


def _is_whole_gzip(path: Path) -> bool:
    import gzip

    try:
        with gzip.open(path) as content:
            while content.read(1 << 20):
                pass
    except (EOFError, OSError, zlib.error):
        return False
    return True


def _text(path: Path) -> bytes:
    import gzip

    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as content:
        return content.read(LITTLE + 1)


def _read(connection: Connection, source: Source, path: Path, wanted: Mapping[str, str]) -> Batch:
    ending, file = _ending(path.name), warehouse.literal(str(path))
    if ending == ".parquet":
        return Batch(id="", source="", relation=f"read_parquet({file})", streamed=True)
    if ending == ".csv":
        return _read_csv(connection, source, file, wanted)
    if ending == ".jsonl":
        read = f"""
            select line from read_csv({file}, columns = {{'line': 'VARCHAR'}}, header = false, delim = '\x01',
                quote = '', escape = '', auto_detect = false, max_line_size = 100000000)
        """
    else:
        read = f"select json::varchar as line from read_json_objects({file}, maximum_object_size = 100000000)"
    connection.execute(f"create or replace temp table lines as {read}")
    rows = json_rows(connection, "temp.lines", wanted)
    return Batch(
        id="", source="", relation=rows.relation, form="json", sniffed=rows.sniffed, unreadable=rows.unreadable
    )


def _tell_day_from_month(connection: Connection, source: Source, column: str, how: str) -> None:
    """Whether a file's dates have one meaning: 05/04/2024 is two days, and another file may show the other."""
    swapped = how.replace("%d", "%?").replace("%m", "%d").replace("%?", "%m")
    if swapped == how:
        return
    text = warehouse.name(column)
    first, second = (f"try_strptime({text}, {warehouse.literal(format_)})" for format_ in (how, swapped))
    (both,) = warehouse.one(
        connection,
        f"""
        select bool_and({first} is not null and {second} is not null) and bool_or({first} <> {second})
        from temp.staged where {text} is not null
        """,
    )
    if both:
        raise LoadError(
            f"{told(source)}: the dates in column '{column}' may have the day or the month first; write them as"
            " 2024-04-05, or declare the column varchar and read it in a staging model"
        )


def _read_csv(connection: Connection, source: Source, file: str, wanted: Mapping[str, str]) -> Batch:
    """A CSV file as text, so that a value of another type is a bad row, and not the end of the file."""
    # Quoted as RFC 4180 has it: a guess from the first rows would be wrong where quotes come late, or one lacks its
    # other. What else is guessed is guessed once.
    found, delimiter, skip, has_header, *formats = warehouse.one(
        connection,
        f"""
        select Columns, Delimiter, SkipRows, HasHeader, DateFormat, TimestampFormat
        from sniff_csv({file}, sample_size = {SNIFFED}, {QUOTED}, ignore_errors = true)
        """,
    )
    dialect = f"{QUOTED}, delim = {warehouse.literal(delimiter)}, skip = {skip}, header = {has_header}"
    sniffed = {column["name"]: column["type"] for column in found}
    connection.execute(
        f"""
        drop table if exists temp.bad_lines; drop table if exists temp.bad_scans;
        create or replace temp table staged as
        select * from read_csv({file}, {dialect}, all_varchar = true, store_rejects = true,
            rejects_table = 'bad_lines', rejects_scan = 'bad_scans')
        """
    )
    # A date that is not written as 2017-12-31 is told by the sniffer how to read.
    iso = []
    for column, kind in {**sniffed, **wanted}.items():
        how = formats[0] if kind.startswith("DATE") else formats[1] if kind.startswith("TIMESTAMP") else None
        if how and how not in ("%Y-%m-%d", "%Y-%m-%d %H:%M:%S") and column in sniffed:
            text = warehouse.name(column)
            _tell_day_from_month(connection, source, column, how)
            iso.append(f"coalesce(try_strptime({text}, {warehouse.literal(how)})::varchar, {text}) as {text}")
    return Batch(
        id="",
        source="",
        relation=f"(select * replace ({', '.join(iso)}) from temp.staged)" if iso else "temp.staged",
        form="text",
        sniffed=sniffed,
        unreadable="select min(lower(error_type)) as rule, csv_line as row from temp.bad_lines group by line, csv_line",
    )
