"""A drift page shows every column that has values, works anywhere, and believes no text it shows."""

import html
import re
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from reports.evidently_page import EvidentlyPage, Shown, _frame, evidently_page
from tests.small_data import with_column

ROWS = 360
DAY = date(2024, 5, 6)
COLUMNS: dict[str, Shown] = {
    "colour": "category",
    "town": "category",
    "huge": "number",
    "rounding": "number",
    "ends_of_time": "number",  # the first five are summarised too
    "spend": "number",
    "member": "category",
    "joined_on": "number",
    "seen_at": "number",
    "local": "number",
    "decimal": "number",
    "dictionary": "category",
    "year": "category",
    "big_ids": "number",
    "big_id": "number",
    "never_known": "number",
    "gone_away": "number",
    "come_back": "number",
}
# Of the first two the numbers are alike to a model, and too large for ten bins around one.
LEFT_OUT = ["big_ids", "big_id", "never_known", "gone_away", "come_back"]
EVIL = ("</script><script>alert('1 & 2')</script>", "<!--<script>", "</head><body>")


def table(seed: int, town: str = "rare", evil: tuple[str, ...] = ("blue", "green", "red")) -> pa.Table:
    """Customers drawn from the same shop whatever the seed, with columns of every type, and awkward ones."""
    random = np.random.default_rng(seed)
    days = random.integers(0, 900, ROWS)
    instants = [datetime(2020, 1, 1, tzinfo=UTC) + timedelta(days=int(day)) for day in days]
    towns = [f"{town} {number}" for number in range(60)] + [f"frequent {number % 49}" for number in range(ROWS - 60)]
    return pa.table(
        {
            "colour": pa.array(random.choice(evil, ROWS), mask=random.random(ROWS) < 0.1),
            "spend": pa.array(random.gamma(2, 20, ROWS), mask=random.random(ROWS) < 0.1),
            "member": pa.array(random.random(ROWS) < 0.4, mask=random.random(ROWS) < 0.1),
            "joined_on": [instant.date() for instant in instants],
            "town": pa.array(random.permutation(towns)),
            "seen_at": pa.array(instants, pa.timestamp("us", "UTC")),
            "local": pa.array([instant.replace(tzinfo=None) for instant in instants], pa.timestamp("ns")),
            "decimal": pa.array([Decimal(int(day)) for day in days], pa.decimal128(12, 2)),
            "dictionary": pa.array([str(day // 300) for day in days]).dictionary_encode(),
            "year": pa.array([date(instant.year, 1, 1) for instant in instants]),
            "rounding": pa.array([1.0, 1.0000000000000002] * (ROWS // 2)),
            "big_ids": pa.array([10**17, 10**17 + 16] * (ROWS // 2), pa.int64()),
            "big_id": pa.array([10**17] * ROWS, pa.int64()),
            "huge": pa.array([-1.7e308, 5e-324, 1.7e308] * (ROWS // 3)),
            "ends_of_time": pa.array([2**63 - 1, 0] * (ROWS // 2), pa.timestamp("s")),
            "never_known": pa.nulls(ROWS, pa.float64()),
            "gone_away": pa.array([float(seed)] * ROWS) if seed == 1 else pa.array([np.inf, None] * (ROWS // 2)),
            "come_back": pa.nulls(ROWS, pa.float64()) if seed == 1 else pa.array([2.0] * ROWS),
        }
    )


def a_page(evil: tuple[str, ...] = ("blue", "green", "red"), title: str = "Leaving", **head: str) -> EvidentlyPage:
    before, after = table(1, "rare", evil), table(2, "scarce", evil)
    return evidently_page(before, after, title=title, day=DAY, columns=COLUMNS, head=head)


def told(page: str) -> dict[str, str]:
    """What the head of the page says, as a reader sees it."""
    return {
        html.unescape(name): html.unescape(text)
        for name, text in re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page, re.DOTALL)
    }


class Page(HTMLParser):
    """The tags of a page as a browser would see them, and the addresses that it would fetch by itself."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.styles: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = {"link": ("href",), "object": ("data",), "form": ("action",)}.get(tag, ("src", "srcset", "poster"))
        self.fetched += [value for name, value in attrs if name in named and value and not value.startswith("data:")]
        self.styles += [value for name, value in attrs if name == "style" and value]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "style":
            self.styles.append(data)


@pytest.fixture(scope="module")
def harmless() -> EvidentlyPage:
    return a_page(Reference="rows of April", name="text")


@pytest.fixture(scope="module")
def evil() -> EvidentlyPage:
    """Categories, title and head try to be html."""
    return a_page(EVIL, title=EVIL[0], Reference=EVIL[2], **{EVIL[1]: EVIL[0]})


def test_the_page_fetches_nothing(harmless: EvidentlyPage) -> None:
    page = Page(harmless.html)
    assert page.fetched == []
    assert "script" in page.tags and page.styles
    assert not re.search(r"(@import|url\()\s*['\"]?(https?:|//)", "".join(page.styles))


def test_the_page_has_its_title_and_what_is_said_above_the_charts(harmless: EvidentlyPage) -> None:
    assert "<title>Leaving</title>" in harmless.html
    assert harmless.html.index("<h1>Leaving</h1>") > harmless.html.index("<title>Leaving</title>") > 0
    assert list(told(harmless.html).items())[:2] == [("Reference", "rows of April"), ("name", "text")]


def test_columns_of_every_type_are_shown_also_those_that_are_huge_or_differ_by_rounding_alone(
    harmless: EvidentlyPage,
) -> None:
    shown = [name for name in COLUMNS if f'"{name}"' in harmless.html]
    assert shown == [name for name in COLUMNS if name not in LEFT_OUT]


def test_columns_without_values_on_one_side_are_left_out_and_named(harmless: EvidentlyPage) -> None:
    assert told(harmless.html)["Not in the charts"] == f"{', '.join(LEFT_OUT)} (no values, or too large)"


def test_of_many_categories_the_rare_ones_are_taken_together(harmless: EvidentlyPage) -> None:
    assert '"(other)"' in harmless.html and "frequent 48" in harmless.html
    assert "rare 9" not in harmless.html and "scarce 9" not in harmless.html


def test_a_missing_category_is_a_category_and_a_missing_number_is_left_out() -> None:
    columns: dict[str, Shown] = {"colour": "category", "member": "category", "spend": "number", "gone_away": "number"}
    frame = _frame(table(2), columns)
    assert set(frame["colour"]) == {"blue", "green", "red", "(null)"}
    assert set(frame["member"]) == {"true", "false", "(null)"}
    assert frame["spend"].isna().sum() == table(2).column("spend").null_count > 0
    assert frame["gone_away"].isna().all(), "an infinite number is none"


def test_what_is_said_is_shown_as_it_is_and_never_read_as_html(harmless: EvidentlyPage, evil: EvidentlyPage) -> None:
    title = html.escape(EVIL[0])
    assert f"<h1>{title}</h1>" in evil.html and f"<title>{title}</title>" in evil.html
    assert list(told(evil.html).items())[:2] == [("Reference", EVIL[2]), (EVIL[1], EVIL[0])]
    assert Page(evil.html).tags == Page(harmless.html).tags


def test_a_category_is_never_read_as_html(evil: EvidentlyPage) -> None:
    for text in EVIL:
        assert text not in evil.html
        assert text.replace("<", r"\u003c") in evil.html  # which a script reads as it was


def test_a_page_without_any_column_to_show_says_so() -> None:
    empty = pa.table({"never": pa.nulls(3, pa.float64())})
    found = evidently_page(empty, empty, title="Leaving", day=DAY, columns={"never": "number"}, head={})
    assert found.snapshot is None
    assert told(found.html) == {"Not in the charts": "never (no values, or too large)"}
    assert "<h1>Leaving</h1>" in found.html


def refused(before: pa.Table, after: pa.Table) -> str:
    options: dict[str, Any] = {"title": "Leaving", "day": DAY, "columns": COLUMNS, "head": {}}
    with pytest.raises(ValueError, match=r"^drift report 'Leaving': ") as raised:
        evidently_page(before, after, **options)
    return str(raised.value).removeprefix("drift report 'Leaving': ")


def test_columns_and_rows_that_a_side_lacks_are_named() -> None:
    rows = table(1)
    assert refused(rows, rows.drop_columns(["spend", "town"])) == "the current rows lack columns town, spend"
    assert refused(rows.slice(0, 0), rows) == "the reference rows lack rows"
    assert refused(rows, rows.slice(0, 0)) == "the current rows lack rows"


def test_drawing_a_page_changes_no_row() -> None:
    rows = table(1)
    frame = _frame(with_column(rows, "colour", pc.replace_substring(rows.column("colour"), "red", "<b>")), COLUMNS)
    assert "<" not in "".join(frame["colour"]), "it has another sign until the page is written"
    assert rows.equals(table(1))
