"""Traces what has drifted to where it began: the raw column by lineage, and of its table the batch or the week.

Read only once something has drifted, so that nothing of it is paid for on other days.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import Any

import msgspec

from ml.declarations import Project, Source
from ml.encoding import Column, ColumnType
from orchestration import warehouse
from orchestration.batches import OWN
from orchestration.distributions import count, learn_bins
from orchestration.warehouse import Connection
from reports.distances import Bins, Distribution, compare, merged
from reports.faults import fault_of
from reports.incidents import Lost

LEAST_EFFECT = 0.05  # of a batch beside those before it
LEAST_ROWS = 20
LOOKED_AT = 60  # batches or weeks, the newest
MOST_VALUES = 50  # of a text, told apart
TIMES = ("DATE", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE")
LATE = 2  # times as long as it ever was since the newest row


def lost_tables(
    connection: Connection,
    project: Project,
    roots: Iterable[str],
    learned: Sequence[date],
    days: Sequence[date],
    suspected: Mapping[date, Iterable[str]] | None = None,
) -> dict[date, dict[str, Lost]]:
    """Of each of these as-of dates the raw tables, as `raw.orders`, from which nothing comes any more.

    The newest row before such a date is older than it ever was on the dates that were `learned` from, by the table's
    cursor: twice as old at the least, unless the table's last load has failed. Of a table without one it is told only
    where columns have drifted that are made from it (`suspected`), by those of their `roots` (raw columns, as
    `raw.orders.ordered_at`) that are times. On the last of the dates a table is lost too whose last load has failed.
    """
    found: dict[date, dict[str, Lost]] = {day: {} for day in days}
    by_table: dict[str, set[str]] = {}
    for root in roots:
        table, _, column = root.rpartition(".")
        by_table.setdefault(table, set()).add(column)
    suspects = {day: {root.rpartition(".")[0] for root in some} for day, some in (suspected or {}).items()}
    sources = {f"{source.schema}.{source.table}": source for source in project.sources}
    for table in sorted(by_table.keys() & sources.keys()):
        source = sources[table]
        types = warehouse.columns(connection, source.schema, source.table)
        has_cursor = source.cursor is not None and types.get(source.cursor) in TIMES
        others = sorted(name for name in by_table[table] if types.get(name) in TIMES and name not in OWN)
        if not has_cursor and not any(table in some for some in suspects.values()):
            others = []
        fault = _failed(connection, source) if days else None
        late = 1 if fault and has_cursor else LATE
        for column in [str(source.cursor)] if has_cursor else others:
            for day, lost in _silent(connection, table, column, learned, days, late).items():
                if has_cursor or table in suspects.get(day, ()):
                    evidence = f"{lost.evidence}; {fault}" if fault else lost.evidence
                    found[day].setdefault(table, Lost(lost.since, evidence))
        if fault:
            found[max(days)].setdefault(table, Lost(max(days), fault))
    return found


def _silent(
    connection: Connection, table: str, column: str, learned: Sequence[date], days: Sequence[date], late: int
) -> dict[date, Lost]:
    """The dates on which a table had been silent for `late` times as long as ever on those that were learned from."""
    name = warehouse.name(column)
    filled = connection.execute(
        f"select distinct {name}::date from {_named(table)} where isfinite({name}) order by 1"
    ).fetchall()
    with_rows = [day for (day,) in filled]

    def newest(day: date) -> date | None:
        place = bisect_left(with_rows, day)
        return with_rows[place - 1] if place else None

    usual = [(day - last).days for day in learned if (last := newest(day)) is not None]
    found, since, before = {}, None, None
    is_younger = not usual  # than what was learned from: then the dates since tell, before each of which rows came
    for day in sorted(days):
        last = newest(day)
        if last is None:
            continue
        age, most = (day - last).days, max(usual, default=0)
        if is_younger and last != before:
            usual.append(age)
        before = last
        if not most or age <= late * max(1, most):
            since = None
            continue
        since = since or day
        found[day] = Lost(since, f"its newest {column} is {last}, {age} days before; it never was more than {most}")
    return found


def _failed(connection: Connection, source: Source) -> str | None:
    if not warehouse.exists(connection, "quality", "last_loads"):
        return None
    query = "select max(fault) from quality.last_loads where schema_name = ? and table_name = ?"
    (fault,) = warehouse.one(connection, query, [source.schema, source.table])
    return f"its last load failed: {str(fault).splitlines()[0]}" if fault else None


def origin(connection: Connection, project: Project, cause: str) -> str | None:
    """In which batch of a raw table a raw column (`raw.orders.amount`) changed most, in words; None if in none.

    Where all rows came with one batch it is told in which week of the table's cursor. Of a table (`raw.orders`) it is
    the last batch that brought any row.
    """
    tables = {f"{source.schema}.{source.table}": source for source in project.sources}
    if cause in tables:
        return _last_batch(connection, tables[cause])
    table, _, column = cause.rpartition(".")
    source = tables.get(table)
    if source is None:
        return None
    types = warehouse.columns(connection, source.schema, source.table)
    kind = _kind(types.get(column, ""))
    if kind is None or "_batch_id" not in types:
        return None
    (batches,) = warehouse.one(connection, f"select count(distinct _batch_id) from {_named(table)}")
    if batches > 1:
        keys, by = _by_batch(connection, table), "_batch_id"
        told = "began with batch {key} of {table} (loaded {loaded}, from {source})"
    elif source.cursor and types.get(source.cursor) in TIMES:
        by = f"date_trunc('week', {warehouse.name(source.cursor)})::date"
        keys = _by_week(connection, table, by)
        told = "began in the rows of {table} from the week of {key:%Y-%m-%d} on, all of one batch"
    else:
        return None
    found = _changed(connection, f"select * from {_named(table)}", Column(column, kind), by, list(keys))
    if found is None:
        return None
    key, why = found
    return told.format(key=key, table=table, **keys[key]) + f": {column}: {why}"


def _by_batch(connection: Connection, table: str) -> dict[Any, dict[str, str]]:
    found = connection.execute(
        f"""
        select _batch_id, min(_loaded_at), any_value(_source) from {_named(table)}
        group by 1 order by 2 desc, 1 limit {LOOKED_AT}
        """
    ).fetchall()
    return {
        batch: {"loaded": f"{loaded:%Y-%m-%d %H:%M}", "source": str(source)} for batch, loaded, source in found[::-1]
    }


def _by_week(connection: Connection, table: str, week: str) -> dict[Any, dict[str, str]]:
    weeks = f"select distinct {week} from {_named(table)} where {week} is not null"
    found = connection.execute(f"{weeks} order by 1 desc limit {LOOKED_AT}").fetchall()
    return {key: {} for (key,) in found[::-1]}


def _changed(connection: Connection, rows: str, column: Column, by: str, keys: Sequence[Any]) -> tuple[Any, str] | None:
    """Of batches (the values of `by`, SQL) in their order the one that differs most from all before it, and how."""
    name = warehouse.name(column.name)
    if column.type == "category":
        query = f"select {name}, count(*) from ({rows}) where {name} is not null group by 1 order by 2 desc, 1 limit ?"
        values = [str(value) for value, _ in connection.execute(query, [MOST_VALUES]).fetchall()]
        column = Column(column.name, column.type, tuple(sorted(values)))
    # Drawn by whole rows: of a column of few values a hash of these alone would draw all or none of their rows.
    (bins,) = learn_bins(connection, rows, [column], warehouse.names(connection.sql(rows).columns))
    of_key = _counted(connection, rows, by, bins)
    ordered = [key for key in keys if key in of_key]
    best: tuple[float, Any, Sequence[Any]] | None = None
    for place, key in enumerate(ordered[1:], start=1):
        before = merged([of_key[one] for one in ordered[:place]])
        effect = compare(of_key[key], before, is_category=bins.is_category).effect
        if effect >= LEAST_EFFECT and (best is None or effect > best[0]):
            best = effect, key, ordered[:place]
    if best is None:
        return None
    _, key, earlier = best
    before = merged([of_key[one] for one in earlier])
    if column.type == "category":  # what was not there before is new, and may have taken another's place
        seen = tuple(value for value, rows_of in zip(bins.categories, before.counts, strict=False) if rows_of)
        bins = msgspec.structs.replace(bins, categories=seen)
        of_key = _counted(connection, rows, by, bins)
        before = merged([of_key[one] for one in earlier])
    return key, fault_of(bins, of_key[key], before, effect=LEAST_EFFECT).told


def _counted(connection: Connection, rows: str, by: str, bins: Bins) -> dict[Any, Distribution]:
    counted = count(connection, rows, by, [bins])
    return {one.key: one.distribution for one in counted if one.distribution.rows >= LEAST_ROWS}


def _last_batch(connection: Connection, source: Source) -> str | None:
    if not warehouse.exists(connection, "quality", "source_metrics"):
        return None
    found = connection.execute(
        """
        select batch_id, source, loaded_at, landed from quality.source_metrics
        where schema_name = ? and table_name = ? and landed > 0 order by loaded_at desc limit 1
        """,
        [source.schema, source.table],
    ).fetchall()
    if not found:
        return None
    batch, origin_of, loaded_at, landed = found[0]
    return (
        f"the last batch with rows was {batch} ({landed:,} rows, loaded {loaded_at:%Y-%m-%d %H:%M}, from {origin_of})"
    )


def _kind(type_of: str) -> ColumnType | None:
    """How a raw column of this type is compared; None if it can't be. A time moves with every batch, and tells none."""
    if type_of == "VARCHAR":
        return "category"
    if type_of == "BOOLEAN":
        return "boolean"
    return "number" if re.fullmatch(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|FLOAT|DOUBLE|DECIMAL\(.*\)", type_of) else None


def _named(table: str) -> str:
    schema, _, name = table.partition(".")
    return warehouse.name(schema, name)
