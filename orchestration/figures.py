"""The figures of each batch, in quality.source_metrics: what came, what became of it, and how it compares."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from ml.declarations import Source
from orchestration import warehouse
from orchestration.batches import Batch, table_of
from orchestration.shaping import broken
from orchestration.warehouse import Connection

TRAILING = 20  # batches whose median volume a new one is compared with
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
    -- tables whose first full load is not done yet: all its batches are history, also after a stop
    create table if not exists quality.first_loads (schema_name varchar, table_name varchar);
    -- how the last load of each table ended, also one that found nothing new; no fault: well
    create table if not exists quality.last_loads (
        schema_name varchar, table_name varchar, fault varchar,
        primary key (schema_name, table_name)
    );
"""


class Landed(msgspec.Struct, kw_only=True):
    """What became of a batch's rows: each is landed (of which some replaced an older one), repeated, superseded by a
    newer row of the same key, or bad. Of the bad ones `set_aside` are new in the quarantine; the others were there
    before. `rejected` counts by rule, of which a row may break several. `deleted` are rows of the table that the source
    no longer has, `not_here` keys of the source that a sweep has not found in the table."""

    batch: str
    rows: int
    landed: int
    replaced: int = 0
    repeated: int = 0
    superseded: int = 0
    deleted: int = 0
    bad_rows: int = 0
    set_aside: int = 0
    rejected: dict[str, int] = {}
    added_columns: tuple[str, ...] = ()
    left_out_columns: tuple[str, ...] = ()
    not_here: int = 0


class Profile(msgspec.Struct, kw_only=True):
    """One scan's figures over a batch: `null_shares`, keys and cursor are those of its good rows."""

    rows: int
    bad_rows: int
    rejected: dict[str, int]
    null_shares: dict[str, float]
    distinct_keys: int | None
    cursor: tuple[Any, Any]


def create_tables(connection: Connection) -> None:
    connection.execute(TABLES)


def profile_of(
    connection: Connection, source: Source, judged: str, bad: str, faults: list[str], expected: Mapping[str, str]
) -> Profile:
    good = f"filter (not ({bad}))"
    asked = ["count(*)", f"count(*) filter ({bad})"]
    asked += [f"count(*) filter ({broken(place)})" for place in range(len(faults))]
    asked += [f"count({warehouse.name(column)}) {good}" for column in expected]
    cursor = warehouse.name(source.cursor) if source.cursor else "null"
    asked += [f"min({cursor}) {good}", f"max({cursor}) {good}"]
    if source.key:
        asked.append(f"count(distinct ({warehouse.names(source.key)})) {good}")
    found = warehouse.one(connection, f"select {', '.join(asked)} from ({judged}) as judged")
    rows, bad_rows, counts = found[0], found[1], found[2 : 2 + len(faults)]
    filled = found[2 + len(faults) : 2 + len(faults) + len(expected)]
    first, last = found[2 + len(faults) + len(expected) :][:2]
    return Profile(
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


def record(
    connection: Connection,
    source: Source,
    batch: Batch,
    landed: Landed,
    profile: Profile,
    loaded_at: datetime,
    clock: datetime,
    started: datetime,
) -> None:
    (median,) = warehouse.one(
        connection,
        f"""
        select median(landed) from (
            select landed from quality.source_metrics
            where schema_name = ? and table_name = ? and status = 'landed' and landed > 0
            order by loaded_at desc limit {TRAILING}
        )
        """,
        [source.schema, source.table],
    )
    first, last = profile.cursor
    row = {
        **_which(source, batch, loaded_at),
        "status": "readmitted" if batch.then else "landed",
        "rows": landed.rows,
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
        "freshness_lag_seconds": _lag(_newest(connection, source), clock),
        "trailing_median_rows": median,
        # Of what is new: what an overlap or a page reads again says nothing about the day.
        "volume_ratio": landed.landed / median if median and landed.landed and not batch.then else None,
        "added_columns": ", ".join(landed.added_columns),
    }
    connection.execute("insert into quality.source_metrics by name select unnest(?)", [row])


def _newest(connection: Connection, source: Source) -> Any:
    """The newest cursor of the table: that of a batch that came late is older."""
    if not source.cursor:
        return None
    return warehouse.one(connection, f"select max({warehouse.name(source.cursor)}) from {table_of(source)}")[0]


def _lag(newest: Any, clock: datetime) -> float | None:
    """Seconds from the newest cursor to now, where the cursor is a time; UTC where it tells no zone."""
    if isinstance(newest, datetime):
        return (clock - (newest if newest.tzinfo else newest.replace(tzinfo=clock.tzinfo))).total_seconds()
    if hasattr(newest, "year"):
        return (clock - datetime(newest.year, newest.month, newest.day, tzinfo=clock.tzinfo)).total_seconds()
    return None


def _which(source: Source, batch: Batch, at: datetime) -> dict[str, Any]:
    """What tells a batch from all others, whatever became of it."""
    return {
        "schema_name": source.schema,
        "table_name": source.table,
        "batch_id": batch.id,
        "source": batch.source,
        "fingerprint": batch.fingerprint,
        "loaded_at": at,
        "bytes": batch.bytes,
    }


def record_end(connection: Connection, source: Source, fault: str | None) -> None:
    """Writes down how a load ended: well, or with a fault."""
    connection.execute(
        "insert or replace into quality.last_loads values (?, ?, ?)", [source.schema, source.table, fault]
    )


def record_failure(connection: Connection, source: Source, batch: Batch, fault: str, at: datetime) -> None:
    """Writes down that a batch did not land, and why."""
    row = {
        **_which(source, batch, at),
        "status": "failed",
        "fault": fault,
    }
    connection.execute("insert into quality.source_metrics by name select unnest(?)", [row])
