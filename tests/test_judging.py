"""A gate that has changed judges the newest version by the champion of now, and stops nothing whatever it asks for."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest

from ml import registry
from ml.gate import GateResult
from orchestration import versions, warehouse
from orchestration.judging import described, judge, judged
from orchestration.project import Paths
from orchestration.training import metrics_table
from orchestration.training_sets import training_set_file
from orchestration.warehouse import Connection
from tests.small_data import a_model, a_score, a_warehouse, another_version, some_rows

SCORE = a_score()


@pytest.fixture
def where(tmp_path: Path) -> Paths:
    return Paths(project=tmp_path, data=tmp_path)


@pytest.fixture
def connection(where: Paths) -> Iterator[Connection]:
    """Version 4, of which the gate has not judged yet, was compared with version 3, the champion."""
    with warehouse.open_warehouse(where.warehouse) as connection:
        a_warehouse(connection, where, SCORE, "n", rows=10)
        another_version(connection, where, SCORE, 4)
        file = training_set_file(where.training_sets, SCORE, "e" * 64)
        file.parent.mkdir(parents=True)
        pq.write_table(some_rows(customers=80, seed=8), file)
        yield connection


def passed(connection: Connection, where: Paths, condition: str) -> tuple[bool, dict[str, float], str]:
    newest = versions.newest_version(connection, SCORE)
    assert newest is not None
    (verdict,) = judge(connection, msgspec.structs.replace(SCORE, gate=(condition,)), newest, where)
    return verdict.passed, verdict.values, verdict.note


def test_the_champion_is_that_of_now_and_not_of_when_the_version_was_trained(
    connection: Connection, where: Paths
) -> None:
    another_version(connection, where, SCORE, 5)
    then = passed(connection, where, "roc_auc >= champion_roc_auc + 1")[1]["champion_roc_auc"]
    assert then == pytest.approx(a_model().card.metrics["roc_auc"])
    versions.promote(connection, SCORE, 4, "force", "a reason")
    now = passed(connection, where, "roc_auc >= champion_roc_auc + 2")[1]["champion_roc_auc"]
    assert now != pytest.approx(then)
    (where.models / SCORE.name / "4" / registry.BOOSTER).write_bytes(b"")
    _, figures, note = passed(connection, where, "roc_auc >= champion_roc_auc + 3")
    assert figures["champion_roc_auc"] == then
    assert note.startswith("the champion is that of then, as version 4 can't be measured: ")
    assert passed(connection, where, "roc_auc >= 0.1")[2] == ""


def test_a_column_that_came_after_the_version_has_no_slice_and_stops_nothing(
    connection: Connection, where: Paths
) -> None:
    has_passed, _, note = passed(connection, where, "min_by('region', roc_auc) >= 0.5")
    assert not has_passed and note.startswith("region has no slice on which roc_auc can be measured: ")


def test_a_champion_that_is_damaged_fails_what_asks_for_its_slices_and_no_more(
    connection: Connection, where: Paths
) -> None:
    own, champions = "min_by('member', roc_auc)", "min_by('member', champion_roc_auc)"
    assert passed(connection, where, f"{own} >= {champions} - 1")[0]
    (where.models / SCORE.name / "3" / registry.BOOSTER).write_bytes(b"cut short")
    has_passed, _, note = passed(connection, where, f"{own} >= {champions} - 2")
    assert not has_passed and "version 3 can't be read" in note
    assert passed(connection, where, f"{own} >= 0.1")[0]


def test_beside_its_condition_a_verdict_tells_the_figures_and_does_not_repeat_the_condition() -> None:
    result = GateResult("roc_auc >= 0.9", {"roc_auc": 0.85}, passed=False, note="a note")
    assert judged(result) == "roc_auc 0.8500: failed, a note"
    assert described(result) == "roc_auc >= 0.9 (roc_auc 0.8500): failed, a note"


def test_the_table_of_metrics_that_the_ui_shows_is_narrow_and_has_the_champion() -> None:
    baseline = "a_feature_with_quite_a_long_name_84d alone"
    card = msgspec.structs.replace(
        a_model().card,
        version=4,
        champion_version=3,
        champion={"roc_auc": 0.8123},
        baseline_name=baseline,
        metrics={"roc_auc": 0.85},
        baseline={"roc_auc": 0.7},
        intervals={"roc_auc": (0.81, 0.89)},
    )
    lines = metrics_table(card).splitlines()
    assert lines[0] == "| metric | version 4 (95 %) | naive | version 3, champion then |"
    assert lines[2] == "| roc_auc | 0.8500 (0.8100 to 0.8900) | 0.7000 | 0.8123 |"
    assert lines[-1] == f"Naive: {baseline}"
    alone = metrics_table(msgspec.structs.replace(card, champion_version=None, champion={}))
    assert alone.splitlines()[2] == "| roc_auc | 0.8500 (0.8100 to 0.8900) | 0.7000 |"
