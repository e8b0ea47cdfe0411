"""A challenger scores beside the champion, is compared with it, and never served."""

from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
import pytest

from ml import prediction
from ml.declarations import Project
from orchestration import scoring, versions, warehouse
from orchestration.challenging import Comparison, compare_versions
from orchestration.project import Paths
from orchestration.publishing import publish
from tests.small_data import a_score, a_warehouse, another_version

SCORE = a_score(shadow=True)
SHOP = Project(name="shop", today=date(2024, 5, 7), sources=(), scores=(SCORE,))


@pytest.fixture
def where(tmp_path: Path) -> Paths:
    """Version 3 is the champion of 200 customers, version 4 has not been judged."""
    where = Paths(project=tmp_path, data=tmp_path)
    with warehouse.open_warehouse(where.warehouse) as connection:
        a_warehouse(connection, where, SCORE, "n", rows=200)
        another_version(connection, where, SCORE, 4)
    return where


def scored(where: Paths, score: Any = SCORE) -> dict[str, Any]:
    """The metadata of the predictions, made as a run makes them."""
    asset = scoring.predictions_asset(score, dg.AssetKey("customer_features"), where)
    result = dg.materialize([asset], selection=[asset])
    (made,) = result.asset_materializations_for_node(asset.op.name)
    return {name: value.value for name, value in made.metadata.items()}


def published(where: Paths) -> dict[str, Any]:
    with warehouse.open_warehouse(where.warehouse) as connection:
        return publish(connection, SCORE, SHOP, where)


def by_version(where: Paths) -> list[tuple[int, int]]:
    with warehouse.open_warehouse(where.warehouse) as connection:
        query = f"select model_version, count(*) from predictions.{SCORE.name} group by 1 order by 1"
        return connection.execute(query).fetchall()


def test_a_challenger_scores_the_same_customers_and_nothing_else_changes(where: Paths) -> None:
    alone = scored(where, a_score())
    served = published(where)
    assert by_version(where) == [(3, 200)]
    told = scored(where)
    assert by_version(where) == [(3, 200), (4, 200)]
    assert told.pop("challenger").startswith(
        "version 4: 200 customers scored by both at 2024-05-06, rank correlation 0."
    )
    changed = {"rows scored now": 0, "as-of dates scored now": "none: all were scored before", "changed": False}
    assert told == alone | changed, "the challenger's rows count for nothing"
    assert published(where) == served | {"changed": False}


def test_a_challenger_that_is_damaged_or_can_not_read_the_features_is_told_and_stops_nothing(where: Paths) -> None:
    model = where.models / SCORE.name / "4" / "model.cbm"
    model.write_bytes(b"")
    told = scored(where)
    assert told["challenger"].startswith("version 4 can't score: score 'leaving': version 4 can't be read: ")
    assert by_version(where) == [(3, 200)]
    assert published(where)["model_version"] == 3


def test_whatever_ails_a_challenger_stops_nothing_and_the_log_has_where_it_came_from(
    where: Paths, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    right = prediction.score_batch

    def score_batch(model: Any, *others: Any) -> Any:
        if model.card.version == 4:
            raise MemoryError("no room for its trees")
        return right(model, *others)

    monkeypatch.setattr(prediction, "score_batch", score_batch)
    assert scored(where)["challenger"] == "version 4 can't score: MemoryError: no room for its trees"
    logged = capfd.readouterr().err
    assert "version 4, the challenger, can't score" in logged
    assert "Traceback (most recent call last)" in logged and "in score_batch" in logged
    assert by_version(where) == [(3, 200)]


def test_without_another_version_of_its_kind_there_is_no_challenger(where: Paths) -> None:
    with warehouse.open_warehouse(where.warehouse) as connection:
        connection.execute("update ml.model_versions set kind = 'amount' where version = 4")
    assert "challenger" not in scored(where)


def test_the_challenger_is_the_newest_version_that_is_not_the_champion(where: Paths) -> None:
    with warehouse.open_warehouse(where.warehouse) as connection:
        another_version(connection, where, SCORE, 5)
        found = []
        for champion in (3, 5):
            challenger = versions.challenger(connection, SCORE, {"version": champion})
            found.append(challenger and challenger["version"])
    assert found == [5, 4]


def test_versions_are_compared_on_the_newest_date_that_both_have_scored(where: Paths) -> None:
    score = msgspec.structs.replace(SCORE, name="compared")
    with warehouse.open_warehouse(where.warehouse) as connection:
        assert compare_versions(connection, score, 1, 2) is None
        connection.execute(
            """
            create schema predictions;
            create table predictions.compared (
                customer_id integer, as_of_date date, score double, band varchar, model_version integer
            );
            insert into predictions.compared values
                (1, '2024-05-06', 0.1, 'low', 1), (2, '2024-05-06', 0.2, null, 1), (3, '2024-05-06', 0.9, 'high', 1),
                (4, '2024-05-06', 0.9, 'high', 1), (5, '2024-05-06', 0.3, 'low', 1), (1, '2024-05-13', 0.1, 'low', 1),
                (1, '2024-05-06', 0.4, 'low', 2), (2, '2024-05-06', 0.5, 'low', 2), (3, '2024-05-06', 0.7, null, 2),
                (4, '2024-05-06', 0.6, 'high', 2), (1, '2024-04-29', 0.1, 'low', 2);
            """
        )
        found = compare_versions(connection, score, 1, 2)
        assert found == Comparison(date(2024, 5, 6), 4, pytest.approx(0.9487, abs=1e-4), 0.5)  # as scipy.stats has it
        assert str(found) == "4 customers scored by both at 2024-05-06, rank correlation 0.949, 50.0% in another band"
        connection.execute("update predictions.compared set score = 0.5 where model_version = 2")
        alike = compare_versions(connection, score, 1, 2)
        assert alike is not None and alike.rank_correlation is None
        assert compare_versions(connection, score, 1, 3) is None
