"""The leak guard: what it lets pass, what it catches and how it tells it, and that it harms nothing."""

import csv
import hashlib
import shutil
import subprocess
import sys
import time
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import msgspec
import pytest

from ml.declarations import Score
from orchestration.checks import RIGHT_IN_TIME, last_evaluation
from orchestration.comparing import STORED, compare
from orchestration.definitions import define
from orchestration.instance import open_instance, turn
from orchestration.project import Paths, paths
from orchestration.recomputing import scratch
from orchestration.warehouse import name, open_warehouse
from tests.conftest import REPOSITORY, Run, copy_of, environment_of
from tests.small_data import a_score

pytestmark = pytest.mark.slow

FIRST_DAY = date(2024, 1, 1)
DAYS, CUSTOMERS, LATE = 150, 30, 9
SHOP = {
    "dbt_project.yml": "{name: shop, version: 0.1.0, profile: shop, vars: {today: 2024-05-27}}",
    "profiles.yml": """
        shop:
          target: local
          outputs: {local: {type: duckdb, path: "{{ env_var('SCOREHOUSE_DATA') }}/warehouse.duckdb"}}
    """,
    "models/sources.yml": """
        sources:
          - name: raw
            tables:
              - name: orders
                config:
                  meta: {load: {from: raw/orders_*.csv, key: [order_id], cursor: changed_at, known_at: recorded_at}}
              - {name: shops, config: {meta: {load: {from: raw/shops.csv}}}}
    """,
    "models/spine.sql": """
        select customer_id, cast(days.monday as date) as as_of_date
        from (select distinct customer_id from {{ source('raw', 'orders') }} where ordered_at < date '2024-01-29')
        cross join generate_series(date '2024-01-29', date '{{ var("today") }}', interval 7 day) as days (monday)
    """,
    "models/customer_features.sql": """
        {{ config(materialized='incremental', on_schema_change='fail') }}
        select
            spine.customer_id,
            spine.as_of_date,
            count(*) filter (orders._known_at < spine.as_of_date) as orders_count,
            coalesce(sum(orders.amount) filter (orders._known_at < spine.as_of_date), 0) as spend,
            (first) as orders_with_late_count,
            (second) as largest_share,
            any_value(shops.town) as town
        from {{ ref('spine') }} as spine
        left join {{ source('raw', 'orders') }} as orders
            on spine.customer_id = orders.customer_id and orders.ordered_at < spine.as_of_date
        cross join {{ source('raw', 'shops') }} as shops
        {% if is_incremental() %} where spine.as_of_date > (select max(as_of_date) from {{ this }}) {% endif %}
        group by 1, 2
    """,
    "models/customer_buys.sql": """
        select
            spine.customer_id,
            spine.as_of_date,
            cast(count(orders.order_id) > 3 as integer) as label,
            cast(spine.as_of_date + interval 7 day as date) as matures_on
        from {{ ref('spine') }} as spine
        left join {{ source('raw', 'orders') }} as orders
            on
                spine.customer_id = orders.customer_id
                and orders.ordered_at >= spine.as_of_date
                and orders.ordered_at < spine.as_of_date + interval 7 day
        group by 1, 2
    """,
    "models/models.yml": """
        models:
          - name: customer_features
            config: &keys {contract: {enforced: true}, meta: {entity: customer_id, as_of: as_of_date}}
            columns:
              - {name: customer_id, data_type: bigint}
              - {name: as_of_date, data_type: date}
              - {name: orders_count, data_type: bigint}
              - {name: spend, data_type: double}
              - {name: orders_with_late_count, data_type: bigint}
              - {name: largest_share, data_type: double}
              - {name: town, data_type: varchar}
          - name: customer_buys
            config: {<<: *keys, materialized: table}
            columns:
              - {name: customer_id, data_type: bigint}
              - {name: as_of_date, data_type: date}
              - {name: label, data_type: integer}
              - {name: matures_on, data_type: date}
    """,
    "models/scores.yml": """
        exposures:
          - name: buying
            type: ml
            owner: {email: crm@shop.example}
            depends_on: [ref('customer_features'), ref('customer_buys')]
            config:
              meta:
                score:
                  features: customer_features
                  label: customer_buys
                  kind: probability
                  gate: [roc_auc >= 0]
                  bands: {low: 0.0}
                  fresh_for: 8 days
    """,
}
RIGHT = ("cast(0 as bigint)", "cast(0 as double)")
LEAKING = (
    "count(orders.order_id)",  # also what was recorded later
    "max(orders.amount) / (select max(amount) from {{ source('raw', 'orders') }})",  # of all history
)
COLUMNS = ["order_id", "customer_id", "ordered_at", "recorded_at", "changed_at", "amount"]
MODELS = ["spine", "customer_features", "customer_buys"]


def write_model(project: Path, columns: tuple[str, str]) -> None:
    sql = SHOP["models/customer_features.sql"].replace("(first)", columns[0]).replace("(second)", columns[1])
    (project / "models" / "customer_features.sql").write_text(sql)


def write_orders(file: Path, orders: list[dict[str, Any]]) -> None:
    with file.open("w", newline="") as written:
        writer = csv.DictWriter(written, COLUMNS)
        writer.writeheader()
        writer.writerows(orders)


def an_order(number: int, **changes: Any) -> dict[str, Any]:
    """The n-th order of a customer's daily ones, which grow; each third is recorded days later."""
    day, customer = divmod(number, CUSTOMERS)
    ordered_at = datetime(2024, 1, 1, 12) + timedelta(days=day)
    recorded_at = ordered_at + timedelta(days=LATE if number % 3 == 0 else 0)
    return {
        "order_id": number,
        "customer_id": customer,
        "ordered_at": ordered_at,
        "recorded_at": recorded_at,
        "changed_at": ordered_at,
        "amount": 10 + day + customer / 4,
        **changes,
    }


class Shop(msgspec.Struct):
    """A small company, whose pipeline runs in this process."""

    where: Paths

    def execute(self, job: str, assets: list[dg.AssetKey] | None = None, **config: Any) -> list[str]:
        """Runs a job, or of it some assets; why its steps failed."""
        found = define(self.where).resolve_job_def(job)
        if assets:
            found = found.get_subset(asset_selection=set(assets), asset_check_selection=set())
        ops = {op: {"config": config} for op in found.graph.node_dict} if config else {}
        with open_instance(self.where) as instance:
            result = found.execute_in_process(instance=instance, raise_on_error=False, run_config={"ops": ops})
            told = []
            for event in result.get_step_failure_events():
                error = event.step_failure_data.error
                while error is not None and error.cause is not None:
                    error = error.cause
                told.append(error.message if error else "")
        return told

    def build(self) -> list[str]:
        """Loads the raw tables and builds the models, up to the training set."""
        keys = [["raw", "orders"], ["raw", "shops"], *([model] for model in MODELS), ["training_sets", "buying"]]
        return self.execute("everything", [dg.AssetKey(key) for key in keys])

    def judged(self) -> dg.AssetCheckEvaluation:
        """What came of the guard the last time."""
        with open_instance(self.where) as instance:
            last = last_evaluation(instance, dg.AssetCheckKey(dg.AssetKey("customer_features"), RIGHT_IN_TIME))
        assert last is not None
        return last

    def findings(self) -> str:
        last = self.judged()
        return "" if last.passed else str(last.description)

    def tried(self) -> list[str]:
        tried = self.judged().metadata["tried"].value
        assert isinstance(tried, list)
        return [str(line) for line in tried]


def shop_in(folder: Path, patch: pytest.MonkeyPatch) -> Shop:
    for setting in ("DBT_TARGET_PATH", "DBT_LOG_PATH", "DBT_PROFILES_DIR", "DAGSTER_HOME"):
        patch.setenv(setting, "")  # so that what is set is put back
    patch.setenv("SCOREHOUSE_PROJECT", str(folder / "project"))
    patch.setenv("SCOREHOUSE_DATA", str(folder / "data"))
    return Shop(paths())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the shop with both leaks, built once."""
    folder = tmp_path_factory.mktemp("shop")
    for file, text in SHOP.items():
        (folder / "project" / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / "project" / file).write_text(text)
    write_model(folder / "project", LEAKING)
    raw = folder / "project" / "raw"
    raw.mkdir()
    write_orders(raw / "orders_1.csv", [an_order(number) for number in range((DAYS - 4) * CUSTOMERS)])
    (raw / "shops.csv").write_text("town\nBasel\n")
    with pytest.MonkeyPatch.context() as patch:
        assert shop_in(folder, patch).build() == []
    return folder


@pytest.fixture
def leaking(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """The shop with both leaks, to change."""
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    return shop_in(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def mended(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the shop without a leak."""
    folder = tmp_path_factory.mktemp("mended")
    shutil.copytree(built, folder, dirs_exist_ok=True)
    write_model(folder / "project", RIGHT)
    with pytest.MonkeyPatch.context() as patch:
        assert shop_in(folder, patch).build() == []
    return folder


def test_a_run_of_everything_is_not_made_longer_by_the_guard(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = define(shop_in(built, monkeypatch).where)
    assert "customer_features_right_in_time" not in jobs.resolve_job_def("everything").graph.node_dict
    assert list(jobs.resolve_job_def("leaks").graph.node_dict) == ["customer_features_right_in_time"]


def test_a_leak_is_told_by_model_column_and_example_and_nothing_else_is_said_to_leak(leaking: Shop) -> None:
    leaking.execute("leaks", as_of=["2024-04-08"])
    told = leaking.findings()
    assert "main.customer_features at 2024-04-08, computed from what was known before it:" in told
    assert "column orders_with_late_count differs in 10 of 30 rows; customer_id 0: 98 is stored, 89 comes out" in told
    assert "column largest_share differs in 30 of 30 rows; customer_id 0: " in told
    assert "look at the joins on what these columns are made from, each needs known_at < as_of_date" in told
    assert not any(f"column {column} " in told for column in ("orders_count", "spend", "town"))
    assert "rewritten" not in told
    assert "Of raw.shops nothing tells when a row was known" in told


def test_a_feature_that_moves_when_later_facts_are_scrambled_is_a_leak(leaking: Shop) -> None:
    leaking.execute("leaks", as_of=["2024-04-08"], scramble=True)
    told = leaking.findings()
    assert "main.customer_features at 2024-04-08, computed with later facts scrambled:" in told
    assert "column orders_with_late_count differs" in told
    assert not any(f"column {column} " in told for column in ("orders_count", "spend", "town"))


def test_training_stops_until_the_trial_that_failed_passes_on_what_was_built_of_the_mended_model(leaking: Shop) -> None:
    leaking.execute("leaks", as_of=["2024-04-08"])
    (refused,) = leaking.build()
    assert "training_sets/buying: not made" in refused
    assert "customer_features:right_in_time" in refused and "then make leaks, which alone evaluates" in refused
    assert "mend the data" not in refused

    write_model(leaking.where.project, RIGHT)
    (not_yet,) = leaking.execute("leaks", as_of=["2024-05-06"])
    assert "not by the SQL that the model and those it reads have now; make run builds it" in not_yet
    (refused,) = leaking.build()
    assert "then make leaks, which alone evaluates" in refused

    assert leaking.execute("leaks", as_of=["2024-05-06"]) == []
    assert [line.partition(":")[0] for line in leaking.tried()] == [
        "✓ main.customer_features at 2024-05-06",
        "✓ main.customer_features at 2024-04-08",
    ]
    assert leaking.build() == []


def test_where_no_raw_table_tells_when_it_was_known_nothing_is_said_to_be_right(leaking: Shop) -> None:
    with open_warehouse(leaking.where.warehouse) as connection:
        connection.execute("alter table raw.orders drop column _known_at")
    assert leaking.execute("leaks", as_of=["2024-04-08"]) == []
    assert leaking.judged().severity == dg.AssetCheckSeverity.WARN
    assert "nothing can be told of leaks: raw.orders, raw.shops tell no known_at" in leaking.findings()


def test_rows_that_were_rewritten_since_are_told_as_that(
    mended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(mended, tmp_path, dirs_exist_ok=True)
    shop = shop_in(tmp_path, monkeypatch)
    changed = an_order(60, changed_at=datetime(2024, 5, 26), amount=1000)
    write_orders(shop.where.project / "raw" / "orders_2.csv", [changed])
    assert shop.build() == []
    shop.execute("leaks", as_of=["2024-04-08"])
    told = shop.findings()
    assert "column spend differs in 1 of 30 rows; customer_id 0: " in told
    assert "history was rewritten since: raw.orders (rows replaced: 1). Then the rows of 2024-04-08" in told
    assert "make run FULL_REFRESH=1" in told


def test_dates_are_drawn_by_a_seed_that_is_told_and_never_the_newest(
    mended: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = shop_in(mended, monkeypatch)
    assert shop.execute("leaks") == []
    tried = shop.tried()
    assert len(tried) == 3 and " at 2024-05-20: " in tried[0] and not any(" at 2024-05-27: " in line for line in tried)
    assert shop.judged().metadata["drawn"].value == "of 18 dates, drawn with the seed 2024-05-27"
    (unknown,) = shop.execute("leaks", as_of=["2024-05-21"])
    assert "has no rows of the as-of date '2024-05-21' (it has 18 dates from 2024-01-29 to 2024-05-27" in unknown


def test_a_profile_that_names_the_warehouse_itself_is_refused_before_anything_is_built(leaking: Shop) -> None:
    before = digest(leaking.where.warehouse)
    profile = leaking.where.project / "profiles.yml"
    profile.write_text(profile.read_text().replace("{{ env_var('SCOREHOUSE_DATA') }}", str(leaking.where.data)))
    (refused,) = leaking.execute("leaks", as_of=["2024-04-08"])
    assert f"{profile}: path is " in refused and "write path: " in refused
    assert digest(leaking.where.warehouse) == before


def test_what_is_scratched_is_removed_also_after_an_error(tmp_path: Path) -> None:
    where = Paths(project=tmp_path, data=tmp_path)

    def fails() -> None:
        with scratch(where) as apart:
            (apart.data / "warehouse.duckdb").write_text("…")
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the disk is full"):
        fails()
    assert not (tmp_path / "leaks").exists()


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def compared(stored: str, built: str) -> list[tuple[str | None, int, str, str, str]]:
    score: Score = a_score(features_schema="features", features="customer_features")
    with duckdb.connect() as connection:
        connection.execute(f"create schema features; create schema {STORED[0]}")
        for place, rows in ((STORED, stored), (("features", "customer_features"), built)):
            connection.execute(f"create table {name(*place)} as select date '2024-01-01' as week, * from {rows}")
        found = compare(connection, score, "2024-01-01")[1]
    return [(one.column, one.rows, one.entity, one.stored, one.recomputed) for one in found]


@pytest.mark.parametrize(
    ("kind", "stored", "built", "is_same"),
    [
        ("double", "0.1 + 0.2", "0.3", True),
        ("double", "1.00000001", "1.0", False),
        ("double", "'nan'", "'nan'", True),
        ("double", "'nan'", "1.0", False),
        ("double", "'inf'", "1.0", False),
        ("double", "null", "0", False),
        ("double", "null", "null", True),
        ("bigint", "9007199254740993", "9007199254740992", False),
        ("decimal(38, 10)", "1.0000000001", "1.0", False),
        ("varchar", "'Zürich'", "'Zurich'", False),
    ],
)
def test_values_are_compared_exactly_but_floating_point_ones(kind: str, stored: str, built: str, is_same: bool) -> None:
    def rows(value: str) -> str:
        return f"(select 1 as customer_id, cast({value} as {kind}) as x)"

    assert (compared(rows(stored), rows(built)) == []) == is_same


def test_what_cancels_out_is_as_close_to_0_as_sums_of_its_column_can_be() -> None:
    def rows(change: str) -> str:
        return f"(values (1, 250.0::double), (2, {change}::double), (3, null)) as t (customer_id, x)"

    assert 0.1 + 0.2 - 0.3 != 0.3 - 0.2 - 0.1 != 0
    assert (
        compared(rows("0.1::double + 0.2::double - 0.3::double"), rows("0.3::double - 0.2::double - 0.1::double")) == []
    )
    assert compared(rows("0"), rows("5e-324")) == []
    ((column, *_),) = compared(rows("0"), rows("0.000001"))
    assert column == "x"


def test_rows_that_only_one_side_has_are_told_with_their_key() -> None:
    found = compared("(values (1, 1), (2, 2)) as t (customer_id, x)", "(values (2, 2), (3, 3)) as t (customer_id, x)")
    assert found == [(None, 1, "customer_id 1", "a row", "none"), (None, 1, "customer_id 3", "none", "a row")]


@pytest.fixture(scope="module")
def bank(loans_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The bank's run, to look for leaks in."""
    return copy_of(loans_run, tmp_path_factory.mktemp("bank"))


def make_leaks(run: Run, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "orchestration.leaks", *arguments],
        cwd=REPOSITORY,
        env=environment_of(run.project, run.data, run.home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_banks_features_are_right_in_time_and_its_warehouse_is_only_read(bank: Run) -> None:
    before = digest(bank.data / "warehouse.duckdb")
    for days, arguments, how in (
        (["2022-12-01", "2024-03-01"], [], "left out"),
        (["2024-03-01"], ["--scramble"], "scrambled"),
    ):
        with turn(Paths(project=bank.project, data=bank.data), "another run", print):  # which it does not wait for
            done = make_leaks(bank, "--model", "loan_features", "--as-of", *days, *arguments)
            printed, _ = done.communicate(timeout=300)
        assert done.returncode == 0, printed
        assert "✓ risk_features.loan_features at 2024-03-01: 705 rows, all as stored; " in printed, printed
        assert printed.count(f"later raw rows {how}") == len(days), printed
        assert "taken as they are now, as they tell no known_at: landing.accounts, landing.loans" in printed
        assert "Right in time: loan_features" in printed
    assert digest(bank.data / "warehouse.duckdb") == before
    assert not (bank.data / "leaks").exists()


def test_a_killed_guard_lets_others_use_the_warehouse_and_leaves_nothing_that_the_next_trips_over(bank: Run) -> None:
    killed = make_leaks(bank, "--as-of", "2024-03-01")
    while not list((bank.data / "leaks").glob("*/dbt/target")):
        assert killed.poll() is None, killed.stdout and killed.stdout.read()
        time.sleep(0.05)
    with open_warehouse(bank.data / "warehouse.duckdb"):  # while dbt works on the copy
        assert list((bank.data / "leaks").iterdir())
    killed.kill()
    killed.communicate()
    assert list((bank.data / "leaks").iterdir())
    done = make_leaks(bank, "--as-of", "2024-03-01")
    printed, _ = done.communicate(timeout=300)
    assert done.returncode == 0, printed
    assert not (bank.data / "leaks").exists()


def test_a_model_that_there_is_not_is_told_with_those_that_there_are(bank: Run) -> None:
    done = make_leaks(bank, "--model", "loan_feature")
    printed, _ = done.communicate(timeout=300)
    assert done.returncode == 1
    assert "✗ loan_feature: is no feature model of a score (those are: account_features, loan_features)" in printed
