"""GET /metrics as Prometheus scrapes it: in process, and over the workers of the real server."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from litestar.testing import TestClient
from prometheus_client.parser import text_string_to_metric_families

from serving.app import create_app
from serving.watching.counting import predicted
from tests.conftest import REPOSITORY
from tests.sample_generations import publish
from tests.test_api import Client, eventually, serving

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
ROUTE = "/scores/{score}/customers/{customer_id}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data" / "generations"


@pytest.fixture
def client(root: Path) -> Iterator[Client]:
    with TestClient(create_app(root.parent, look_every=0.02)) as client:
        yield client


def samples(text: str) -> Samples:
    """Each value of a scrape by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(client: Client) -> Samples:
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return samples(answer.text)


def of(found: Samples, name: str, **labels: str) -> float:
    return found.get((f"scorehouse_{name}", frozenset(labels.items())), 0.0)


def test_requests_are_counted_by_route_and_not_by_path(root: Path, client: Client) -> None:
    publish(root)
    eventually(lambda: client.get("/scores/churn").status_code == 200)
    before = scrape(client)
    for customer in ("1", "2", "nobody"):
        client.get(f"/scores/churn/customers/{customer}")
    client.head("/scores/churn/customers/1")
    client.get("/no/such/page")
    client.request("BREW", "/scores")
    after = scrape(client)

    def more(name: str, **labels: str) -> float:
        return of(after, name, **labels) - of(before, name, **labels)

    assert more("requests_total", route=ROUTE, method="GET", status="200") == 2
    assert more("requests_total", route=ROUTE, method="GET", status="404") == 1
    assert more("requests_total", route=ROUTE, method="HEAD", status="200") == 1
    assert more("requests_total", route="unknown", method="GET", status="404") == 1
    assert sum(value for (_, labels), value in after.items() if ("method", "other") in labels) >= 1
    assert "BREW" not in str(after) and "nobody" not in str(after)
    assert more("request_duration_seconds_count", route=ROUTE) == 4
    assert more("request_duration_seconds_bucket", route=ROUTE, le="+Inf") == 4
    assert more("request_duration_seconds_sum", route=ROUTE) > 0


def test_lookups_and_predictions_are_counted_by_score(root: Path, client: Client) -> None:
    publish(root)
    eventually(lambda: client.get("/scores/churn").status_code == 200)
    before = scrape(client)
    for customer in ("1", "2", "nobody"):
        client.get(f"/scores/churn/customers/{customer}")
        client.get(f"/scores/nonsense/customers/{customer}")
    predicted("churn", 5)
    after = scrape(client)
    for name, labels, more in (
        ("store_lookups_total", {"result": "hit"}, 2),
        ("store_lookups_total", {"result": "miss"}, 1),
        ("predictions_total", {}, 5),
    ):
        assert of(after, name, score="churn", **labels) - of(before, name, score="churn", **labels) == more
    assert "nonsense" not in str(after), "a label that callers could make up"


def test_what_is_served_is_told_with_its_age(root: Path) -> None:
    publish(root, model_version=7)
    publish(root, score="upsell", today=None, fresh_for_days=8)
    noon = 1_710_504_000.0  # 2024-03-15 12:00 UTC, ten days and six hours after it was published
    with TestClient(create_app(root.parent, clock=lambda: noon)) as client:
        found = scrape(client)
    assert of(found, "generation_info", score="churn", generation="g1", model_version="7") == 1
    assert of(found, "generation_age_seconds", score="churn") == 10 * 86_400 + 6 * 3600
    assert of(found, "as_of_age_days", score="churn") == 2, "its project's clock stands still"
    assert of(found, "as_of_age_days", score="upsell") == 11
    assert (of(found, "stale", score="churn"), of(found, "stale", score="upsell")) == (0, 1)
    assert of(found, "customers", score="churn") == 100
    assert of(found, "ready") == 1
    assert ("scorehouse_generation_refusals_total", frozenset({("score", "upsell")})) in found, "from zero on"


def test_a_refused_generation_raises_the_alarm_until_a_good_one_comes(root: Path, client: Client) -> None:
    assert of(scrape(client), "ready") == 0
    publish(root)
    eventually(lambda: client.get("/scores/churn").status_code == 200)
    assert ("scorehouse_generation_refused", frozenset({("score", "churn")})) in scrape(client)
    assert of(scrape(client), "generation_refused", score="churn") == 0
    (root / "churn" / "CURRENT").write_text("g9\n")
    eventually(lambda: of(scrape(client), "generation_refused", score="churn") == 1)
    found = scrape(client)
    assert of(found, "generation_refusals_total", score="churn") == 1
    assert of(found, "generation_info", score="churn", generation="g1", model_version="1") == 1, "it is served on"
    assert of(found, "ready") == 1
    publish(root, "g2")
    eventually(lambda: of(scrape(client), "generation_refused", score="churn") == 0)
    assert of(scrape(client), "generation_refusals_total", score="churn") == 1


def test_the_counts_of_all_workers_are_summed_and_those_of_a_killed_one_are_kept(tmp_path: Path) -> None:
    publish(tmp_path / "generations")
    with serving(tmp_path) as server:

        def lookups() -> float:
            found = samples(server.get("/metrics")[1].decode())
            hits = of(found, "store_lookups_total", score="churn", result="hit")
            assert of(found, "requests_total", route=ROUTE, method="GET", status="200") == hits
            return hits

        folder = tmp_path / "metrics" / str(server.process.pid)
        for _ in range(40):
            server.get("/scores/churn/customers/1")
        eventually(lambda: lookups() == 40)
        eventually(lambda: len([*folder.glob("*.json")]) == 2, 5)
        told = [lookups() for _ in range(10)]
        assert told == [40] * 10, "whichever of them is asked"

        killed = next(folder.glob("*.json")).name.partition("-")[0]
        os.kill(int(killed), signal.SIGKILL)
        eventually(lambda: len([*folder.glob("*.json")]) == 3, 15)  # another has taken its place
        assert lookups() == 40
        server.get("/scores/churn/customers/1")
        eventually(lambda: lookups() == 41)
    assert not folder.exists()


def test_a_disk_that_can_not_be_written_hides_no_metric(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(root)
    counts = tmp_path / "counts"
    with TestClient(create_app(root.parent, counts=counts)) as client:
        client.get("/scores/churn/customers/1")
        before = of(scrape(client), "store_lookups_total", score="churn", result="hit")
        counts.rename(tmp_path / "elsewhere")
        for _ in range(3):
            client.get("/scores/churn/customers/1")
            assert client.get("/metrics").status_code == 200
        assert of(scrape(client), "store_lookups_total", score="churn", result="hit") == before + 3
        assert caplog.text.count("metrics can't be written for the other workers") == 1
        (tmp_path / "elsewhere").rename(counts)
        scrape(client)
        assert [*counts.glob("*.json")]


def test_what_a_killed_server_has_left_is_removed_by_the_next(tmp_path: Path) -> None:
    publish(tmp_path / "generations")
    left = tmp_path / "metrics" / "4194305"  # no process has so high a number
    left.mkdir(parents=True)
    (left / "1-2.json").write_text('[["lookups",["churn"],[1000,0]]]')
    with serving(tmp_path) as server:
        assert not left.exists()
        assert "1000" not in server.get("/metrics")[1].decode()


def test_every_metric_is_in_the_docs_and_the_other_way_round(root: Path, client: Client) -> None:
    told = set(re.findall(r"`(scorehouse_[a-z_]+)[`{]", (REPOSITORY / "docs" / "serving.md").read_text()))
    assert told == set(re.findall(r"^# TYPE (\w+)", client.get("/metrics").text, re.MULTILINE))
