"""What joins in point of time cost, part of `features.py`: a training set, and events with features, beside Feast."""

import json
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import form

# Households, as-of dates, features.
SIZES = {False: ((247, 35, 40), (247, 7, 1000)), True: ((2469, 35, 40), (2469, 7, 1000))}
TODAY = date(2018, 1, 1)  # when all labels have matured
AIM_GIGABYTES = 2.0
PEERS = str(Path(__file__).with_name("feature_peers.py"))

Measured = dict[str, float]


def wide(folder: Path, households: str, dates: str, features: str) -> Measured:
    """Rows of many features, a label each, and an event each in the days after; whole numbers, which add up exactly."""
    from orchestration.warehouse import open_warehouse

    random = "(hash(household_id, as_of_date, {number}) % 1000000)::double as f_{number}"
    columns = ", ".join(random.format(number=number) for number in range(int(features)))
    with open_warehouse(folder / "warehouse.duckdb") as connection:
        connection.execute(
            f"""
            create schema features; create schema labels;
            create table keys as
                select household_id, date '2017-01-02' + 7 * week::integer as as_of_date
                from range({households}) as ids(household_id) cross join range({dates}) as weeks(week);
            create table features.wide as select *, {columns} from keys;
            create table labels.outcome as
                select *, (hash(household_id) % 2)::integer as label, as_of_date + 28 as matures_on from keys;
            create table events as
                select
                    household_id,
                    as_of_date + to_seconds((hash(as_of_date, household_id) % 604800)::bigint) as happened_at
                from keys;
            copy (select * replace (as_of_date::timestamptz as as_of_date) from features.wide)
                to '{folder}/features.parquet' (format parquet);
            copy (select household_id, happened_at::timestamptz as event_timestamp from events)
                to '{folder}/events.parquet' (format parquet);
            """
        )
    return {}


def freeze(folder: Path) -> Measured:
    """A training set, joined, checked, and frozen to Parquet as the engine does it."""
    import msgspec

    from orchestration import versions, warehouse
    from orchestration.training_sets import freeze_training_set
    from tests.small_data import a_score_of

    with warehouse.open_warehouse(folder / "warehouse.duckdb") as connection:
        versions.create_tables(connection)
        columns = [name for name in warehouse.columns(connection, "features", "wide") if name.startswith("f_")]
        score = msgspec.structs.replace(
            a_score_of(*columns), features="wide", label="outcome", entity=("household_id",), as_of="as_of_date"
        )
        started = time.monotonic()
        frozen = freeze_training_set(connection, score, TODAY, folder / "training_sets")
        return {"seconds": time.monotonic() - started, "rows": frozen["rows"]}


def join(folder: Path) -> Measured:
    """Each event with the newest row of features up to it, as Arrow. The keys are joined first, the wide rows last."""
    import pyarrow.compute as pc

    from orchestration.warehouse import open_warehouse

    query = """
        with valid as (
            select
                household_id,
                as_of_date,
                lead(as_of_date) over (partition by household_id order by as_of_date) as next_as_of_date
            from features.wide
        ),

        newest as (
            select events.household_id, events.happened_at, valid.as_of_date
            from events
            left join valid
                on
                    events.household_id = valid.household_id
                    and events.happened_at >= valid.as_of_date
                    and (events.happened_at < valid.next_as_of_date or valid.next_as_of_date is null)
        )

        select * from newest left join features.wide using (household_id, as_of_date)
    """
    with open_warehouse(folder / "warehouse.duckdb") as connection:
        started = time.monotonic()
        joined = connection.sql(query).to_arrow_table()
        seconds = time.monotonic() - started
    total = sum(pc.sum(joined[name]).as_py() or 0 for name in joined.column_names if name.startswith("f_"))
    return {"seconds": seconds, "rows": joined.num_rows, "total": total}


def figures(folder: Path, size: tuple[int, int, int], python: Path | None, notes: Measured) -> list[dict[str, Any]]:
    """The figures of one size: a training set, and events with their features; with Feast's where a Python has it."""
    households, dates, features = size
    title = f"{households * dates / 1000:,.0f} k × {features:,}"
    form.alone(__file__, "wide", folder, *size)
    frozen, joined = form.alone(__file__, "freeze", folder), form.alone(__file__, "join", folder)
    found = []
    for name, took in (("training set, frozen", frozen), ("as-of join", joined)):
        found.append(form.figure(f"{title}: {name}; memory", took["gigabytes"], AIM_GIGABYTES, 1.0, unit="GB"))
        notes[f"{title}: {name}, s"] = took["seconds"]
    for store in ("duckdb", "file") if python else ():
        feast = form.alone(PEERS, "feast", folder, store, python=python)
        if (feast["rows"], feast["total"]) != (joined["rows"], joined["total"]):
            sys.exit(f"{title}: Feast's {store} store gives other rows: {feast}, ours {joined}")
        name = f"{title}: as-of join; Feast, {store} store"
        found.append(form.figure(name, joined["seconds"], feast["seconds"], 1.0))
        notes[f"{title}: memory of Feast, {store} store, GB"] = feast["gigabytes"]
    return found


WORK = {work.__name__: work for work in (wide, freeze, join)}

if __name__ == "__main__" and sys.argv[1:2] == ["--alone"]:
    print(json.dumps(WORK[sys.argv[2]](Path(sys.argv[3]), *sys.argv[4:])))
