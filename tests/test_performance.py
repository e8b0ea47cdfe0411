"""Promised and realised, as people read it: the report, the score's page and the API."""

import re
from collections.abc import Iterator
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from litestar import Litestar
from litestar.testing import TestClient

from ml.estimation import EstimatedDate, EstimatedMetric, EstimateError
from ml.gains import Contact, Gain
from ml.metrics import METRICS, Kind
from ml.outlook import verdict_lines
from ml.realised import Cause, Line, Performance, RealisedDate, RealisedMetric, RealisedSlice
from reports.performance import performance_page
from serving.app import create_app
from serving.pages.performance import Written
from tests.sample_generations import publish
from tests.test_evidently_page import Page

FIRST = date(2024, 1, 8)


def a_metric(name: str, realised: float | None, verdict: Any) -> RealisedMetric:
    return RealisedMetric(
        metric=name,
        realised=realised,
        realised_low=0.78,
        realised_high=0.84,
        promised=0.81,
        promised_low=0.80,
        promised_high=0.82,
        low=0.77,
        high=0.85,
        verdict=verdict,
    )


def a_date(week: int, verdict: Any = "as promised", kind: Kind = "probability", **told: Any) -> RealisedDate:
    value = {"worse": 0.7, "better": 0.9, "not measurable": None}.get(verdict, 0.82)
    facts: dict[str, Any] = {
        "as_of_date": FIRST + timedelta(weeks=week),
        "model_version": 1 if week < 3 else 2,
        "served_version": 1 if week < 3 else 2,
        "rows": 1234 + week,
        "sampled": 1234 + week,
        "label_rate": None if kind == "category" else 0.2,
        "mean_score": 0.21,
        "drifted": 0.125 if week == 1 else None,
        "metrics": [a_metric(name, value, verdict) for name in METRICS[kind]],
    }
    return RealisedDate(**facts | told)


def a_performance(*dates: RealisedDate, **changes: Any) -> Performance:
    facts: dict[str, Any] = {
        "score": "churn",
        "kind": "probability",
        "model_version": 2,
        "holdout_from": date(2024, 1, 1),
        "holdout_to": date(2024, 1, 22),
        "promised": {"roc_auc": 0.8123, "log_loss": 0.31},
        "intervals": {"roc_auc": (0.8012, 0.8234)},
        "verdict": "as promised",
        "told": "version 2 at 2024-01-29, on 1,237 customers: as promised: roc_auc 0.8200, promised 0.8100",
        "causes": [],
        "next_matures_on": date(2024, 3, 11),
        "dates": list(dates),
    }
    return Performance(**facts | changes)


BROKEN: dict[str, Any] = {
    "verdict": "worse",
    "told": "version 2 at 2024-01-29: roc_auc 0.7000, worse than the promised 0.8100",
    "causes": [
        Cause(name="data quality", told="<b>visits</b> lacks a column"),
        Cause(name="drift", told="colour (40 %)"),
    ],
}
NOTHING_YET: dict[str, Any] = {"verdict": "nothing matured yet", "told": "no labels have matured yet"}


# --- The report


@pytest.mark.parametrize("kind", METRICS)
def test_the_report_draws_every_metric_of_the_kind_and_lists_every_date(kind: Kind) -> None:
    found = a_performance(*(a_date(week, kind=kind) for week in range(5)), kind=kind)
    page = performance_page(found, title="Churn")
    for name in METRICS[kind]:
        assert f"<h3>{name}</h3>" in page
    assert page.count('<svg class="picture"') == len(METRICS[kind]) + 2
    assert re.findall(r"<tr><td>(\S+)</td>", page) == [str(FIRST + timedelta(weeks=week)) for week in range(4, -1, -1)]
    assert "1,234 to 1,238 a date" in page


def test_the_report_needs_nothing_from_outside_and_no_script_and_is_the_same_for_the_same_figures() -> None:
    found = a_performance(a_date(1), a_date(2, "worse"), a_date(3, "better"), a_date(4, "not measurable"), **BROKEN)
    page = performance_page(found, title="Churn & <script>")
    parsed = Page(page)
    assert "script" not in parsed.tags
    assert parsed.fetched == []
    assert not re.search(r"url\((?!#)|@import", page)
    assert len(page) < 300_000
    assert performance_page(found, title="Churn & <script>") == page


def test_the_report_names_a_broken_promise_and_its_causes_as_text() -> None:
    page = performance_page(a_performance(a_date(3, "worse"), **BROKEN), title="Churn")
    assert "Worse than promised." in page
    assert "<b>Data quality</b>: &lt;b&gt;visits&lt;/b&gt; lacks a column" in page
    assert "Version 2 at 2024-01-29: roc_auc 0.7000, worse than the promised 0.8100." in page
    assert 'class="worse"' in page


def test_the_report_marks_where_another_version_began_to_serve_and_has_room_for_its_challenger() -> None:
    dates = [a_date(2), a_date(3), a_date(3, model_version=3), a_date(4)]
    page = performance_page(a_performance(*dates), title="Churn")
    assert re.search(r">\s*v1</text>", page) and re.search(r">\s*v2</text>", page)
    assert not re.search(r">\s*v3</text>", page)
    assert page.count("served</td>") == 3


def an_estimate(week: int, **told: Any) -> EstimatedDate:
    facts: dict[str, Any] = {
        "as_of_date": FIRST + timedelta(weeks=week),
        "model_version": 2,
        "served_version": 2,
        "rows": 1240,
        "sampled": 1240,
        "metrics": [EstimatedMetric(metric="roc_auc", estimated=0.79, low=0.76, high=0.82)],
    }
    return EstimatedDate(**facts | told)


def a_slice(value: str, realised: float | None) -> RealisedSlice:
    return RealisedSlice(column="colour", value=value, rows=321, metrics=[a_metric("roc_auc", realised, "worse")])


def some_gains(contact: Contact | None = None) -> list[Gain]:
    shares = [place / 20 for place in range(1, 21)]
    value = [None if contact is None else contact.value * 0.2 * (2 - share) - contact.cost for share in shares]
    return [
        Gain(share=share, customers=round(1000 * share), held=share * (2 - share), lift=2 - share,
             rate=0.2 * (2 - share), value_per_contact=each,
             value_total=None if each is None else each * round(1000 * share))
        for share, each in zip(shares, value, strict=True)
    ]  # fmt: skip


CONTACT = Contact(value=10.0, cost=2.5)
ALL_OF_IT: dict[str, Any] = {
    "estimates": [an_estimate(5), an_estimate(6)],
    "of_estimates": [EstimateError(metric="roc_auc", dates=3, of_estimate=0.01, of_promise=0.02)],
    "baseline_name": "days_away alone",
    "baseline": {"roc_auc": 0.7001},
    "newest": (FIRST + timedelta(weeks=3), 2),
    "slices": [a_slice("red", 0.83), a_slice("blue <b>", 0.61), a_slice("green", None)],
    "gains": some_gains(CONTACT),
    "promised_gains": tuple(place / 20 for place in range(1, 21)),
    "contact": CONTACT,
    "lines": [Line(metric="roc_auc", below=0.7701), Line(metric="log_loss", above=0.35)],
    "most_sampled": 200_000,
    "seed": 0,
}


@cache
def page_of_all() -> str:
    return performance_page(a_performance(a_date(3), **ALL_OF_IT), title="Churn")


def cells(page: str, heading: str) -> list[str]:
    """The first cell of each row of the table under a heading."""
    return re.findall(r'<tr><th scope="row">(.*?)</th>', page.partition(f"<h2>{heading}</h2>")[2].partition("<h2>")[0])


def test_the_report_shows_estimates_of_dates_that_have_not_matured_and_how_good_they_were_before() -> None:
    page = page_of_all()
    assert cells(page, "Estimated, not matured yet") == [str(FIRST + timedelta(weeks=week)) for week in (6, 5)]
    assert cells(page, "How good the estimates were") == ["roc_auc"]
    assert "the estimate</td>" in page


def test_the_report_is_made_of_estimates_alone_before_anything_has_matured() -> None:
    page = performance_page(a_performance(**NOTHING_YET, estimates=[an_estimate(5)]), title="Churn")
    assert cells(page, "Estimated, not matured yet") == [str(FIRST + timedelta(weeks=5))]
    assert "Realised, all dates" not in page and "mean score and label" not in page
    assert re.findall("<h3>(.*?)</h3>", page) == ["roc_auc"], "of the others there is nothing to draw"


def test_the_report_says_what_would_change_the_verdict_and_how_many_it_was_measured_on() -> None:
    page = page_of_all()
    assert "The next date would be worse than promised with roc_auc below 0.7701, or log_loss above 0.3500." in page
    assert "1,237 to 1,240 a date, all of them measured; the bootstrap's seed is 0." in " ".join(page.split())
    many = performance_page(
        a_performance(a_date(3, rows=300_000, sampled=200_000), most_sampled=200_000), title="Churn"
    )
    assert "300,000 a date, of whom 200,000 are drawn with the seed 0" in " ".join(many.split())


def test_the_report_lists_slices_the_worst_first_as_text() -> None:
    page = page_of_all()
    assert cells(page, "Slices") == ["colour <b>blue &lt;b&gt;</b>", "colour <b>red</b>"]
    assert "The naive forecast is days_away alone." in page


def test_the_report_tells_what_the_highest_scores_held_and_which_depth_was_worth_the_most() -> None:
    page = page_of_all()
    best = max(ALL_OF_IT["gains"], key=lambda gain: gain.value_total)
    assert best.share == 0.4
    assert cells(page, "What the highest scores held") == ["5%", "10%", "20%", "40%", "50%"]
    assert (
        "With 10 for each outcome and 2.5 a contact the best depth was 40% of the customers (400):"
        f" {best.value_total:,.0f} in all; contacting everybody was worth -500." in page
    )
    without = performance_page(a_performance(a_date(3), gains=some_gains(), newest=(FIRST, 2)), title="Churn")
    assert cells(without, "What the highest scores held") == ["5%", "10%", "20%", "50%"]
    assert "Per contact" not in without


def test_where_no_depth_is_worth_its_cost_none_is_the_best() -> None:
    dear = Contact(value=1.0, cost=9.0)
    facts = ALL_OF_IT | {"contact": dear, "gains": some_gains(dear)}
    page = performance_page(a_performance(a_date(3), **facts), title="Churn")
    assert "With 1 for each outcome and 9 a contact no depth was worth its cost." in page


def test_the_line_of_a_bias_lies_on_both_sides_where_it_is_further_from_zero_than_the_promise() -> None:
    bias = msgspec.structs.replace(a_metric("bias", 0.0, "better"), promised=3.0, low=1.0, high=5.0)
    log_loss = msgspec.structs.replace(a_metric("log_loss", 0.3, "as promised"), low=0.2, high=0.4)
    assert verdict_lines([bias, log_loss]) == [
        Line(metric="bias", below=-3.0, above=5.0),
        Line(metric="log_loss", above=0.4),
    ]
    assert verdict_lines([msgspec.structs.replace(bias, low=None, high=None)]) == []


def test_nothing_measured_is_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="'Churn': nothing has matured yet"):
        performance_page(a_performance(**NOTHING_YET), title="Churn")


# --- The page and the API

Client = TestClient[Litestar]


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    return tmp_path / "reports"


@pytest.fixture
def client(tmp_path: Path, reports: Path) -> Iterator[Client]:
    publish(tmp_path / "generations")
    with TestClient(create_app(tmp_path)) as client:
        yield client


def write(reports: Path, found: Performance, day: str = "2024-03-04") -> Path:
    file = reports / "churn" / day / "performance.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.encode(Written(of="a", performance=found)))
    return file


def test_the_page_shows_the_promise_and_each_date_beside_it(client: Client, reports: Path) -> None:
    (write(reports, a_performance(a_date(1), a_date(2, "worse"), a_date(3))).parent / "performance.html").touch()
    page = client.get("/pages/churn").text
    section = page.partition("<h2>Promised and realised</h2>")[2].partition("</section>")[0]
    assert "0.8123" in section
    assert "roc_auc promised, 0.8012 to 0.8234" in section
    assert re.findall(r"<title>(.*?)</title>", section) == [
        "2024-01-15, version 1: 0.82, promised 0.81: as promised",
        "2024-01-22, version 1: 0.7, promised 0.81: worse",
        "2024-01-29, version 2: 0.82, promised 0.81: as promised",
    ]
    assert section.count('class="dot worse"') == 1
    places = [float(y) for y in re.findall(r'class="dot \S+" .*?y1="([\d.]+)"', section)]
    assert places[1] > places[0], "less is lower"
    assert 'href="/reports/churn/2024-03-04/performance.html"' in section
    assert "Version 2 at 2024-01-29" in section


@pytest.mark.parametrize("weeks", [1, 3, 30])
def test_the_picture_fills_its_card_with_however_few_dates(client: Client, reports: Path, weeks: int) -> None:
    write(reports, a_performance(*(a_date(week) for week in range(weeks))))
    rooms = re.findall(r'class="room" x="([\d.]+)" width="([\d.]+)"', client.get("/pages/churn").text)
    assert len(rooms) == weeks
    assert sum(float(width) for _, width in rooms) == pytest.approx(100, abs=0.1)


def test_the_page_shows_estimated_dates_as_hollow_marks_after_the_matured_ones(client: Client, reports: Path) -> None:
    write(reports, a_performance(a_date(3), **ALL_OF_IT))
    page = client.get("/pages/churn").text
    section = page.partition("<h2>Promised and realised</h2>")[2].partition("</section>")[0]
    assert re.findall(r"<title>(.*?)</title>", section) == [
        "2024-01-29, version 2: 0.82, promised 0.81: as promised",
        "2024-02-12, version 2: 0.79, promised 0.8123: estimated",
        "2024-02-19, version 2: 0.79, promised 0.8123: estimated",
    ]
    assert section.count('class="hole"') == 2
    assert "Hollow: 2 dates estimated from the scores alone" in section


def test_the_page_shows_the_version_that_served_and_no_challenger(client: Client, reports: Path) -> None:
    write(reports, a_performance(a_date(3), a_date(3, "worse", model_version=3)))
    assert "version 3" not in client.get("/pages/churn").text


def test_the_page_says_when_the_first_labels_mature(client: Client, reports: Path) -> None:
    write(reports, a_performance(**NOTHING_YET))
    page = client.get("/pages/churn").text
    assert "The first labels of what this version has scored since mature on 2024-03-11" in page
    assert 'class="realised"' not in page
    write(reports, a_performance(**NOTHING_YET | {"next_matures_on": None}))
    assert "have matured yet" in client.get("/pages/churn").text


def test_the_page_shows_a_broken_promise_with_its_causes(client: Client, reports: Path) -> None:
    write(reports, a_performance(a_date(3, "worse"), **BROKEN))
    page = client.get("/pages/churn").text
    assert '<div class="notice degraded" role="alert">Worse than promised. Version 2 at 2024-01-29' in page
    assert "<b>Data quality</b>: &lt;b&gt;visits&lt;/b&gt; lacks a column" in page


def test_without_figures_or_with_damaged_ones_the_page_leaves_the_section_out(client: Client, reports: Path) -> None:
    assert "Promised and realised" not in client.get("/pages/churn").text
    write(reports, a_performance()).write_text('{"of": "a", "perf')
    answer = client.get("/pages/churn")
    assert answer.status_code == 200 and "Promised and realised" not in answer.text


def test_the_api_gives_the_newest_figures(client: Client, reports: Path) -> None:
    found = a_performance(a_date(1), a_date(2, "not measurable"), **BROKEN, **ALL_OF_IT)
    write(reports, a_performance(), "2024-02-26")
    write(reports, found)
    answer = client.get("/scores/churn/performance")
    assert answer.status_code == 200
    assert msgspec.json.decode(answer.content, type=Performance) == found
    assert answer.json()["dates"][1]["metrics"][0]["realised"] is None


def test_the_api_says_which_is_not_known_the_score_or_its_performance(client: Client) -> None:
    absent, unknown = client.get("/scores/churn/performance"), client.get("/scores/nonsense/performance")
    for answer in (absent, unknown):
        assert answer.status_code == 404
        assert answer.headers["content-type"].startswith("application/problem+json")
    assert absent.json()["detail"] == "Nothing is told of the performance of 'churn' yet: the next run does."
    assert unknown.json()["known_scores"] == ["churn"]
