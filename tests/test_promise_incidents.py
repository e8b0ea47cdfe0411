"""A promise counts as broken, and is told, on several matured dates in a row: one may be chance."""

from collections.abc import Iterator
from typing import Any

import duckdb
import msgspec
import pytest

from ml.alerts import Alerts
from ml.realised import Performance
from orchestration.incidents import Known, mark_sent
from orchestration.promise_incidents import update_promise
from tests.small_data import a_score
from tests.test_performance import a_date, a_performance


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as opened:
        opened.execute("set TimeZone = 'UTC'")
        yield opened


def of(*verdicts: str) -> Performance:
    return a_performance(
        *(a_date(week, verdict, model_version=1) for week, verdict in enumerate(verdicts)), model_version=1
    )


def told(connection: duckdb.DuckDBPyConnection, *verdicts: str, **declared: Any) -> list[Known]:
    score = msgspec.structs.replace(a_score(), alerts=Alerts(**declared))
    return update_promise(connection, score, of(*verdicts))


def test_one_date_that_is_worse_than_promised_is_no_incident(connection: duckdb.DuckDBPyConnection) -> None:
    assert told(connection) == told(connection, "worse") == told(connection, "worse", "as promised", "worse") == []


def test_two_in_a_row_are_one_incident_until_a_date_keeps_the_promise(connection: duckdb.DuckDBPyConnection) -> None:
    (opened,) = told(connection, "as promised", "worse", "worse")
    assert (opened.kind, opened.severity) == ("worse than promised", "error")
    assert opened.told.startswith("on 2 matured dates in a row: ")
    mark_sent(connection, a_score(), opened.incident, ["webhook"], True)
    (goes_on,) = told(connection, "as promised", "worse", "worse", "worse")
    assert (goes_on.incident, goes_on.alerted_on) == (opened.incident, opened.alerted_on)
    assert goes_on.sent_at is not None and "on 3 matured dates" in goes_on.told
    assert told(connection, "as promised", "worse", "worse", "worse", "better") == []


def test_an_incident_that_lasts_stays_one_though_its_first_date_is_another_now(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    (opened,) = told(connection, "worse", "worse", "worse")
    (goes_on,) = told(connection, "as promised", "worse", "worse")
    assert (goes_on.incident, goes_on.began_on) == (opened.incident, opened.began_on)


def test_the_owner_says_on_how_many_dates(connection: duckdb.DuckDBPyConnection) -> None:
    assert told(connection, "worse", "worse", dates=3) == []
    (opened,) = told(connection, "worse", "worse", "worse", dates=3)
    assert opened.alerted_on == a_date(2).as_of_date
