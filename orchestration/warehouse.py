"""The warehouse: a DuckDB file. The only room that knows which warehouse it is and opens it."""

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from orchestration.project import exclusively, replaced

if TYPE_CHECKING:
    import pyarrow as pa

Connection = duckdb.DuckDBPyConnection

# An alias that stands for a whole row of a query. A column of its name would be taken instead, so it is no usual name.
WHOLE_ROW = '"a row of the query"'

# Rows of one Arrow batch: a DuckDB row group, large enough that scoring is not slowed by their number.
BATCH = 122_880


class WarehouseError(RuntimeError):
    """The warehouse can't be opened or lacks a table: which, and what to do."""


@contextmanager
def open_warehouse(file: Path) -> Iterator[Connection]:
    """The one connection that may write, once every other writer of the engine is done.

    Raises `WarehouseError` if a program that is none of the engine's holds the file, or it is no sound database.
    """
    limits: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": os.environ.get("SCOREHOUSE_MEMORY_LIMIT", "4GB"),
        "temp_directory": str(file.parent / "tmp"),
        # An extension that is not part of the wheel would be downloaded in silence.
        "autoinstall_known_extensions": False,
        "TimeZone": "UTC",
    }
    with reserved(file):
        try:
            connection = duckdb.connect(str(file), config=limits)
        except duckdb.Error as error:
            reason = str(error).splitlines()[0]
            if "lock" in reason:
                raise WarehouseError(
                    f"{file}: another program has it open; close it and run again ({reason})"
                ) from None
            if os.strerror(errno.ENOSPC) in reason:
                raise WarehouseError(f"{file}: can't be opened: {reason}; make room, and run again") from None
            raise WarehouseError(
                f"{file}: can't be opened: {reason}. If it is damaged, bring a copy back, or remove it: all is built"
                " anew then, except the predictions and verdicts of the past"
            ) from None
        try:
            yield connection
        finally:
            connection.close()


def reserved(file: Path) -> AbstractContextManager[None]:
    """Holds the warehouse for this process, or one that it starts, and waits for the one that holds it.

    Dagster's pool `warehouse` queues the steps of runs, and shows them waiting; this also holds between a run's steps
    and what happens before and after them.
    """
    return exclusively(file.with_name(f"{file.name}.lock"))


def name(*parts: str) -> str:
    """A quoted SQL name: `name('raw', 'orders')` is `"raw"."orders"`."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)


def names(columns: Sequence[str], of: str = "") -> str:
    """Quoted column names, comma-separated, each of the table or alias `of` if given."""
    return ", ".join(f"{of}.{name(column)}" if of else name(column) for column in columns)


def literal(value: str | Sequence[str] | Mapping[str, str]) -> str:
    """A SQL literal: a text, a list of texts, or a struct of texts."""
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal(key)}: {literal(text)}" for key, text in value.items()) + "}"
    return "[" + ", ".join(map(literal, value)) + "]"


def one(connection: Connection, query: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> tuple[Any, ...]:
    """The only row of a query."""
    found = connection.execute(
        query, values
    ).fetchall()  # a fetchone would leave the result, and so the connection, busy
    assert len(found) == 1, f"{len(found)} rows from: {query}"
    return found[0]


def rows(connection: Connection, query: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[dict[str, Any]]:
    """All rows of a (small) query as dicts."""
    cursor = connection.execute(query, values)
    titles = [column[0] for column in cursor.description]
    return [dict(zip(titles, row, strict=True)) for row in cursor.fetchall()]


@contextmanager
def batches(connection: Connection, query: str, size: int | None = None) -> Iterator["pa.RecordBatchReader"]:
    """The rows of a query as Arrow batches of `size` rows (`BATCH`), streamed: `execute` would hold them all in memory.

    Reads on a cursor of its own, so that the caller may write on the connection meanwhile. Both are closed at the end,
    also of who stops halfway: a reader left open (by a traceback, say) keeps the warehouse open however often its
    connection is closed, and the next to open it waits for ever.
    """
    with closing(connection.cursor()) as cursor, closing(cursor.sql(query).to_arrow_reader(size or BATCH)) as reader:
        yield reader


@contextmanager
def streamed(connection: Connection, query: str) -> Iterator[str]:
    """The name under which a query's rows can be read once, as they stream.

    A table made from it is written by all threads, where one made from the query itself is written by as many as its
    files have row groups: of 20.9 M rows in one row group, in 3.1 s and not in 5.5.
    """
    with batches(connection, query) as reader, registered(connection, reader) as stream:
        yield stream


@contextmanager
def registered(connection: Connection, reader: "pa.RecordBatchReader") -> Iterator[str]:
    """The name under which the rows of a reader can be read once."""
    connection.register("incoming", reader)
    try:
        yield "incoming"
    finally:
        # An aborted transaction refuses this too, and would hide why it was aborted. The next takes the name over.
        with suppress(duckdb.TransactionException):
            connection.unregister("incoming")


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """All that is written within, or none of it."""
    connection.begin()
    try:
        yield
        connection.commit()
    except BaseException:
        with suppress(duckdb.TransactionException):  # there is none any more after some errors, as of a full disk
            connection.rollback()
        raise


def exists(connection: Connection, schema: str, table: str) -> bool:
    query = "select count(*) from information_schema.tables where table_schema = ? and table_name = ?"
    return bool(one(connection, query, [schema, table])[0])


def columns(connection: Connection, schema: str, table: str) -> dict[str, str]:
    """Column -> type of a table or view, in the table's order; empty if there is none."""
    query = """
        select column_name, data_type from duckdb_columns() where schema_name = ? and table_name = ?
        order by column_index
    """
    return dict(connection.execute(query, [schema, table]).fetchall())


def canonical_type(connection: Connection, kind: str) -> str:
    """A type as the warehouse writes it: text is VARCHAR. Raises `duckdb.Error` if it knows no such type."""
    return str(one(connection, f"select typeof(null::{kind})")[0])


def content_hash(connection: Connection, query: str, *aggregates: str) -> tuple[Any, ...]:
    """Rows of a query, a hash of their content that does not depend on their order, and what else is asked of them."""
    asked = ", ".join(["count(*)", f"sum(hash({WHOLE_ROW})::hugeint)", *aggregates])
    count, total, *others = one(connection, f"select {asked} from ({query}) as {WHOLE_ROW}")
    return count, f"{count}-{total or 0:x}", *others


def freeze(connection: Connection, query: str, file: Path) -> None:
    """Writes the rows of a query to a Parquet file, in their order; a file is there whole or not at all."""
    with replaced(file) as staged:
        connection.execute(f"copy ({query}) to {literal(str(staged))} (format parquet, compression zstd)")


def frozen_rows(connection: Connection, file: Path) -> int | None:
    """How many rows a Parquet file holds, by its footer, which is written last; None if it is missing or not whole."""
    try:
        return int(one(connection, f"select num_rows from parquet_file_metadata({literal(str(file))})")[0])
    except duckdb.Error:
        return None
