"""Lands a batch of rows in its raw table: typed, judged by the source's rules, each row once, in one transaction."""

from collections.abc import Mapping
from datetime import datetime

import duckdb

from ml.declarations import Rule, Source
from ml.sources import REDELIVERED
from orchestration import warehouse
from orchestration.batches import KNOWN_AT, OWN, Batch, LoadError, is_own, quarantine_of, table_of, told
from orchestration.figures import Landed, profile_of, record
from orchestration.once import Accepted, accept, sweep
from orchestration.shaping import broken, described, expected_columns, judged_rows, left_out, make_table
from orchestration.warehouse import Connection

EXAMPLES = 3  # rejected rows that an error shows
QUARANTINE = """
    create table if not exists {table} (
        quarantined_at timestamptz, batch_id varchar, source varchar, rule varchar, row varchar,
        repaired varchar, readmitted_at timestamptz
    )
"""


def land(
    connection: Connection, source: Source, batch: Batch, loaded_at: datetime, clock: datetime, is_history: bool = False
) -> Landed:
    """Lands a batch in the transaction that the caller has begun, and records its figures in quality.source_metrics.

    `clock` is the moment it is for the project, `loaded_at` the real one; `is_history` says that the batch is of the
    first full load, whose rows keep their own clock. Bad rows go to quarantine.<table>. Raises `LoadError` if columns
    are missing or retyped, or more rows than `max_rejected` are bad; the caller then rolls back.
    """
    started = datetime.now(loaded_at.tzinfo)
    incoming = described(connection, batch.relation)
    held = {
        column: kind
        for column, kind in warehouse.columns(connection, source.schema, source.table).items()
        if not is_own(column)
    }
    expected = expected_columns(source, batch, incoming, held)
    for key, named in (("cursor", source.cursor), ("known_at", source.known_at)):
        if named is not None and named not in expected:
            raise LoadError(
                f"{told(source)}: load: {key} names column '{named}', which {batch.source} does not have (it has:"
                f" {', '.join(incoming)})"
            )
    vague = [column for column in source.key if batch.form == "json" and expected[column] == "DOUBLE"]
    if vague:
        raise LoadError(
            f"{told(source)}: load: key '{vague[0]}' has numbers that a double can't tell apart; declare its data_type:"
            " hugeint, decimal(38, 0) with the digits that it has, or varchar"
        )
    added = tuple(column for column in expected if held and column not in held)
    is_first = not held or not _has_rows(connection, source)
    connection.execute(QUARANTINE.format(table=quarantine_of(source)))
    make_table(connection, source, expected, held)
    if not held:  # what was repaired was in the table that is gone
        connection.execute(f"update {quarantine_of(source)} set readmitted_at = null")
    _withdraw(connection, source, batch)
    is_first = is_first or not _has_rows(connection, source)

    rules = [
        *(Rule(f"{column} is null", f"{warehouse.name(column)} is not null") for column in source.key),
        *source.rules,
    ]
    rules = list({rule.name: rule for rule in rules}.values())
    judged, faults = judged_rows(batch.relation, incoming, expected, rules)
    bad = " or ".join(broken(place) for place in range(len(faults))) or "false"
    try:
        profile = profile_of(connection, source, judged, bad, faults, expected)
    except duckdb.BinderException as error:
        raise LoadError(
            f"{told(source)}: a constraint can't be asked of its rows: {str(error).splitlines()[0]}"
        ) from None
    good = f"select {warehouse.names(list(expected))} from ({judged}) as judged where not ({bad})"
    accepted = accept(connection, source, good, profile, batch, is_first)
    rejected = {**profile.rejected, **accepted.rejected}
    unreadable = _unreadable(connection, batch)
    for rule, count in unreadable.items():
        rejected[rule] = rejected.get(rule, 0) + count
    rows = profile.rows + sum(unreadable.values())
    bad_rows = profile.bad_rows + sum(unreadable.values()) + sum(accepted.rejected.values())
    set_aside_now = 0
    if bad_rows:
        found = _rejected_rows(judged, bad, faults, batch)
        set_aside = f"{found} union all {accepted.conflicts}" if accepted.conflicts else found
        # What comes again from the same place, as within an overlap, is set aside already and counts no more.
        known = f"""
            select (rule, row) from {quarantine_of(source)}
            where source = {warehouse.literal(batch.source)} and (repaired is null or readmitted_at is not null)
        """
        new = f"select * from ({set_aside}) where (rule, row) not in ({known})"
        connection.execute(f"create or replace temp table rejected as {new}")
        (set_aside_now,) = warehouse.one(connection, "select count(*) from temp.rejected")
        # Of a stream all count: what comes again there is another message, as broken as the one before.
        counted = bad_rows if source.scheme in REDELIVERED else set_aside_now
        if counted / rows > source.max_rejected:
            raise LoadError(_too_many(connection, source, batch, rows, counted, rejected))
        _quarantine(connection, source, batch, loaded_at)
    known_at = _known_at(source, is_history, clock)
    landed = _insert(connection, source, batch, accepted, expected, loaded_at, known_at)
    became = landed + accepted.repeated + accepted.superseded + bad_rows
    if became != rows:
        raise LoadError(
            f"{told(source)}: of the {rows:,} rows of {batch.source}, {became:,} were accounted for; nothing of it has"
            " landed, the table stays as it was: this is a fault of the engine, please report it with the declaration"
        )
    _keep_their_clock(connection, source, batch)
    swept, not_here = sweep(connection, source, batch, expected)
    deleted = swept + _lost(connection, source, batch)
    for made in ("accepted", "met", "rejected", "withdrawn"):
        connection.execute(f"drop table if exists temp.{made}")
    connection.execute(batch.then or "select 1")
    result = Landed(
        batch=batch.id,
        rows=rows,
        landed=landed,
        replaced=accepted.replaced,
        repeated=accepted.repeated,
        superseded=accepted.superseded,
        deleted=deleted,
        bad_rows=bad_rows,
        set_aside=set_aside_now,
        rejected=rejected,
        added_columns=added,
        not_here=not_here,
        left_out_columns=left_out(source, incoming, held) if source.columns and not batch.then else (),
    )
    record(connection, source, batch, result, profile, loaded_at, clock, started)
    return result


def _withdraw(connection: Connection, source: Source, batch: Batch) -> None:
    """Takes out the rows that a batch is a newer version of, and what was set aside of them."""
    if not batch.replaces:
        return
    replaced = ", ".join(map(warehouse.literal, batch.replaces))
    connection.execute(
        f"""
        create or replace temp table withdrawn as from {table_of(source)} where _batch_id in ({replaced});
        delete from {table_of(source)} where _batch_id in ({replaced});
        delete from {quarantine_of(source)} where batch_id in ({replaced})
        """
    )


def _same(connection: Connection, source: Source, one: str, other: str) -> str:
    """SQL of whether two rows are of the same key, or where there is none, the same."""
    columns = source.key or tuple(
        column for column in warehouse.columns(connection, source.schema, source.table) if not is_own(column)
    )
    return " and ".join(
        f"{one}.{column} is not distinct from {other}.{column}" for column in map(warehouse.name, columns)
    )


def _keep_their_clock(connection: Connection, source: Source, batch: Batch) -> None:
    """What the version before had already, was known then."""
    if not (batch.replaces and source.known_at):
        return
    connection.execute(
        f"""
        update {table_of(source)} as held set {KNOWN_AT} = withdrawn.{KNOWN_AT} from temp.withdrawn as withdrawn
        where held._batch_id = ? and {_same(connection, source, "held", "withdrawn")}
        """,
        [batch.id],
    )


def _lost(connection: Connection, source: Source, batch: Batch) -> int:
    """How many rows the newer version of a batch no longer has. Another file may have them: all are read again then."""
    if not batch.replaces:
        return 0
    (lost,) = warehouse.one(
        connection,
        f"""
        select count(*) from temp.withdrawn as withdrawn
        anti join {table_of(source)} as held on {_same(connection, source, "held", "withdrawn")}
        """,
    )
    if lost and source.key:
        connection.execute(
            """
            update quality.source_metrics set fingerprint = ''
            where schema_name = ? and table_name = ? and source <> ?
            """,
            [source.schema, source.table, batch.source],
        )
    return int(lost)


def _has_rows(connection: Connection, source: Source) -> bool:
    return bool(warehouse.one(connection, f"select exists (from {table_of(source)})")[0])


def _known_at(source: Source, is_history: bool, clock: datetime) -> str | None:
    """SQL of `_known_at`: history keeps its own clock, what comes later is known when it comes."""
    if not source.known_at:
        return None
    now = f"timestamptz '{clock.isoformat()}'"
    return f"coalesce({warehouse.name(source.known_at)}::timestamptz, {now})" if is_history else now


def _insert(
    connection: Connection,
    source: Source,
    batch: Batch,
    accepted: Accepted,
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


def _rejected_rows(judged: str, bad: str, faults: list[str], batch: Batch) -> str:
    """SQL of (rule, row): each bad row as it came, as JSON, with all that is wrong with it."""
    named = ", ".join(
        f"case when {broken(place)} then {warehouse.literal(fault)} end" for place, fault in enumerate(faults)
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
        f" as it was; mend the source, or declare a higher max_rejected: then good rows land and bad ones wait in"
        f" quarantine.{source.table}{shown}"
    )


def _quarantine(connection: Connection, source: Source, batch: Batch, at: datetime) -> None:
    connection.execute(
        f"""
        insert into {quarantine_of(source)} (quarantined_at, batch_id, source, rule, row)
        select ?, ?, ?, rule, row from temp.rejected
        """,
        [at, batch.id, batch.source],
    )
