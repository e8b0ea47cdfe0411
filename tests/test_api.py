"""The API as an application sees it: in process, and over HTTP under the real server."""

import asyncio
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from urllib.parse import quote

import msgspec
import pytest
from litestar import Litestar
from litestar.testing import TestClient

from ml.values import read_rows
from serving.answers import CustomerAnswer, FeaturesAnswer, Problem, Readiness, Scores, ScoreSummary
from serving.app import create_app
from serving.generations import store
from serving.generations.store import customer_key, flip, verify
from tests import sample_generations
from tests.sample_generations import publish

Client = TestClient[Litestar]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data" / "generations"


@pytest.fixture
def client(root: Path) -> Iterator[Client]:
    with TestClient(create_app(root.parent, look_every=0.02)) as client:
        yield client


def eventually(check: Callable[[], bool], seconds: float = 2.0) -> float:
    """Wait until something holds, and give the seconds that took."""
    start = time.monotonic()
    while not check():
        assert time.monotonic() - start < seconds, "it never came true"
        time.sleep(0.01)
    return time.monotonic() - start


def test_a_customer_is_answered_exactly_as_documented(root: Path) -> None:
    publish(root)
    with TestClient(create_app(root.parent)) as client:
        answer = client.get("/scores/churn/customers/42")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        decoded = msgspec.json.decode(answer.content, type=CustomerAnswer, strict=True)
        assert msgspec.json.encode(decoded) == answer.content, "no field more, none less, none in another form"
        assert (decoded.score, decoded.customer_id, decoded.generation) == ("churn", "42", "g1")
        assert decoded.reasons[0].feature == "days_since_last_visit"

        document = client.get("/openapi.json").json()
        operation = document["paths"]["/scores/{score}/customers/{customer_id}"]["get"]
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        properties = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["properties"]
        assert [name for name in properties if name != "probabilities"] == list(answer.json()), "of a category alone"
        example = next(iter(operation["responses"]["200"]["content"]["application/json"]["examples"].values()))["value"]
        msgspec.convert(example, CustomerAnswer)
        assert list(example) == [name for name in properties if name != "probabilities"]


def test_the_catalogue_lists_each_score_with_what_is_served(root: Path) -> None:
    publish(root)
    publish(root, score="upsell", title="Upsell", bands={}, band_counts={}, rows=3)
    with TestClient(create_app(root.parent)) as client:
        scores = msgspec.json.decode(client.get("/scores").content, type=Scores).scores
        assert [score.name for score in scores] == ["churn", "upsell"]
        one = msgspec.json.decode(client.get("/scores/churn").content, type=ScoreSummary)
        assert one == scores[0]
        assert (one.customers, one.generation, one.model_version) == (100, "g1", 1)
        assert one.metrics["roc_auc"] > one.baseline["roc_auc"]


@pytest.mark.parametrize(
    ("fresh_for_days", "today", "stale"),
    [
        (8, date(2024, 3, 12), False),
        (8, date(2024, 3, 13), True),
        (8.5, date(2024, 3, 12), False),
        (0, date(2024, 3, 4), False),
    ],
)
def test_a_fixed_clock_decides_freshness(root: Path, fresh_for_days: float, today: date, stale: bool) -> None:
    publish(root, fresh_for_days=fresh_for_days, today=today)
    with TestClient(create_app(root.parent)) as client:
        assert client.get("/scores/churn/customers/1").json()["stale"] is stale
        assert client.get("/scores/churn").json()["freshness"] == ("stale" if stale else "fresh")


def test_without_a_fixed_clock_a_score_turns_stale_at_midnight_utc(root: Path) -> None:
    publish(root, today=None)
    now = [datetime(2024, 3, 12, 23, 59, 59, tzinfo=UTC).timestamp()]
    with TestClient(create_app(root.parent, clock=lambda: now[0])) as client:
        assert client.get("/scores/churn/customers/1").json()["stale"] is False
        assert client.get("/scores/churn").json()["fresh_until"] == "2024-03-12"
        now[0] += 1
        assert client.get("/scores/churn/customers/1").json()["stale"] is True
        assert client.get("/scores/churn").json()["freshness"] == "stale"
        assert client.get("/health/ready").json()["scores"][0]["freshness"] == "stale"


def test_a_404_says_whether_the_score_or_the_customer_is_unknown(root: Path) -> None:
    publish(root)
    publish(root, score="upsell")
    with TestClient(create_app(root.parent)) as client:
        for path in ("/scores/nonsense", "/scores/nonsense/customers/1"):
            answer = client.get(path)
            assert answer.status_code == 404
            assert answer.headers["content-type"] == "application/problem+json"
            problem = msgspec.json.decode(answer.content, type=Problem)
            assert problem.detail == "Unknown score 'nonsense'. Known scores: churn, upsell."
            assert problem.known_scores == ["churn", "upsell"]
        problem = msgspec.json.decode(client.get("/scores/churn/customers/nobody").content, type=Problem)
        assert problem.detail.startswith("Unknown customer 'nobody' of score 'churn', which has 100 customers as of")
        assert problem.detail.endswith(". An id is customer_id.")
        assert (problem.status, problem.title, problem.known_scores) == (404, "Not Found", None)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/scores", 405),
        ("GET", "/scores/churn/customers", 404),
        ("GET", "/docs/x", 404),
    ],
)
def test_every_error_is_a_problem(client: Client, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    if path != "/docs/x":
        assert answer.headers["content-type"] == "application/problem+json"
        problem = msgspec.json.decode(answer.content, type=Problem)
        assert problem.status == status
        assert problem.detail


def test_a_method_that_is_not_possible_is_told_those_that_are(client: Client) -> None:
    for path in ("/scores", "/scores/churn/customers/1", "/"):
        answer = client.delete(path)
        assert answer.status_code == 405
        assert answer.headers["allow"] == "GET, HEAD, OPTIONS"
        assert answer.json()["detail"] == f"DELETE is not possible at {path}. Possible: GET, HEAD, OPTIONS."
    assert client.get("/events/orders").headers["allow"] == "OPTIONS, POST"


def test_options_tells_the_methods_that_a_refusal_tells(client: Client) -> None:
    for path in ("/scores", "/jobs/18bb1b5828ed37fdc89e73e4", "/scores/churn/jobs", "/", "/openapi.json"):
        asked = client.options(path)
        assert (asked.status_code, asked.headers["allow"]) == (204, client.patch(path).headers["allow"])


@pytest.mark.parametrize("path", ["/", "/scores", "/health/live", "/health/ready", "/scores/churn/customers/1"])
def test_head_answers_as_get_without_the_body(root: Path, path: str) -> None:
    publish(root)
    with TestClient(create_app(root.parent)) as client:
        head, whole = client.head(path), client.get(path)
    assert (head.status_code, head.headers) == (200, whole.headers)
    assert head.content == b"" and whole.content != b""


def test_head_tells_a_load_balancer_that_nothing_is_published_yet(client: Client) -> None:
    assert client.head("/health/ready").status_code == 503
    assert client.head("/nothing").status_code == 404


def test_a_fault_inside_shows_nothing_of_the_inside(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(root)
    monkeypatch.setattr("serving.catalogue.Served.customer", lambda *_: 1 / 0)
    with TestClient(create_app(root.parent), raise_server_exceptions=False) as client:
        answer = client.get("/scores/churn/customers/1")
    assert answer.status_code == 500
    assert answer.json() == {
        "title": "Internal Server Error",
        "status": 500,
        "detail": "The fault is in the server's log.",
    }


def test_before_the_first_publication_it_says_what_to_do_and_then_serves_without_a_restart(
    root: Path, client: Client
) -> None:
    assert client.get("/health/live").json() == {"status": "alive"}
    assert client.get("/scores").json() == {"scores": []}
    answer = client.get("/health/ready")
    assert answer.status_code == 503
    assert "make run" in answer.json()["detail"]
    assert client.get("/scores/churn").json()["detail"] == "Unknown score 'churn'. Known scores: none yet."
    publish(root)
    eventually(lambda: client.get("/health/ready").status_code == 200)
    assert client.get("/scores/churn/customers/1").status_code == 200


def test_a_corrupt_new_generation_is_not_served_and_named_until_it_is_mended(
    root: Path, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    publish(root, "g1")
    eventually(lambda: client.get("/health/ready").status_code == 200)
    shutil.copytree(root / "churn" / "g1", root / "churn" / "g2")
    flip(root, "churn", "g2")

    def ready() -> Readiness:
        return msgspec.json.decode(client.get("/health/ready").content, type=Readiness)

    eventually(lambda: ready().status == "degraded")
    assert client.get("/health/ready").status_code == 200, "it serves on: no load balancer should drop it"
    assert ready().scores[0].generation == "g1"
    fault = "churn/g2/generation.json: generation is 'g1', expected 'g2'"
    assert ready().scores[0].fault == fault
    assert client.get("/scores/churn/customers/1").json()["generation"] == "g1"
    assert [record.message for record in caplog.records].count(f"{fault}; g1 is served on") == 1
    publish(root, "g3")
    eventually(lambda: ready().status == "ready")
    assert client.get("/scores/churn/customers/1").json()["generation"] == "g3"


def test_a_score_that_is_declared_and_not_published_yet_is_told_and_the_others_are_served(
    root: Path, client: Client
) -> None:
    publish(root)
    store.declare(root, ["churn", "upsell"])
    eventually(lambda: client.get("/health/ready").json()["status"] == "degraded")
    answer = client.get("/health/ready")
    assert answer.status_code == 200, "no load balancer should drop the score that there is"
    assert answer.json()["detail"] == "Declared, but not published yet: upsell. The others are served."
    publish(root, score="upsell")
    eventually(lambda: client.get("/health/ready").json()["status"] == "ready")


def test_one_corrupt_score_does_not_stop_the_others(root: Path) -> None:
    publish(root)
    publish(root, score="upsell")
    (root / "upsell" / "CURRENT").write_text("../churn/g1\n")
    with TestClient(create_app(root.parent)) as client:
        assert [score["name"] for score in client.get("/scores").json()["scores"]] == ["churn"]
        answer = client.get("/health/ready")
        assert answer.status_code == 503
        assert answer.json()["scores"][1] == {
            "score": "upsell",
            "generation": None,
            "as_of_date": None,
            "freshness": None,
            "fault": "upsell/CURRENT: '../churn/g1' is no name of a generation",
        }
        for path in ("/scores/upsell", "/scores/upsell/customers/1"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
            assert answer.json() == {
                "title": "Service Unavailable",
                "status": 503,
                "detail": "Score 'upsell' cannot be served: upsell/CURRENT: '../churn/g1' is no name of a generation."
                " Publish anew or roll back.",
                "known_scores": ["churn"],
            }
        assert [one["score"] for one in client.get("/customers/1").json()["scores"]] == ["churn"]
        answer = client.get("/customers/nobody")
        assert (answer.status_code, answer.json()["detail"]) == (
            503,
            "No score that can be looked up knows customer 'nobody', but these can't be: upsell.",
        )


def test_a_rollback_and_a_removed_folder_leave_lookups_working(root: Path, client: Client) -> None:
    publish(root, "g1")
    publish(root, "g2")
    eventually(lambda: client.get("/scores").json()["scores"] != [])
    flip(root, "churn", "g1")
    eventually(lambda: client.get("/scores/churn").json()["generation"] == "g1")
    shutil.rmtree(root / "churn")
    eventually(lambda: client.get("/health/ready").json()["status"] == "degraded")
    assert client.get("/scores/churn/customers/1").json()["generation"] == "g1"


def test_the_docs_refer_to_nothing_outside(client: Client) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert "//" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for name in ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png", "start.js"):
        assert f"/docs/files/{name}" in page.text
        file = client.get(f"/docs/files/{name}", headers={"accept-encoding": "gzip"})
        assert file.status_code == 200
        assert file.headers["content-encoding"] == "gzip"
        assert file.content == client.get(f"/docs/files/{name}", headers={"accept-encoding": "identity"}).content
    assert client.get("/docs/files/index.html").status_code == 404


FEATURES_OF_44 = {  # the fortieth of the customers 0 to 99, which are sorted as text
    "days_since_last_visit": 39,
    "visits_28d_count": 9007199254740993,
    "favourite_colour": 'grün, "hell"',
    "balance_eur": "12.50",
    'spend "84d"': 0.1,
    "last_seen_at": "2024-01-23T17:30:00.25Z",
}


def test_a_customers_features_are_answered_typed_and_exactly_as_documented(root: Path) -> None:
    publish(root)
    with TestClient(create_app(root.parent)) as client:
        answer = client.get("/customers/44/features?score=churn")
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/json"
        decoded = msgspec.json.decode(answer.content, type=FeaturesAnswer, strict=True)
        assert decoded == FeaturesAnswer(
            score="churn",
            customer_id="44",
            generation="g1",
            model_version=1,
            as_of_date=date(2024, 3, 4),
            fresh_until=date(2024, 3, 12),
            stale=False,
            features=FEATURES_OF_44,  # type: ignore[arg-type]
        )
        assert list(answer.json()) == list(FeaturesAnswer.__struct_fields__)
        assert list(answer.json()["features"]) == list(FEATURES_OF_44)
        assert client.get("/customers/0/features?score=churn").json()["features"]["favourite_colour"] is None

        operation = client.get("/openapi.json").json()["paths"]["/customers/{customer_id}/features"]["get"]
        parameters = {
            parameter["name"]: (parameter["in"], parameter["required"]) for parameter in operation["parameters"]
        }
        assert parameters == {"customer_id": ("path", True), "score": ("query", True)}
        assert {"200", "400", "404", "503"} <= set(operation["responses"])
        example = next(iter(operation["responses"]["200"]["content"]["application/json"]["examples"].values()))["value"]
        assert list(msgspec.to_builtins(msgspec.convert(example, FeaturesAnswer))) == list(answer.json())


def test_lookups_of_a_stale_score_are_refused_where_its_owner_wants_that_and_it_is_still_listed(root: Path) -> None:
    publish(root, when_stale="refuse", today=date(2024, 3, 12))
    publish(root, score="old", title="Old", when_stale="refuse", today=date(2024, 3, 13))
    with TestClient(create_app(root.parent)) as client:
        for path in ("/scores/{}/customers/42", "/customers/42/features?score={}"):
            assert client.get(path.format("churn")).json()["stale"] is False
            answer = client.get(path.format("old"))
            assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
            assert answer.json()["detail"] == (
                "Score 'old' is stale, and its owner has it refused then: it speaks for 2024-03-04, and was fresh until"
                " 2024-03-12. Ask CRM analytics (crm@example.com)."
            )
        listed = {one["name"]: (one["freshness"], one["when_stale"]) for one in client.get("/scores").json()["scores"]}
        assert listed == {"churn": ("fresh", "refuse"), "old": ("stale", "refuse")}
        assert client.get("/scores/old").status_code == 200
        assert client.get("/health/ready").json()["status"] == "ready"


def test_features_read_back_are_what_models_read(root: Path) -> None:
    folder = publish(root)
    with TestClient(create_app(root.parent)) as client:
        answer = msgspec.json.decode(client.get("/customers/44/features?score=churn").content)
    (row,) = read_rows([answer["features"]], verify(folder).features).to_pylist()
    assert row["visits_28d_count"] == Decimal(2**53 + 1)
    assert (row["balance_eur"], row['spend "84d"']) == (Decimal("12.50"), 0.1)
    assert row["last_seen_at"] == datetime(2024, 1, 23, 17, 30, 0, 250_000, tzinfo=UTC)


def test_features_turn_stale_with_their_score(root: Path) -> None:
    publish(root, today=None)
    now = [datetime(2024, 3, 12, 23, 59, 59, tzinfo=UTC).timestamp()]
    with TestClient(create_app(root.parent, clock=lambda: now[0])) as client:
        assert client.get("/customers/1/features?score=churn").json()["stale"] is False
        now[0] += 1
        assert client.get("/customers/1/features?score=churn").json()["stale"] is True


@pytest.mark.parametrize(
    ("path", "status", "detail", "lists"),
    [
        ("/customers/1/features", 400, "Of which score? Ask with ?score=<name>. Known scores: churn, upsell.", True),
        (
            "/customers/1/features?score=",
            400,
            "Of which score? Ask with ?score=<name>. Known scores: churn, upsell.",
            True,
        ),
        (
            "/customers/1/features?Score=churn",
            400,
            "Of which score? Ask with ?score=<name>. Known scores: churn, upsell.",
            True,
        ),
        ("/customers/1/features?score=x", 404, "Unknown score 'x'. Known scores: churn, upsell.", True),
        (
            "/customers/nobody/features?score=churn",
            404,
            "Unknown customer 'nobody' of score 'churn', which has 100 customers as of 2024-03-04.",
            False,
        ),
        (
            "/customers/1/features?score=upsell",
            404,
            "Generation g1 of score 'upsell' was published without features; the next one that is published has them.",
            False,
        ),
        ("/customers/1/featuresx?score=churn", 404, "Unknown customer '1/featuresx': no score knows it", True),
    ],
)
def test_what_is_wrong_with_a_request_for_features_is_told(
    root: Path, path: str, status: int, detail: str, lists: bool
) -> None:
    publish(root)
    publish(root, score="upsell", features=())
    with TestClient(create_app(root.parent)) as client:
        answer = client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    problem = msgspec.json.decode(answer.content, type=Problem)
    assert problem.detail.startswith(detail)
    assert problem.known_scores == (["churn", "upsell"] if lists else None)


def test_before_the_first_publication_no_score_can_be_named(client: Client) -> None:
    detail = client.get("/customers/1/features").json()["detail"]
    assert detail == "Of which score? Ask with ?score=<name>. Known scores: none yet."


# Under the real server ------------------------------------------------------------------------------------------------


class Server:
    """`python -m serving` over a folder of data, and requests to it as they are written, with no client's tidying."""

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self.process = process
        self.port = port

    def get(self, path: str, method: str = "GET") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def is_ready(self) -> bool:
        try:
            return self.get("/health/ready")[0] == 200
        except OSError:
            return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(data: Path, *arguments: str) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SCOREHOUSE_")}
    return subprocess.Popen(
        [sys.executable, "-m", "serving", "--data", str(data), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=Path(__file__).parent.parent,
    )


@contextmanager
def serving(data: Path) -> Iterator[Server]:
    port = free_port()
    process = start(data, "--port", str(port), "--workers", "2")
    server = Server(process, port)
    try:
        eventually(server.is_ready, 20)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        finally:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def odd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data = tmp_path_factory.mktemp("odd")
    ids = ["a", "a/b", "a//b", "/lead", "trail/", "..", ".", "é", "日本", "🙂", " ", "a b", "a?b#c", "a%2Fb"]
    ids += ["x" * 511, "\x7f", "+"]
    ids += [customer_key(["north", "a,b%"]), customer_key(["north", 7])]
    publish(data / "generations", ids=ids)
    with serving(data) as server:
        server.ids = ids  # type: ignore[attr-defined]
        yield server


def test_every_published_id_can_be_asked_for_however_odd(odd_server: Server) -> None:
    for customer_id in odd_server.ids:  # type: ignore[attr-defined]
        status, body = odd_server.get("/scores/churn/customers/" + quote(customer_id, safe=""))
        assert status == 200, customer_id
        assert json.loads(body)["customer_id"] == customer_id


def test_the_features_of_every_published_id_can_be_asked_for_however_odd(odd_server: Server) -> None:
    for customer_id in odd_server.ids:  # type: ignore[attr-defined]
        status, body = odd_server.get(f"/customers/{quote(customer_id, safe='')}/features?score=churn")
        assert status == 200, customer_id
        assert json.loads(body)["customer_id"] == customer_id


@pytest.mark.parametrize(
    "customer_id",
    ["", "/", "a/", "/a", "%00", "a%00b", "%FF%FE", "../../scores", "%", "%ED%A0%80", "x" * 512, "north,8", "a%2525"],
)
def test_the_features_of_an_id_that_is_no_customer_are_a_clean_404(odd_server: Server, customer_id: str) -> None:
    status, body = odd_server.get(f"/customers/{customer_id}/features?score=churn")
    assert (status, msgspec.json.decode(body, type=Problem).status) == (404, 404)


def test_the_server_tells_at_its_start_what_the_api_serves_and_what_it_does_not(tmp_path: Path) -> None:
    publish(tmp_path / "generations")
    publish(tmp_path / "generations", score="upsell")
    (tmp_path / "generations" / "upsell" / "g1" / "card.json").write_text("{")
    port = free_port()
    process = start(tmp_path, "--port", str(port), "--workers", "1")
    try:
        assert process.stdout
        told = ""
        while "  API " not in told and (line := process.stdout.readline()):
            told += line
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)
    assert "  churn: 100 customers as of 2024-03-04" in told
    assert "  upsell: cannot be served. upsell/g1/card.json: its checksum is wrong" in told
    assert f"  pages http://127.0.0.1:{port}/" in told


def test_a_load_balancer_may_ask_with_head(odd_server: Server) -> None:
    for path in ("/", "/scores", "/health/live", "/health/ready"):
        assert odd_server.get(path, "HEAD") == (200, b"")


@pytest.mark.parametrize(
    "path",
    [
        *("", "//", "a/", "/a", "%2Fa", "%00", "a%00b", "%FF%FE", "%2e%2e%2f%2e%2e", "../../scores", "%", "%zz"),
        "%ED%A0%80",
        *("x" * 512, "x" * 3_000, "%F0%9F%99%82" * 200, "nobody", "north,8", "north,a%2Cb%25", "a%2525"),
    ],
)
def test_an_id_that_is_no_customer_is_a_clean_404(odd_server: Server, path: str) -> None:
    status, body = odd_server.get("/scores/churn/customers/" + path)
    problem = msgspec.json.decode(body, type=Problem)
    assert (status, problem.status) == (404, 404)
    assert len(problem.detail) < 400


def test_publications_under_load_fail_no_request_and_are_seen_within_a_second(tmp_path: Path) -> None:
    root = tmp_path / "generations"
    publish(root, "g1", rows=20_000)
    stop = threading.Event()
    failures: list[str] = []
    requests: list[int] = []
    seen: set[str] = set()

    def ask(port: int, first: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        done = 0
        while not stop.is_set():
            customer_id = str((first + 7 * done) % 20_000)
            try:
                connection.request("GET", f"/scores/churn/customers/{customer_id}")
                response = connection.getresponse()
                answer = msgspec.json.decode(response.read(), type=CustomerAnswer)
                if response.status != 200 or answer.customer_id != customer_id:
                    failures.append(f"{response.status} {answer}")
                seen.add(answer.generation)
            except Exception as error:
                failures.append(repr(error))
                connection.close()
            done += 1
        requests.append(done)
        connection.close()

    with serving(tmp_path) as server:
        threads = [threading.Thread(target=ask, args=(server.port, 1000 * number)) for number in range(3)]
        for thread in threads:
            thread.start()
        try:
            for name in ("g2", "g3", "g4"):
                arguments = [sys.executable, sample_generations.__file__, str(root), f"{name}killed", "mid_write"]
                with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as killed:
                    assert killed.stdout
                    assert killed.stdout.readline() == "mid_write\n"
                    killed.kill()
                publish(root, name, rows=20_000)
                waited = eventually(lambda name=name: all(current_generation(server) == name for _ in range(8)), 5)  # type: ignore[misc]
                assert waited < 1.5, "a second, and some for a busy machine"
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert failures == []
    assert seen == {"g1", "g2", "g3", "g4"}
    assert sum(requests) > 300


def current_generation(server: Server) -> str:
    generation: str = json.loads(server.get("/scores/churn")[1])["generation"]
    return generation


def test_it_says_what_it_serves_and_stops_when_told(tmp_path: Path) -> None:
    publish(tmp_path / "generations")
    port = free_port()
    process = start(tmp_path, "--port", str(port), "--workers", "1")
    server = Server(process, port)
    try:
        eventually(server.is_ready, 20)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=10)
    finally:
        process.kill()
    assert "churn: 100 customers as of 2024-03-04, generation g1" in output
    assert f"http://127.0.0.1:{port}/scores, described at http://127.0.0.1:{port}/docs" in output
    assert "Traceback" not in output
    assert process.returncode == 0


def test_told_to_stop_under_load_it_fails_no_request(tmp_path: Path) -> None:
    publish(tmp_path / "generations")
    port = free_port()
    process = start(tmp_path, "--port", str(port), "--workers", "2")
    answered: list[bool] = []  # whether before it was told
    failures: list[str] = []
    told = threading.Event()

    async def ask(kept_alive: bool) -> None:
        """One request after the other, until there is nobody to connect to."""
        last = "" if kept_alive else "Connection: close\r\n"
        request = f"GET /scores/churn/customers/1 HTTP/1.1\r\nHost: localhost\r\n{last}\r\n".encode()
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                return
            try:
                while True:
                    before = not told.is_set()
                    writer.write(request)
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                    await reader.readexactly(int(length.partition(b":")[2]))
                    assert head.startswith(b"HTTP/1.1 200 "), head
                    answered.append(before)
                    if b"connection: close" in head.lower():
                        break
            except Exception as error:
                failures.append(repr(error))
                return
            finally:
                writer.close()

    async def load() -> None:
        clients = [asyncio.create_task(ask(number % 10 == 0)) for number in range(150)]
        await asyncio.sleep(1)
        process.send_signal(signal.SIGTERM)
        told.set()
        await asyncio.wait_for(asyncio.gather(*clients), 20)

    try:
        eventually(Server(process, port).is_ready, 20)
        asyncio.run(load())
        output, _ = process.communicate(timeout=10)
    finally:
        process.kill()
        process.communicate()
    assert failures == []
    assert answered.count(True) > 150
    assert process.returncode == 0
    assert "Traceback" not in output


def test_a_killed_server_leaves_no_worker_on_its_port(tmp_path: Path) -> None:
    port = free_port()
    process = start(tmp_path, "--port", str(port))
    server = Server(process, port)
    eventually(lambda: _answers(server), 20)
    process.kill()
    process.communicate()
    eventually(lambda: not _answers(server), 5)


def _answers(server: Server) -> bool:
    try:
        return server.get("/health/live")[0] == 200
    except (OSError, http.client.HTTPException):
        return False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "Refused to serve on 0.0.0.0: there are no API keys yet"),
        (["--host", "::"], "Refused to serve on ::: there are no API keys yet"),
        (["--host", "example"], "--host or SCOREHOUSE_HOST is 'example', no IP address."),
        (["--port", "none"], "--port or SCOREHOUSE_PORT is 'none', no number from 1 to 65535."),
        (["--workers", "0"], "--workers or SCOREHOUSE_WORKERS is '0', no number from 1 to 64."),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    output, _ = (process := start(tmp_path, *arguments)).communicate(timeout=20)
    assert process.returncode == 1
    assert output.startswith(message)
    assert output.count("\n") == 1


def test_a_data_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "metrics").write_text("no folder")  # root may write to any folder that is one
    process = start(tmp_path, "--port", str(free_port()))
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert output.startswith(f"The data folder {tmp_path} cannot be written (")
    assert len(output.splitlines()) == 1


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        output, _ = (process := start(tmp_path, "--port", str(port))).communicate(timeout=20)
    assert process.returncode == 1
    assert output.startswith(f"Port {port} of 127.0.0.1 cannot be had (Address already in use).")
    assert output.count("\n") == 1
