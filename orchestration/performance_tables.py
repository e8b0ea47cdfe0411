"""The tables of how scores do once they are given, schema `monitoring`: estimated, realised, and what it was worth."""

from collections.abc import Iterable
from datetime import date
from typing import Any

from ml.declarations import Score
from orchestration import warehouse
from orchestration.warehouse import Connection

ESTIMATED = "monitoring.estimated_performance"
REALISED = "monitoring.realised_performance"
GAINS = "monitoring.realised_gains"
TABLES = f"""
    create schema if not exists monitoring;
    create table if not exists {ESTIMATED} (
        score varchar, model_version integer, as_of_date date, metric varchar,
        estimated double, low double, high double, rows bigint, sampled bigint,
        made_from varchar, estimated_at timestamptz
    );
    -- a slice is the customers of whom a column has a value; without one the row is of all of them
    create table if not exists {REALISED} (
        score varchar, model_version integer, as_of_date date,
        slice_column varchar, slice_value varchar, metric varchar,
        realised double, realised_low double, realised_high double,
        promised double, promised_low double, promised_high double,
        baseline_realised double, baseline_promised double, estimated double,
        low double, high double, verdict varchar,
        rows bigint, sampled bigint, label_rate double, mean_score double,
        served_version integer, made_from varchar, measured_at timestamptz
    );
    create table if not exists {GAINS} (
        score varchar, model_version integer, as_of_date date, share double,
        customers bigint, held double, lift double, rate double, value_per_contact double, value_total double
    );
"""


def create_tables(connection: Connection) -> None:
    """Makes the tables where they are missing. Rows of `ml.realised`, which was before them, are carried over once."""
    with warehouse.transaction(connection):
        connection.execute(TABLES)
        if warehouse.exists(connection, "ml", "realised"):
            connection.execute(f"insert into {REALISED} by name from ml.realised; drop table ml.realised")


def withdraw(connection: Connection, table: str, score: Score) -> None:
    """Takes out of a table what is there of dates that are scored no more."""
    connection.execute(
        f"""
        delete from {table} where score = $score and (model_version, as_of_date) not in (
            select (model_version, as_of_date) from ml.scored_dates where score = $score
        )
        """,
        {"score": score.name},
    )


def replace_date(
    connection: Connection, table: str, score: Score, version: int, day: date, rows: Iterable[dict[str, Any]]
) -> None:
    """Puts these rows, all with the same columns, in the place of those that a table has of a version's date."""
    import pyarrow as pa

    key = {"score": score.name, "model_version": version, "as_of_date": day}
    connection.execute(
        f"delete from {table} where score = $score and model_version = $model_version and as_of_date = $as_of_date",
        key,
    )
    new = [{**key, **row} for row in rows]
    if new:
        connection.register("rows of a date", pa.Table.from_pylist(new))
        connection.execute(f'insert into {table} by name from "rows of a date"')
        connection.unregister("rows of a date")
