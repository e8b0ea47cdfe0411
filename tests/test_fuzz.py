"""The API under whatever its OpenAPI document allows, and what it does not: schemathesis, under the real server; and
under whatever may be an id."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from litestar import Litestar
from litestar.testing import TestClient

from serving.app import create_app
from serving.guarding.keys import create_key
from tests.conftest import Run, copy_of
from tests.sample_generations import publish
from tests.test_api import serving

# What no schema of JSON can say of a body: whether a file has columns, a row all features of the score asked for.
CONFIG = """
[[operations]]
include-path = ["/scores/{score}/jobs", "/scores/{score}/predict"]
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "404", "409", "413", "415", "422", "503"]
"""
EXAMPLES = 20  # of each operation and phase
IDS = [
    "a",
    "a/b",
    "a//b",
    "..",
    "é",
    "🙂",
    " ",
    "a b",
    "a?b#c",
    "a%2Fb",
    "x" * 511,
    "north,8",
    "features",
    "1/features",
]


def test_no_request_gets_what_the_document_does_not_say(loans_run: Run, tmp_path: Path) -> None:
    """Over a bank's scores, with their models, cards and reports; so that there is something to find."""
    run = copy_of(loans_run, tmp_path)
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    _, token = create_key(run.data / "keys.json", "fuzz", ["admin"])
    with serving(run.data) as server:
        asked = subprocess.run(
            [
                *(Path(sys.executable).parent / "schemathesis", "run", f"http://127.0.0.1:{server.port}/openapi.json"),
                *("--checks", "all", "--max-examples", str(EXAMPLES), "--seed", "1", "--request-timeout", "10"),
                *("--header", f"Authorization: Bearer {token}", "--no-color"),
            ],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert server.is_ready()
    assert asked.returncode == 0, asked.stdout
    assert "Failures:" not in asked.stdout and "Errors:" not in asked.stdout, asked.stdout


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient[Litestar]]:
    data = tmp_path_factory.mktemp("ids")
    publish(data / "generations", ids=IDS)
    with TestClient(create_app(data)) as client:
        yield client


any_id = st.one_of(
    st.sampled_from(IDS),
    st.text(max_size=40),
    st.text(alphabet="./%\0 \\,~?#abé", max_size=12),
    st.text(min_size=500, max_size=600),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(customer_id=any_id)
@example(customer_id="")
@example(customer_id="x" * 512)
@example(customer_id="../../keys.json")
def test_whatever_is_an_id_is_found_or_not_and_each_way_to_ask_agrees(
    client: TestClient[Litestar], customer_id: str
) -> None:
    if customer_id in (".", ".."):  # which clients take for steps in the path, and never send
        found = client.post("/scores/churn/lookup", json={"ids": [customer_id]}).json()
        assert [one["customer_id"] for one in found["scores"]] == [one for one in IDS if one == customer_id]
        return
    sent = quote(customer_id, safe="")
    one = client.get(f"/scores/churn/customers/{sent}")
    many = client.post("/scores/churn/lookup", json={"ids": [customer_id]})
    features = client.get(f"/customers/{sent}/features?score=churn")
    predicted = client.post("/scores/churn/predict", json={"rows": [{"customer_id": customer_id}]})
    assert many.status_code == 200
    assert predicted.status_code in (404, 409), "there is no model"
    if customer_id in IDS:
        assert (one.status_code, features.status_code) == (200, 200)
        assert one.json() == many.json()["scores"][0]
        assert one.json()["customer_id"] == features.json()["customer_id"] == customer_id
    else:
        told = (ascii(customer_id), one.status_code, features.status_code)
        assert one.status_code in (404, 414) and features.status_code in (404, 414), told
        assert many.json() == {"score": "churn", "generation": "g1", "scores": [], "missing": [customer_id]}
