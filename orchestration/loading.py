"""Loads raw tables as the dbt sources declare them: `config.meta.load.from` says where from, the source where to."""

import glob
import hashlib
import importlib.util
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import msgspec

from ml.declarations import Source
from orchestration import warehouse
from orchestration.project import Paths
from orchestration.warehouse import Connection

READERS = {
    ".parquet": "read_parquet({files}, union_by_name = true, filename = '_file')",
    ".csv": "read_csv({files}, union_by_name = true, filename = '_file', types = {types})",
    ".jsonl": "read_json({files}, format = 'newline_delimited', union_by_name = true, filename = '_file')",
    ".json": "read_json({files}, union_by_name = true, filename = '_file')",
}
LEDGER = """
    create schema if not exists quality;
    create table if not exists quality.loads (
        schema_name varchar, table_name varchar, uri varchar, fingerprint varchar, batch_id varchar,
        rows bigint, bytes bigint, seconds double, loaded_at timestamptz
    )
"""


class LoadError(RuntimeError):
    """A source can't be loaded: file of the declaration, table, fault, what to do."""


class Loaded(msgspec.Struct, frozen=True):
    """What a load found: the rows of the raw table now, and whether it had to write them."""

    rows: int
    bytes: int
    batch_id: str
    changed: bool


def find_files(source: Source, project: Path) -> list[Path]:
    """The files a source's URI names: `package://<package>/<path or glob in it>`, or one from the dbt project.

    Raises `LoadError` if the URI is of another kind, the package is not installed or no file matches.
    """
    where = f"{source.file}: source '{source.schema}.{source.table}': load: from '{source.uri}'"
    scheme, separator, rest = source.uri.partition("://")
    if not separator:
        pattern = str(project / source.uri)
    elif scheme == "package":
        package, _, inside = rest.partition("/")
        found = importlib.util.find_spec(package) if package.isidentifier() else None
        if found is None or found.origin is None:
            raise LoadError(
                f"{where}: there is no installed package '{package}'; add it to pyproject.toml or give a path"
            )
        pattern = str(Path(found.origin).parent / inside)
    else:
        raise LoadError(f"{where}: '{scheme}://' is not a kind of source (known: package://, a path or a glob)")
    files = sorted(Path(file) for file in glob.glob(pattern, recursive=True) if Path(file).is_file())
    if not files:
        raise LoadError(f"{where}: no such file (looked for {pattern})")
    return files


def load(connection: Connection, source: Source, project: Path) -> Loaded:
    """Replaces the raw table by its files' rows, in one transaction, if the files have changed since the last load.

    Each row carries `_loaded_at` (UTC, one moment for the whole load), `_batch_id` and `_source` (the file's name).
    Raises `LoadError`; the table as it was then stays.
    """
    import duckdb

    where = f"{source.file}: source '{source.schema}.{source.table}'"
    files = find_files(source, project)
    stats = [file.stat() for file in files]
    size = sum(stat.st_size for stat in stats)
    fingerprint = hashlib.sha256(
        "\n".join(
            [
                source.uri,
                repr((sorted(source.columns), sorted(source.types.items()), sorted(READERS.items()))),
                *(f"{file} {stat.st_size} {stat.st_mtime_ns}" for file, stat in zip(files, stats, strict=True)),
            ]
        ).encode()
    ).hexdigest()
    connection.execute(LEDGER)
    last = warehouse.rows(
        connection,
        "select * from quality.loads where schema_name = ? and table_name = ? order by loaded_at desc limit 1",
        [source.schema, source.table],
    )
    if last and last[0]["fingerprint"] == fingerprint and warehouse.exists(connection, source.schema, source.table):
        return Loaded(rows=last[0]["rows"], bytes=size, batch_id=last[0]["batch_id"], changed=False)

    suffixes = {next((suffix for suffix in reversed(file.suffixes) if suffix != ".gz"), "") for file in files}
    if len(suffixes) != 1 or not suffixes <= set(READERS):
        raise LoadError(
            f"{where}: files end in {', '.join(sorted(suffixes))}; one kind of {', '.join(READERS)} can be read"
            " (csv and json also .gz)"
        )
    empty = [str(file) for file, stat in zip(files, stats, strict=True) if not stat.st_size]
    if empty:
        raise LoadError(f"{where}: {', '.join(empty)} has no content; the table stays as it was")
    suffix = suffixes.pop()
    reader = READERS[suffix].format(files=warehouse.literal([str(file) for file in files]), types="{}")
    started, loaded_at, batch_id = time.monotonic(), datetime.now(UTC), fingerprint[:12]
    try:
        found = [row[0] for row in connection.execute(f"describe select * exclude (_file) from {reader}").fetchall()]
        missing = [column for column in source.columns if column not in found and not column.startswith("_")]
        # In JSON a key that nobody has is no key at all: what is declared with a type is null everywhere.
        absent = [column for column in missing if column in source.types] if suffix in (".json", ".jsonl") else []
        missing = [column for column in missing if column not in absent]
        if missing:
            raise LoadError(
                f"{where}: the files lack the declared columns {', '.join(missing)}"
                f" (they have: {', '.join(found)}); the table stays as it was"
                + ("" if len(found) > 1 else "; do all lines have the same number of fields?")
            )
        # CSV is read with the declared types from the start: a text of digits alone would lose its leading zeros.
        types = {column: kind for column, kind in source.types.items() if column in found}
        reader = READERS[suffix].format(
            files=warehouse.literal([str(file) for file in files]), types=warehouse.literal(types)
        )
        cast = ", ".join(
            f"{warehouse.name(column)}::{kind} as {warehouse.name(column)}" for column, kind in types.items()
        )
        added = "".join(f"null::{source.types[column]} as {warehouse.name(column)}," for column in absent)
        rows_of_files = f"""
            select
                * exclude (_file) {f"replace ({cast})" if cast else ""},
                {added}
                parse_filename(_file) as _source
            from {reader}
        """
        with warehouse.streamed(connection, rows_of_files) as incoming, warehouse.transaction(connection):
            connection.execute(f"create schema if not exists {warehouse.name(source.schema)}")
            connection.execute(
                f"""
                create or replace table {warehouse.name(source.schema, source.table)} as
                select * exclude (_source), ?::timestamptz as _loaded_at, ? as _batch_id, _source from {incoming}
                """,
                [loaded_at, batch_id],
            )
            (rows,) = warehouse.one(connection, f"select count(*) from {warehouse.name(source.schema, source.table)}")
            connection.execute(
                "insert into quality.loads values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    source.schema,
                    source.table,
                    source.uri,
                    fingerprint,
                    batch_id,
                    rows,
                    size,
                    time.monotonic() - started,
                    loaded_at,
                ],
            )
    except duckdb.Error as error:
        # What follows the first empty line are all the settings of the reader.
        # What comes before is that it was a stream that failed.
        reason = " ".join(str(error).partition("\n\n")[0].rpartition("IOError: ")[2].split())
        raise LoadError(f"{where}: can't be read, the table stays as it was: {reason}") from None
    return Loaded(rows=rows, bytes=size, batch_id=batch_id, changed=True)


def raw_asset(source: Source, key: dg.AssetKey, where: Paths) -> dg.AssetsDefinition:
    """The asset of a declared raw table, under the key that dagster-dbt gives the dbt source."""

    @dg.asset(
        key=key,
        group_name="raw",
        kinds={"duckdb", "source"},
        description=source.description or None,
        metadata={"loaded from": source.uri},
        pool="warehouse",
    )
    def raw_table(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        with warehouse.open_warehouse(where.warehouse) as connection:
            loaded = load(connection, source, where.project)
            columns = warehouse.columns(connection, source.schema, source.table)
        schema = [dg.TableColumn(name, kind, description=source.columns.get(name)) for name, kind in columns.items()]
        yield dg.MaterializeResult(
            metadata={
                "dagster/row_count": loaded.rows,
                "dagster/column_schema": dg.TableSchema(columns=schema),
                "bytes": loaded.bytes,
                "batch": loaded.batch_id,
                "changed": loaded.changed,
            },
            data_version=dg.DataVersion(loaded.batch_id),
        )

    return raw_table
