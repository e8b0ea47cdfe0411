"""Lookups that are answered before Litestar, beside the same ones that its handler answers: with a query it does.

Predictions are in test_predict.py, where there is a model.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from litestar.testing import TestClient

from serving.app import create_app
from tests.sample_generations import publish
from tests.test_api import Client

IDS = ["1", "a-b", "a~1b,c", "a:b@c;d=e+f", "Grün", "a b", "a/b", "..", "%34", "%2534", "a?b"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    data: Path = tmp_path_factory.mktemp("data")
    publish(data / "generations", ids=IDS)
    with TestClient(create_app(data), raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize(
    "path",
    [
        "/scores/churn/customers/1",
        "/scores/churn/customers/a-b",
        "/scores/churn/customers/a~1b,c",
        "/scores/churn/customers/a:b@c;d=e+f",
        "/scores/churn/customers/Gr%C3%BCn",
        "/scores/churn/customers/Grün",
        "/scores/churn/customers/a%20b",
        "/scores/churn/customers/a/b",
        "/scores/churn/customers/a%2Fb",
        "/scores/churn/customers/%34",
        "/scores/churn/customers/%2534",
        "/scores/churn/customers/%252534",
        "/scores/churn/customers/a%3Fb",
        "/scores/churn/customers/nobody",
        "/scores/churn/customers/",
        "/scores/churn/customers/1/",
        "/scores/churn/customers//1",
        "//scores/churn/customers/1",
        "/scores//churn/customers/1",
        "/scores/churn/features/1",
        "/scores/nonsense/customers/1",
        "/scores/%63hurn/customers/1",
        f"/scores/churn/customers/{'x' * 600}",
    ],
)
def test_a_lookup_is_answered_as_the_handler_answers_it(client: Client, method: str, path: str) -> None:
    plain, of_the_handler = client.request(method, path), client.request(method, path + "?by=handler")
    assert plain.status_code == of_the_handler.status_code
    assert plain.headers == of_the_handler.headers
    assert plain.content == of_the_handler.content


def test_plain_lookups_do_without_the_handler(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the test above compares two ways, and not one with itself."""
    monkeypatch.setattr("serving.scores.id_as_sent", lambda *_: 1 / 0)
    assert client.get("/scores/churn/customers/1").json()["customer_id"] == "1"
    assert client.get("/scores/churn/customers/1?by=handler").status_code == 500
