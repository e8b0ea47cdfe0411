"""The pages as a browser receives them."""

import base64
import gzip
import hashlib
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from litestar import Litestar
from litestar.testing import TestClient

from serving.app import create_app
from serving.generations.store import CustomerScore, Reason, flip, payload, write
from serving.pages.sources import BatchFigures, SourceFigures, SourceReport
from serving.pages.views import Step, limits
from tests.sample_generations import PUBLISHED, a_generation, publish

Client = TestClient[Litestar]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def client(data: Path) -> Iterator[Client]:
    publish(data / "generations")
    publish(
        data / "generations", score="spend", title="Spend", kind="amount", bands={}, band_counts={}, fresh_for_days=1
    )
    report(data, "2024-03-04")
    report(data, "2024-02-26")
    with TestClient(create_app(data)) as client:
        yield client


def report(data: Path, as_of_date: str, score: str = "churn", name: str = "drift.html") -> Path:
    path = data / "reports" / score / as_of_date / name
    path.parent.mkdir(parents=True)
    path.write_text(f"<!doctype html><title>Drift {as_of_date}</title><script>1</script>" + "é" * 5000)
    return path


PAGES = [
    "/",
    "/pages/churn",
    "/pages/churn?customer_id=42",
    "/pages/spend",
    "/pages/nonsense",
    "/sources",
    "/reports",
    "/docs",
]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_needs_nothing_from_outside_and_forbids_it(client: Client, path: str) -> None:
    answer = client.get(path)
    page = answer.text.replace(str(client.base_url), "")
    assert set(re.findall(r"\w+://[^\s'\"]*", page)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"(src|href|action)=[\"']//", page)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "<script>" not in page


def test_the_style_is_the_one_that_the_policy_allows(client: Client) -> None:
    answer = client.get("/")
    style = re.search(r"<style>(.*?)</style>", answer.text, re.DOTALL)
    assert style
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in answer.headers["content-security-policy"]
    assert " style=" not in answer.text


def test_a_generation_says_when_it_was_made_and_not_since_when_it_is_current(client: Client) -> None:
    made = client.get("/scores/churn").json()["published_at"][:16].replace("T", " ")
    assert f"made {made} UTC" in client.get("/pages/churn").text, "true also after a rollback to it"
    assert f"generation made {made} UTC" in client.get("/").text
    assert "ublished 20" not in client.get("/pages/churn").text + client.get("/").text


@pytest.mark.parametrize("path", PAGES)
def test_every_link_of_a_page_leads_somewhere(client: Client, path: str) -> None:
    for link in re.findall(r"(?:href|action)=\"(/[^\"]*)\"", client.get(path).text):
        assert client.get(link).status_code == 200, link


def test_the_overview_shows_each_score_with_its_quality_and_freshness(client: Client) -> None:
    page = client.get("/").text
    for text in (
        "Churn",
        "Probability that a customer leaves",
        "CRM analytics",
        "2024-03-04",
        "0.8812",
        "naive forecast 0.8107",
    ):
        assert text in page
    assert "high <span>40 · 40 % · from 0.6</span>" in page
    assert '<span class="pill fresh">' in page
    assert '<span class="pill stale">' in page, "spend is stale"
    assert 'href="/reports/churn/2024-03-04/drift.html">Drift report, 2024-03-04' in page


def test_before_the_first_publication_the_overview_says_what_to_do(data: Path) -> None:
    with TestClient(create_app(data)) as client:
        assert "make run" in client.get("/").text
        assert "No report yet" in client.get("/reports").text


def test_a_fault_is_shown_where_people_look(data: Path) -> None:
    publish(data / "generations")
    publish(data / "generations", score="upsell")
    (data / "generations" / "upsell" / "CURRENT").write_text("g5\n")
    with TestClient(create_app(data)) as client:
        page = client.get("/").text
    assert "upsell/g5/: is missing" in page
    assert '<span class="pill unavailable">' in page


def test_a_customer_is_shown_with_band_and_signed_reasons(client: Client) -> None:
    page = client.get("/pages/churn?customer_id=42").text
    assert "Customer 42" in page
    assert re.search(r'<span class="value">\d+\.\d %</span>', page)
    assert page.count("<li><span><b>") == 3
    assert "+0.81" in page
    assert "−0.25" in page
    assert "unknown" in page, "a value that is not known"
    assert 'class="up"' in page
    assert 'class="down"' in page
    assert f"curl {str(client.base_url).rstrip('/')}/scores/churn/customers/42" in page


def test_the_scale_of_a_score_has_figures_at_the_limits_of_its_bands(client: Client) -> None:
    page = client.get("/pages/churn?customer_id=42").text
    figures = re.findall(r'<text x="([\d.]+)%" y="15" text-anchor="(\w+)">([^<]*)</text>', page)
    told = [("0", "start", "0 %"), ("30.0", "middle", "30 %"), ("60.0", "middle", "60 %"), ("100", "end", "100 %")]
    assert figures == told


def test_figures_of_a_scale_do_not_lie_upon_each_other() -> None:
    starts = [0.0, 5.0, 15.0, 18.0, 97.5]
    steps = [Step(start, 1.0, place) for place, start in enumerate(starts)]
    assert [limit.told for limit in limits(steps)] == ["5 %", "15 %", "97.5 %"]
    assert limits([]) == []


def test_without_an_id_an_example_is_shown(client: Client) -> None:
    page = client.get("/pages/churn").text
    assert "For example, customer " in page
    assert len(re.findall(r'<a href="/pages/churn\?customer_id=\d+">', page)) == 4
    assert "High" not in client.get("/pages/spend").text, "a score without bands shows none"


@pytest.mark.parametrize(
    "customer_id", ["nobody", "<script>alert(1)</script>", "x" * 3000, "\0", "%00", "é", "../..", "'\""]
)
def test_an_unknown_customer_is_said_to_be_unknown(client: Client, customer_id: str) -> None:
    answer = client.get("/pages/churn", params={"customer_id": customer_id})
    assert answer.status_code == 404
    assert "No customer" in answer.text
    assert "<script>" not in answer.text


def test_text_of_a_generation_is_text_and_not_html(data: Path) -> None:
    evil = "<script>alert(1)</script>"
    generation = a_generation(
        title=evil, description=evil, owner=evil, email='"><b>', entity=(evil,), bands={evil: 0.0}
    )
    customer = CustomerScore(
        score="churn",
        customer_id=evil,
        value=0.5,
        band=evil,
        reasons=[Reason(feature=evil + "_x", value=evil, contribution=1)],
        as_of_date=date(2024, 3, 4),
        model_version=1,
        generation="g1",
        scored_at=PUBLISHED,
    )
    write(data / "generations", generation, [(evil, payload(customer))], {})
    flip(data / "generations", "churn", "g1")
    with TestClient(create_app(data)) as client:
        for path in ("/", "/pages/churn", "/reports"):
            page = client.get(path).text
            assert "<script>" not in page
            assert '"><b>' not in page


def test_reports_are_listed_newest_first(client: Client, data: Path) -> None:
    report(data, "2024-03-11", "spend")
    report(data, "not-a-date")
    report(data, "2024-03-18", name=".hidden.html")
    page = client.get("/reports").text
    links = re.findall(r'href="(/reports/[^"]*)"', page)
    assert links == [
        "/reports/spend/2024-03-11/drift.html",
        "/reports/churn/2024-03-04/drift.html",
        "/reports/churn/2024-02-26/drift.html",
    ]


def test_a_report_is_served_gzipped_shut_off_and_anew_when_it_changes(client: Client, data: Path) -> None:
    path = data / "reports" / "churn" / "2024-03-04" / "drift.html"
    with client.stream("GET", "/reports/churn/2024-03-04/drift.html", headers={"accept-encoding": "gzip"}) as answer:
        raw = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("sandbox allow-scripts")
    assert gzip.decompress(raw) == path.read_bytes()
    assert len(raw) < path.stat().st_size / 10
    plain = client.get("/reports/churn/2024-03-04/drift.html", headers={"accept-encoding": "identity"})
    assert plain.content == path.read_bytes()
    path.write_text("<!doctype html>new")
    assert client.get("/reports/churn/2024-03-04/drift.html").text == "<!doctype html>new"


def test_a_report_leads_back_to_its_score_which_may_be_served_no_more(client: Client, data: Path) -> None:
    for score in ("churn", "gone"):
        report(data, "2024-03-11", score, name="performance.html").write_text("<html><body>Promised</body></html>")
    page = client.get("/reports/churn/2024-03-11/performance.html").text
    assert re.findall(r'href="([^"]*)">([^<]*)<', page) == [("/pages/churn", "Churn"), ("/reports", "Reports")]
    gone = client.get("/reports/gone/2024-03-11/performance.html").text
    assert re.findall(r'href="([^"]*)"', gone) == ["/reports"] and "Promised" in gone


@pytest.mark.parametrize(
    "path",
    [
        "churn/2024-03-04/absent.html",
        "churn/2024-03-04/drift.json",
        "churn/20240304/drift.html",
        "churn/2024-03-05/drift.html",
        "../churn/2024-03-04/drift.html",
        "churn/..%2f2024-03-04/drift.html",
        "churn/2024-03-04/..%2fdrift.html",
        "%2e%2e/2024-03-04/drift.html",
    ],
)
def test_only_a_report_is_served_and_nothing_beside(client: Client, data: Path, path: str) -> None:
    (data / "reports" / "churn" / "2024-03-04" / "drift.json").write_text("{}")
    assert client.get("/reports/" + path).status_code == 404


def sources_file(data: Path, *batches: BatchFigures, fault: str | None = None) -> None:
    figures = SourceFigures(
        name="raw.visits",
        description="Visits to the shop.",
        owner="data@example.com",
        loaded_from="postgresql://shop:${PASSWORD}@db/shop?table=visits",
        rows=1234,
        quarantined=7,
        fault=fault,
        batches=list(batches),
    )
    report = SourceReport(written_at=datetime(2024, 3, 5, tzinfo=UTC), sources=[figures])
    (data / "reports").mkdir(parents=True, exist_ok=True)
    (data / "reports" / "sources.json").write_bytes(msgspec.json.encode(report))


def a_batch(day: int, **told: Any) -> BatchFigures:
    figures: dict[str, Any] = {
        "source": "visits",
        "loaded_at": datetime(2024, 3, day, 6, tzinfo=UTC),
        "status": "landed",
        "fault": None,
        "rows": 100,
        "landed": 97,
        "rejected": 0,
        "rejected_by_rule": {},
        "null_shares": {"zip": 0.1},
        "volume": 1.0,
        "lag_days": 0.25,
        "seconds": 1.0,
    }
    return BatchFigures(**(figures | told))


def test_the_sources_show_what_each_batch_brought_and_what_was_set_aside(client: Client, data: Path) -> None:
    assert "No load has been recorded yet" in client.get("/sources").text
    newest = a_batch(2, rejected=3, rejected_by_rule={"zip is null": 3}, null_shares={"zip": 0.4}, volume=0.5)
    sources_file(data, a_batch(1), newest)
    page = client.get("/sources").text
    for text in (
        "raw.visits",
        "1,234",
        "0.50 × usual",
        "zip is null (3)",
        "zip 10 % → 40 %",
        "${PASSWORD}",
        ">loaded<",
    ):
        assert text in page
    assert page.count("<g><title>") == 2
    assert "2024-03-02 06:00, visits: 100 rows, 3 bad" in page


def test_a_first_load_of_all_history_leaves_the_days_that_follow_to_be_seen(client: Client, data: Path) -> None:
    sources_file(data, a_batch(1, rows=1_000_000), a_batch(2, rows=50), a_batch(3, rows=100), a_batch(4, rows=80))
    page = client.get("/sources").text
    heights = [float(height) for height in re.findall(r'height="([\d.]+)" class="c\d"', page)]
    assert heights == [100, 50, 100, 80]
    assert page.count('class="c2"') == 1
    assert "pale, beyond the scale: 1,000,000." in page


def test_a_source_that_failed_says_why(client: Client, data: Path) -> None:
    failed = a_batch(2, status="failed", fault="<b>visits</b> lacks the columns zip", rows=None, null_shares={})
    sources_file(data, a_batch(1), failed, fault=failed.fault)
    page = client.get("/sources").text
    assert ">failed<" in page
    assert "&lt;b&gt;visits&lt;/b&gt; lacks the columns zip" in page
    assert 'class="failed"' in page


def test_a_source_is_failed_no_more_once_a_load_has_found_nothing_new_or_admitted_repairs(
    client: Client, data: Path
) -> None:
    failed = a_batch(2, status="failed", fault="visits can't be reached", rows=None, null_shares={})
    sources_file(data, a_batch(1), failed, a_batch(3, status="readmitted", rows=1))
    page = client.get("/sources").text
    assert ">loaded<" in page
    assert ">failed<" not in page


def test_a_damaged_file_of_sources_is_no_error(client: Client, data: Path) -> None:
    sources_file(data, a_batch(1))
    file = data / "reports" / "sources.json"
    file.write_bytes(file.read_bytes()[:50])
    answer = client.get("/sources")
    assert answer.status_code == 200
    assert "No load has been recorded yet" in answer.text
