"""What has drifted is traced to the raw table that fell silent, or to the batch in which a raw column changed."""

from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

import duckdb
import pytest

from ml.declarations import Project, Source
from orchestration import distributions
from orchestration.figures import create_tables
from orchestration.tracing import lost_tables, origin

DAY = date(2024, 5, 6)
ROOTS = ["raw.visits.seen_at", "raw.visits.spend", "raw.people.born_on"]


def a_project(**changes: Any) -> Project:
    sources = [
        Source(
            id=f"source.shop.raw.{table}", schema="raw", table=table, description="", uri="x.csv", file="sources.yml",
            **({"cursor": "seen_at"} | changes if table == "visits" else {}),
        )
        for table in ("visits", "people")
    ]  # fmt: skip
    return Project(name="shop", today=None, sources=tuple(sources), scores=())


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    """Ten visits a day for twenty weeks before the day, of which those of a fortnight came with one batch."""
    with duckdb.connect() as opened:
        create_tables(opened)
        opened.execute(
            f"""
            create schema raw;
            create table raw.visits as select
                timestamptz '{DAY} 00:00+00' - (n // 10 + 1) * interval 1 day as seen_at,
                50 + 30 * sin(n % 140) as spend, (n % 7)::integer as "key", n % 3 = 0 as by_card,
                case when n % 20 = 0 then 'returned' else 'sold' end as "kind of visit", [n] as list,
                format('batch {{:02}}', 9 - n // 140) as _batch_id,
                timestamptz '{DAY} 06:00+00' - (n // 140) * interval 14 day as _loaded_at, 'visits.csv' as _source
            from range(1400) as numbers (n);
            create table raw.people as select date '1980-01-01' + n::integer as born_on from range(50) as numbers (n)
            """
        )
        yield opened


LEARNED = [DAY - timedelta(weeks=weeks) for weeks in range(13, 1, -1)]


def lost(
    connection: duckdb.DuckDBPyConnection, project: Project | None = None, day: date = DAY, roots: Any = ROOTS
) -> dict[str, str]:
    found = lost_tables(connection, project or a_project(), roots, LEARNED, [day], {day: roots})
    return {table: one.evidence for table, one in found[day].items()}


def fell_silent(connection: duckdb.DuckDBPyConnection, days: int) -> None:
    connection.execute(f"delete from raw.visits where seen_at >= date '{DAY - timedelta(days)}'")


# --- Lost sources


def test_no_table_is_lost_while_rows_come(connection: duckdb.DuckDBPyConnection) -> None:
    assert lost(connection) == {}


def test_a_table_whose_newest_row_is_older_than_it_ever_was_is_lost(connection: duckdb.DuckDBPyConnection) -> None:
    fell_silent(connection, 9)
    assert lost(connection) == {
        "raw.visits": "its newest seen_at is 2024-04-26, 10 days before; it never was more than 1"
    }


def test_a_lost_table_is_lost_since_the_first_date_that_shows_it_until_rows_come_again(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    fell_silent(connection, 16)
    days = [DAY - timedelta(weeks=weeks) for weeks in (3, 2, 1, 0)]
    found = lost_tables(connection, a_project(), ROOTS, LEARNED, days)
    assert [list(found[day]) for day in days] == [[], [], ["raw.visits"], ["raw.visits"]]
    assert found[DAY]["raw.visits"].since == days[2]
    connection.execute(f"insert into raw.visits (seen_at) values (timestamptz '{DAY} 00:00+00' - interval 1 day)")
    assert lost_tables(connection, a_project(), ROOTS, LEARNED, days)[DAY] == {}


def test_a_silence_that_grows_from_week_to_week_is_never_taken_for_usual(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute(f"delete from raw.visits where seen_at::date = date '{LEARNED[3]}' - 1")  # once two days
    fell_silent(connection, 23)
    days = [DAY - timedelta(weeks=weeks) for weeks in (3, 2, 1, 0)]
    found = lost_tables(connection, a_project(), ROOTS, LEARNED[:-2], days)
    assert [list(found[day]) for day in days] == [[], *[["raw.visits"]] * 3]


def test_a_day_without_rows_loses_no_table(connection: duckdb.DuckDBPyConnection) -> None:
    fell_silent(connection, 1)
    assert lost(connection) == {}


def test_a_table_that_comes_by_the_fortnight_is_not_lost_in_between(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute(f"delete from raw.visits where date_diff('day', seen_at::date, date '{DAY}') % 14 <> 9")
    assert lost(connection, day=DAY + timedelta(weeks=1)) == {}


def test_without_a_cursor_the_times_that_features_are_made_from_tell(connection: duckdb.DuckDBPyConnection) -> None:
    fell_silent(connection, 9)
    assert list(lost(connection, a_project(cursor=None))) == ["raw.visits"]
    assert lost(connection, a_project(cursor=None), roots=["raw.visits.spend"]) == {}
    unsuspected = lost_tables(connection, a_project(cursor=None), ROOTS, LEARNED, [DAY])
    assert unsuspected == {DAY: {}}, "a calendar may have gaps: it is told where features have drifted alone"


def test_a_table_that_no_feature_is_made_from_or_that_is_gone_or_empty_is_not_lost(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    fell_silent(connection, 9)
    assert lost(connection, roots=["seeds.rates.rate"]) == {}
    connection.execute("delete from raw.visits")
    assert lost(connection) == {}
    connection.execute("drop table raw.visits")
    assert lost(connection) == {}


def test_a_table_whose_last_load_failed_is_lost(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute(
        "insert into quality.last_loads values ('raw', 'people', 'no such file'), ('raw', 'visits', null)"
    )
    assert lost(connection) == {"raw.people": "its last load failed: no such file"}


def test_a_table_whose_load_has_failed_is_lost_since_its_newest_row_is_older_than_it_ever_was(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    connection.execute(f"delete from raw.visits where date_diff('day', seen_at::date, date '{DAY}') % 14 <> 9")
    days = [DAY + timedelta(weeks=weeks) for weeks in (-1, 0, 1)]
    fell_silent(connection, 8)
    assert lost_tables(connection, a_project(), ROOTS, LEARNED, days)[days[-1]] == {}
    connection.execute("insert into quality.last_loads values ('raw', 'visits', 'no such file')")
    found = lost_tables(connection, a_project(), ROOTS, LEARNED, days)[days[-1]]["raw.visits"]
    assert found.since == days[-1] and found.evidence.endswith("; its last load failed: no such file")


def test_without_tables_of_the_engine_nothing_is_known_to_have_failed(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("drop schema quality cascade")
    assert lost(connection) == {}


# --- Origins


def of(connection: duckdb.DuckDBPyConnection, cause: str, **changes: Any) -> str | None:
    return origin(connection, a_project(**changes), cause)


def test_a_column_that_never_changed_began_nowhere(connection: duckdb.DuckDBPyConnection) -> None:
    for column in ("spend", "key", "by_card", "kind of visit", "seen_at"):
        assert of(connection, f"raw.visits.{column}") is None, column


def test_the_batch_in_which_a_raw_column_changed_is_named_with_what_became_of_it(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    connection.execute("update raw.visits set spend = spend * 100 where _batch_id >= 'batch 08'")
    assert of(connection, "raw.visits.spend") == (
        "began with batch batch 08 of raw.visits (loaded 2024-04-22 06:00, from visits.csv):"
        " spend: all values are 100 times what they were (dollars to cents?)"
    )


@pytest.mark.parametrize(
    ("column", "change", "told"),
    [
        (
            "kind of visit",
            "'vendu'",
            "'returned', 'sold' are gone, which 100% of the rows had, and 'vendu' has come with 100%",
        ),
        ("kind of visit", "null", "100% of the rows are null, 0% were"),
        ("by_card", "true", "100% of the rows are 'true', 33% were"),
        ("key", "3", "all rows are 3"),
    ],
)
def test_columns_of_any_type_are_traced_whatever_they_are_called(
    connection: duckdb.DuckDBPyConnection, column: str, change: str, told: str
) -> None:
    connection.execute(f"""update raw.visits set "{column}" = {change} where _batch_id = 'batch 09'""")
    found = of(connection, f"raw.visits.{column}")
    assert found is not None and found.startswith("began with batch batch 09 of raw.visits (loaded 2024-05-06 06:00")
    assert told in found


def test_a_column_of_few_values_in_very_many_rows_is_traced(
    connection: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributions, "SAMPLED", 10)
    connection.execute("update raw.visits set \"key\" = 3 where _batch_id >= 'batch 07'")
    found = of(connection, "raw.visits.key")
    assert found is not None and "batch 07" in found and "all rows are 3" in found


def test_where_all_rows_came_with_one_batch_the_week_is_named(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute(
        "update raw.visits set _batch_id = 'one', spend = spend * case when seen_at >= '2024-04-22' then 100 else 1 end"
    )
    assert of(connection, "raw.visits.spend") == (
        "began in the rows of raw.visits from the week of 2024-04-22 on, all of one batch:"
        " spend: all values are 100 times what they were (dollars to cents?)"
    )
    assert of(connection, "raw.visits.spend", cursor=None) is None
    assert of(connection, "raw.visits.spend", cursor="key") is None, "a number is no week"


def test_of_a_table_the_last_batch_with_rows_is_named(connection: duckdb.DuckDBPyConnection) -> None:
    assert of(connection, "raw.visits") is None
    connection.execute(
        """
        insert into quality.source_metrics (schema_name, table_name, batch_id, source, loaded_at, landed) values
            ('raw', 'visits', 'b1', 'old.csv', '2024-04-08 06:00+00', 1400),
            ('raw', 'visits', 'b2', 'new.csv', '2024-04-22 06:00+00', 0),
            ('raw', 'people', 'b3', 'people.csv', '2024-05-01 06:00+00', 5)
        """
    )
    assert of(connection, "raw.visits") == (
        "the last batch with rows was b1 (1,400 rows, loaded 2024-04-08 06:00, from old.csv)"
    )


def test_what_the_engine_does_not_load_or_can_not_compare_began_nowhere(connection: duckdb.DuckDBPyConnection) -> None:
    for cause in ("raw.people.born_on", "seeds.rates.rate", "raw.visits.list", "raw.visits.gone"):
        assert of(connection, cause) is None, cause
