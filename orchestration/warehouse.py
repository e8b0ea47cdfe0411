"""The warehouse: a DuckDB file. The only room that knows which warehouse it is and opens it."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

if TYPE_CHECKING:
    import pyarrow as pa

Connection = duckdb.DuckDBPyConnection

# Rows of one Arrow batch: a DuckDB row group, large enough that scoring is not slowed by their number.
BATCH = 122_880


class WarehouseError(RuntimeError):
    """The warehouse can't be opened or lacks a table: which, and what to do."""


@contextmanager
def open_warehouse(file: Path) -> Iterator[Connection]:
    """The one connection that may write. Whoever opens it holds the pool `warehouse`, so writers queue.

    Raises `WarehouseError` if another process holds the file or it is no database.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    limits: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": os.environ.get("SCOREHOUSE_MEMORY_LIMIT", "4GB"),
        "temp_directory": str(file.parent / "tmp"),
        # An extension that is not part of the wheel would be downloaded in silence.
        "autoinstall_known_extensions": False,
        "TimeZone": "UTC",
    }
    try:
        connection = duckdb.connect(str(file), config=limits)
    except duckdb.IOException as error:
        raise WarehouseError(
            f"{file}: can't be opened; close the other program that has it open and run again ({error})"
        ) from None
    try:
        yield connection
    finally:
        connection.close()


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
    row = connection.execute(query, values).fetchone()
    assert row is not None, f"no row from: {query}"
    return row


def rows(connection: Connection, query: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """All rows of a (small) query as dicts."""
    cursor = connection.execute(query, values)
    titles = [column[0] for column in cursor.description]
    return [dict(zip(titles, row, strict=True)) for row in cursor.fetchall()]


def batches(connection: Connection, query: str) -> Iterator["pa.RecordBatch"]:
    """The rows of a query as Arrow batches, streamed: `execute` would hold the whole result in memory.

    Reads on a cursor of its own, so that the caller may write on the connection meanwhile.
    """
    yield from connection.cursor().sql(query).to_arrow_reader(BATCH)


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


def content_hash(connection: Connection, query: str) -> tuple[int, str]:
    """Rows of a query and a hash of their content that does not depend on their order."""
    count, total = one(connection, f"select count(*), sum(hash(content)::hugeint) from ({query}) as content")
    return count, f"{count}-{total or 0:x}"


def freeze(connection: Connection, query: str, file: Path) -> None:
    """Writes the rows of a query to a Parquet file, in their order; a file is there whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    staged = file.with_name(f".{file.name}.{os.getpid()}")
    connection.execute(f"copy ({query}) to {literal(str(staged))} (format parquet, compression zstd)")
    with staged.open("rb") as written:
        os.fsync(written.fileno())
    staged.rename(file)
