"""As-of dates that are built again: which, what they leave alone, and what is said of mistakes."""

from pathlib import Path

import duckdb
import pytest

from tests.conftest import LOANS, Run, copy_of, run_pipeline

PRODUCTS = "intermediate.int_household_products"
OF_DATES = [PRODUCTS, "features.household_features", "labels.household_lapse_28d", "labels.household_spend_28d"]


def differing_dates(before: Path, now: Path, table: str) -> list[str]:
    """The as-of dates of which a table has other rows in two warehouses."""
    with duckdb.connect() as connection:
        connection.execute(f"attach '{before}' as before (read_only); attach '{now}' as now (read_only)")
        found = connection.execute(
            f"""
            select distinct as_of_date::varchar from (
                (from before.{table} except from now.{table}) union all (from now.{table} except from before.{table})
            ) order by 1
            """
        ).fetchall()
    return [day for (day,) in found]


def test_a_backfill_builds_its_dates_again_and_what_is_missing_but_no_other(sample_run: Run, tmp_path: Path) -> None:
    mine = copy_of(sample_run, tmp_path)
    before, now = sample_run.data / "warehouse.duckdb", mine.data / "warehouse.duckdb"
    with duckdb.connect(str(now)) as connection:
        # A hole and a lost newest date, in all that is kept by date; two dates whose rows went wrong.
        for table in OF_DATES:
            connection.execute(f"delete from {table} where as_of_date in ('2017-05-01', '2018-01-01')")
        connection.execute(
            f"update {PRODUCTS} set products_count_84d = -1 where as_of_date in ('2017-06-05', '2017-07-10')"
        )
    done = run_pipeline(mine.project, mine.data, mine.home, "--as-of-from", "2017-06-05", "--as-of-to", "2017-07-03")
    assert done.code == 0, done.printed
    assert "5 as-of dates built again, 11,933 rows" in done.printed
    assert differing_dates(before, now, PRODUCTS) == ["2017-07-10"], "the one that was not asked for"
    for table in OF_DATES[1:]:
        assert differing_dates(before, now, table) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--as-of-from", "2017-06-5"], "'2017-06-5' is no date (write YYYY-MM-DD)"),
        (["--as-of-from", "2017-07-01", "--as-of-to", "2017-06-01"], "is the wrong way round"),
        (["--as-of-from", "2024-01-01"], "no macro or model of 'loans' reads the vars as_of_from and as_of_to"),
    ],
)
def test_a_backfill_that_can_not_be_made_is_told_before_anything_runs(
    loans_run: Run, tmp_path: Path, arguments: list[str], told: str
) -> None:
    done = run_pipeline(LOANS, loans_run.data, loans_run.home, *arguments)
    assert done.code == 1
    assert told in " ".join(done.printed.split())
    assert "✓" not in done.printed
