"""What the warehouse knows of model versions: written whole or not at all."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ml.gate import GateResult
from orchestration import versions
from orchestration.judging import judge
from orchestration.project import Paths
from orchestration.warehouse import Connection, open_warehouse, rows, transaction
from tests.small_data import a_model, a_score

PASSED = [GateResult("roc_auc >= 0.5", {"roc_auc": 0.9}, passed=True, note="")]


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Connection]:
    with open_warehouse(tmp_path / "warehouse.duckdb") as connection:
        versions.create_tables(connection)
        versions.record_version(connection, a_model().card, "engine")
        yield connection


class Failing:
    """A connection that breaks when a statement begins with these words."""

    def __init__(self, connection: Connection, words: str) -> None:
        self._connection, self._words = connection, words

    def execute(self, query: str, *values: Any) -> Any:
        if query.strip().startswith(self._words):
            raise RuntimeError("killed here")
        return self._connection.execute(query, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def test_a_verdict_and_the_promotion_it_brings_are_written_together(warehouse: Connection) -> None:
    broken: Any = Failing(warehouse, "update ml.model_versions")
    with pytest.raises(RuntimeError, match="killed here"):
        versions.record_gate(broken, a_score(), 3, PASSED)
    assert versions.gate_of(warehouse, a_score(), 3) == []
    versions.record_gate(warehouse, a_score(), 3, PASSED)
    champion = versions.champion(warehouse, a_score())
    assert champion is not None and champion["version"] == 3


def test_a_version_of_another_kind_is_no_champion(warehouse: Connection) -> None:
    versions.record_gate(warehouse, a_score(), 3, PASSED)
    assert versions.champion(warehouse, a_score("amount")) is None
    newest = versions.newest_version(warehouse, a_score("amount"))
    assert newest is not None and newest["version"] == 3


def promoted(connection: Connection, *decisions: tuple[int, versions.How]) -> None:
    """Versions 3, 4 and 5, and what was decided of them."""
    for version in (4, 5):
        card = msgspec.structs.replace(a_model().card, version=version)
        versions.record_version(connection, card, "engine")
    for version, how in decisions:
        versions.promote(connection, a_score(), version, how, "for a reason")


def log(connection: Connection) -> list[tuple[int, str, int | None]]:
    told = versions.promotions(connection, a_score())
    return [(row["version"], row["how"], row["replaced_version"]) for row in told]


def test_each_promotion_is_logged_with_who_and_what_it_replaced(warehouse: Connection) -> None:
    promoted(warehouse)
    versions.record_gate(warehouse, a_score(), 3, PASSED)
    with transaction(warehouse):
        versions.promote(warehouse, a_score(), 4, "force", "the other was too low")
    assert log(warehouse) == [(3, "gate", None), (4, "force", 3)]
    last = versions.promotions(warehouse, a_score())[-1]
    assert (last["reason"], last["promoted_by"]) == ("the other was too low", versions.user())
    champion = versions.champion(warehouse, a_score())
    assert champion is not None
    assert (champion["version"], champion["promoted_at"]) == (4, last["promoted_at"])


def test_a_gate_that_is_judged_again_does_not_promote_the_champion_again(warehouse: Connection) -> None:
    for _ in range(2):
        versions.record_gate(warehouse, a_score(), 3, PASSED)
    assert log(warehouse) == [(3, "gate", None)]


def test_the_newest_promotion_counts_also_where_the_clock_was_set_back(warehouse: Connection) -> None:
    promoted(warehouse, (3, "gate"))
    warehouse.execute("update ml.promotions set promoted_at = promoted_at + interval 1 year")
    versions.promote(warehouse, a_score(), 4, "force", "now")
    champion = versions.champion(warehouse, a_score())
    assert champion is not None and champion["version"] == 4


def test_promotions_of_before_they_were_logged_are_known(warehouse: Connection) -> None:
    promoted(warehouse)
    warehouse.execute("drop table ml.promotions")
    for version, day in ((3, 1), (5, 2)):
        warehouse.execute(f"update ml.model_versions set promoted_at = '2024-05-0{day}' where version = {version}")
    for _ in range(2):
        versions.create_tables(warehouse)
    assert log(warehouse) == [(3, "gate", None), (5, "gate", 3)]
    champion = versions.champion(warehouse, a_score())
    assert champion is not None and champion["version"] == 5


@pytest.mark.parametrize("how", ["rollback", "force"])
def test_a_changed_gate_does_not_undo_what_a_person_decided(
    warehouse: Connection, how: versions.How, tmp_path: Path
) -> None:
    promoted(warehouse, (3, "gate"), (5, "gate"), (3, how))
    (newest,) = rows(warehouse, "select * from ml.model_versions where version = 5")
    (verdict,) = judge(warehouse, a_score(gate=("roc_auc >= 0.1",)), newest, Paths(project=tmp_path, data=tmp_path))
    assert verdict.passed
    assert verdict.note == f"but not promoted again, as a {how} put version 3 in its place"
    assert versions.gate_of(warehouse, a_score(), 5) == [verdict]
    champion = versions.champion(warehouse, a_score())
    assert champion is not None and champion["version"] == 3
    versions.promote(warehouse, a_score(), 5, "force", "it was right after all")
    assert versions.taken_back(warehouse, a_score(), 5) is None


@pytest.mark.parametrize(
    ("decisions", "before"),
    [
        ([], []),
        ([(3, "gate")], []),
        ([(3, "gate"), (4, "gate"), (5, "gate")], [4, 3]),
        ([(3, "gate"), (4, "gate"), (5, "gate"), (4, "rollback")], [3]),
        ([(3, "gate"), (4, "gate"), (5, "gate"), (3, "rollback")], []),
        ([(3, "gate"), (4, "gate"), (3, "force")], [4]),
        ([(3, "gate"), (4, "gate"), (3, "rollback"), (5, "gate")], [3]),
    ],
)
def test_a_rollback_leads_to_the_champion_before_and_never_to_one_that_was_rolled_back_from(
    warehouse: Connection, decisions: list[tuple[int, versions.How]], before: list[int]
) -> None:
    promoted(warehouse, *decisions)
    assert versions.champions_before(warehouse, a_score()) == before
