"""A typed client that a generator makes of the OpenAPI document, used against the real server."""

import importlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from litestar.testing import TestClient

from serving.app import create_app
from tests.sample_generations import publish
from tests.test_api import serving

NAME = "scorehouse_client"
# This generator knows files by this type alone.
CONFIG = """content_type_overrides:
  text/csv: application/octet-stream
  application/vnd.apache.parquet: application/octet-stream
"""


class Generated:
    """The modules of the generated package, and a client of it for the server."""

    def __init__(self, base_url: str) -> None:
        self.client = self.module("").Client(base_url=base_url, raise_on_unexpected_status=True)

    def module(self, path: str) -> ModuleType:
        return importlib.import_module(f"{NAME}.{path}" if path else NAME)

    def call(self, operation: str, *arguments: Any, **named: Any) -> Any:
        return self.module(f"api.{operation}").sync(*arguments, client=self.client, **named)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Generated]:
    folder = tmp_path_factory.mktemp("client")
    publish(folder / "data" / "generations", ids=["1", "a/b", "é"])
    with TestClient(create_app(folder / "data")) as client:
        (folder / "openapi.json").write_bytes(client.get("/openapi.json").content)
    (folder / "config.yml").write_text(CONFIG)
    beside = Path(sys.executable).parent
    made = subprocess.run(
        [
            *(beside / "openapi-python-client", "generate", "--path", "openapi.json"),
            *("--output-path", NAME, "--meta", "none", "--config", "config.yml", "--fail-on-warning"),
        ],
        cwd=folder,
        env={**os.environ, "PATH": f"{beside}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    assert "WARNING" not in made.stdout + made.stderr
    sys.path.insert(0, str(folder))
    try:
        with serving(folder / "data") as server:
            generated = Generated(f"http://127.0.0.1:{server.port}")
            with generated.client:
                yield generated
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
            del sys.modules[name]


def test_every_operation_of_the_document_has_a_function_of_the_client(generated: Generated, tmp_path: Path) -> None:
    with TestClient(create_app(tmp_path)) as client:
        document = client.get("/openapi.json").json()
    for operations in document["paths"].values():
        for operation in operations.values():
            function = generated.module(f"api.{operation['tags'][0]}.{operation['operationId']}")
            assert callable(function.sync_detailed)


def test_the_client_reads_scores_typed(generated: Generated) -> None:
    listed = generated.call("scores.list_scores")
    assert [(one.name, one.customers, one.freshness.value) for one in listed.scores] == [("churn", 3, "fresh")]
    customer = generated.call("customers.one_customer", "churn", "a/b")
    assert (customer.customer_id, customer.reasons[0].feature) == ("a/b", "days_since_last_visit")
    assert customer.as_of_date.isoformat() == "2024-03-04"
    features = generated.call("customers.customer_features", "é", score="churn")
    assert features.features["balance_eur"] == "12.50"
    page = generated.call("customers.call_list", "churn", limit=2)
    assert [one.rank for one in page.customers] == [1, 2]
    assert generated.call("customers.all_scores", "1").scores[0].score == "churn"


def test_the_client_sends_bodies_and_reads_problems_typed(generated: Generated) -> None:
    body = generated.module("models").Lookup(ids=["é", "nobody", 1])
    answer = generated.call("customers.lookup", "churn", body=body)
    assert ([one.customer_id for one in answer.scores], answer.missing) == (["é", "1"], ["nobody"])
    problem = generated.call("customers.one_customer", "churn", "nobody")
    assert (type(problem).__name__, problem.status) == ("Problem", 404)
    assert json.loads(json.dumps(problem.to_dict()))["detail"].startswith("Unknown customer 'nobody'")


def test_the_client_uploads_a_job_and_asks_how_far_it_is(generated: Generated) -> None:
    file = generated.module("types").File(payload=io.BytesIO(b"customer_id\n1\n\xc3\xa9\n"))
    job = generated.call("jobs.submit_job", "churn", body=file, idempotency_key="monday")
    assert (job.score, job.state.value) == ("churn", "queued")
    assert generated.call("jobs.one_job", job.job).submitted_at == job.submitted_at
    assert (
        generated.call("jobs.submit_job", "churn", as_of=job.submitted_at.date().replace(2024, 3, 4)).score == "churn"
    )
