"""The tables of drift, for people and for the engine, in the schema `monitoring` of the warehouse.

| table | a row per score × model version × |
|---|---|
| `monitoring.bins` | column: how its values are counted, fixed with the version |
| `monitoring.distributions` | part of the rows × as-of date × segment × column: the counts |
| `monitoring.drift_metrics` | as-of date × reference × segment × column: how far apart they are |
| `monitoring.incidents` | incident: what has drifted by one cause, from when to when |
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import Any

import msgspec

from ml.declarations import Score
from orchestration import warehouse
from orchestration.distributions import MOMENTS, Counted
from orchestration.warehouse import Connection
from reports.distances import Bins, Distribution

TABLES = """
    create schema if not exists monitoring;
    create table if not exists monitoring.bins (
        score varchar, model_version integer, column_name varchar, type varchar, edges double[], categories varchar[],
        made_from varchar
    );
    create table if not exists monitoring.distributions (
        score varchar, model_version integer, part varchar, as_of_date date, segment_column varchar, segment varchar,
        column_name varchar, rows bigint, nulls bigint, counts bigint[], mean double, sd double, low double,
        high double, log_mean double, log_sd double, nonzero bigint, new varchar[], made_from varchar
    );
    create table if not exists monitoring.drift_metrics (
        score varchar, model_version integer, as_of_date date, column_name varchar, segment_column varchar,
        segment varchar, reference varchar, reference_date date, rows bigint, reference_rows bigint,
        null_share double, reference_null_share double, mean double, reference_mean double, low double, high double,
        new_values varchar[], psi double, distance double, usual double, effect double, importance double,
        is_drifted boolean, drifted_since date, fault varchar, told varchar
    );
    create table if not exists monitoring.incidents (
        score varchar, model_version integer, incident varchar, kind varchar, cause varchar, severity varchar,
        began_on date, alerted_on date, last_seen_on date, closed_on date, impact double, columns varchar[],
        told varchar, origin varchar, opened_at timestamptz, sent_at timestamptz, sent_by varchar[]
    );
    alter table monitoring.incidents add column if not exists sent_by varchar[];
"""
TRAINED, HELD_OUT, SCORED = "trained", "held out", "scored"  # parts of the rows


def create_tables(connection: Connection) -> None:
    connection.execute(TABLES)


def write(connection: Connection, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds rows to a table of this schema, all in one go."""
    import pyarrow as pa

    if rows:
        types = warehouse.columns(connection, "monitoring", table)
        names = list(rows[0])
        schema = pa.schema([(name, _arrow(types[name])) for name in names])
        reader = pa.Table.from_pylist(list(rows), schema).to_reader()
        with warehouse.registered(connection, reader) as stream:
            connection.execute(f"insert into monitoring.{table} by name select * from {stream}")


def _arrow(kind: str) -> Any:
    import pyarrow as pa

    if kind.endswith("[]"):
        return pa.list_(_arrow(kind.removesuffix("[]")))
    return {
        "VARCHAR": pa.string(), "BIGINT": pa.int64(), "INTEGER": pa.int32(), "DOUBLE": pa.float64(),
        "DATE": pa.date32(), "BOOLEAN": pa.bool_(), "TIMESTAMP WITH TIME ZONE": pa.timestamp("us", "UTC"),
    }[kind]  # fmt: skip


def bins_of(connection: Connection, score: Score, version: int) -> tuple[list[Bins], str]:
    """How the columns of a version are counted, and what that was made from; nothing if they never were."""
    found = warehouse.rows(
        connection,
        "select * from monitoring.bins where score = ? and model_version = ? order by rowid",
        [score.name, version],
    )
    bins = [
        Bins(
            name=row["column_name"],
            type=row["type"],
            edges=tuple(row["edges"] or ()),
            categories=tuple(row["categories"] or ()),
        )
        for row in found
    ]
    return bins, found[0]["made_from"] if found else ""


def keep_bins(connection: Connection, score: Score, version: int, bins: Iterable[Bins], made_from: str) -> None:
    """Writes how the columns of a version are counted, in the place of what was there."""
    connection.execute("delete from monitoring.bins where score = ? and model_version = ?", [score.name, version])
    write(
        connection,
        "bins",
        [
            {
                "score": score.name,
                "model_version": version,
                "column_name": one.name,
                "type": one.type,
                "edges": list(one.edges),
                "categories": list(one.categories),
                "made_from": made_from,
            }
            for one in bins
        ],
    )


def keep_distributions(
    connection: Connection,
    score: Score,
    version: int,
    part: str,
    counted: Sequence[Counted],
    made_from: Mapping[Any, str],
) -> None:
    """Writes what was counted of a part of the rows; `made_from` by as-of date."""
    write(
        connection,
        "distributions",
        [
            {
                "score": score.name,
                "model_version": version,
                "part": part,
                "as_of_date": one.key,
                "segment_column": one.segment_column,
                "segment": one.segment,
                "column_name": one.column,
                **msgspec.structs.asdict(one.distribution),
                "made_from": made_from.get(one.key),
            }
            for one in counted
        ],
    )


def forget_distributions(
    connection: Connection, score: Score, version: int, part: str, days: Sequence[date] | None = None
) -> None:
    """Removes what was counted of a part of the rows, at these as-of dates or at all."""
    connection.execute(
        """
        delete from monitoring.distributions
        where score = ? and model_version = ? and part = ? and (? is null or as_of_date in (select unnest(?::date[])))
        """,
        [score.name, version, part, None if days is None else "some", list(days or [])],
    )


def counted(connection: Connection, score: Score, version: int) -> dict[date, str | None]:
    """As-of date -> what its counts were made from, of all that a version has scored; None where they were not compared
    or that was lost."""
    query = """
        select as_of_date, case when as_of_date in (
            select as_of_date from monitoring.drift_metrics where score = $score and model_version = $version
        ) then any_value(made_from) end
        from monitoring.distributions
        where score = $score and model_version = $version and part = $part group by 1
    """
    return dict(connection.execute(query, {"score": score.name, "version": version, "part": SCORED}).fetchall())


def distributions(
    connection: Connection,
    score: Score,
    version: int,
    part: str,
    first: date | None = None,
    columns: Sequence[str] | None = None,
) -> list[Counted]:
    """What was counted of a part of the rows, from an as-of date on, the oldest first: of these columns in all rows, or
    of all columns, by segments too."""
    found = warehouse.rows(
        connection,
        """
        select * from monitoring.distributions
        where score = $score and model_version = $version and part = $part
            and ($first is null or as_of_date >= $first)
            and ($all or (segment_column is null and column_name in (select unnest($columns::varchar[]))))
        order by as_of_date, rowid
        """,
        {
            "score": score.name,
            "version": version,
            "part": part,
            "first": first,
            "all": columns is None,
            "columns": list(columns or []),
        },
    )
    return [
        Counted(
            key=row["as_of_date"],
            segment_column=row["segment_column"],
            segment=row["segment"],
            column=row["column_name"],
            distribution=Distribution(
                counts=tuple(row["counts"]),
                new=tuple(row["new"] or ()),
                **{name: row[name] for name in ("rows", "nulls", *MOMENTS)},
            ),
        )
        for row in found
    ]
