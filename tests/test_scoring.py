"""Scores are written date by date: what is done stays done, what is killed is done again, and nothing is doubled."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
import pyarrow as pa
import pytest
from litestar.testing import TestClient

from ml import prediction
from ml.declarations import Feature, Project, Score
from ml.learning import Explained
from orchestration import scoring, warehouse
from orchestration.judging import current_champion
from orchestration.project import Paths
from orchestration.publishing import publish
from orchestration.warehouse import Connection
from serving.app import create_app
from tests.conftest import REPOSITORY
from tests.small_data import CLASSES, a_score, a_warehouse

SCORE = a_score()
DATES = [date(2024, 5, 6), date(2024, 5, 13), date(2024, 5, 20)]
ROWS = 60
# All that a later run must not change.
CONTENT = "select * exclude (scored_at) from predictions.leaving"

# Scores in a process of its own, which is killed while the second date is written.
KILLED = """
import os, signal, sys
from pathlib import Path
from ml import prediction
from orchestration.warehouse import open_warehouse
from tests.test_scoring import score_all
right, calls = prediction.score_batch, []
def score_batch(*arguments):
    calls.append(1)
    if len(calls) == 2:
        print("killed", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return right(*arguments)
prediction.score_batch = score_batch
where = Path(sys.argv[1])
with open_warehouse(where / "warehouse.duckdb") as connection:
    score_all(connection, where)
"""


def make(connection: Connection, folder: Path, score: Score = SCORE) -> None:
    """A warehouse with a champion and three as-of dates to score."""
    a_warehouse(connection, Paths(project=folder, data=folder), score, "n", rows=ROWS)
    for day in DATES[1:]:
        connection.execute(
            f"insert into features.customer_features select * replace (date '{day}' as week,"
            f" (days_away + {day.day}) % 60 as days_away) from features.customer_features where week = '{DATES[0]}'"
        )


def score_all(connection: Connection, folder: Path, score: Score = SCORE, **options: Any) -> tuple[list[date], int]:
    champion = current_champion(connection, score)
    return scoring.score_dates(connection, score, champion, Paths(project=folder, data=folder), **options)


def content(connection: Connection) -> Any:
    return warehouse.content_hash(connection, CONTENT)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Connection]:
    with warehouse.open_warehouse(tmp_path / "warehouse.duckdb") as connection:
        make(connection, tmp_path)
        yield connection


@pytest.fixture
def at_once(tmp_path: Path) -> Any:
    """What is written by a scoring that nothing disturbs."""
    (tmp_path / "at_once").mkdir()
    with warehouse.open_warehouse(tmp_path / "at_once" / "warehouse.duckdb") as connection:
        make(connection, tmp_path / "at_once")
        assert score_all(connection, tmp_path / "at_once") == (DATES, 3 * ROWS)
        return content(connection)


def test_a_scoring_that_fails_halfway_keeps_the_dates_done_and_the_next_does_the_others(
    shop: Connection, tmp_path: Path, at_once: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = prediction.score_batch

    def score_batch(model: Any, score: Any, rows: pa.RecordBatch, scored_at: datetime) -> pa.RecordBatch:
        if rows["week"][0].as_py() == DATES[1]:
            raise OSError("no space left")
        return right(model, score, rows, scored_at)

    with monkeypatch.context() as failing:
        failing.setattr(prediction, "score_batch", score_batch)
        with pytest.raises(OSError, match="no space left"):
            score_all(shop, tmp_path)
    kept = warehouse.rows(shop, "select distinct as_of_date, scored_at from predictions.leaving")
    assert [row["as_of_date"] for row in kept] == [DATES[2]], "the newest, which is to be served, comes first"
    assert score_all(shop, tmp_path) == (DATES[:2], 2 * ROWS)
    assert content(shop) == at_once
    again = f"select distinct scored_at from predictions.leaving where as_of_date = '{DATES[2]}'"
    assert warehouse.one(shop, again) == (kept[0]["scored_at"],), "it was not scored again"
    assert score_all(shop, tmp_path) == ([], 0)


def test_a_scoring_killed_halfway_is_completed_by_the_next_without_doubled_rows(tmp_path: Path, at_once: Any) -> None:
    with warehouse.open_warehouse(tmp_path / "warehouse.duckdb") as connection:
        make(connection, tmp_path)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL and killed.stdout == "killed\n", killed.stderr
    with warehouse.open_warehouse(tmp_path / "warehouse.duckdb") as connection:
        assert warehouse.one(connection, "select count(*) from predictions.leaving") == (ROWS,)
        assert score_all(connection, tmp_path) == (DATES[:2], 2 * ROWS)
        assert content(connection) == at_once


def test_the_order_of_the_features_and_the_size_of_batches_change_no_prediction(
    shop: Connection, tmp_path: Path, at_once: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.execute("create or replace table features.customer_features as from features.customer_features order by spend")
    monkeypatch.setattr(warehouse, "BATCH", 7)
    score_all(shop, tmp_path)
    assert content(shop) == at_once


def test_a_changed_date_is_replaced_and_a_lost_one_withdrawn(shop: Connection, tmp_path: Path) -> None:
    score_all(shop, tmp_path)
    shop.execute(f"update features.customer_features set spend = 1 where customer_id = 3 and week = '{DATES[1]}'")
    shop.execute(f"delete from features.customer_features where week = '{DATES[0]}'")
    assert score_all(shop, tmp_path) == ([DATES[1]], ROWS)
    found = shop.execute("select as_of_date, count(*) from predictions.leaving group by 1 order by 1").fetchall()
    assert found == [(day, ROWS) for day in DATES[1:]]


def test_how_far_a_scoring_is_can_be_watched(shop: Connection, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    score_all(shop, tmp_path, tell=lambda done, due: told.append((done, due)))
    assert told == [(60, 180), (120, 180), (180, 180)]


def test_who_is_explained_decides_what_is_written_so_a_change_scores_again(shop: Connection, tmp_path: Path) -> None:
    score_all(shop, tmp_path)
    (middle,) = warehouse.one(shop, "select median(score) from predictions.leaving")
    few = a_score(bands={"high": middle, "low": 0.0}, explained=Explained(top=1, bands=("high",)))
    assert score_all(shop, tmp_path, few) == (DATES, 3 * ROWS)
    assert score_all(shop, tmp_path, few) == ([], 0)
    by_band = "select band, max(len(reasons)), min(len(reasons)) from predictions.leaving group by 1 order by 1"
    assert shop.execute(by_band).fetchall() == [("high", 1, 1), ("low", 0, 0)]


def test_reasons_are_published_with_a_sentence_of_the_features_description(shop: Connection, tmp_path: Path) -> None:
    away = Feature(name="days_away", data_type="integer", description="Days since the last visit. Null if none.")
    score = a_score(columns=(away, *SCORE.columns[1:]), explained=Explained(top=6))
    score_all(shop, tmp_path, score)
    project = Project(name="shop", today=date(2024, 5, 21), sources=(), scores=(score,))
    where = Paths(project=tmp_path, data=tmp_path)
    publish(shop, score, project, where)
    with TestClient(create_app(where.data)) as client:
        answers = [client.get(f"/scores/leaving/customers/{customer}").json() for customer in range(8)]
        page = client.get("/pages/leaving?customer_id=3").text
    assert "probabilities" not in answers[0]
    for answer in answers:
        for reason in answer["reasons"]:
            about = "Days since the last visit" if reason["feature"] == "days_away" else None
            about = about or reason["feature"].replace("_", " ").capitalize()
            value = "not known" if reason["value"] is None else reason["value"]
            moves = "raises" if reason["contribution"] > 0 else "lowers"
            assert reason["text"] == f"{about}: {value}, which {moves} the score."
    told = [reason for answer in answers for reason in answer["reasons"]]
    assert {"days_away", "spend"} <= {reason["feature"] for reason in told}
    assert any(reason["value"] is None for reason in told)
    assert f'<span class="quiet small told">{answers[3]["reasons"][0]["text"]}</span>' in page


# --- Categories


@pytest.fixture
def of_classes(tmp_path: Path) -> Iterator[tuple[Connection, Score, Paths]]:
    """A score of kind category, scored and published."""
    score, where = a_score("category", bands={}), Paths(project=tmp_path, data=tmp_path)
    with warehouse.open_warehouse(where.warehouse) as connection:
        make(connection, tmp_path, score)
        assert score_all(connection, tmp_path, score) == (DATES, 3 * ROWS)
        yield connection, score, where


def test_a_category_is_published_and_shown_by_class(of_classes: tuple[Connection, Score, Paths]) -> None:
    connection, score, where = of_classes
    project = Project(name="shop", today=date(2024, 5, 21), sources=(), scores=(score,))
    published = publish(connection, score, project, where)
    assert published["changed"] and not publish(connection, score, project, where)["changed"]
    row = warehouse.rows(
        connection, f"select * from predictions.leaving where as_of_date = '{DATES[2]}' and customer_id = 7"
    )[0]
    assert list(row["probabilities"]) == list(CLASSES)
    assert (row["band"], row["score"]) == max(row["probabilities"].items(), key=lambda pair: pair[1])
    with TestClient(create_app(where.data)) as client:
        answer = client.get("/scores/leaving/customers/7").json()
        summary = client.get("/scores/leaving").json()
        page, overview = client.get("/pages/leaving?customer_id=7").text, client.get("/").text
    assert answer["probabilities"] == row["probabilities"]
    assert (answer["value"], answer["band"]) == (row["score"], row["band"])
    moves = "for" if answer["reasons"][0]["contribution"] > 0 else "against"
    assert answer["reasons"][0]["text"].endswith(f", which speaks {moves} {row['band']}.")
    assert summary["bands"] == {}
    assert list(summary["band_counts"]) == list(CLASSES) and sum(summary["band_counts"].values()) == ROWS
    assert f'<span class="value">{row["band"]}</span><span class="band">{100 * row["score"]:.1f} %</span>' in page
    assert all(f"<span>{name}</span><svg" in page for name in CLASSES)
    assert f"speaks for {row['band']}, to the left against it" in page
    assert "<span>100 %</span>" not in page, "there is no scale from 0 to 1"
    assert "Customers by band" in overview


def test_a_prediction_that_is_no_number_is_not_published() -> None:
    from serving.generations.store import CustomerScore, PublicationError, payload

    customer = CustomerScore(
        score="leaving", customer_id="1", value=0.5, band="soon", reasons=[], as_of_date=DATES[0],
        model_version=1, generation="g", scored_at=datetime(2024, 5, 6, tzinfo=UTC),
        probabilities={"soon": 0.5, "never": float("nan")},
    )  # fmt: skip
    with pytest.raises(PublicationError, match="has a score that is not a number"):
        payload(customer)
    assert b"probabilities" not in payload(msgspec.structs.replace(customer, probabilities=None))


def test_reasons_for_a_class_that_the_champion_does_not_know_are_told_with_those_that_it_knows(tmp_path: Path) -> None:
    where = Paths(project=tmp_path, data=tmp_path)
    score = a_score("category", explained=Explained(bands=("never", "sooon")))
    with warehouse.open_warehouse(where.warehouse) as connection:
        a_warehouse(connection, where, score, "n", rows=ROWS)
    asset = scoring.predictions_asset(score, dg.AssetKey("customer_features"), where)
    result = dg.materialize([asset], selection=[asset])
    (made,) = result.asset_materializations_for_node("predictions__leaving")
    told = "reasons: bands names sooon, which version 3 gives to nobody (its classes: later, never, soon)"
    assert made.metadata["reasons"].value == told
    assert scoring._unknown_classes(a_score("category", explained=Explained()), 3, where) is None
    assert scoring._unknown_classes(a_score(explained=Explained(bands=("high",))), 3, where) is None
