"""Lands a batch of rows in its raw table: typed, judged by the source's rules, each row once, in one transaction."""

import hashlib
import json
import math
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import duckdb
import msgspec

from ml.declarations import Rule, Source
from orchestration import warehouse
from orchestration.warehouse import Connection

# How a kind of source knows types: `typed` ones are true (Parquet, a database); of `text` (CSV) a value that doesn't
# fit its column is a bad row, not another type; and in `json` a key that no row has is absent besides.
Form = Literal["typed", "text", "json"]

OWN = {"_loaded_at": "TIMESTAMP WITH TIME ZONE", "_batch_id": "VARCHAR", "_source": "VARCHAR"}
KNOWN_AT = "_known_at"
TRAILING = 20  # batches whose median volume a new one is compared with
MARKS = "_content, _cursor, _place, _nth, _is_same, _is_older"
TAKEN = {*OWN, KNOWN_AT, "_row", *MARKS.split(", ")}
EXAMPLES = 3  # rejected rows that an error shows
TABLES = """
    create schema if not exists quality;
    create schema if not exists quarantine;
    create table if not exists quality.source_metrics (
        schema_name varchar, table_name varchar, batch_id varchar, source varchar, fingerprint varchar,
        loaded_at timestamptz, status varchar, fault varchar,
        rows bigint, bytes bigint, seconds double,
        landed bigint, replaced bigint, repeated bigint, superseded bigint, deleted bigint,
        rejected bigint, rejected_by_rule json, null_shares json, distinct_keys bigint,
        cursor_min varchar, cursor_max varchar, freshness_lag_seconds double,
        trailing_median_rows double, volume_ratio double, added_columns varchar
    );
"""
QUARANTINE = """
    create table if not exists {table} (
        quarantined_at timestamptz, batch_id varchar, source varchar, rule varchar, row varchar,
        repaired varchar, readmitted_at timestamptz
    )
"""


class LoadError(RuntimeError):
    """A source can't be loaded: file of the declaration, table, fault, what to do."""


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Rows that a source gives at once. `relation` is SQL that can be selected from, as often as needed.

    `source` is what `_source` says; `fingerprint` tells this content from another of the same source. `replaces` are
    earlier batches that this is a newer version of. `unreadable` selects (rule, row) of what is no row at all. A
    `streamed` relation can be read on another connection (files can, a temporary table can't). `sniffed` is the type
    that the values of a text column seem to have. `keys` selects the keys of all rows that the source has now: rows of
    the table with another key are deleted. `then` is SQL to execute in the same transaction.
    """

    id: str
    source: str
    relation: str
    form: Form = "typed"
    fingerprint: str = ""
    bytes: int = 0
    replaces: tuple[str, ...] = ()
    unreadable: str | None = None
    streamed: bool = False
    sniffed: dict[str, str] = {}
    keys: str | None = None
    then: str | None = None


class Loading(msgspec.Struct, kw_only=True):
    """A load under way: what a kind of source needs to know, and where it says what a person should know."""

    connection: Connection
    source: Source
    project: Path
    data: Path
    uri: str  # with what the environment keeps secret
    clock: datetime
    notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    @property
    def declaration(self) -> str:
        """A hash of what is declared: where it changes, files are read again."""
        source = self.source
        made_of = (source.uri, sorted(source.columns), sorted(source.types.items()), source.rules, source.key)
        return hashlib.sha256(repr(made_of).encode()).hexdigest()

    def wanted(self) -> dict[str, str]:
        """Column -> type that is declared or held already."""
        return {**warehouse.columns(self.connection, self.source.schema, self.source.table), **self.source.types}

    def known_files(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """What has landed and is in the table: `_source` -> fingerprint of the last batch, the ids of its batches."""
        if not warehouse.exists(self.connection, self.source.schema, self.source.table):
            return {}
        found = self.connection.execute(
            """
            select
                source, arg_max(fingerprint, loaded_at) filter (fingerprint <> '') as newest, list(distinct batch_id)
            from quality.source_metrics
            where schema_name = ? and table_name = ? and status = 'landed'
            group by 1
            having newest is not null
            """,
            [self.source.schema, self.source.table],
        ).fetchall()
        return {source: (fingerprint, tuple(batches)) for source, fingerprint, batches in found}


class Landed(msgspec.Struct, kw_only=True):
    """What became of a batch's rows: each is landed (of which some replaced an older one), repeated, superseded by a
    newer row of the same key, or bad. `rejected` counts by rule, of which a row may break several. `deleted` are rows
    of the table that the source no longer has."""

    batch: str
    rows: int
    landed: int
    replaced: int = 0
    repeated: int = 0
    superseded: int = 0
    deleted: int = 0
    bad_rows: int = 0
    rejected: dict[str, int] = {}
    added_columns: tuple[str, ...] = ()


def new_batch_id() -> str:
    """The id of a batch that nothing else identifies: the moment, and enough chance to be alone."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def create_tables(connection: Connection) -> None:
    connection.execute(TABLES)


def table_of(source: Source) -> str:
    return warehouse.name(source.schema, source.table)


def quarantine_of(source: Source) -> str:
    return warehouse.name("quarantine", source.table)


def told(source: Source) -> str:
    """How messages name a source."""
    return f"{source.file}: source '{source.schema}.{source.table}'"


def land(connection: Connection, source: Source, batch: Batch, loaded_at: datetime, clock: datetime) -> Landed:
    """Lands a batch in the transaction that the caller has begun, and records its figures in quality.source_metrics.

    `clock` is the moment it is for the project, `loaded_at` the real one. Bad rows go to quarantine.<table>. Raises
    `LoadError` if columns are missing or retyped, or more rows than `max_rejected` are bad; the caller then rolls back.
    """
    started = datetime.now(loaded_at.tzinfo)
    incoming = _described(connection, batch.relation)
    held = {
        column: kind
        for column, kind in warehouse.columns(connection, source.schema, source.table).items()
        if not _is_own(column)
    }
    expected = _expected(source, batch, incoming, held)
    added = tuple(column for column in expected if held and column not in held)
    is_first = not held or not _has_rows(connection, source)
    connection.execute(QUARANTINE.format(table=quarantine_of(source)))
    _make_table(connection, source, expected, held)
    for earlier in batch.replaces:
        connection.execute(f"delete from {table_of(source)} where _batch_id = ?", [earlier])
        connection.execute(
            f"delete from {quarantine_of(source)} where batch_id = ? and readmitted_at is null", [earlier]
        )
    is_first = is_first or not _has_rows(connection, source)

    rules = [
        *(Rule(f"{column} is null", f"{warehouse.name(column)} is not null") for column in source.key),
        *source.rules,
    ]
    rules = list({rule.name: rule for rule in rules}.values())
    judged, faults = _judged(batch.relation, incoming, expected, rules)
    bad = " or ".join(_broken(place) for place in range(len(faults))) or "false"
    try:
        profile = _profile(connection, source, judged, bad, faults, expected)
    except duckdb.BinderException as error:
        raise LoadError(
            f"{told(source)}: a constraint can't be asked of its rows: {str(error).splitlines()[0]}"
        ) from None
    good = f"select {warehouse.names(list(expected))} from ({judged}) as judged where not ({bad})"
    accepted = _accepted(connection, source, good, profile, batch, is_first)
    rejected = {**profile.rejected, **accepted.rejected}
    unreadable = _unreadable(connection, batch)
    for rule, count in unreadable.items():
        rejected[rule] = rejected.get(rule, 0) + count
    rows = profile.rows + sum(unreadable.values())
    bad_rows = profile.bad_rows + sum(unreadable.values()) + sum(accepted.rejected.values())
    if bad_rows:
        found = _rejected_rows(judged, bad, faults, batch)
        set_aside = f"{found} union all {accepted.conflicts}" if accepted.conflicts else found
        # What comes again, as within an overlap, is set aside already and counts no more.
        new = f"select * from ({set_aside}) where (rule, row) not in (select (rule, row) from {quarantine_of(source)})"
        connection.execute(f"create or replace temp table rejected as {new}")
        (new_bad_rows,) = warehouse.one(connection, "select count(*) from temp.rejected")
        if new_bad_rows > math.floor(source.max_rejected * rows):
            raise LoadError(_too_many(connection, source, batch, rows, new_bad_rows, rejected))
        _quarantine(connection, source, batch, loaded_at)
    known_at = _known_at(source, is_first, clock)
    landed = _insert(connection, source, batch, accepted, expected, loaded_at, known_at)
    deleted = _sweep(connection, source, batch, expected)
    connection.execute(f"drop table if exists temp.accepted; drop table if exists temp.met; {batch.then or ''}")
    result = Landed(
        batch=batch.id,
        rows=rows,
        landed=landed,
        replaced=accepted.replaced,
        repeated=accepted.repeated,
        superseded=accepted.superseded,
        deleted=deleted,
        bad_rows=bad_rows,
        rejected=rejected,
        added_columns=added,
    )
    _record(connection, source, batch, result, profile, loaded_at, clock, started)
    return result


def record_failure(connection: Connection, source: Source, batch: Batch, fault: str, at: datetime) -> None:
    """Writes down that a batch did not land, and why."""
    row = {
        "schema_name": source.schema,
        "table_name": source.table,
        "batch_id": batch.id,
        "source": batch.source,
        "fingerprint": batch.fingerprint,
        "loaded_at": at,
        "status": "failed",
        "fault": fault,
        "bytes": batch.bytes,
    }
    connection.execute("insert into quality.source_metrics by name select unnest(?)", [row])


class _Profile(msgspec.Struct, kw_only=True):
    """One scan's figures over a batch: `null_shares`, keys and cursor are those of its good rows."""

    rows: int
    bad_rows: int
    rejected: dict[str, int]
    null_shares: dict[str, float]
    distinct_keys: int | None
    cursor: tuple[Any, Any]


class _Accepted(msgspec.Struct, kw_only=True):
    """The good rows to insert (SQL), and what became of those that are not."""

    query: str
    streamed: bool
    replaced: int = 0
    repeated: int = 0
    superseded: int = 0
    rejected: dict[str, int] = {}
    conflicts: str | None = None


def _is_own(column: str) -> bool:
    return column in OWN or column == KNOWN_AT


def _described(connection: Connection, relation: str) -> dict[str, str]:
    return {row[0]: row[1] for row in connection.execute(f"describe select * from {relation}").fetchall()}


def _has_rows(connection: Connection, source: Source) -> bool:
    return bool(warehouse.one(connection, f"select exists (from {table_of(source)})")[0])


def _family(kind: str) -> str:
    """Types among which a value keeps its meaning: an integer may become a double, but not a date."""
    kind = kind.upper().partition("(")[0].strip()
    if kind.endswith("]"):
        return "list"
    if any(word in kind for word in ("INT", "DOUBLE", "FLOAT", "REAL", "DECIMAL", "NUMERIC")):
        return "number"
    if kind.startswith(("DATE", "TIMESTAMP")):
        return "date"
    return "text" if kind in ("VARCHAR", "TEXT", "STRING", "UUID", "ENUM", "JSON", "CHAR", "BPCHAR") else kind.lower()


def _expected(source: Source, batch: Batch, incoming: Mapping[str, str], held: Mapping[str, str]) -> dict[str, str]:
    """Column -> type of the raw table once the batch has landed: what it holds, then what is new in the batch.

    Raises `LoadError`, with both schemas, where a column is missing or has become another kind of thing.
    """
    taken = [column for column in incoming if column.lower() in TAKEN]
    if taken:
        raise LoadError(
            f"{told(source)}: {batch.source} has the columns {', '.join(taken)}, which are the engine's own; call them"
            " otherwise where they come from"
        )
    typed = {column: kind.upper() for column, kind in source.types.items() if not _is_own(column)}
    wanted = {**held, **typed}
    listed = [column for column in source.columns if not column.startswith("_")]
    # In JSON a key that nobody has is no key at all: what has a type is null everywhere.
    absent = [column for column in dict.fromkeys([*listed, *held]) if column not in incoming]
    missing = [column for column in absent if batch.form != "json" or column not in wanted]
    if missing:
        raise LoadError(
            f"{told(source)}: {batch.source} lacks the columns {', '.join(missing)}; the table stays as it was"
            + _schemas({**incoming, **batch.sniffed}, {**dict.fromkeys(listed, "any"), **wanted})
            + ("" if len(incoming) > 1 else "\n  do all lines have the same number of fields?")
        )
    retyped = [
        column
        for column, kind in incoming.items()
        if column in wanted
        and _family(kind) != _family(wanted[column])
        and not (_family(kind) == "text" and (batch.form != "typed" or column in typed))
        and not (batch.form == "json" and _family(wanted[column]) == "text")
    ]
    if retyped:
        raise LoadError(
            f"{told(source)}: in {batch.source} the columns {', '.join(retyped)} have another type; the table stays as"
            " it was" + _schemas({c: incoming[c] for c in retyped}, {c: wanted[c] for c in retyped})
        )
    order = [*held, *(c for c in incoming if c not in held), *(c for c in typed if c not in held and c not in incoming)]
    return {column: wanted.get(column) or batch.sniffed.get(column) or incoming[column] for column in order}


def _schemas(incoming: Mapping[str, str], expected: Mapping[str, str]) -> str:
    def listed(schema: Mapping[str, str]) -> str:
        return ", ".join(f"{column} {kind}" for column, kind in schema.items())

    return f"\n  it has:   {listed(incoming)}\n  expected: {listed(expected)}"


def _make_table(connection: Connection, source: Source, expected: Mapping[str, str], held: Mapping[str, str]) -> None:
    own = {**OWN, **({KNOWN_AT: OWN["_loaded_at"]} if source.known_at else {})}
    if not held:
        columns = ", ".join(f"{warehouse.name(column)} {kind}" for column, kind in {**expected, **own}.items())
        connection.execute(
            f"create schema if not exists {warehouse.name(source.schema)};"
            f" create or replace table {table_of(source)} ({columns})"
        )
        # What a table held that was dropped must land again, also if this is the last batch for now.
        connection.execute(
            "update quality.source_metrics set fingerprint = '' where schema_name = ? and table_name = ?",
            [source.schema, source.table],
        )
        return
    for column, kind in expected.items():
        if column not in held:
            connection.execute(f"alter table {table_of(source)} add column {warehouse.name(column)} {kind}")
        elif kind != held[column] and _canonical(connection, kind) != held[column]:
            try:
                connection.execute(
                    f"alter table {table_of(source)} alter column {warehouse.name(column)} set data type {kind}"
                )
            except duckdb.Error as error:
                raise LoadError(
                    f"{told(source)}: column '{column}' is declared {kind} now, but holds {held[column]} that can't be"
                    f" one: {str(error).splitlines()[0]}; the table stays as it was"
                ) from None


def _canonical(connection: Connection, kind: str) -> str:
    """A type as the warehouse writes it: text is VARCHAR."""
    return str(warehouse.one(connection, f"select typeof(null::{kind})")[0])


def _judged(
    relation: str, incoming: Mapping[str, str], expected: Mapping[str, str], rules: list[Rule]
) -> tuple[str, list[str]]:
    """SQL of a batch's rows as the table has them, with `_row` as they came and `_broken_<n>` for each rule by which a
    row may be bad; and what those rules are called."""
    columns: list[str] = []
    broken: list[str] = []
    faults: list[str] = []
    for column, kind in expected.items():
        name = warehouse.name(column)
        if column not in incoming:
            columns.append(f"null::{kind} as {name}")
        elif incoming[column] == kind:
            columns.append(name)
        else:
            cast = _cast(name, incoming[column], kind)
            columns.append(f"{cast} as {name}")
            broken.append(f"{name} is not null and {cast} is null as {_broken(len(faults))}")
            faults.append(f"{column} is no {kind.lower()}")
    packed = ", ".join(f"{warehouse.name(column)} := {warehouse.name(column)}" for column in incoming)
    typed = f"select {', '.join([*columns, f'struct_pack({packed}) as _row', *broken])} from {relation}"
    if not rules:
        return typed, faults
    checks = [f"coalesce(not ({rule.holds}), false) as {_broken(len(faults) + n)}" for n, rule in enumerate(rules)]
    return f"select *, {', '.join(checks)} from ({typed}) as typed", [*faults, *(rule.name for rule in rules)]


def _cast(name: str, given: str, kind: str) -> str:
    """SQL of a column as another type, null where it can't be one. A time that is written with a zone becomes UTC,
    where a plain cast to a timestamp would drop the zone."""
    if _family(given) == "text" and kind.upper() in ("TIMESTAMP", "TIMESTAMP WITHOUT TIME ZONE", "DATETIME"):
        return f"try_cast(try_cast({name} as timestamptz) as {kind})"
    return f"try_cast({name} as {kind})"


def _broken(place: int) -> str:
    return f"_broken_{place}"


def _profile(
    connection: Connection, source: Source, judged: str, bad: str, faults: list[str], expected: Mapping[str, str]
) -> _Profile:
    good = f"filter (not ({bad}))"
    asked = ["count(*)", f"count(*) filter ({bad})"]
    asked += [f"count(*) filter ({_broken(place)})" for place in range(len(faults))]
    asked += [f"count({warehouse.name(column)}) {good}" for column in expected]
    cursor = warehouse.name(source.cursor) if source.cursor else "null"
    asked += [f"min({cursor}) {good}", f"max({cursor}) {good}"]
    if source.key:
        asked.append(f"count(distinct ({warehouse.names(source.key)})) {good}")
    found = warehouse.one(connection, f"select {', '.join(asked)} from ({judged}) as judged")
    rows, bad_rows, counts = found[0], found[1], found[2 : 2 + len(faults)]
    filled = found[2 + len(faults) : 2 + len(faults) + len(expected)]
    first, last = found[2 + len(faults) + len(expected) :][:2]
    return _Profile(
        rows=rows,
        bad_rows=bad_rows,
        rejected={fault: count for fault, count in zip(faults, counts, strict=True) if count},
        null_shares={
            column: round(1 - count / (rows - bad_rows), 6)
            for column, count in zip(expected, filled, strict=True)
            if rows > bad_rows
        },
        distinct_keys=found[-1] if source.key else None,
        cursor=(first, last),
    )


def _accepted(
    connection: Connection, source: Source, good: str, profile: _Profile, batch: Batch, is_first: bool
) -> _Accepted:
    """The good rows without those that the batch or the table has already.

    Of one key the row with the newest cursor counts. Rows of one key that differ, and no cursor tells which is newer,
    contradict each other: all but the first are bad.
    """
    good_rows = profile.rows - profile.bad_rows
    if not source.key or (is_first and profile.distinct_keys == good_rows):
        return _Accepted(query=good, streamed=batch.streamed)
    key = warehouse.names(source.key)
    cursor = warehouse.name(source.cursor) if source.cursor else "0"
    connection.execute(
        f"""
        create or replace temp table accepted as
        with rows as (select *, hash(good) as _content, {cursor} as _cursor from ({good}) as good),
        placed as (select *, row_number() over () as _place from rows)
        select
            *,
            row_number() over of_key as _nth,
            first(_content) over of_key = _content as _is_same,
            first(_cursor) over of_key is distinct from _cursor as _is_older
        from placed
        window of_key as (partition by {key} order by _cursor desc nulls last, _place)
        """
    )
    repeated, superseded, conflicting = warehouse.one(
        connection,
        """
        select
            count(*) filter (_is_same), count(*) filter (not _is_same and _is_older),
            count(*) filter (not _is_same and not _is_older)
        from temp.accepted where _nth > 1
        """,
    )
    found = _Accepted(
        query=f"select * exclude ({MARKS}) from temp.accepted where _nth = 1",
        streamed=False,
        repeated=repeated,
        superseded=superseded,
    )
    if conflicting:
        rule = f"{', '.join(source.key)} repeats with other values"
        found.rejected = {rule: conflicting}
        found.conflicts = f"""
            select {warehouse.literal(rule)} as rule,
                to_json(accepted)::varchar as row
            from (select * exclude ({MARKS}) from temp.accepted
                where _nth > 1 and not _is_same and not _is_older) as accepted
        """
    if not is_first:
        _meet(connection, source, found)
    return found


def _meet(connection: Connection, source: Source, found: _Accepted) -> None:
    """Of the accepted rows, takes out those that the table has, and deletes from it what they replace."""
    columns = [column for column in warehouse.columns(connection, source.schema, source.table) if not _is_own(column)]
    same_key = " and ".join(f"held.{column} = accepted.{column}" for column in map(warehouse.name, source.key))
    is_same = " and ".join(
        f"held.{column} is not distinct from accepted.{column}" for column in map(warehouse.name, columns)
    )
    cursor = warehouse.name(source.cursor) if source.cursor else None
    is_older = f"coalesce(accepted.{cursor} < held.{cursor}, false)" if cursor else "false"
    connection.execute(
        f"""
        create or replace temp table met as
        select held.rowid as held, accepted._place as place, {is_same} as is_same, {is_older} as is_older
        from {table_of(source)} as held
        inner join temp.accepted as accepted on {same_key}
        where accepted._nth = 1
        """
    )
    repeated, superseded, replaced = warehouse.one(
        connection,
        """
        select count(*) filter (is_same), count(*) filter (not is_same and is_older),
            count(*) filter (not is_same and not is_older)
        from temp.met
        """,
    )
    if replaced:
        connection.execute(
            f"delete from {table_of(source)}"
            " where rowid in (select held from temp.met where not is_same and not is_older)"
        )
    if repeated or superseded:
        found.query += " and _place not in (select place from temp.met where is_same or is_older)"
    found.repeated += repeated
    found.superseded += superseded
    found.replaced = replaced


def _known_at(source: Source, is_first: bool, clock: datetime) -> str | None:
    """SQL of `_known_at`: history keeps its own clock, what comes later is known when it comes."""
    if not source.known_at:
        return None
    now = f"timestamptz '{clock.isoformat()}'"
    return f"coalesce({warehouse.name(source.known_at)}::timestamptz, {now})" if is_first else now


def _insert(
    connection: Connection,
    source: Source,
    batch: Batch,
    accepted: _Accepted,
    expected: Mapping[str, str],
    loaded_at: datetime,
    known_at: str | None,
) -> int:
    """Writes the accepted rows; how many there were."""
    own = [
        f"timestamptz '{loaded_at.isoformat()}' as _loaded_at",
        f"{warehouse.literal(batch.id)} as _batch_id",
        f"{warehouse.literal(batch.source)} as _source",
        *([f"{known_at} as {KNOWN_AT}"] if known_at else []),
    ]
    columns = [*expected, *OWN, *([KNOWN_AT] if known_at else [])]

    def insert(relation: str) -> int:
        query = f"select {warehouse.names(list(expected))}, {', '.join(own)} from {relation}"
        into = f"{table_of(source)} ({warehouse.names(columns)})"
        return int(warehouse.one(connection, f"insert into {into} {query}")[0])

    if not accepted.streamed:
        return insert(f"({accepted.query}) as accepted")
    with warehouse.streamed(connection, accepted.query) as stream:
        return insert(stream)


def _sweep(connection: Connection, source: Source, batch: Batch, expected: Mapping[str, str]) -> int:
    """Deletes the rows whose key the source no longer has; how many there were."""
    if batch.keys is None or not source.key:
        return 0
    key = [(warehouse.name(column), expected[column]) for column in source.key]
    typed = ", ".join(f"try_cast({column} as {kind}) as {column}" for column, kind in key)
    same_key = " and ".join(f"held.{column} is not distinct from here.{column}" for column, _ in key)
    (deleted,) = warehouse.one(
        connection,
        f"""
        delete from {table_of(source)} where rowid in (
            select held.rowid from {table_of(source)} as held
            anti join (select {typed} from {batch.keys}) as here on {same_key}
        )
        """,
    )
    return int(deleted)


def _rejected_rows(judged: str, bad: str, faults: list[str], batch: Batch) -> str:
    """SQL of (rule, row): each bad row as it came, as JSON, with all that is wrong with it."""
    named = ", ".join(
        f"case when {_broken(place)} then {warehouse.literal(fault)} end" for place, fault in enumerate(faults)
    )
    rows = (
        f"select concat_ws('; ', {named or 'null'}) as rule, to_json(_row)::varchar as row from ({judged}) where {bad}"
    )
    return f"{rows} union all {batch.unreadable}" if batch.unreadable else rows


def _unreadable(connection: Connection, batch: Batch) -> dict[str, int]:
    if not batch.unreadable:
        return {}
    found = connection.execute(f"select rule, count(*) from ({batch.unreadable}) group by 1").fetchall()
    return dict(found)


def _too_many(
    connection: Connection,
    source: Source,
    batch: Batch,
    rows: int,
    bad_rows: int,
    rejected: Mapping[str, int],
) -> str:
    examples = connection.execute(f"select rule, row from temp.rejected limit {EXAMPLES}").fetchall()
    by_rule = ", ".join(f"{rule}: {count:,}" for rule, count in sorted(rejected.items(), key=lambda one: -one[1]))
    shown = "".join(f"\n  {rule}: {row[:200]}" for rule, row in examples)
    return (
        f"{told(source)}: {bad_rows:,} of {rows:,} rows of {batch.source} are bad, more than the"
        f" {source.max_rejected:.2%} that max_rejected lets pass ({by_rule}); nothing of it has landed, the table stays"
        f" as it was{shown}"
    )


def _quarantine(connection: Connection, source: Source, batch: Batch, at: datetime) -> None:
    connection.execute(
        f"""
        insert into {quarantine_of(source)} (quarantined_at, batch_id, source, rule, row)
        select ?, ?, ?, rule, row from temp.rejected
        """,
        [at, batch.id, batch.source],
    )


def _record(
    connection: Connection,
    source: Source,
    batch: Batch,
    landed: Landed,
    profile: _Profile,
    loaded_at: datetime,
    clock: datetime,
    started: datetime,
) -> None:
    (median,) = warehouse.one(
        connection,
        f"""
        select median(rows) from (
            select rows from quality.source_metrics
            where schema_name = ? and table_name = ? and status = 'landed' order by loaded_at desc limit {TRAILING}
        )
        """,
        [source.schema, source.table],
    )
    first, last = profile.cursor
    row = {
        "schema_name": source.schema,
        "table_name": source.table,
        "batch_id": batch.id,
        "source": batch.source,
        "fingerprint": batch.fingerprint,
        "loaded_at": loaded_at,
        "status": "landed",
        "rows": landed.rows,
        "bytes": batch.bytes,
        "seconds": (datetime.now(started.tzinfo) - started).total_seconds(),
        "landed": landed.landed,
        "replaced": landed.replaced,
        "repeated": landed.repeated,
        "superseded": landed.superseded,
        "deleted": landed.deleted,
        "rejected": landed.bad_rows,
        "rejected_by_rule": json.dumps(landed.rejected),
        "null_shares": json.dumps(profile.null_shares),
        "distinct_keys": profile.distinct_keys,
        "cursor_min": None if first is None else str(first),
        "cursor_max": None if last is None else str(last),
        "freshness_lag_seconds": _lag(last, clock),
        "trailing_median_rows": median,
        "volume_ratio": landed.rows / median if median else None,
        "added_columns": ", ".join(landed.added_columns),
    }
    connection.execute("insert into quality.source_metrics by name select unnest(?)", [row])


def _lag(newest: Any, clock: datetime) -> float | None:
    """Seconds from the newest cursor to now, where the cursor is a time; UTC where it tells no zone."""
    if isinstance(newest, datetime):
        return (clock - (newest if newest.tzinfo else newest.replace(tzinfo=clock.tzinfo))).total_seconds()
    if hasattr(newest, "year"):
        return (clock - datetime(newest.year, newest.month, newest.day, tzinfo=clock.tzinfo)).total_seconds()
    return None
