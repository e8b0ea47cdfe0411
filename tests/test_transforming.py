"""What the engine takes over from dagster-dbt, and column lineage."""

from pathlib import Path

import duckdb
import pytest
from dagster_dbt import DbtCliResource

from ml.declarations import Score
from orchestration.lineage import column_lineage
from orchestration.project import DBT
from orchestration.publishing import published_key
from orchestration.transforming import Dbt
from serving.store import customer_key
from tests.conftest import LOANS

TABLES = {
    "raw.orders": {"customer_id": "BIGINT", "amount": "DOUBLE", "placed_at": "TIMESTAMP"},
    "raw.customers": {"customer_id": "BIGINT", "name": "VARCHAR"},
    "features.itself": {"at": "TIMESTAMP"},
}


def test_a_dbt_invocation_neither_asks_for_its_version_nor_loads_an_adapter_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are private to dagster-dbt: another version may call them otherwise, which would lock the warehouse."""
    assert {"_cli_version", "_initialize_dbt_core_adapter"} <= set(dir(DbtCliResource))
    monkeypatch.setenv("SCOREHOUSE_DATA", str(tmp_path))
    dbt = Dbt(project_dir=str(LOANS), profiles_dir=str(LOANS), dbt_executable=str(DBT))
    invocation = dbt.cli(["parse", "--quiet"], target_path=tmp_path / "target")
    invocation.wait()
    assert invocation.is_successful()
    assert invocation.adapter is None


@pytest.mark.parametrize(
    ("sql", "made_from"),
    [
        (
            "select orders.customer_id, amount * 2 as twice, 1 as one from warehouse.raw.orders as orders",
            {"customer_id": {("raw.orders", "customer_id")}, "twice": {("raw.orders", "amount")}, "one": set()},
        ),
        (
            "with paid as (select * from raw.orders) select name, sum(amount) as spend from paid"
            " inner join raw.customers using (customer_id) group by 1",
            {"name": {("raw.customers", "name")}, "spend": {("raw.orders", "amount")}},
        ),
        (
            "select customer_id, row_number() over (partition by name order by customer_id) as n from raw.customers",
            {
                "customer_id": {("raw.customers", "customer_id")},
                "n": {("raw.customers", "name"), ("raw.customers", "customer_id")},
            },
        ),
        (
            "select placed_at as at from raw.orders where placed_at > (select max(at) from features.itself)",
            {"at": {("raw.orders", "placed_at")}},
        ),
    ],
    ids=["renamed and computed", "through a cte and a join", "a window", "an incremental model's own table"],
)
def test_each_column_leads_to_the_columns_it_is_made_from(sql: str, made_from: dict[str, set[tuple[str, str]]]) -> None:
    assert column_lineage(sql, "duckdb", TABLES) == made_from


@pytest.mark.parametrize("entity", [("a",), ("a", "b")])
def test_the_key_in_sql_is_the_key_in_python(entity: tuple[str, ...]) -> None:
    values = ["plain", "with,comma", "with~tilde", "~0", "~1", "Zürich/8001", "", " ", "100%", "'quoted'"]
    score = Score(
        name="s", title="", description="", owner="", email="", kind="probability", features="", features_schema="",
        features_id="", label="", label_schema="", label_id="", entity=entity, as_of="day", columns=(), gate=(),
        bands={}, fresh_for_days=1,
    )  # fmt: skip
    with duckdb.connect() as connection:
        for a in values:
            for b in values:
                row = (a, b)[: len(entity)]
                made = connection.execute(
                    f"select {published_key(score)} from (select ? as a{', ? as b' if len(entity) == 2 else ''})",
                    list(row),
                ).fetchone()
                assert made == (customer_key(list(row)),)
