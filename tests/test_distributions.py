"""Every row of every column is counted as numpy would count it, whatever it holds."""

from datetime import date
from typing import Any

import duckdb
import numpy as np
import pytest

from ml.encoding import Column
from ml.slices import UNKNOWN
from orchestration.distributions import OTHER, Counted, Segments, count, learn_bins, sampled
from reports.distances import Bins, Distribution
from tests.test_distances import of_values

ROWS = 3000
DATES = [date(2024, 5, 6), date(2024, 5, 13)]
# Row n of 3,000; every column has something awkward in it.
TABLE = f"""
    create table customers as select
        n,
        case when n % 3 = 0 then date '2024-05-06' else date '2024-05-13' end as week,
        case n % 50
            when 1 then null when 2 then 'nan'::double when 3 then 'infinity'::double when 4 then '-infinity'::double
            when 5 then 0 when 6 then -1e300 when 7 then 1e-300
            else round(sin(n) * 100, 3)
        end as number,
        case when n % 7 > 0 then (n % 90 / 4)::decimal(12, 3) end as "decimal",
        case when n % 5 > 0 then (n % 40)::hugeint end as "whole number",
        case n % 11
            when 0 then null when 1 then 'infinity'::date when 2 then '-infinity'::date when 3 then date '0001-01-01'
            else date '2020-01-01' + (n % 800)::integer
        end as joined_on,
        case n % 11
            when 0 then null when 1 then 'infinity'::timestamptz
            else timestamptz '2024-05-05 23:30+00' - n * interval 1 minute
        end as seen_at,
        case when n % 11 > 0 then timestamp '2024-05-05 23:30' - n * interval 1 minute end as local,
        case n % 4 when 0 then null else n % 4 = 1 end as member,
        case n % 10
            when 0 then null when 1 then '' when 2 then 'it''s' when 3 then '"quoted"' when 4 then '=' when 5 then 'é'
            when 6 then 'never seen' when 7 then 'nor ''this'''
            else 'red'
        end as colour,
        'town ' || (n % 300) as town,
        case n % 6
            when 0 then null when 1 then 'south' when 2 then 'it''s' when 3 then 'unseen'
            else 'north'
        end as region,
        null::double as nothing
    from range({ROWS}) as numbers (n)
"""
COLOURS = ("", '"quoted"', "=", "it's", "red", "é")


@pytest.fixture(scope="module")
def connection() -> Any:
    with duckdb.connect() as opened:
        opened.execute("set timezone = 'Pacific/Auckland'")  # it must not matter
        opened.execute(TABLE)
        yield opened


def counted(connection: Any, *bins: Bins, **options: Any) -> list[Counted]:
    return count(connection, "select * from customers", "week", list(bins), **options)


def whole(connection: Any, bins: Bins) -> Distribution:
    (found,) = count(connection, "select * from customers", "null", [bins])
    return found.distribution


def same(found: Distribution, expected: Distribution) -> None:
    assert (found.rows, found.nulls, found.counts, found.nonzero) == (
        expected.rows,
        expected.nulls,
        expected.counts,
        expected.nonzero,
    )
    for moment in ("mean", "sd", "low", "high", "log_mean", "log_sd"):
        assert getattr(found, moment) == pytest.approx(getattr(expected, moment), rel=1e-6), moment


def as_models_read(values: Any) -> Any:
    """float32 within its range, NaN where null."""
    largest = float(np.finfo(np.float32).max)
    return np.clip(np.array(values, dtype=np.float64), -largest, largest).astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("name", ["number", "decimal", "whole number"])
def test_numbers_are_counted_as_numpy_does_also_the_infinite_and_the_missing(connection: Any, name: str) -> None:
    values = as_models_read(
        [np.nan if one is None else one for (one,) in connection.execute(f'select "{name}" from customers').fetchall()]
    )
    with np.errstate(all="ignore"):
        edges = tuple(float(edge) for edge in np.unique(np.nanquantile(values, [0.1, 0.4, 0.9], method="inverted_cdf")))
        expected = of_values(values, edges)
    same(whole(connection, Bins(name=name, type="number", edges=edges)), expected)


@pytest.mark.parametrize(
    ("name", "days"),
    [
        ("joined_on", "case when isfinite(joined_on) then joined_on - date '1970-01-01' end"),
        ("seen_at", "case when isfinite(seen_at) then epoch(seen_at) / 86400 end"),
        ("local", "epoch(local) / 86400"),
    ],
)
def test_dates_are_days_and_the_ends_of_time_none(connection: Any, name: str, days: str) -> None:
    found = [one for (one,) in connection.execute(f"select {days} from customers").fetchall()]
    values = np.array([np.nan if one is None else float(one) for one in found])
    if name != "joined_on":
        values = as_models_read(values)
    edges = tuple(float(edge) for edge in np.unique(np.nanquantile(values, [0.2, 0.5], method="inverted_cdf")))
    kind: Any = "date" if name == "joined_on" else "timestamp"
    same(whole(connection, Bins(name=name, type=kind, edges=edges)), of_values(values, edges))


def test_booleans_are_counted_by_their_values(connection: Any) -> None:
    found = whole(connection, Bins(name="member", type="boolean", categories=("false", "true")))
    assert (found.nulls, found.counts, found.mean) == (ROWS // 4, (ROWS // 2, ROWS // 4, 0), None)


def test_texts_are_counted_whatever_they_are_and_new_ones_are_named(connection: Any) -> None:
    found = whole(connection, Bins(name="colour", type="category", categories=COLOURS))
    tenth = ROWS // 10
    assert found.nulls == tenth
    assert found.counts == (tenth, tenth, tenth, tenth, 2 * tenth, tenth, 2 * tenth)
    assert sorted(found.new) == ["never seen", "nor 'this'"]


def test_a_category_of_hundreds_of_values_is_counted_whole(connection: Any) -> None:
    towns = tuple(sorted(f"town {place}" for place in range(250)))
    found = whole(connection, Bins(name="town", type="category", categories=towns))
    assert found.counts == (*[ROWS // 300] * 250, 50 * (ROWS // 300))
    assert len(found.new) == 5 and not set(found.new) & set(towns)


def test_a_column_without_categories_or_values_or_edges_is_counted_too(connection: Any) -> None:
    assert whole(connection, Bins(name="colour", type="category")).counts == (ROWS - ROWS // 10,)
    assert whole(connection, Bins(name="number", type="number")).counts == (ROWS - 2 * (ROWS // 50),)
    nothing = whole(connection, Bins(name="nothing", type="number", edges=(1.0,)))
    assert (nothing.nulls, nothing.counts, nothing.mean, nothing.nonzero) == (ROWS, (0, 0), None, 0)


def test_rows_are_counted_for_each_date(connection: Any) -> None:
    found = counted(connection, Bins(name="n", type="number", edges=(1499.0,)), Bins(name="colour", type="category"))
    assert [(one.key, one.column, one.segment_column) for one in found] == [
        (day, column, None) for day in DATES for column in ("n", "colour")
    ]
    assert [one.distribution.rows for one in found] == [1000, 1000, 2000, 2000]
    assert [one.distribution.counts for one in found if one.column == "n"] == [(500, 500), (1000, 1000)]


def in_segments(found: list[Counted]) -> dict[Any, int]:
    return {(one.key, one.segment_column, one.segment): one.distribution.rows for one in found}


def test_segments_are_counted_besides_and_null_and_unseen_values_are_segments(connection: Any) -> None:
    segments = [Segments("region", ("it's", "north", "south")), Segments("member", ("false", "true"))]
    found = counted(connection, Bins(name="n", type="number"), segments=segments, each=True)
    rows = in_segments(found)
    for day, total in zip(DATES, (1000, 2000), strict=True):
        assert rows[day, None, None] == total
        of_region = {key[2]: size for key, size in rows.items() if key[:2] == (day, "region")}
        plain = connection.execute(f"select region, count(*) from customers where week = '{day}' group by 1").fetchall()
        named = {None: UNKNOWN, "unseen": OTHER}
        assert of_region == {named.get(region, region): size for region, size in plain}
        assert sum(size for key, size in rows.items() if key[:2] == (day, "member")) == total


def test_segments_of_all_dates_together_are_counted_once(connection: Any) -> None:
    segments = [Segments("region", ("it's", "north", "south"))]
    rows = in_segments(counted(connection, Bins(name="n", type="number"), segments=segments, each=False))
    assert rows == {
        (DATES[0], None, None): 1000,
        (DATES[1], None, None): 2000,
        (None, "region", UNKNOWN): 500,
        (None, "region", OTHER): 500,
        (None, "region", "it's"): 500,
        (None, "region", "north"): 1000,
        (None, "region", "south"): 500,
    }


def test_no_rows_give_no_distribution(connection: Any) -> None:
    assert count(connection, "select * from customers where false", "week", [Bins(name="n", type="number")]) == []


# --- Bins


def learned(connection: Any, *columns: Column, rows: str = "select * from customers") -> list[Bins]:
    return learn_bins(connection, rows, columns, "n")


def test_numbers_are_counted_by_their_deciles_and_categories_by_those_that_the_model_knows(connection: Any) -> None:
    number, colour, member, joined = learned(
        connection,
        Column("n", "number"),
        Column("colour", "category", COLOURS),
        Column("member", "boolean"),
        Column("joined_on", "date"),
    )
    assert number.edges == tuple(float(ROWS * place // 10 - 1) for place in range(1, 10))
    assert whole(connection, number).counts == (ROWS // 10,) * 10
    assert (colour.categories, member.categories) == (COLOURS, ("false", "true"))
    assert len(joined.edges) == 9 and all(edge.is_integer() for edge in joined.edges)


def test_equal_deciles_are_one_bin_and_a_column_of_nulls_has_one(connection: Any) -> None:
    constant, nothing, flag = learned(
        connection,
        Column("three", "number"),
        Column("nothing", "number"),
        Column("flag", "number"),
        rows="select *, 3 as three, (n % 10 = 0)::integer as flag from customers",
    )
    assert (constant.edges, nothing.edges, flag.edges) == ((3.0,), (), (0.0,))
    assert learned(connection) == []


def test_deciles_are_of_a_sample_that_is_always_the_same_where_there_are_very_many_rows(
    connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestration.distributions.SAMPLED", 500)
    query = sampled(connection, "select * from customers", "n", 500)
    ((drawn,),) = connection.execute(f"select count(*) from ({query})").fetchall()
    ((total,),) = connection.execute("select count(*) from customers").fetchall()
    assert 400 < drawn < 600 < total
    (number,) = learned(connection, Column("n", "number"))
    assert number.edges == pytest.approx([total * place / 10 for place in range(1, 10)], rel=0.2)
    assert learned(connection, Column("n", "number")) == [number]
