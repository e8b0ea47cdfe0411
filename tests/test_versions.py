"""What the warehouse knows of model versions: written whole or not at all."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ml.gate import GateResult
from orchestration import versions
from orchestration.warehouse import Connection, open_warehouse
from tests.small_data import a_model, a_score

PASSED = [GateResult("roc_auc >= 0.5", {"roc_auc": 0.9}, passed=True, note="")]


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Connection]:
    with open_warehouse(tmp_path / "warehouse.duckdb") as connection:
        versions.create_tables(connection)
        versions.record_version(connection, a_model().card, "engine", None, None)
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
