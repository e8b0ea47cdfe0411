"""Whatever goes wrong while rows stream from the warehouse, it can be closed, and opened again."""

import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from ml import prediction
from ml.declarations import Project
from ml.encoding import EncodingError
from orchestration import scoring, warehouse
from orchestration.judging import current_champion
from orchestration.project import Paths
from orchestration.publishing import publish
from serving.generations.store import BadCustomerId
from tests.small_data import a_score, a_warehouse

MANY = "create or replace table many as select range as n from range(10_000)"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(warehouse, "BATCH", 1000)
    return tmp_path / "warehouse.duckdb"


def assert_closed(file: Path) -> None:
    """By another process, which is refused at once; in this one the next to open it would wait for ever."""
    opened = f"import duckdb; duckdb.connect({str(file)!r})"
    subprocess.run([sys.executable, "-c", opened], check=True, timeout=60)


def test_a_failure_halfway_through_the_rows_of_a_query_leaves_it_closed(file: Path) -> None:
    with pytest.raises(ZeroDivisionError) as kept, warehouse.open_warehouse(file) as connection:  # noqa: PT012
        connection.execute(MANY)
        with warehouse.batches(connection, "select n from many order by n") as batches:
            for batch in batches:
                assert batch.num_rows / 0
    assert kept.traceback  # whose frames hold what they had
    assert_closed(file)


def test_a_query_that_fails_in_a_later_batch_says_why_and_leaves_it_closed(file: Path) -> None:
    with pytest.raises(duckdb.Error, match="five thousand") as kept, warehouse.open_warehouse(file) as connection:  # noqa: PT012
        connection.execute(MANY)
        connection.execute("create table copied (n bigint)")
        failing = "select case when n = 5000 then error('five thousand') else n end from many"
        with warehouse.transaction(connection), warehouse.streamed(connection, failing) as stream:
            connection.execute(f"insert into copied select * from {stream}")
    assert kept.traceback
    assert_closed(file)


def test_after_a_failure_the_next_rows_stream_on_the_same_connection(file: Path) -> None:
    with warehouse.open_warehouse(file) as connection:
        connection.execute(MANY)
        connection.execute("create table copied (n bigint)")
        for query in ("select error('no') from many", "select n from many"):
            with suppress(duckdb.Error), warehouse.streamed(connection, query) as stream:
                connection.execute(f"insert into copied select * from {stream}")
        assert warehouse.one(connection, "select count(*) from copied") == (10_000,)


def test_a_row_that_the_model_cant_read_in_a_later_batch_is_told_in_its_own_words(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score_batch(model: Any, score: Any, batch: pa.RecordBatch, scored_at: datetime) -> pa.RecordBatch:
        if batch["n"][0].as_py() >= 5000:
            raise EncodingError("column 'spend' is text, but was a number")
        return batch

    monkeypatch.setattr(prediction, "score_batch", score_batch)
    model: Any = None
    with pytest.raises(EncodingError, match="is text"), warehouse.open_warehouse(file) as connection:  # noqa: PT012
        connection.execute(MANY)
        connection.execute("create table scored (n bigint)")
        with warehouse.transaction(connection):
            query = "select n from many order by n"
            scoring._insert(connection, "scored", model, a_score(), query, datetime.now(UTC))
    assert_closed(file)


@pytest.mark.parametrize(
    ("customer_id", "fault"),
    [("0" * 600, "customer id '0{60}[.]{3}' has 600 bytes, 511 are possible"), ("", "a customer id is empty")],
    ids=["too long", "empty"],
)
def test_a_customer_id_that_cant_be_published_is_told_and_leaves_it_closed(
    file: Path, customer_id: str, fault: str
) -> None:
    where, score = Paths(project=file.parent, data=file.parent), a_score()
    shop = Project(name="shop", today=None, sources=(), scores=(score,))
    with pytest.raises(BadCustomerId, match=fault), warehouse.open_warehouse(file) as connection:  # noqa: PT012
        ids = f"case when n = 0 then '{customer_id}' else 'customer ' || n end"
        a_warehouse(connection, where, score, ids, rows=3000)
        scoring.score_dates(connection, score, current_champion(connection, score), where)
        publish(connection, score, shop, where)
    assert not any((where.generations / score.name).iterdir())
    assert_closed(file)
