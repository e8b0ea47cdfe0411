"""Sources that are a table or query of PostgreSQL: read as a stream of Arrow, in one snapshot of its database."""

import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from difflib import get_close_matches
from typing import Any
from urllib.parse import quote, unquote

import duckdb
import msgspec

from ml.declarations import Source
from orchestration import warehouse
from orchestration.addresses import NAMED, expanded, scrubbed, without_secrets
from orchestration.batches import Batch, LoadError, Loading, new_batch_id, table_of, told
from orchestration.table_columns import TEXTS, TIMES, Column, check_columns, columns_of

# Waits before a read whose connection broke is begun again.
RETRY_AFTER_SECONDS = (1.0, 4.0, 16.0)
# Arrow that is held at once; a few of these are under way between the server and the warehouse.
FUTURE = "now()::timestamp + interval 1 day"  # whose clocks may differ
BATCH_BYTES = 16 << 20


class Address(msgspec.Struct, frozen=True):
    """Where the rows are: a server, as libpq takes it and as people may see it, and on it a table or a query."""

    uri: str
    server: str
    table: str | None
    query: str | None


class _Broken(Exception):
    """The connection is gone, or the server asks to begin again: what it said."""


def batches_of_table(loading: Loading) -> Iterator[Batch]:
    """The rows that are new since the newest cursor held, less the overlap; all of them where there is no cursor.

    They are one batch, of one snapshot. If the connection breaks, the read begins again a few times. Without a key the
    batch replaces the earlier ones, if its content is another. Raises `LoadError`, never with the password.
    """
    address = _address(loading.source)
    for attempt, wait in enumerate((*RETRY_AFTER_SECONDS, None)):
        try:
            batch = _read(loading, address, attempt)
            break
        except _Broken as error:
            if wait is None:
                raise LoadError(
                    f"{_where(loading.source, address)}: the connection broke {attempt + 1} times ({error}); the table"
                    " stays as it was; run again"
                ) from None
            loading.note(f"read again from {address.server}, as the connection broke: {error}")
            time.sleep(wait)
    if batch:
        yield batch
    loading.connection.execute("drop table if exists temp.fetched; drop table if exists temp.fetched_keys")


def _where(source: Source, address: Address) -> str:
    return f"{told(source)}: load: from {address.server}"


def check_table(source: Source) -> None:
    """Raises `LoadError` if a source's URI names no table or query, or both, or if a password is written in it."""
    _parts(source)


def _address(source: Source) -> Address:
    """The address that a source's URI gives. A value from the environment stands in it as it is, whatever its letters.

    Raises `LoadError`.
    """

    def value(match: re.Match[str]) -> str:
        return quote(expanded(source, match[0]), safe=":,[]")

    bare, given = _parts(source)
    filled = {name: NAMED.sub(value, text) for name, text in given.items()}
    table, query = (unquote(filled.pop(name, "")).strip() for name in ("table", "query"))
    return Address(
        uri=f"{NAMED.sub(value, bare)}?{'&'.join(f'{name}={text}' for name, text in filled.items())}",
        server=without_secrets(bare),
        table=table or None,
        query=query.rstrip("; \n") or None,
    )


def _parts(source: Source) -> tuple[str, dict[str, str]]:
    """A source's URI as it is declared: without its parameters, and they. Raises `LoadError`."""
    bare, _, parameters = source.uri.partition("?")
    given = dict(part.partition("=")[::2] for part in parameters.split("&") if part)
    user = bare.partition("://")[2].rpartition("@")[0]
    server = without_secrets(bare)
    if any(NAMED.sub("", password) for password in (user.partition(":")[2], given.get("password", ""))):
        raise LoadError(
            f"{told(source)}: load: from {server}: a password is written in it; put it into the environment, and"
            " ${ITS_NAME} here"
        )
    if bool(given.get("table", "").strip()) == bool(given.get("query", "").strip()):
        raise LoadError(
            f"{told(source)}: load: from {server}: write either ?table=<schema.name> or ?query=<select ...> after it"
        )
    return bare, given


def _read(loading: Loading, address: Address, attempt: int) -> Batch | None:
    """The batch that the source gives now, read into temporary tables; None if it gives nothing new.

    Raises `_Broken` if the connection breaks, `LoadError` for what another attempt would not mend.
    """
    import adbc_driver_manager
    import pyarrow as pa
    from adbc_driver_postgresql import dbapi

    try:
        server = dbapi.connect(address.uri)
    except adbc_driver_manager.Error as error:
        if attempt:
            raise _Broken(_said(loading.source, error)) from None
        raise LoadError(
            f"{_where(loading.source, address)}: can't be reached: {_said(loading.source, error)}"
        ) from None
    with closing(server), closing(server.cursor()) as cursor:
        try:
            # What is read is of one moment, and is read only, whatever a query says.
            cursor.execute("set transaction isolation level repeatable read, read only")
            cursor.execute(
                "select set_config('TimeZone', 'UTC', true), set_config('DateStyle', 'ISO', true),"
                " set_config('standard_conforming_strings', 'on', true), set_config('client_encoding', 'UTF8', true)"
            )
            cursor.fetchall()
            return _batch(loading, address, cursor)
        # A stream's errors are not told as the driver's.
        except (adbc_driver_manager.Error, pa.ArrowException, OSError) as error:
            said = _said(loading.source, error)
            if _is_gone(server) or "conflict with recovery" in said:
                raise _Broken(said) from None
            raise LoadError(f"{_where(loading.source, address)}: {said}; the table stays as it was") from None


def _is_gone(server: Any) -> bool:
    """Whether the connection no longer answers."""
    import adbc_driver_manager

    try:
        server.rollback()
    except adbc_driver_manager.Error:
        return True
    return False


def _said(source: Source, error: Exception) -> str:
    """What the server or the driver said, in a line, without what the environment keeps secret."""
    text = re.sub(r"^.*?(ERROR|FATAL|failed|to connect): +", "", str(error), count=1, flags=re.DOTALL).strip()
    hint = re.search(r"^HINT: +(.*)", text, flags=re.MULTILINE)
    first = (text or type(error).__name__).splitlines()[0]
    return scrubbed(source, f"{first} ({hint[1]})" if hint else first)


def _batch(loading: Loading, address: Address, cursor: Any) -> Batch | None:
    source, connection = loading.source, loading.connection
    name, relation, filled = _relation(source, address, cursor)
    columns = columns_of(loading, relation, cursor)
    check_columns(source, columns, _where(source, address))
    known = loading.known_files()
    is_as_declared = name in known and known[name][0] == loading.declaration
    since = _since(loading, columns) if is_as_declared else None
    if since and source.cursor not in filled:
        since = f"({since} or {warehouse.name(str(source.cursor))} is null)"
    size = _fetch(loading, cursor, columns, f"{relation}{f' where {since}' if since else ''}", "fetched")
    (rows,) = warehouse.one(connection, "select count(*) from temp.fetched")
    keys = None
    if source.sweep and since:
        _fetch(loading, cursor, [column for column in columns if column.name in source.key], relation, "fetched_keys")
        keys = "temp.fetched_keys"
    elif source.sweep:
        keys = f"(select {warehouse.names(source.key)} from temp.fetched)"
    replaces: tuple[str, ...] = ()
    fingerprint = loading.declaration
    if not source.key:
        _, content = warehouse.content_hash(connection, "from temp.fetched")
        fingerprint = hashlib.sha256(f"{fingerprint} {content}".encode()).hexdigest()
        if name in known and known[name][0] == fingerprint:
            return None
        replaces = tuple(batch for _, batches in known.values() for batch in batches)
    if known and (keys or replaces):
        here, held = keys or "temp.fetched", table_of(source)
        if warehouse.one(connection, f"select exists (from {held}) and not exists (from {here})")[0]:
            raise LoadError(
                f"{_where(source, address)}: {name} gives no rows any more; the table stays as it was. If that is"
                f" right, delete from {held} by hand"
            )
    if known and not rows and not keys:
        return None
    ruled = any(column.rule for column in columns)
    return Batch(
        id=new_batch_id(),
        source=name,
        relation="(select * exclude (_rule, _came) from temp.fetched where _rule is null)" if ruled else "temp.fetched",
        unreadable="select _rule as rule, _came as row from temp.fetched where _rule is not null" if ruled else None,
        fingerprint=fingerprint,
        bytes=size,
        replaces=replaces,
        keys=keys,
    )


def _relation(source: Source, address: Address, cursor: Any) -> tuple[str, str, set[str]]:
    """What rows are called in `_source`, what to select them from, and which columns are never null.

    Raises `LoadError` if there is no such table.
    """
    if address.query:
        name = f"query {hashlib.sha256(address.query.encode()).hexdigest()[:8]}"
        return name, f"({address.query}\n) as asked", set()
    known = "pg_class as relation inner join pg_namespace as space on space.oid = relation.relnamespace"
    quoted = "quote_ident(space.nspname) || '.' || quote_ident(relation.relname)"
    cursor.execute(
        f"""
        select relation.oid::int8, {quoted}, space.nspname || '.' || relation.relname
        from {known} where relation.oid = to_regclass({warehouse.literal(str(address.table))})
        """
    )
    found = cursor.fetchall()
    if not found:
        cursor.execute(f"select {quoted} from {known} where relation.relkind in ('r', 'p', 'v', 'm', 'f')")
        likely = get_close_matches(str(address.table), [other for (other,) in cursor.fetchall()], n=3)
        raise LoadError(
            f"{_where(source, address)}: there is no table {address.table}, or it may not be seen"
            + (f" (there is: {', '.join(likely)})" if likely else "")
        )
    id, table, name = found[0]
    cursor.execute(f"select attname from pg_attribute where attrelid = {id} and attnum > 0 and attnotnull")
    return name, table, {column for (column,) in cursor.fetchall()}


def _since(loading: Loading, columns: Sequence[Column]) -> str | None:
    """SQL of the server that holds for rows from the newest cursor held on, less the overlap; None for all rows."""
    source = loading.source
    held = warehouse.columns(loading.connection, source.schema, source.table)
    if source.cursor is None or source.cursor not in held:
        return None
    kind = next(column.kind for column in columns if column.name == source.cursor)
    name = warehouse.name(source.cursor)
    newest = name
    if kind in TIMES:
        overlap = round(source.overlap_days * 86_400 * 1_000_000)
        newest = f"try_cast({name} as {TIMES[kind]}) - to_microseconds({overlap})"
    # What is of the future, an infinity or a slip of the year, would hide all that comes until then.
    is_past = f"try_cast({name} as timestamp) <= {FUTURE}" if kind in TIMES else "true"
    # Nothing is newer than infinity. The topmost row is found by the statistics of each block, a maximum is not.
    is_finite = (
        f"isfinite({name})" if held[source.cursor].startswith(("DATE", "TIMESTAMP", "DOUBLE", "FLOAT")) else "true"
    )
    found = loading.connection.execute(
        f"""
        select ({newest})::varchar from (
            select {name} from {table_of(source)} where {name} is not null and {is_finite} and {is_past}
            order by 1 desc limit 1
        )
        """
    ).fetchall()
    if not found or found[0][0] is None:
        return None
    value = found[0][0]
    # The warehouse orders texts by their bytes.
    order = ' collate "C"' if kind in TEXTS and kind != "uuid" else ""
    return f"{name}{order} >= {warehouse.literal(value)}::{kind}{order}"


def pulled(stream: Any) -> Iterator[Any]:
    """The Arrow batches of a stream, as they come."""
    yield from stream


def _fetch(loading: Loading, cursor: Any, columns: Sequence[Column], relation: str, table: str) -> int:
    """Streams columns into a temporary table, with `_rule` and `_came` of rows that a value spoils; the Arrow bytes."""
    import pyarrow as pa

    connection, size = loading.connection, 0
    met: list[Exception] = []

    def counted(batches: Iterator[Any]) -> Iterator[Any]:
        nonlocal size
        try:
            for batch in batches:
                size += batch.nbytes
                yield batch
        except Exception as error:
            met.append(error)  # the warehouse would tell of it as a text
            raise

    stored = [f"{column.stored} as {warehouse.name(column.name)}" for column in columns]
    ruled = [
        f"case when {warehouse.name(column.name)} is not null and {column.stored} is null"
        f" then {warehouse.literal(column.rule)} end"
        for column in columns
        if column.rule
    ]
    if ruled:
        rule = f"nullif(concat_ws('; ', {', '.join(ruled)}), '')"
        packed = ", ".join(f"{name} := {name}" for name in (warehouse.name(column.name) for column in columns))
        stored += [
            f"{rule} as _rule",
            f"case when _rule is not null then to_json(struct_pack({packed}))::varchar end as _came",
        ]
    cursor.adbc_statement.set_options(**{"adbc.postgresql.batch_size_hint_bytes": str(BATCH_BYTES)})
    cursor.execute(f"select {', '.join(column.asked for column in columns)} from {relation}")
    stream = cursor.fetch_record_batch()
    connection.register("stream", pa.RecordBatchReader.from_batches(stream.schema, counted(pulled(stream))))
    try:
        connection.execute(f"create or replace temp table {table} as select {', '.join(stored)} from stream")
    except duckdb.Error:
        if met:
            raise met[0] from None
        raise
    finally:
        with suppress(duckdb.Error):
            connection.unregister("stream")
    return size
