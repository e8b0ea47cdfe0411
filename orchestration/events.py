"""Sources that are events pushed to the API: what it keeps in its log is loaded from where the last load has stopped.

The log stays as it is: it is to events what the files are to a source of files, so a raw table that is dropped is
loaded again from it. Whoever needs the space may remove segments of days that are loaded (only `serving` writes to
them, to one per process). What each event must be is published for the API, which knows neither dbt nor the warehouse.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

import msgspec

from ml.declarations import Project, Source
from orchestration import warehouse
from orchestration.batches import Batch, LoadError, Loading, is_own, new_batch_id, told
from orchestration.json_lines import json_rows
from orchestration.project import Paths, exclusively, replaced
from serving.contracts import Column, Contract, Kind
from serving.durable import sync

BATCH_BYTES = 16 << 20  # of the log at a time; an event is smaller, as the API takes no request of this size
LOADED = "loaded.json"  # how far each segment is loaded, for who must not open the warehouse: a copy of what it knows
CONTRACT = "contract.json"

BITS = {
    **dict.fromkeys(("TINYINT", "INT1"), 8),
    **dict.fromkeys(("SMALLINT", "INT2", "SHORT"), 16),
    **dict.fromkeys(("INTEGER", "INT", "INT4", "SIGNED"), 32),
    **dict.fromkeys(("BIGINT", "INT8", "LONG"), 64),
    "HUGEINT": 128,
}
UNSIGNED_BITS = {"UTINYINT": 8, "USMALLINT": 16, "UINTEGER": 32, "UBIGINT": 64, "UHUGEINT": 128}
LARGEST = {
    **dict.fromkeys(("DOUBLE", "FLOAT8", "DOUBLE PRECISION"), Decimal("1.797693134862315E+308")),
    **dict.fromkeys(("FLOAT", "REAL", "FLOAT4"), Decimal("3.402823E+38")),
}
KINDS: dict[str, Kind] = {
    **dict.fromkeys(("BOOLEAN", "BOOL", "LOGICAL"), "boolean"),
    **dict.fromkeys(("VARCHAR", "TEXT", "STRING", "CHAR", "BPCHAR"), "text"),
    "DATE": "date",
    **dict.fromkeys(("TIMESTAMP", "DATETIME", "TIMESTAMP WITHOUT TIME ZONE"), "timestamp"),
    **dict.fromkeys(("TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_US", "TIMESTAMP_NS"), "timestamp"),
    **dict.fromkeys(("TIMESTAMPTZ", "TIMESTAMP WITH TIME ZONE"), "timestamptz"),
    "UUID": "uuid",
}


class Piece(msgspec.Struct, frozen=True):
    """Whole lines of a segment, and the byte after the last of them."""

    segment: str
    content: bytes
    end: int


def batches_of_events(loading: Loading) -> Iterator[Batch]:
    """What has been added to the log since the last load, a bounded number of bytes in each batch.

    A batch's fingerprint is how far it has read each segment, so the offsets are committed with the rows. What comes
    while it loads is left for the next load, and so is a line without an end: nobody was told that it is kept. A table
    that nothing has come for is made empty, so that what is built from it can be built from the first day.
    """
    source, connection = loading.source, loading.connection
    folder = log_of(source, loading.data)
    offsets = _committed(loading)
    try:
        for pieces in _gathered(_pieces(source, folder, offsets)):
            content = b"".join(piece.content for piece in pieces)
            _lines(loading, content)
            rows = json_rows(connection, "temp.lines", loading.wanted())
            read = {piece.segment: piece.end for piece in pieces}
            yield Batch(
                id=new_batch_id(),
                source=f"events/{folder.name}",
                relation=rows.relation,
                form="json",
                sniffed=rows.sniffed,
                unreadable=rows.unreadable,
                fingerprint=json.dumps(read),
                bytes=len(content),
            )
            offsets |= read
    finally:
        _tell(folder, offsets)
    if not warehouse.exists(connection, source.schema, source.table):
        yield Batch(id=new_batch_id(), source=f"events/{folder.name}", relation=f"({_no_row(source)})")


class Pending(msgspec.Struct, frozen=True):
    """Bytes of a log that are not loaded yet, of lines that have an end; and what tells this log from a longer one."""

    bytes: int
    state: str


def pending_events(source: Source, where: Paths) -> Pending:
    """What of a source's log is not loaded yet. Opens no warehouse."""
    folder = log_of(source, where.data)
    try:
        offsets = json.loads((folder / LOADED).read_bytes())
    except (FileNotFoundError, ValueError):
        offsets = {}
    ends = {file.name: _last_line_end(file) for file in folder.glob("*.jsonl")}
    state = " ".join(f"{name}:{end}" for name, end in sorted(ends.items()))
    return Pending(sum(max(0, end - offsets.get(name, 0)) for name, end in ends.items()), state)


def log_of(source: Source, data: Path) -> Path:
    """The folder of a source's log."""
    return data / "events" / source.uri.partition("://")[2]


def publish_contracts(project: Project, where: Paths) -> None:
    """Tells the API what each declared source of events takes; one that is declared no more takes nothing."""
    folder = where.data / "events"
    contracts = {source.uri.partition("://")[2]: source for source in project.sources if source.scheme == "events"}
    if not contracts and not folder.is_dir():
        return
    with exclusively(folder / ".lock"):  # Dagster reads the definitions in several processes at once
        for name, source in contracts.items():
            file, content = folder / name / CONTRACT, msgspec.json.encode(contract_of(source))
            if not file.is_file() or file.read_bytes() != content:
                with replaced(file) as staged:
                    staged.write_bytes(content)
                for parent in (folder, where.data):
                    sync(parent)
        for file in folder.glob(f"*/{CONTRACT}"):
            if file.parent.name not in contracts:
                file.unlink()


def contract_of(source: Source) -> Contract:
    """What an event of a source must be, from its columns, their types and what is asked of them."""
    not_null = {column for column in source.columns for rule in source.rules if rule.name == f"{column} is null"}
    return Contract(
        source=source.uri.partition("://")[2],
        table=f"{source.schema}.{source.table}",
        description=source.description,
        key=source.key,
        columns=tuple(
            _column(name, source.types[name], description, name in not_null or name in source.key)
            for name, description in source.columns.items()
            if name in source.types and not is_own(name)
        ),
    )


def _column(name: str, declared: str, description: str, is_required: bool) -> Column:
    """A column with the kind of value that its SQL type holds, and the bounds of numbers."""
    head, _, arguments = " ".join(declared.upper().split()).partition("(")
    head = head.strip() + arguments.partition(")")[2].rstrip()  # timestamp(6) with time zone
    least, most = None, None
    kind: Kind = KINDS.get(head, "any")
    if head in BITS:
        kind, least, most = "integer", Decimal(-(2 ** (BITS[head] - 1))), Decimal(2 ** (BITS[head] - 1) - 1)
    elif head in UNSIGNED_BITS:
        kind, least, most = "integer", Decimal(0), Decimal(2 ** UNSIGNED_BITS[head] - 1)
    elif head in LARGEST:
        kind, least, most = "number", LARGEST[head].copy_negate(), LARGEST[head]
    elif head in ("DECIMAL", "NUMERIC", "DEC"):
        width, scale = [*map(int, re.findall(r"\d+", arguments or "18, 3")), 0][:2]
        most = Decimal(f"{'9' * width}E-{scale}")
        kind, least = "number", most.copy_negate()
    return Column(
        name=name,
        type=declared,
        kind=kind,
        required=is_required,
        description=description,
        least=least,
        most=most,
    )


def _committed(loading: Loading) -> dict[str, int]:
    """How far each segment is in the table: segment -> the byte to go on from."""
    source = loading.source
    if not warehouse.exists(loading.connection, source.schema, source.table):
        return {}
    found = loading.connection.execute(
        """
        select read.key, max(read.value::bigint)
        from (
            select fingerprint from quality.source_metrics
            where schema_name = ? and table_name = ? and status = 'landed' and fingerprint like '{%'
        ) as batches, json_each(batches.fingerprint) as read
        group by 1
        """,
        [source.schema, source.table],
    ).fetchall()
    return dict(found)


def _pieces(source: Source, folder: Path, offsets: dict[str, int]) -> Iterator[Piece]:
    """What of each segment is not loaded yet, as it is now, oldest segment first."""
    for file, size in [(file, file.stat().st_size) for file in sorted(folder.glob("*.jsonl"))]:
        start = offsets.get(file.name, 0)
        while start < size:
            with file.open("rb") as log:
                log.seek(start)
                content = log.read(min(BATCH_BYTES, size - start))
            content = content[: content.rfind(b"\n") + 1]
            if not content:
                if size - start > BATCH_BYTES:
                    raise LoadError(
                        f"{told(source)}: {file}: the line at byte {start:,} has more than {BATCH_BYTES:,} bytes, so it"
                        " is no event that the API has kept; take the file away and load again"
                    )
                break
            start += len(content)
            yield Piece(file.name, content, start)


def _gathered(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Pieces of several segments together, as each batch costs a transaction."""
    held: list[Piece] = []
    for piece in pieces:
        if held and sum(len(one.content) for one in held) + len(piece.content) > BATCH_BYTES:
            yield held
            held = []
        held.append(piece)
    if held:
        yield held


def _lines(loading: Loading, content: bytes) -> None:
    """Makes temp.lines of the lines."""
    import pyarrow as pa

    # Not splitlines: a text may have in it what Unicode calls the end of a line.
    lines = content.decode(errors="replace").split("\n")
    loading.connection.register("pushed", pa.table({"line": pa.array(lines, pa.string())}))
    try:
        loading.connection.execute("create or replace temp table lines as select line from pushed")
    finally:
        loading.connection.unregister("pushed")


def _no_row(source: Source) -> str:
    columns = [
        f"null::{kind} as {warehouse.name(column)}" for column, kind in source.types.items() if not is_own(column)
    ]
    return f"select {', '.join(columns)} where false"


def _tell(folder: Path, offsets: dict[str, int]) -> None:
    """Writes down beside the log how far it is loaded: not to be relied on, so not worth waiting for the disk."""
    with suppress(OSError):
        staged = folder / f".{LOADED}.new"
        staged.write_text(json.dumps({name: end for name, end in offsets.items() if (folder / name).exists()}))
        staged.replace(folder / LOADED)


def _last_line_end(file: Path) -> int:
    """The byte after the last whole line of a file."""
    with file.open("rb") as log:
        end = log.seek(0, 2)
        while end:
            start = max(0, end - (1 << 16))
            log.seek(start)
            found = log.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0
