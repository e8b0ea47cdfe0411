"""Each key once: of a batch's good rows those that are new, and of the table's those that they replace."""

from collections.abc import Mapping

import msgspec

from ml.declarations import Source
from orchestration import warehouse
from orchestration.batches import MARKS, Batch, is_own, table_of
from orchestration.figures import Profile
from orchestration.warehouse import Connection


class Accepted(msgspec.Struct, kw_only=True):
    """The good rows to insert (SQL), and what became of those that are not."""

    query: str
    streamed: bool
    replaced: int = 0
    repeated: int = 0
    superseded: int = 0
    rejected: dict[str, int] = {}
    conflicts: str | None = None


def accept(
    connection: Connection, source: Source, good: str, profile: Profile, batch: Batch, is_first: bool
) -> Accepted:
    """The good rows without those that the batch or the table has already.

    Of one key the row with the newest cursor counts. Rows of one key that differ, and no cursor tells which is newer,
    contradict each other: all but the first are bad.
    """
    good_rows = profile.rows - profile.bad_rows
    if not source.key or (is_first and profile.distinct_keys == good_rows):
        return Accepted(query=good, streamed=batch.streamed)
    key = warehouse.names(source.key)
    cursor = warehouse.name(source.cursor) if source.cursor else "0"
    connection.execute(
        f"""
        create or replace temp table accepted as
        with rows as (select *, hash(_row) as _content, {cursor} as _cursor from ({good}) as _row),
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
    found = Accepted(
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
                to_json(_row)::varchar as row
            from (select * exclude ({MARKS}) from temp.accepted
                where _nth > 1 and not _is_same and not _is_older) as _row
        """
    if not is_first:
        _meet(connection, source, found)
    return found


def _meet(connection: Connection, source: Source, found: Accepted) -> None:
    """Of the accepted rows, takes out those that the table has, and deletes from it what they replace."""
    columns = [column for column in warehouse.columns(connection, source.schema, source.table) if not is_own(column)]
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


def sweep(connection: Connection, source: Source, batch: Batch, expected: Mapping[str, str]) -> tuple[int, int]:
    """Deletes the rows whose key the source no longer has; how many there were, and how many of its keys are not here:
    rows that were set aside, or came with a cursor older than the overlap."""
    if batch.keys is None or not source.key:
        return 0, 0
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
    (not_here,) = warehouse.one(
        connection,
        f"""
        select count(*) from (select {typed} from {batch.keys}) as here
        anti join {table_of(source)} as held on {same_key}
        """,
    )
    return int(deleted), int(not_here)
