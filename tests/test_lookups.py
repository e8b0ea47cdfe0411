"""Lookups: one customer, many in one call, all scores of one, and answers that a client has already."""

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import msgspec
import pytest
from litestar import Litestar
from litestar.testing import TestClient

from serving.answers import CustomerScores, LookupAnswer, Problem
from serving.app import create_app
from serving.generations.store import flip
from tests.sample_generations import publish
from tests.test_api import eventually

Client = TestClient[Litestar]

ONE = "/scores/churn/customers/7"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    publish(tmp_path / "generations")
    return tmp_path


@pytest.fixture
def client(data: Path) -> Iterator[Client]:
    with TestClient(create_app(data, look_every=0.02)) as client:
        yield client


# --- Many in one call


def test_a_lookup_of_many_keeps_their_order_and_lists_who_is_missing(client: Client) -> None:
    answer = client.post("/scores/churn/lookup", json={"ids": ["42", "nobody", "7", "42", "né", "", 3]})
    assert answer.status_code == 200, answer.text
    found = msgspec.json.decode(answer.content, type=LookupAnswer, strict=True)
    assert msgspec.json.encode(found) == answer.content, "no field more, none less, none in another form"
    assert [one.customer_id for one in found.scores] == ["42", "7", "42", "3"]
    assert found.missing == ["nobody", "né", ""]
    assert (found.score, found.generation) == ("churn", "g1")
    assert json.loads(client.get(ONE).content) == json.loads(answer.content)["scores"][1]


def test_a_thousand_ids_are_one_lookup_and_one_more_is_told(client: Client) -> None:
    ids = [str(number) for number in range(1000)]
    found = client.post("/scores/churn/lookup", json={"ids": ids}).json()
    assert (len(found["scores"]), len(found["missing"])) == (100, 900)
    refused = client.post("/scores/churn/lookup", json={"ids": [*ids, "1000"]})
    assert refused.status_code == 400
    assert refused.headers["content-type"] == "application/problem+json"
    assert "`array` of length <= 1000" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "The body is empty"),
        (b"{", "truncated"),
        (b"[]", "object"),
        (b"{}", "`ids`"),
        (b'{"ids": []}', "length >= 1"),
        (b'{"ids": [1.5]}', "$.ids[0]"),
        (b'{"ids": ["1", null]}', "$.ids[1]"),
        (b'{"ids": "1"}', "`$.ids`"),
        (b'{"ids": ["1"], "and": 1}', "unknown field `and`"),
        (b'{"ids": ["\xff"]}', "utf-8"),
        (b'{"ids": ["\\ud800"]}', "truncated"),
    ],
)
def test_a_lookup_that_cannot_be_read_says_where(client: Client, body: bytes, told: str) -> None:
    answer = client.post("/scores/churn/lookup", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert told in msgspec.json.decode(answer.content, type=Problem).detail


def test_a_lookup_of_an_unknown_score_says_which_there_are(client: Client) -> None:
    answer = client.post("/scores/nonsense/lookup", json={"ids": ["1"]})
    assert (answer.status_code, answer.json()["known_scores"]) == (404, ["churn"])


# --- All scores of one customer


def test_a_customer_has_the_answer_of_each_score_that_knows_it(data: Path) -> None:
    publish(data / "generations", score="upsell", rows=3)
    publish(data / "generations", score="visits", ids=["a/b", "x,y"])
    with TestClient(create_app(data)) as client:
        answer = client.get("/customers/2")
        found = msgspec.json.decode(answer.content, type=CustomerScores, strict=True)
        assert msgspec.json.encode(found) == answer.content
        assert [one.score for one in found.scores] == ["churn", "upsell"]
        assert [one["score"] for one in client.get("/customers/7").json()["scores"]] == ["churn"]
        assert client.get("/customers/a%2Fb").json()["scores"][0]["customer_id"] == "a/b"
        assert client.get("/customers/a/b").json() == client.get("/customers/a%2Fb").json()
        unknown = client.get("/customers/nobody")
        assert unknown.status_code == 404
        assert unknown.json()["detail"].startswith("Unknown customer 'nobody': no score knows it. Known scores: churn,")


# --- What a client has already


def test_what_has_not_changed_is_304_without_a_body(client: Client) -> None:
    first = client.get(ONE)
    etag, modified = first.headers["etag"], first.headers["last-modified"]
    assert (etag, modified) == ('"g1"', "Tue, 05 Mar 2024 06:00:00 GMT")
    assert first.headers["cache-control"] == "private, no-cache"
    for has in (
        {"If-None-Match": etag},
        {"If-None-Match": f'"other", W/{etag}'},
        {"If-None-Match": "*"},
        {"If-Modified-Since": modified},
    ):
        again = client.get(ONE, headers=has)
        assert (again.status_code, again.content) == (304, b""), has
        assert again.headers["etag"] == etag
    for has_not in (
        {"If-None-Match": '"g0"'},
        {"If-None-Match": '"g0"', "If-Modified-Since": modified},
        {"If-Modified-Since": "Wed, 06 Mar 2024 06:00:00 GMT"},
        {"If-Modified-Since": "nonsense"},
    ):
        assert client.get(ONE, headers=has_not).status_code == 200, has_not
    assert client.get("/scores/churn/customers/nobody", headers={"If-None-Match": "*"}).status_code == 404


def test_a_publication_a_rollback_and_the_end_of_freshness_change_what_a_client_has(data: Path) -> None:
    now = [datetime(2024, 3, 12, 23, 59, 59, tzinfo=UTC).timestamp()]
    root = data / "generations"
    publish(root, "g2", today=None)
    with TestClient(create_app(data, clock=lambda: now[0], look_every=0.02)) as client:

        def has(headers: dict[str, str]) -> bool:
            return client.get(ONE, headers=headers).status_code == 304

        fresh = client.get(ONE).headers
        now[0] += 1
        stale = client.get(ONE).headers
        assert (fresh["etag"], stale["etag"]) == ('"g2"', '"g2-stale"')
        assert stale["last-modified"] == "Wed, 13 Mar 2024 00:00:00 GMT"
        assert not has({"If-Modified-Since": fresh["last-modified"]}) and not has({"If-None-Match": fresh["etag"]})
        flip(root, "churn", "g1")
        eventually(lambda: client.get(ONE).json()["generation"] == "g1")
        assert not has({"If-Modified-Since": stale["last-modified"]}), "although that of g1 is earlier"


def test_head_of_what_a_client_has_is_304(client: Client) -> None:
    assert client.head(ONE, headers={"If-None-Match": '"g1"'}).status_code == 304


# --- The call list


def pages(client: Client, address: str) -> Iterator[dict[str, object]]:
    while address:
        answer = client.get(address)
        assert answer.status_code == 200, answer.text
        yield answer.json()
        address = answer.links["next"]["url"] if "next" in answer.links else ""


@pytest.mark.parametrize("limit", [1, 7, 100, 1000])
def test_pages_of_a_call_list_have_every_customer_once_the_best_first(client: Client, limit: int) -> None:
    found = [one for page in pages(client, f"/scores/churn/customers?limit={limit}") for one in page["customers"]]  # type: ignore[attr-defined]
    assert [one["rank"] for one in found] == list(range(1, 101))
    assert [(-one["value"], one["customer_id"]) for one in found] == sorted(
        (-one["value"], one["customer_id"]) for one in found
    )
    assert len({one["customer_id"] for one in found}) == 100
    told = client.get(f"/scores/churn/customers/{found[0]['customer_id']}").json()
    assert found[0] == {"rank": 1, **told}


def test_a_call_list_of_a_band_has_that_band_alone(client: Client) -> None:
    *_, last = whole = list(pages(client, "/scores/churn/customers?band=medium&limit=11"))
    found = [one for page in whole for one in page["customers"]]  # type: ignore[attr-defined]
    assert {one["band"] for one in found} == {"medium"}
    assert len(found) == last["total"] == client.get("/scores/churn").json()["band_counts"]["medium"]
    assert (last["next"], last["band"]) == (None, "medium")


def test_a_call_list_as_csv_is_for_a_spreadsheet(client: Client) -> None:
    for answer in (
        client.get("/scores/churn/customers?limit=3&format=csv"),
        client.get("/scores/churn/customers?limit=3", headers={"Accept": "text/csv"}),
    ):
        assert answer.headers["content-type"].startswith("text/csv")
        lines = answer.text.splitlines()
        assert lines[0] == "rank,customer_id,value,band,percentile,as_of_date,stale,model_version,generation,reasons"
        assert len(lines) == 4 and lines[1].startswith("1,")
        assert lines[1].split(",")[6] == "false", "as JSON writes it"
    assert "format=csv" in client.get("/scores/churn/customers?limit=3&format=csv").links["next"]["url"]
    assert client.get("/scores/churn/customers?limit=3").headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("asked", "status", "told"),
    [
        ("band=none", 404, "Unknown band 'none' of score 'churn'. Known bands: high, medium, low."),
        ("limit=0", 400, "limit: Expected `int` >= 1."),
        ("limit=1001", 400, "limit: Expected `int` <= 1000."),
        ("limit=x", 400, "limit: "),
        ("format=xml", 400, "format: "),
        ("cursor=%00", 404, "is no cursor of this list"),
        ("cursor=é", 404, "is no cursor of this list"),
        ("cursor=WzFd", 404, "is no cursor of this list"),
        ("cursor=WyJnMSIsbnVsbCwtMV0", 404, "is no cursor of this list"),
    ],
)
def test_what_a_call_list_cannot_be_asked_is_told(client: Client, asked: str, status: int, told: str) -> None:
    answer = client.get(f"/scores/churn/customers?{asked}")
    assert answer.status_code == status
    assert told in answer.json()["detail"]


def test_a_cursor_of_what_is_not_served_any_more_is_gone(client: Client, data: Path) -> None:
    cursor = client.get("/scores/churn/customers?limit=5&band=low").json()["next"]
    other = client.get(f"/scores/churn/customers?band=high&cursor={cursor}")
    assert (other.status_code, "The cursor is of band 'low'" in other.json()["detail"]) == (404, True)
    publish(data / "generations", "g2", as_of_date=date(2024, 3, 5))
    eventually(lambda: client.get("/scores/churn").json()["generation"] == "g2")
    gone = client.get(f"/scores/churn/customers?cursor={cursor}")
    assert gone.status_code == 410
    assert "generation g1 is not served any more, g2 is" in gone.json()["detail"]


# --- A score whose owner has it refused once it is stale


def test_what_is_stale_and_refused_then_is_told_no_more(data: Path) -> None:
    late = {"as_of_date": date(2024, 2, 1), "when_stale": "refuse"}
    publish(data / "generations", "g2", **late)
    publish(data / "generations", score="upsell")
    with TestClient(create_app(data)) as client:
        for answer in (
            client.get(ONE),
            client.get("/customers/7/features?score=churn"),
            client.get("/scores/churn/customers"),
            client.post("/scores/churn/lookup", json={"ids": ["7"]}),
        ):
            assert answer.status_code == 503
            assert answer.json()["detail"].startswith("Score 'churn' is stale, and its owner has it refused then:")
        both = client.get("/customers/7").json()
        assert ([one["score"] for one in both["scores"]], both["refused"]) == (["upsell"], ["churn"])
        assert client.get("/scores/churn").json()["freshness"] == "stale"
        page = client.get("/pages/churn?customer_id=7")
        assert page.status_code == 503
        assert "its owner has it refused then" in page.text and "What moved it most" not in page.text
        assert client.get("/pages/churn").status_code == 200


def test_a_scores_page_offers_its_call_lists(client: Client) -> None:
    page = client.get("/pages/churn").text
    assert "% of the customers score no higher." in page
    for band in ("high", "medium", "low"):
        address = f"/scores/churn/customers?band={band}&amp;limit=1000&amp;format=csv"
        assert address in page
        assert client.get(address.replace("&amp;", "&")).headers["content-type"].startswith("text/csv")
