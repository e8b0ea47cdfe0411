"""What features cost: the sample's feature model from scratch and for one new as-of date, and joins in point of time.

The loaded sample is multiplied in SQL: 1, 10 and 40 times the households (`--scales 1,10` for some of them), and 1, 2
and 4 times the history. dbt builds the feature model with its ancestors up to the week before the sample's last day;
then that week arrives as one batch, known when it happened, and dbt builds again. Seconds of dbt are those in which it
compiled and executed models. They are held against linear growth, against DuckDB reading the needed columns, and
against polars making five of the features from the same rows; joins against Feast's `get_historical_features`. polars
and Feast are in an environment of their own, which `--full` makes; without it they are left out, and said so. Each
measurement has a process, and so a memory, of its own. `--quick` takes a tenth of the households.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import feature_joins
import form
from pipeline import covered

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from orchestration.warehouse import Connection

Measured = dict[str, float]
Scaled = dict[str, Measured]

PROJECT = form.REPOSITORY / "dbt_project"
TODAY, FIRST_AS_OF = date(2018, 1, 1), date(2017, 3, 27)
WEEK_BEFORE = TODAY - timedelta(weeks=1)
YEAR = timedelta(weeks=52)  # so that weekdays and weeks stay what they are
SCALES, HISTORIES = {False: (1,), True: (1, 10, 40)}, {False: (2,), True: (2, 4)}
HOUSEHOLDS = {False: 250, True: 2500}  # the largest id that is kept
TIMES = {False: 1, True: 3}  # that a new date is built, of which the fastest counts
AIM_GROWTH, AIM_HISTORY = 1.2, 1.3
MOST_IN_POLARS = 10  # times the households: it holds all of them in memory
PEERS = ("feast[duckdb]==0.67.0", "polars==2.1.0")
TITLES = {
    "scratch": "dbt, from scratch",
    "floor": "the scan",
    "polars": "polars",
    "week": "dbt, a new date",
    "idle": "dbt, nothing new",
}
# Of the features, what polars makes too.
FIVE = ("spend_84d_usd", "baskets_28d_count", "products_84d_count", "days_since_last_basket", "top_department_84d")

# Table -> what of it is another in each copy of the households, and in each earlier year. The others are shared.
COPIED = {
    "demographics": "household_id + {copy} * 10000 as household_id",
    "campaigns": "household_id + {copy} * 10000 as household_id",
    "coupon_redemptions": "household_id + {copy} * 10000 as household_id, redemption_date - {back} as redemption_date,"
    " _known_at - {back} as _known_at",
    "transactions": "household_id + {copy} * 10000 as household_id,"
    " basket_id + ({year} * 100 + {copy}) * 20000000000 as basket_id,"
    " transaction_timestamp - {back} as transaction_timestamp, _known_at - {back} as _known_at",
}
HAPPENED = {"transactions": "transaction_timestamp", "coupon_redemptions": "redemption_date"}


def opened(folder: Path) -> "AbstractContextManager[Connection]":
    """The warehouse of a data folder, which is made if it is not there."""
    from orchestration.warehouse import open_warehouse

    return open_warehouse(folder / "warehouse.duckdb")


def load(folder: Path, households: str) -> Measured:
    """Loads the sample's raw tables as the engine does, up to a household; the last week's rows are kept for later."""
    from orchestration.loading import load as load_source
    from orchestration.project import load_project, paths

    os.environ |= {"SCOREHOUSE_DATA": str(folder), "SCOREHOUSE_PROJECT": str(PROJECT)}
    where, midnight = paths(), datetime(TODAY.year, TODAY.month, TODAY.day, tzinfo=UTC)
    sources = load_project(where).sources
    with opened(folder) as connection:
        for source in sources:
            load_source(connection, source, where, midnight, lambda _: None)
        for table in COPIED:
            connection.execute(f"delete from raw.{table} where household_id > {households}")
        connection.execute("create schema arriving")
        for table, happened in HAPPENED.items():
            of_the_week = f"from raw.{table} where {happened} >= '{WEEK_BEFORE}'"
            connection.execute(f"create table arriving.{table} as {of_the_week}; delete {of_the_week}")
    return {}


def scale(folder: Path, sample: str, copies: str, years: str) -> Measured:
    """A warehouse with the loaded sample's households and facts so many times; how many lines it has."""
    shutil.copy(Path(sample) / "warehouse.duckdb", folder)
    with opened(folder) as connection:
        connection.execute(f"attach '{sample}/warehouse.duckdb' as sample (read_only)")
        for table in COPIED:
            for year in range(int(years) if table in HAPPENED else 1):
                for copy in range(int(copies)):
                    if (year, copy) != (0, 0):
                        connection.execute(f"insert into raw.{table} by name {copied(table, 'sample.raw', copy, year)}")
        return counted(connection, "raw.transactions")


def copied(table: str, schema: str, copy: int, year: int = 0) -> str:
    """SQL of the rows of a table, as those of other households in an earlier year."""
    other = COPIED[table].format(copy=copy, year=year, back=f"to_days({year * YEAR.days})")
    return f"select * replace ({other}) from {schema}.{table}"


def arrive(folder: Path, copies: str) -> Measured:
    """The last week's rows arrive, a batch a table, known when they happened; how many lines there are then."""
    with opened(folder) as connection:
        for table in HAPPENED:
            arrived = f"'week of {table}' as _batch_id, now() as _loaded_at"
            for copy in range(int(copies)):
                connection.execute(
                    f"insert into raw.{table} by name"
                    f" select * replace ({arrived}) from ({copied(table, 'arriving', copy)})"
                )
            metrics = "quality.source_metrics"
            connection.execute(
                f"insert into {metrics} select * replace ('week of {table}' as batch_id, now() as loaded_at)"
                f" from {metrics} where schema_name = 'raw' and table_name = '{table}' limit 1"
            )
        return counted(connection, "raw.transactions")


def counted(connection: "Connection", table: str) -> Measured:
    ((rows,),) = connection.execute(f"select count(*) from {table}").fetchall()
    return {"rows": rows}


def floor(folder: Path) -> Measured:
    """DuckDB reading the columns of the lines that features need, each added up."""
    columns = "household_id, basket_id, product_id, store_id, week, quantity, sales_value, retail_disc, coupon_disc"
    times = ("transaction_timestamp", "_known_at")
    sums = [f"sum({column})" for column in (*columns.split(", "), *(f"epoch_us({column})" for column in times))]
    with opened(folder) as connection:
        return {"seconds": fastest(lambda: connection.execute(f"select {', '.join(sums)} from raw.transactions"))}


def fastest(work: Callable[[], Any], times: int = 3) -> float:
    seconds = []
    for _ in range(times):
        started = time.monotonic()
        work()
        seconds.append(time.monotonic() - started)
    return min(seconds)


def export(folder: Path) -> Measured:
    """Writes what polars reads, and counts the rows of features."""
    lines = (
        "select household_id, basket_id, product_id, sales_value, transaction_timestamp as occurred_at,"
        " _known_at::timestamp as known_at from raw.transactions"
    )
    with opened(folder) as connection:
        connection.execute(f"copy ({lines}) to '{folder}/lines.parquet' (format parquet)")
        connection.execute(f"copy raw.products to '{folder}/products.parquet' (format parquet)")
        keys = "select household_id, as_of_date from features.household_features"
        connection.execute(f"copy ({keys}) to '{folder}/keys.parquet' (format parquet)")
        return counted(connection, "features.household_features")


def differences(folder: Path) -> Measured:
    """How many rows of five features differ between the warehouse and polars."""
    columns = ", ".join(("household_id", "as_of_date", *FIVE))
    one, other = f"select {columns} from features.household_features", f"select {columns} from made"
    with opened(folder) as connection:
        # polars divides by 100 as it multiplies by 0.01, which is off by a last digit: its cents are divided here.
        usd = "spend_84d_cents / 100 as spend_84d_usd"
        connection.execute(f"create temp view made as select *, {usd} from read_parquet('{folder}/polars.parquet')")
        return counted(connection, f"((({one}) except all ({other})) union all (({other}) except all ({one})))")


def alone(work: Callable[..., Measured], *arguments: object) -> Measured:
    """What a function of this script measures in a process of its own."""
    return form.alone(__file__, work.__name__, *arguments)


def peers(full: bool) -> Path | None:
    """The Python of the environment with polars and Feast, made where all is to be measured; None if there is none."""
    folder = form.results() / "peers"
    python, mark = folder / "bin" / "python", folder / "installed"
    if not (mark.is_file() and mark.read_text() == " ".join(PEERS)):
        if not full:
            return None
        packages = ["-m", "pip", "install", "--quiet", *PEERS]
        for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], [str(python), *packages]):
            if subprocess.run(command, stderr=subprocess.DEVNULL).returncode:
                return None
        mark.write_text(" ".join(PEERS))
    return python


def build(folder: Path, today: date, years: int = 1) -> Measured:
    """dbt builds the feature model and all it comes from, as it is `today`; `work` is the seconds of its models."""
    settings = {"today": str(today), "first_as_of_date": str(FIRST_AS_OF - (years - 1) * YEAR)}
    command = [str(Path(sys.executable).parent / "dbt"), "build", "--select", "+household_features"]
    left_out = ["--exclude-resource-type", "test", "--exclude-resource-type", "unit_test"]
    _, seconds, gigabytes = form.run(
        [*command, *left_out, "--vars", json.dumps(settings)],
        cwd=PROJECT,
        SCOREHOUSE_DATA=str(folder),
        DBT_PROFILES_DIR=str(PROJECT),
        DBT_TARGET_PATH=str(folder / "target"),
    )
    results = json.loads((folder / "target" / "run_results.json").read_bytes())["results"]
    # Compiling asks the warehouse too: which dates and batches are new.
    work = covered(
        (datetime.fromisoformat(timing["started_at"]), datetime.fromisoformat(timing["completed_at"]))
        for result in results
        for timing in result["timing"]
    )
    return {"seconds": seconds, "work": work, "gigabytes": gigabytes}


def at_scale(sample: Path, folder: Path, copies: int, python: Path | None, times: int, notes: Measured) -> Scaled:
    """The model from scratch, then one new date, then nothing new; beside the floor and polars."""
    lines = alone(scale, folder, sample, copies, 1)["rows"]
    found = {"scratch": build(folder, WEEK_BEFORE), "floor": alone(floor, folder)}
    made = alone(export, folder)["rows"]
    if python and copies <= MOST_IN_POLARS:
        found["polars"] = form.alone(feature_joins.PEERS, "polars", folder, python=python)
        if differing := alone(differences, folder)["rows"]:
            sys.exit(f"{copies}×: {differing:.0f} rows of {', '.join(FIVE)} differ between dbt's models and polars")
    found |= new_date(folder, copies, times)
    notes[f"{copies}×: transactions in"] = lines
    notes[f"{copies}×: transactions a second"] = lines / found["scratch"]["work"]
    notes[f"{copies}×: rows of features out"] = made
    notes[f"{copies}×: rows of features a second"] = made / found["scratch"]["work"]
    notes[f"{copies}×: a build with nothing new, s"] = found["idle"]["work"]
    notes[f"{copies}×: dbt's start and parsing beside that, s"] = found["idle"]["seconds"] - found["idle"]["work"]
    notes[f"{copies}×: the warehouse in the end, GB"] = (folder / "warehouse.duckdb").stat().st_size / 1e9
    for name, took in found.items():
        notes[f"{copies}×: memory of {TITLES[name]}, GB"] = took["gigabytes"]
    return found


def new_date(folder: Path, copies: int, times: int, years: int = 1) -> Scaled:
    """The fastest of a few builds of one more date, each when the week's rows have just come; then one of nothing."""
    warehouse, before = folder / "warehouse.duckdb", folder / "before.duckdb"
    warehouse.rename(before)
    weeks = []
    for _ in range(times):
        shutil.copy(before, warehouse)
        alone(arrive, folder, copies)
        weeks.append(build(folder, TODAY, years))
    before.unlink()
    return {"week": min(weeks, key=lambda took: took["work"]), "idle": build(folder, TODAY, years)}


def growth(found: dict[int, Scaled]) -> list[dict[str, Any]]:
    """The figures of each scale, beside the floor and polars, and as the scale before it grown linearly."""
    figures, before = [], None
    for copies, took in found.items():
        for part in ("scratch", "week"):
            seconds, title = took[part]["work"], f"{copies}×: {TITLES[part]}"
            if before:
                linear = found[before][part]["work"] * copies / before
                figures.append(form.figure(f"{title}; {before}× grown linearly", seconds, linear, AIM_GROWTH))
            figures.append(form.figure(f"{title}; the scan", seconds, took["floor"]["seconds"], None))
        if "polars" in took:
            name = f"{copies}×: dbt, from scratch, all features; five of them in polars"
            figures.append(form.figure(name, took["scratch"]["work"], took["polars"]["seconds"], None))
        before = copies
    return figures


def on_histories(sample: Path, name: str, once: Measured, full: bool, notes: Measured) -> list[dict[str, Any]]:
    """The figures of a new date on top of a longer history, beside the year's."""
    figures = []
    for years in HISTORIES[full]:
        with tempfile.TemporaryDirectory(dir=name) as place:
            folder = Path(place)
            alone(scale, folder, sample, 1, years)
            build(folder, WEEK_BEFORE, years)
            found = new_date(folder, 1, TIMES[full], years)
        title = f"1× on {years}× history"
        figures.append(form.figure(f"{title}: a new date; on 1×", found["week"]["work"], once["work"], AIM_HISTORY))
        notes[f"{title}: a build with nothing new, s"] = found["idle"]["work"]
        notes[f"{title}: memory of {TITLES['week']}, GB"] = found["week"]["gigabytes"]
    return figures


def multiples(text: str) -> list[int]:
    """Whole numbers from 1 on, as in `1,10`, in their order. Raises `ValueError`."""
    numbers = sorted({int(number) for number in text.split(",")})
    if numbers[0] < 1:
        raise ValueError(text)
    return numbers


def main() -> None:
    parser = form.arguments(__doc__ or "")
    parser.add_argument(
        "--scales",
        type=multiples,
        help="times the households, as 1,10; histories and joins are measured where 1 is one of them",
    )
    asked = parser.parse_args()
    scales = asked.scales or SCALES[asked.full]
    notes: Measured = {}
    python = peers(asked.full)
    if python is None:
        notes["polars: not measured, no environment with it (--full makes it)"] = 0.0
    if python is None or not asked.full:
        notes["Feast: not measured" + (", --full does" if not asked.full else "")] = 0.0
    with tempfile.TemporaryDirectory(dir=form.results()) as name:
        sample = Path(name) / "sample"
        alone(load, sample, HOUSEHOLDS[asked.full])
        found = {}
        for copies in scales:
            with tempfile.TemporaryDirectory(dir=name) as place:
                found[copies] = at_scale(sample, Path(place), copies, python, TIMES[asked.full], notes)
        figures = growth(found)
        if 1 in scales:
            figures += on_histories(sample, name, found[1]["week"], asked.full, notes)
            for size in feature_joins.SIZES[asked.full]:
                with tempfile.TemporaryDirectory(dir=name) as place:
                    figures += feature_joins.figures(Path(place), size, python if asked.full else None, notes)
    form.report("features" if asked.full else "features_quick", figures, notes)


ALONE = {work.__name__: work for work in (load, scale, arrive, floor, export, differences)}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--alone"]:
        print(json.dumps(ALONE[sys.argv[2]](Path(sys.argv[3]), *sys.argv[4:])))
    else:
        main()
