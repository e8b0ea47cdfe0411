"""What a score may learn from: one row per key, and labels that have matured."""

from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestration import versions
from orchestration.training import ScoringError, freeze_training_set
from orchestration.warehouse import Connection, open_warehouse
from tests.small_data import a_score_of, some_rows

TODAY = date(2024, 6, 1)


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Connection]:
    """With the feature and label model of the small score, all of it matured by `TODAY`."""
    with open_warehouse(tmp_path / "warehouse.duckdb") as connection:
        versions.create_tables(connection)
        connection.register("rows_of_both", some_rows())
        connection.execute("""
            create schema features; create schema labels;
            create table features.customer_features as select * exclude (label, matures_on) from rows_of_both;
            create table labels.customer_left as select customer_id, week, label, matures_on from rows_of_both;
        """)
        yield connection


def frozen(connection: Connection, tmp_path: Path, today: date = TODAY, **changes: Any) -> dict[str, Any]:
    score = msgspec.structs.replace(a_score_of("days_away", "spend"), **changes)
    return freeze_training_set(connection, score, today, tmp_path / "training_sets")


def test_a_training_set_is_every_matured_row(warehouse: Connection, tmp_path: Path) -> None:
    assert frozen(warehouse, tmp_path)["rows"] == some_rows().num_rows


@pytest.mark.parametrize("model", ["features.customer_features", "labels.customer_left"])
def test_a_key_that_comes_twice_is_refused_before_training(warehouse: Connection, tmp_path: Path, model: str) -> None:
    warehouse.execute(f"insert into {model} from {model} where week = '2024-02-05' and customer_id in (3, 4)")
    with pytest.raises(ScoringError) as raised:
        frozen(warehouse, tmp_path)
    assert str(raised.value).startswith(
        f"score 'leaving': model '{model.partition('.')[2]}' has 2 keys with more than one row, such as customer_id 3,"
        " week 2024-02-05 with 2; it must have one row per customer_id × week: mend its joins"
    )
    assert not (tmp_path / "training_sets").exists()


def test_a_key_that_is_null_twice_is_refused_too(warehouse: Connection, tmp_path: Path) -> None:
    warehouse.execute("insert into labels.customer_left select null, null, 1, date '2024-03-01' from range(2)")
    with pytest.raises(ScoringError, match="such as customer_id None, week None with 2"):
        frozen(warehouse, tmp_path)


DAY_BEFORE_THE_LAST_MATURES = some_rows()["matures_on"].to_pylist()[-1] - timedelta(days=1)


def test_rows_that_have_not_matured_wait_in_a_label_model_that_is_built_anew(
    warehouse: Connection, tmp_path: Path
) -> None:
    assert frozen(warehouse, tmp_path, DAY_BEFORE_THE_LAST_MATURES)["rows"] == some_rows().num_rows - 20
    assert frozen(warehouse, tmp_path)["rows"] == some_rows().num_rows


def test_rows_that_an_incremental_label_model_would_keep_immature_are_refused(
    warehouse: Connection, tmp_path: Path
) -> None:
    with pytest.raises(ScoringError) as raised:
        frozen(warehouse, tmp_path, DAY_BEFORE_THE_LAST_MATURES, label_is_incremental=True)
    assert str(raised.value).startswith(
        "score 'leaving': model 'customer_left' is incremental and has 20 rows that mature only after"
        f" {DAY_BEFORE_THE_LAST_MATURES}; their label would stay as it is now: either let the model select matured rows"
        " alone (where matures_on <= today), or build it anew each time (materialized: table)"
    )
    assert frozen(warehouse, tmp_path, label_is_incremental=True)["rows"] == some_rows().num_rows
