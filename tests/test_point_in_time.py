"""The macros of point in time, asked of facts that no model of the two projects has."""

from datetime import date, datetime
from typing import Any

import duckdb
import jinja2
import pytest

from tests.conftest import SAMPLE

MACROS: Any = jinja2.Template((SAMPLE / "macros" / "point_in_time.sql").read_text()).module


@pytest.mark.parametrize(
    ("as_of", "price"),
    [(date(2024, 2, 1), 5), (date(2024, 3, 1), 5), (date(2024, 3, 2), 9)],
    ids=["not yet told", "told on the day", "told before"],
)
def test_facts_with_validities_of_their_own_count_from_when_they_were_known(as_of: date, price: int) -> None:
    latest = MACROS.latest_as_of(
        "spine", "prices", key="product_id", as_of="as_of_date", occurred="valid_from", known="told_on"
    )
    with duckdb.connect() as connection:
        connection.execute("create table spine as select 1 as product_id, ?::date as as_of_date", [as_of])
        connection.execute(
            """
            create table prices as
            select 1 as product_id, * from (
                values (date '2024-01-01', date '2024-01-10', date '2024-01-01', 5),
                    (date '2024-01-10', null, date '2024-03-01', 9)
            ) as t (valid_from, valid_to, told_on, price)
            """
        )
        found = connection.execute(f"select price, valid_from from {latest} as latest").fetchall()
    assert [price for price, _ in found] == [price]
    assert not isinstance(found[0][1], datetime)  # the fact's own column, as it was given
