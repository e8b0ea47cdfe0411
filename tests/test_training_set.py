"""What a score may learn from: one row per key, and labels that have matured."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ml.labels import BadLabel
from ml.training import train
from orchestration import versions
from orchestration.project import Paths
from orchestration.training_sets import (
    KEPT_TRAINING_SETS,
    ScoringError,
    freeze_training_set,
    prune_training_sets,
    training_rows,
    training_set_file,
)
from orchestration.warehouse import Connection, open_warehouse
from tests.conftest import LOANS, REPOSITORY, Run, environment_of
from tests.small_data import a_model, a_score, a_score_of, some_rows

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


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("drop table labels.customer_left", "there is no table labels.customer_left; make run builds it"),
        ("delete from features.customer_features", "features.customer_features has no rows"),
        ("delete from labels.customer_left", "no label in labels.customer_left has matured by 2024-06-01"),
        (
            "update labels.customer_left set customer_id = -1 - customer_id",
            "no row of features.customer_features has the customer_id, week of one in labels.customer_left",
        ),
    ],
)
def test_why_there_is_nothing_to_train_on_is_told(
    warehouse: Connection, tmp_path: Path, change: str, told: str
) -> None:
    warehouse.execute(change)
    with pytest.raises(ScoringError, match=told):
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


@pytest.mark.parametrize(
    ("spoilt", "told"),
    [
        ("null", "has 20 rows whose matures_on is null: nobody knows when they may be learned from"),
        ("week", "has 20 rows that mature on their week or before: an outcome lies after the date"),
    ],
)
def test_labels_of_no_maturity_after_their_date_are_refused(
    warehouse: Connection, tmp_path: Path, spoilt: str, told: str
) -> None:
    warehouse.execute(f"update labels.customer_left set matures_on = {spoilt} where week = '2024-02-05'")
    with pytest.raises(ScoringError, match=told):
        frozen(warehouse, tmp_path)
    assert not (tmp_path / "training_sets").exists()


def test_a_file_that_is_not_what_was_frozen_is_refused_until_it_is_frozen_anew(
    warehouse: Connection, tmp_path: Path
) -> None:
    score, where = a_score_of("days_away", "spend"), Paths(project=tmp_path, data=tmp_path)
    checksum = frozen(warehouse, tmp_path)["training_set"]
    file = training_set_file(where.training_sets, score, checksum)
    rows = training_rows(warehouse, score, checksum, where)
    warehouse.execute(f"copy (from '{file}' limit 300) to '{file}.other'")
    Path(f"{file}.other").replace(file)
    with pytest.raises(ScoringError, match=r"can't be read: it is not what was written; remove the file and run again"):
        training_rows(warehouse, score, checksum, where)
    assert not frozen(warehouse, tmp_path)["changed"]
    assert training_rows(warehouse, score, checksum, where) == rows


def test_a_lost_file_of_an_older_training_set_is_brought_back_or_done_without(
    warehouse: Connection, tmp_path: Path
) -> None:
    score, where = a_score_of("days_away", "spend"), Paths(project=tmp_path, data=tmp_path)
    older = frozen(warehouse, tmp_path)["training_set"]
    warehouse.execute("update features.customer_features set spend = 1")
    frozen(warehouse, tmp_path)
    training_set_file(where.training_sets, score, older).unlink()
    with pytest.raises(ScoringError, match=r"it is missing; bring the file back from a copy, or .* make train SCORE="):
        training_rows(warehouse, score, older, where)


def test_a_stored_query_gives_the_training_set_again(warehouse: Connection, tmp_path: Path) -> None:
    checksum = frozen(warehouse, tmp_path)["training_set"]
    recorded = versions.training_set(warehouse, a_score_of("days_away", "spend"), checksum)
    assert recorded is not None
    kept = training_rows(warehouse, a_score_of("days_away", "spend"), checksum, Paths(project=tmp_path, data=tmp_path))
    assert warehouse.sql(recorded["query"]).to_arrow_table().to_pylist() == kept.to_pylist()


def test_training_sets_of_old_versions_are_removed_but_not_the_champions(warehouse: Connection, tmp_path: Path) -> None:
    score, folder = a_score_of("days_away", "spend"), tmp_path / "training_sets"
    sets = []
    for version in range(1, KEPT_TRAINING_SETS + 4):
        warehouse.execute(f"update features.customer_features set spend = {version}")
        sets.append(frozen(warehouse, tmp_path)["training_set"])
        card = msgspec.structs.replace(a_model().card, score=score.name, version=version, training_set=sets[-1])
        versions.record_version(warehouse, card, "an engine")
        if version == 2:
            versions.record_gate(warehouse, score, version, [])  # no condition, so it passes
    assert prune_training_sets(warehouse, score, folder) == sorted([sets[0], sets[2]])
    assert prune_training_sets(warehouse, score, folder) == []
    assert {file.stem for file in (folder / score.name).iterdir()} == set(sets) - {sets[0], sets[2]}


def test_a_row_that_matures_after_the_last_known_day_is_not_trained_on() -> None:
    rows, last = some_rows(), some_rows()["matures_on"].to_pylist()[-1]
    with pytest.raises(BadLabel, match=f"20 of 320 labels mature only after {last - timedelta(days=1)}"):
        train(rows, a_score(), known_until=last - timedelta(days=1))
    early = rows.set_column(rows.column_names.index("matures_on"), "matures_on", rows["week"])
    with pytest.raises(BadLabel, match="320 of 320 labels mature on their week or before"):
        train(early, a_score())


def test_what_each_version_learned_from_is_told(loans_run: Run) -> None:
    command = [sys.executable, "-m", "orchestration.training_sets"]
    environment = environment_of(LOANS, loans_run.data, loans_run.home)
    told = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True).stdout
    assert "default_risk 1" in told and "as frozen" in told
    (file,) = (loans_run.data / "training_sets" / "default_risk").iterdir()
    assert file.stem in told
