"""A drift report names what has changed, and its page works anywhere and believes no text it shows."""

import html
import re
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from html.parser import HTMLParser
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from reports.evidently_page import DriftReport, _frame, drift_report
from tests.small_data import with_column

ROWS = 1200
COLUMNS: dict[str, Literal["number", "category"]] = {
    "spend": "number",
    "visits": "number",
    "colour": "category",
    "member": "category",
    "joined_on": "number",
}


def table(seed: int, rows: int = ROWS) -> pa.Table:
    """Customers drawn from the same shop whatever the seed."""
    random = np.random.default_rng(seed)
    return pa.table(
        {
            "spend": random.gamma(2, 20, rows),
            "visits": pa.array(random.poisson(9, rows), mask=random.random(rows) < 0.1),
            "colour": pa.array(random.choice(["blue", "green", "red"], rows), mask=random.random(rows) < 0.1),
            "member": pa.array(random.random(rows) < 0.4, mask=random.random(rows) < 0.1),
            "joined_on": [date(2020, 1, 1) + timedelta(days=int(days)) for days in random.integers(0, 900, rows)],
            "score": random.random(rows),
        }
    )


def report(current: pa.Table, reference: pa.Table | None = None, **options: Any) -> DriftReport:
    options = {"title": "Leaving", "columns": COLUMNS} | options
    return drift_report(table(1) if reference is None else reference, current, **options)


def drifted(found: DriftReport) -> list[str]:
    return [
        key.removeprefix("column.").removesuffix(".verdict")
        for key, value in found.metrics.items()
        if key.endswith(".verdict") and value == "drifted"
    ]


def told(found: DriftReport) -> dict[str, str]:
    """What the head of the page says, as a reader sees it."""
    return {
        html.unescape(name): html.unescape(text)
        for name, text in re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", found.html, re.DOTALL)
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
def unchanged() -> DriftReport:
    return report(table(2), prediction="score", reference_name="rows of April", current_name="rows of May")


@pytest.fixture(scope="module")
def changed() -> DriftReport:
    """More spent, and green is called lime."""
    rows = table(2)
    rows = with_column(rows, "spend", pc.multiply(rows.column("spend"), 1.5))
    return report(with_column(rows, "colour", pc.replace_substring(rows.column("colour"), "green", "lime")))


# --- What has drifted


def test_rows_of_the_same_shop_have_not_drifted(unchanged: DriftReport) -> None:
    assert drifted(unchanged) == []
    assert unchanged.metrics["drifted_columns"] == unchanged.metrics["share_of_drifted_columns"] == 0
    assert unchanged.metrics["compared_columns"] == 6
    assert told(unchanged)["Drifted"].partition(" (")[0] == "0 of 6 columns"


def test_a_shifted_number_and_a_renamed_category_are_each_named(changed: DriftReport) -> None:
    assert drifted(changed) == ["spend", "colour"]
    assert changed.metrics["drifted_columns"] == 2
    assert changed.metrics["share_of_drifted_columns"] == pytest.approx(2 / 5)
    assert told(changed)["Drifted"].partition(" (")[0] == "2 of 5 columns: spend, colour"


def test_charts_are_of_the_first_columns_and_change_no_figure(changed: DriftReport) -> None:
    rows = with_column(table(2), "spend", pc.multiply(table(2).column("spend"), 1.5))
    rows = with_column(rows, "colour", pc.replace_substring(rows.column("colour"), "green", "lime"))
    for charted in (0, 1, 3, 99):
        found = report(rows, charted=charted)
        assert found.metrics == changed.metrics
        assert told(found) == told(changed)
        assert [name for name in COLUMNS if f'"{name}"' in found.html] == list(COLUMNS)[:charted]


@pytest.mark.parametrize("rows", [300, ROWS])  # each has methods of its own
def test_scores_are_those_of_evidentlys_metric(rows: int) -> None:
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    before, after = table(1, rows), with_column(table(2, rows), "spend", pc.multiply(table(2, rows)["spend"], 1.1))
    definition = DataDefinition(
        numerical_columns=[name for name, kind in COLUMNS.items() if kind == "number"],
        categorical_columns=[name for name, kind in COLUMNS.items() if kind == "category"],
    )
    sides = [Dataset.from_pandas(_frame(side, COLUMNS), data_definition=definition) for side in (after, before)]
    with np.errstate(all="ignore"):
        measured = Report([ValueDrift(column=name) for name in COLUMNS]).run(*sides).dict()["metrics"]
    found = report(after, before).metrics
    for name, metric in zip(COLUMNS, measured, strict=True):
        assert found[f"column.{name}.score"] == metric["value"]
        assert found[f"column.{name}.method"] == metric["config"]["method"]
        drifted = metric["value"] < metric["config"]["threshold"]
        drifted = drifted if "p_value" in metric["config"]["method"] else not drifted
        assert found[f"column.{name}.verdict"] == ("drifted" if drifted else "stable")


def test_every_column_has_its_score_method_and_verdict(unchanged: DriftReport) -> None:
    for name in ("score", *COLUMNS):
        score, method, verdict = (unchanged.metrics[f"column.{name}.{what}"] for what in ("score", "method", "verdict"))
        assert isinstance(score, float) and 0 <= score < 0.1
        assert isinstance(method, str) and method.endswith("distance" if name in ("colour", "member") else "(normed)")
        assert verdict == "stable"


def test_the_prediction_comes_first(unchanged: DriftReport) -> None:
    of_columns = [name for name in unchanged.metrics if name.startswith("column.")]
    assert of_columns[0] == "column.score.score"


def test_small_samples_are_compared_by_a_p_value_that_is_low_where_there_is_drift() -> None:
    before, after = table(1, rows=400), table(2, rows=400)
    columns = {"spend": "number", "visits": "number"}
    found = report(with_column(after, "spend", pc.multiply(after.column("spend"), 1.5)), before, columns=columns)
    assert drifted(found) == ["spend"]
    assert {found.metrics[f"column.{name}.method"] for name in columns} == {"K-S p_value"}
    assert float(found.metrics["column.spend.score"]) < 0.05 < float(found.metrics["column.visits.score"])


def test_a_change_is_measured_by_the_spread_of_the_reference() -> None:
    narrow = pa.table({"x": np.random.default_rng(1).normal(0, 1, ROWS)})
    wide = pa.table({"x": np.random.default_rng(2).normal(0, 20, ROWS)})
    columns = {"x": "number"}
    widened, narrowed = report(wide, narrow, columns=columns), report(narrow, wide, columns=columns)
    assert float(widened.metrics["column.x.score"]) > 10 > 1 > float(narrowed.metrics["column.x.score"])


def test_columns_of_every_type_are_compared_as_numbers_or_categories() -> None:
    def typed(seed: int, later: int) -> pa.Table:
        days = np.random.default_rng(seed).integers(0, 900, ROWS) + later
        instants = [datetime(2020, 1, 1, tzinfo=UTC) + timedelta(days=int(day)) for day in days]
        return pa.table(
            {
                "date": pa.array([instant.date() for instant in instants]),
                "instant": pa.array(instants, pa.timestamp("us", "UTC")),
                "local": pa.array([instant.replace(tzinfo=None) for instant in instants], pa.timestamp("ns")),
                "decimal": pa.array([Decimal(int(day)) for day in days], pa.decimal128(12, 2)),
                "yes": pa.array(days > 450),
                "dictionary": pa.array([str(day // 300) for day in days]).dictionary_encode(),
                "year": pa.array([date(instant.year, 1, 1) for instant in instants]),
            }
        )

    columns = dict.fromkeys(typed(1, 0).column_names, "number") | dict.fromkeys(
        ("yes", "dictionary", "year"), "category"
    )
    assert drifted(report(typed(2, 0), typed(1, 0), columns=columns)) == []
    assert drifted(report(typed(2, 300), typed(1, 0), columns=columns)) == list(columns)


@pytest.mark.parametrize("charted", [None, 0])
def test_numbers_that_differ_by_rounding_alone_or_are_huge_are_compared(charted: int | None) -> None:
    numbers = {
        "rounding": pa.array([1.0, 1.0000000000000002] * 30),
        "ids": pa.array([10**17, 10**17 + 16] * 30, pa.int64()),
        "id": pa.array([10**17] * 60, pa.int64()),
        "huge": pa.array([-1.7e308, 5e-324, 1.7e308] * 20),
        "ends_of_time": pa.array([2**63 - 1, 0] * 30, pa.timestamp("s")),
    }
    columns = dict.fromkeys(numbers, "number")
    found = report(pa.table(numbers), pa.table(numbers), columns=columns, charted=charted)
    assert {found.metrics[f"column.{name}.verdict"] for name in numbers} == {"stable"}


def test_values_on_one_side_only_have_drifted_and_none_on_both_are_not_compared() -> None:
    nothing, other = pa.nulls(ROWS, pa.float64()), pa.array([np.inf, None] * (ROWS // 2))
    before = with_column(with_column(table(1), "gone", table(1).column("spend")), "come", nothing)
    after = with_column(with_column(table(2), "gone", other), "come", table(2).column("spend"))
    before, after = with_column(before, "never", nothing), with_column(after, "never", pa.nulls(ROWS))
    found = report(after, before, columns=dict.fromkeys(("spend", "gone", "come", "never"), "number"))
    assert drifted(found) == ["gone", "come"]
    assert found.metrics["share_of_drifted_columns"] == pytest.approx(2 / 3)
    assert found.metrics["column.never.verdict"] == "not compared"
    assert not {"column.gone.score", "column.come.score", "column.never.score"} & set(found.metrics)
    assert told(found)["Drifted"].partition(" (")[0] == "2 of 3 columns: gone, come"
    assert told(found)["Not in the charts"] == (
        "gone (values in the reference rows only), come (values in the current rows only), never (no values)"
    )


def test_a_page_without_any_column_to_compare_says_so() -> None:
    empty = pa.table({"never": pa.nulls(3, pa.float64())})
    found = report(empty, empty, columns={"never": "number"})
    assert told(found)["Drifted"].partition(" (")[0] == "0 of 0 columns"
    assert "<h1>Leaving</h1>" in found.html


def test_a_missing_category_is_a_category_and_a_missing_number_is_left_out() -> None:
    rows = table(2)
    half = pa.array(np.arange(ROWS) % 2 == 0)
    for name in ("spend", "colour"):
        rows = with_column(
            rows, name, pc.if_else(half, pa.scalar(None, rows.schema.field(name).type), rows.column(name))
        )
    assert drifted(report(rows, columns={"spend": "number", "colour": "category"})) == ["colour"]


def test_a_column_that_never_differs_is_stable_until_it_does() -> None:
    one = pa.table({"n": [3.0] * ROWS, "c": ["x"] * ROWS, "b": [True] * ROWS, "empty": pa.nulls(ROWS, pa.string())})
    other = pa.table({"n": [4.0] * ROWS, "c": ["y"] * ROWS, "b": [False] * ROWS, "empty": ["z"] * ROWS})
    columns = {"n": "number", "c": "category", "b": "category", "empty": "category"}
    assert drifted(report(one, one, columns=columns)) == []
    assert drifted(report(other, one, columns=columns)) == list(columns)


def test_of_many_categories_the_rare_ones_are_taken_together() -> None:
    random = np.random.default_rng(1)
    frequent = [f"frequent {number % 49}" for number in range(ROWS)]
    before, after = ([f"{rare} {number}" for number in range(100)] + frequent for rare in ("rare", "scarce"))
    found = report(
        pa.table({"x": random.permutation(after)}),
        pa.table({"x": random.permutation(before)}),
        columns={"x": "category"},
    )
    assert drifted(found) == []
    assert '"(other)"' in found.html and "frequent 48" in found.html and "scarce 9" not in found.html


# --- The samples


def test_a_sample_of_the_size_asked_for_is_compared_and_stated() -> None:
    found = report(table(2, rows=5000), table(1), sample=150, seed=3, reference_name="A", current_name="B")
    assert [found.metrics[name] for name in ("reference_rows", "current_rows")] == [ROWS, 5000]
    assert [found.metrics[name] for name in ("reference_sample", "current_sample")] == [150, 150]
    assert told(found)["Reference"] == "A: 1,200 rows, of which a sample of 150"
    assert told(found)["Current"] == "B: 5,000 rows, of which a sample of 150"
    assert told(found)["Sample"] == "drawn with seed 3"
    assert found.metrics["seed"] == 3


def test_all_rows_are_compared_where_they_are_no_more_than_the_sample(unchanged: DriftReport) -> None:
    assert [unchanged.metrics[name] for name in ("reference_sample", "current_sample")] == [ROWS, ROWS]
    assert told(unchanged)["Reference"] == "rows of April: 1,200 rows, all of them"
    assert told(unchanged)["Current"] == "rows of May: 1,200 rows, all of them"
    assert (unchanged.metrics["reference"], unchanged.metrics["current"]) == ("rows of April", "rows of May")


def test_samples_drawn_beforehand_are_stated_with_what_they_were_drawn_from() -> None:
    found = report(table(2), drawn_from=(9000, ROWS), columns={"spend": "number"}, columns_name="one of five columns")
    assert told(found)["Reference"] == "the reference rows: 9,000 rows, of which a sample of 1,200"
    assert told(found)["Current"] == "the current rows: 1,200 rows, all of them"
    assert told(found)["Compared"] == found.metrics["columns"] == "one of five columns"


def test_the_same_seed_gives_the_same_figures_and_another_seed_draws_other_rows() -> None:
    options: dict[str, Any] = {"columns": {"spend": "number", "colour": "category"}, "sample": 150}
    first, again, other = (report(table(2), seed=seed, **options).metrics for seed in (5, 5, 6))
    assert first == again
    assert first["column.spend.score"] != other["column.spend.score"]


# --- What can't be compared


def test_columns_that_a_side_lacks_are_named() -> None:
    with pytest.raises(ValueError, match=r"^drift report 'Leaving': rows of May lack columns score, spend, member$"):
        report(table(2).select(["visits", "colour", "joined_on"]), prediction="score", current_name="rows of May")


def test_a_side_without_rows_is_named() -> None:
    with pytest.raises(ValueError, match=r"^drift report 'Leaving': the reference rows lack rows$"):
        report(table(2), table(1).slice(0, 0))
    with pytest.raises(ValueError, match=r"^drift report 'Leaving': the current rows lack rows$"):
        report(table(2).slice(0, 0))


# --- The page


def test_the_page_fetches_nothing(unchanged: DriftReport) -> None:
    page = Page(unchanged.html)
    assert page.fetched == []
    assert "script" in page.tags and page.styles
    assert not re.search(r"(@import|url\()\s*['\"]?(https?:|//)", "".join(page.styles))


def test_the_page_has_its_title_and_says_what_it_compares(unchanged: DriftReport) -> None:
    assert "<title>Leaving</title>" in unchanged.html
    assert "<h1>Leaving</h1>" in unchanged.html
    assert told(unchanged)["Compared"] == "all columns given"


def test_names_are_shown_as_they_are_and_never_read_as_html() -> None:
    evil = "</head><body><script>alert('1 & 2')</script>"
    names = {"title": evil, "reference_name": f"r{evil}", "current_name": f"c{evil}", "columns_name": f"n{evil}"}
    plain = dict.fromkeys(names, "plain")
    columns = {"spend": "number"}
    found, harmless = report(table(2), columns=columns, **names), report(table(2), columns=columns, **plain)
    assert Page(found.html).tags == Page(harmless.html).tags
    assert f"<h1>{html.escape(evil)}</h1>" in found.html and f"<title>{html.escape(evil)}</title>" in found.html
    assert told(found)["Reference"] == f"r{evil}: 1,200 rows, all of them"
    assert told(found)["Current"] == f"c{evil}: 1,200 rows, all of them"
    assert told(found)["Compared"] == f"n{evil}"
    assert found.metrics["reference"] == f"r{evil}"


@pytest.mark.parametrize("evil", ["</script><script>alert(1)</script>", "<!--<script>", "</head><body>"])
def test_a_category_is_never_read_as_html(evil: str) -> None:
    rows, columns = table(2), {"colour": "category"}
    renamed = with_column(rows, "colour", pc.replace_substring(rows.column("colour"), "red", evil))
    found, harmless = report(renamed, renamed, columns=columns), report(rows, rows, columns=columns)
    assert Page(found.html).tags == Page(harmless.html).tags
    assert evil not in found.html
    assert evil.replace("<", r"\u003c") in found.html  # which a script reads as it was
    assert found.html.index("<h1>Leaving</h1>") > found.html.index("<title>Leaving</title>") > 0
    assert drifted(found) == []
