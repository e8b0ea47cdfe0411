"""The smallest project in the README is whole: written down as it stands there, it runs to a served score."""

import csv
import os
import random
import re
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from litestar.testing import TestClient

from ml import labels, splitting
from serving.app import create_app
from tests.conftest import REPOSITORY, Run, environment_of, run_pipeline

README = (REPOSITORY / "README.md").read_text()
SECTION = README.partition("### Another company\n")[2].partition("\n### ")[0]
FILES = dict(re.findall(r"```(?:yaml|sql)\n(?:#|--) (\S+)\n(.*?)```", SECTION, re.DOTALL))
FIRST_ORDERS, TODAY = date(2024, 1, 1), date(2024, 7, 1)


def some_orders() -> list[tuple[object, ...]]:
    """Half a year of orders: some customers come every few days, others hardly again."""
    chance = random.Random(7)
    orders: list[tuple[object, ...]] = []
    for customer in range(1, 61):
        every, day = chance.choice((5, 12, 40, 90)), FIRST_ORDERS + timedelta(days=chance.randrange(40))
        while day < TODAY:
            orders.append((len(orders) + 1, customer, day, round(chance.uniform(5, 80), 2)))
            day += timedelta(days=1 + round(chance.expovariate(1 / every)))
    return orders


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The project of the README, run once."""
    folder = tmp_path_factory.mktemp("readme")
    for name, text in FILES.items():
        file = folder / "shop" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (folder / "shop" / "raw").mkdir()
    with (folder / "shop" / "raw" / "orders.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("order_id", "customer_id", "ordered_on", "amount"), *some_orders()])
    (folder / "home").mkdir()
    return run_pipeline(folder / "shop", folder / "shop_data", folder / "home")


def test_every_file_of_the_smallest_project_is_told_by_name() -> None:
    assert "seven files" in SECTION and len(FILES) == 7
    assert SECTION.count("```") == 2 * len(FILES)


@pytest.mark.slow
def test_the_smallest_project_runs_to_a_served_score(shop: Run) -> None:
    assert shop.code == 0, shop.printed
    with TestClient(create_app(shop.data)) as client:
        answer = client.get("/scores/return_likelihood/customers/1").json()
    assert answer["as_of_date"] == str(TODAY)
    assert 0 <= answer["value"] <= 1 and answer["band"] in ("high", "low")
    with duckdb.connect(str(shop.data / "warehouse.duckdb"), read_only=True) as connection:
        ((newest,),) = connection.execute("select max(as_of_date) from main.customer_features").fetchall()
    assert newest == TODAY


@pytest.mark.slow
def test_the_smallest_project_is_built_by_dbt_alone_and_writes_to_the_data_folder_alone(shop: Run) -> None:
    before = set(shop.project.rglob("*"))
    environment = environment_of(shop.project, shop.data, shop.home)
    del environment["SCOREHOUSE_DATA"]
    built = subprocess.run(
        [str(Path(sys.executable).parent / "dbt"), "build"],
        cwd=shop.project,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0 and "ERROR=0" in built.stdout, built.stdout
    assert "WARNING" not in built.stdout
    assert set(shop.project.rglob("*")) == before
    assert os.listdir(shop.home) == []
    assert {path.name for path in shop.project.parent.iterdir()} == {"shop", "shop_data", "home"}


def test_the_sql_of_the_smallest_project_is_in_order(shop: Run) -> None:
    linted = subprocess.run(
        [str(Path(sys.executable).parent / "sqlfluff"), "lint", "--config", "pyproject.toml", str(shop.project)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert linted.returncode == 0, linted.stdout


def test_as_many_as_of_dates_are_needed_as_the_readme_says() -> None:
    told = re.search(r"at\s+least (\d+) as-of dates, of which (\d+) have matured labels; from (\d+) on 4 are", SECTION)
    assert told is not None
    least, matured, most_held_out = map(int, told.groups())
    window = 4  # weeks until a label matures

    def can_be_trained_on(dates: int) -> bool:
        weeks = [FIRST_ORDERS + timedelta(weeks=number) for number in range(dates - window)]
        rows = pa.table({"as_of": weeks, "matures_on": [week + timedelta(weeks=window) for week in weeks]})
        try:
            splitting.holdout_split(rows, "as_of", splitting.held_out_dates(len(weeks)))
        except splitting.TooFewDates:
            return False
        return True

    assert can_be_trained_on(least) and not can_be_trained_on(least - 1)
    assert least - matured == window
    held_out = [splitting.held_out_dates(dates - window) for dates in (most_held_out - 1, most_held_out)]
    assert held_out == [3, splitting.MOST_HELD_OUT]
    assert f"At least {labels.LEAST_ROWS} rows" in SECTION
