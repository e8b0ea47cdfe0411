"""A score's own page shows what happened together together, and says what is wrong in words."""

import html
import re
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from reports.overview import DriftedColumn, FeatureSeries, Mark, OnDate, Overview, Trouble, overview_page
from serving.pages.monitoring import FILE, PAGE, Incident, Summary, all_summaries, newest_page, read_summary
from tests.test_performance import a_date, a_performance

FIRST = date(2024, 3, 4)


def week(number: int) -> date:
    return FIRST + timedelta(weeks=number)


def trouble(**changes: Any) -> Trouble:
    told = {
        "incident": "abc",
        "kind": "unit change",
        "severity": "error",
        "told": "spend: all values are 100 times what they were <b>",
        "origin": "began with batch 7",
        "began_on": week(1),
        "alerted_on": week(2),
        "closed_on": None,
    }
    return Trouble(**{**told, **changes})  # type: ignore[arg-type]


def overview(**changes: Any) -> Overview:
    told = Overview(
        score="leaving",
        title="Leaving & <i>",
        description="Who leaves.",
        as_of_date=week(3),
        performance=a_performance(a_date(0), a_date(1)),
        dates=[
            OnDate(
                as_of_date=week(number),
                model_version=1 + number // 2,
                customers=1000 + number,
                drifted=None if number == 0 else number / 10,
                drifted_columns=number,
                pages=("drift.html",) if number == 3 else (),
            )
            for number in range(4)
        ],
        marks=[Mark(week(2), "version 2 serves (gate)", True), Mark(week(3), "generation g, version 2", False)],
        troubles=[],
        features=[
            FeatureSeries(
                name="spend",
                what="mean",
                importance=0.4,
                low=10.0,
                high=12.0,
                points=tuple((week(number), 11.0 + number) for number in range(4)),
                nulls=tuple((week(number), 0.1) for number in range(4)),
                effect=0.3,
                since=week(2),
                told="the mean went from 11 to 14",
            )
        ],
        rule="An alert needs much",
        sample="All rows",
        reference="What version 2 learned from",
    )
    return msgspec.structs.replace(told, **changes)


def words(page: str) -> str:
    """What a reader sees, titles of pictures among it."""
    body = page[page.index("<body>") :]
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", body)))


def test_a_page_in_order_says_so_and_has_a_panel_for_metric_drift_and_customers() -> None:
    page = overview_page(overview())
    assert "Nothing has drifted that matters." in words(page)
    assert re.findall(r"<figure><h3>(.*?)</h3>", page) == ["roc_auc", "drift", "customers", "spend"]
    assert f"{week(3)}: 1,003 customers scored by version 2" in words(page)
    assert f"{week(1)}: 1 columns with 10 % of the importance had drifted" in words(page)
    assert "version 2 serves (gate)" in words(page) and "generation g, version 2" in words(page)
    assert f'href="/reports/leaving/{week(3)}/drift.html"' in page and 'href="/models/leaving/2"' in page


def test_what_is_wrong_stands_above_all_with_its_origin_and_is_never_read_as_html() -> None:
    page = overview_page(overview(troubles=[trouble(), trouble(incident="old", told="was", closed_on=week(1))]))
    assert "The data seem broken. Spend: all values are 100 times what they were <b>." in words(page).replace(" .", ".")
    assert "Began with batch 7" in words(page) and "Nothing has drifted" not in words(page)
    assert "<b>." not in page and "Leaving &amp; &lt;i&gt;" in page
    assert "goes on" in words(page) and str(week(1)) in words(page)


def test_broken_data_stand_before_customers_that_moved_each_with_what_to_do() -> None:
    page = words(
        overview_page(
            overview(troubles=[trouble(incident="b", severity="warn", told="more red"), trouble(began_on=week(2))])
        )
    )
    assert page.index("The data seem broken") < page.index("Customers have moved")
    assert f"make backfill FROM={week(2)}." in page and "make train SCORE=leaving." in page


def test_all_that_drifted_is_listed_and_what_it_weighs_on_each_date() -> None:
    drifted = [
        DriftedColumn(name="the score", importance=None, effect=0.1, since=week(3), told=None),
        DriftedColumn(name="spend", importance=0.034, effect=0.0498, since=week(2), told="the mean went <i>"),
    ]
    dates = [msgspec.structs.replace(overview().dates[-1], weighs=0.0017)]
    page = words(overview_page(overview(drifted=drifted, dates=dates)))
    assert f"the score {week(3)} – 10 %" in page
    assert f"spend {week(2)} 3.4 % 5 % the mean went <i>" in page
    assert "30 % 0.17 % drift" in page
    assert "Drifted columns" not in words(overview_page(overview()))


def test_the_promise_of_a_version_before_is_drawn_where_it_was_served() -> None:
    dates = [a_date(number, as_of_date=week(number)) for number in range(4)]
    page = overview_page(overview(performance=a_performance(*dates)))
    assert page.count("promised by the version before") == 2
    (line,) = re.findall(r'<path class="promised" d="M([\d.]+) [\d.]+H600"><title>promised</title>', page)
    assert 300 < float(line) < 600, "that of the champion begins with it"


def test_a_broken_promise_is_shaded_behind_the_metric_and_drift_behind_the_others() -> None:
    promise = overview_page(overview(troubles=[trouble(kind="worse than promised")]))
    drift = overview_page(overview(troubles=[trouble()]))
    assert (promise.count('<rect class="error"'), drift.count('<rect class="error"')) == (1, 2)
    assert promise.index('<rect class="error"') < promise.index("<h3>drift</h3>") < drift.index('<rect class="error"')


def test_the_page_needs_no_script_and_nothing_from_elsewhere() -> None:
    page = overview_page(overview(troubles=[trouble()]))
    assert "<script" not in page
    assert not re.search(r"(src|href)=[\"']?(https?:|//)", page)
    assert page == overview_page(overview(troubles=[trouble()]))


def test_one_date_without_features_and_reports_is_a_page_too() -> None:
    page = overview_page(overview(dates=overview().dates[:1], features=[], marks=[]))
    assert "wants none" in words(page) and "nan" not in page


def test_without_a_date_there_is_no_page() -> None:
    with pytest.raises(ValueError, match="'Leaving & <i>': nothing has been scored yet"):
        overview_page(overview(dates=[]))


# --- The list of all scores


def summary(score: str, day: date = FIRST, **changes: Any) -> Summary:
    told = Summary(
        of="x",
        score=score,
        title=score.title(),
        as_of_date=day,
        model_version=1,
        metric="roc_auc",
        promised=0.9,
        estimated=None,
        realised=0.89,
        verdict="as promised",
        told="fine",
        drifted=0.1,
        incidents=[],
    )
    return msgspec.structs.replace(told, **changes)


def written(reports: Path, told: Summary) -> None:
    folder = reports / told.score / str(told.as_of_date)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_bytes(msgspec.json.encode(told))
    (folder / PAGE).write_text("a page")


def test_scores_are_listed_by_their_newest_date_what_is_wrong_first(tmp_path: Path) -> None:
    moved = Incident(severity="warn", told="moved", origin=None, began_on=week(0))
    broken = Incident(severity="error", told="broken", origin=None, began_on=week(0))
    written(tmp_path, summary("calm"))
    written(tmp_path, summary("moved", incidents=[moved]))
    written(tmp_path, summary("worse", verdict="worse"))
    written(tmp_path, summary("broken", incidents=[broken, moved]))
    written(tmp_path, summary("broken", week(1), incidents=[broken]))
    found = all_summaries(tmp_path)
    assert [(one.score, one.state) for one in found] == [
        ("broken", "broken"), ("worse", "worse"), ("moved", "moved"), ("calm", "in order"),
    ]  # fmt: skip
    assert found[0].as_of_date == week(1)
    assert newest_page(tmp_path, "broken") == tmp_path / "broken" / str(week(1)) / PAGE


def test_a_summary_that_is_cut_short_gives_way_to_the_one_before(tmp_path: Path) -> None:
    written(tmp_path, summary("calm"))
    written(tmp_path, summary("calm", week(1)))
    (tmp_path / "calm" / str(week(1)) / FILE).write_text('{"of": "x"')
    found = read_summary(tmp_path, "calm")
    assert found is not None and found.as_of_date == week(0)
    assert read_summary(tmp_path, "nobody") is None and newest_page(tmp_path, "nobody") is None
