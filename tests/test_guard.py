"""What stands before the API: keys, what they may do and see, limits, headers, the audit log."""

import asyncio
import base64
import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec
import pytest
from litestar import Litestar
from litestar.testing import TestClient

from serving.answers import Problem
from serving.app import create_app
from serving.contracts import Column, Contract
from serving.guarding import audit as auditing
from serving.guarding.audit import Asked, Audit
from serving.guarding.bounds import Bound, Bounds, TooSlow, bounded
from serving.guarding.keys import create_key, revoke_key
from tests.sample_generations import publish
from tests.test_api import eventually, free_port, serving, start

Client = TestClient[Litestar]
ALL = ["read", "predict", "jobs", "events"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scores, each with a report and versions."""
    data = tmp_path_factory.mktemp("guard") / "data"
    publish(data / "generations")
    publish(data / "generations", score="upsell", title="Upsell")
    for score in ("churn", "upsell"):
        (data / "reports" / score / "2024-03-04").mkdir(parents=True)
        (data / "reports" / score / "2024-03-04" / "drift.html").write_text(f"<body>{score}</body>")
    return data


@pytest.fixture
def fresh(data: Path) -> Iterator[Path]:
    """The same data, without keys."""
    _forget_keys(data)
    yield data
    _forget_keys(data)


def _forget_keys(data: Path) -> None:
    (data / "keys.json").unlink(missing_ok=True)


def a_key(data: Path, *may: str, name: str = "crm", **more: Any) -> dict[str, str]:
    """The header of a new key."""
    return {"Authorization": f"Bearer {create_key(data / 'keys.json', name, list(may) or ['read'], **more)[1]}"}


def problem(answer: Any, status: int) -> Problem:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return msgspec.json.decode(answer.content, type=Problem)


# Who asks -------------------------------------------------------------------------------------------------------------

PATHS = ["/", "/scores", "/scores/churn", "/scores/churn/customers/1", "/docs", "/openapi.json", "/pages/churn"]
PATHS += ["/reports", "/features", "/sources", "/customers/1/features?score=churn", "/nothing", "/metrics", "/jobs"]


def test_where_keys_exist_nothing_but_health_is_answered_without_one(fresh: Path) -> None:
    a_key(fresh)
    with TestClient(create_app(fresh)) as client:
        for path in PATHS:
            for method in ("GET", "HEAD", "OPTIONS", "POST", "DELETE"):
                assert client.request(method, path).status_code == 401, (method, path)
        assert client.get("/health/live").json() == {"status": "alive"}
        ready = client.get("/health/ready")
        assert ready.status_code == 200
        assert ready.json() == {"status": "ready", "detail": "Scores are served.", "scores": []}


def test_a_program_is_asked_for_a_bearer_and_a_browser_for_a_password_which_is_the_key(fresh: Path) -> None:
    key = a_key(fresh)["Authorization"].removeprefix("Bearer ")
    with TestClient(create_app(fresh)) as client:
        asked = client.get("/scores")
        assert asked.headers["www-authenticate"] == 'Bearer realm="scorehouse"'
        assert "Authorization: Bearer <key>" in problem(asked, 401).detail
        for path in ("/", "/pages/churn", "/reports", "/docs"):
            assert client.get(path).headers["www-authenticate"].startswith("Basic realm=")
        in_a_browser = client.get("/scores/churn", headers={"Accept": "text/html,*/*"})
        assert in_a_browser.headers["www-authenticate"].startswith("Basic realm=")
        assert client.get("/", auth=("anybody", key)).status_code == 200
        assert client.get("/scores", auth=("", key)).status_code == 200
        assert client.get("/", auth=(key, "")).status_code == 401
        for broken in ("Basic", "Basic !", f"Basic {base64.b64encode(key.encode()).decode()}", f"Digest {key}", ""):
            assert client.get("/", headers={"Authorization": broken}).status_code == 401


def test_an_expired_or_revoked_key_is_told_so_and_a_wrong_one_nothing(fresh: Path) -> None:
    header = a_key(fresh)
    revoke_key(fresh / "keys.json", "crm")
    with TestClient(create_app(fresh)) as client:
        told = problem(client.get("/scores", headers=header), 401).detail
        assert told.startswith("The key 'crm' was revoked on ")
        wrong = {"Authorization": header["Authorization"][:-2] + "xx"}
        told = problem(client.get("/scores", headers=wrong), 401).detail
        assert told == "The Authorization header has no key of this server. Send Bearer <key>."


NEEDED = [
    ("GET", "/", "read"),
    ("GET", "/scores/churn/customers/1", "read"),
    ("POST", "/scores/churn/lookup", "read"),
    ("GET", "/metrics", "read"),
    ("GET", "/events/orders", "read"),
    ("POST", "/events/orders", "events"),
    ("POST", "//events//orders/", "events"),
    ("POST", "/scores/churn/predict", "predict"),
    ("POST", "//scores//churn//predict//", "predict"),
    ("POST", "/scores/churn/jobs", "jobs"),
    ("GET", "/scores/churn/jobs", "jobs"),
    ("GET", "/jobs", "jobs"),
    ("DELETE", "/jobs/17", "jobs"),
    ("GET", "//jobs/17/result", "jobs"),
]


def test_a_key_without_the_permission_that_is_needed_is_told_which(fresh: Path) -> None:
    alone = {one: a_key(fresh, one, name=f"only-{one}") for one in ALL}
    others = {one: a_key(fresh, *(set(ALL) - {one}), name=f"not-{one}") for one in ALL}
    boss = a_key(fresh, "admin", name="boss")
    with TestClient(create_app(fresh)) as client:
        for method, path, permission in NEEDED:
            url = f"http://testserver.local{path}"  # httpx would take //events for a host
            refused = client.request(method, url, headers=others[permission])
            assert f"it needs the permission '{permission}'" in problem(refused, 403).detail
            assert others[permission]["Authorization"].removeprefix("Bearer ") not in refused.text
            for may in (boss, alone[permission]):
                assert client.request(method, url, headers=may).status_code not in (401, 403), (method, path)


def test_what_a_prediction_has_to_be_sent_is_told_to_keys_that_read_and_to_those_that_predict(fresh: Path) -> None:
    keys = {one: a_key(fresh, one, name=one) for one in ALL}
    with TestClient(create_app(fresh)) as client:
        found = {one: client.get("/scores/churn/contract", headers=key).status_code for one, key in keys.items()}
        refused = client.get("/scores/churn/contract", headers=keys["jobs"])
    assert {one for one, status in found.items() if status != 403} == {"read", "predict", "admin"} & set(ALL)
    assert "it needs the permission 'read' or 'predict' and has jobs" in problem(refused, 403).detail


# What a key may see ---------------------------------------------------------------------------------------------------

OF_A_SCORE = [
    "/scores/{}",
    "/scores/{}/customers/1",
    "/scores/{}/customers",
    "/scores/{}/performance",
    "/scores/{}/versions",
    "/scores/{}/versions/1",
    "/scores/{}/nothing",
    "/pages/{}",
    "/models/{}/1",
    "/reports/{}/2024-03-04/drift.html",
    "/customers/1/features?score={}",
]


def test_a_score_that_a_key_may_not_see_is_answered_as_one_that_does_not_exist(fresh: Path) -> None:
    limited = a_key(fresh, *ALL, scores=["churn"])
    with TestClient(create_app(fresh)) as client:
        for method, path in product(("GET", "HEAD", "POST", "DELETE", "OPTIONS"), OF_A_SCORE):
            hidden, unknown = (
                client.request(method, path.format(score), headers=limited) for score in ("upsell", "nonsense")
            )
            assert hidden.status_code == unknown.status_code
            assert hidden.text.replace("upsell", "nonsense") == unknown.text
            without_length = {name: value for name, value in hidden.headers.items() if name != "content-length"}
            assert without_length == {k: v for k, v in unknown.headers.items() if k != "content-length"}
        for path in OF_A_SCORE:
            hidden = client.get(path.format("upsell"), headers=limited)
            assert problem(hidden, 404).known_scores == ["churn"]
            assert problem(hidden, 404).detail == "Unknown score 'upsell'. Known scores: churn."


WAYS = [  # of writing a path, and the status with a key that may see all
    ("//scores/upsell", 200),
    ("/scores//upsell", 200),
    ("/scores/upsell/", 200),
    ("/scores//upsell/customers/1", 404),
    ("//scores/upsell/customers/1", 404),
    ("///scores///upsell///customers///1//", 404),
    ("/%73cores/upsell", 200),
    ("/scores%2Fupsell", 200),
    ("/scores/%75psell/customers/1", 200),
    ("/scores/upsell%2Fcustomers%2F1", 404),
    ("/scores/upsell%2Fcustomers/1/2", 404),
    ("/scores/churn/../upsell", 404),
    ("/scores/churn/%2e%2e/upsell", 404),
    ("/./scores/upsell", 404),
    ("//pages//upsell", 200),
    ("//reports//upsell/2024-03-04/drift.html", 200),
    ("/customers/1/features?score=%75psell", 200),
    ("/customers/1/features?score=churn&score=upsell", 200),
    ("/customers/1/features?score=upsell&score=churn", 200),
]


def test_no_way_of_writing_a_path_gets_around_a_keys_scores(fresh: Path) -> None:
    limited = a_key(fresh, *ALL, scores=["churn"])
    everything = a_key(fresh, *ALL, name="everything")
    app = create_app(fresh)
    with TestClient(app) as client:
        for path, status in WAYS:
            assert raw_get(client, app, path, everything)[0] == status, path
            seen, body = raw_get(client, app, path, limited)
            own = seen == 200 and b'"score":"churn"' in body and b'"score":"upsell"' not in body
            assert seen == 404 or own, path


def raw_get(client: Client, app: Litestar, target: str, headers: dict[str, str]) -> tuple[int, bytes]:
    """GET of a target exactly as it is written: clients would tidy it up."""
    return raw(client, app, "GET", target, headers, [(b"", False)])


def raw(
    client: Client,
    app: Litestar,
    method: str,
    target: str,
    headers: dict[str, str],
    pieces: list[tuple[bytes, bool]],
    server: str = "127.0.0.1",
) -> tuple[int, bytes]:
    """A request as a server hands it over. Of the body's pieces each says whether more are to come; they may not."""
    path, _, query = target.partition("?")
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": (server, 8000),
        "extensions": {},
    }
    sent: list[Any] = []

    left = iter(pieces)

    async def receive() -> Any:
        piece = next(left, None)
        if piece is None:
            await asyncio.Event().wait()
            raise AssertionError("never")
        return {"type": "http.request", "body": piece[0], "more_body": piece[1]}

    async def send(message: Any) -> None:
        sent.append(message)

    async def ask() -> None:
        await app(scope, receive, send)  # type: ignore[arg-type]

    with client.portal() as portal:
        portal.call(ask)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def test_lists_and_pages_show_a_key_its_own_scores_alone(fresh: Path) -> None:
    limited = a_key(fresh, scores=["churn", "later"])
    with TestClient(create_app(fresh)) as client:
        client.headers.update(limited)
        assert [score["name"] for score in client.get("/scores").json()["scores"]] == ["churn"]
        for path in ("/", "/reports", "/pages/churn"):
            page = client.get(path)
            assert page.status_code == 200
            assert "churn" in page.text and "upsell" not in page.text.lower()
        ready = client.get("/health/ready").json()
        assert [one["score"] for one in ready["scores"]] == ["churn"]
        assert problem(client.get("/scores/later"), 404).known_scores == ["churn"], "allowed, but not published"
        assert "upsell" not in client.get("/pages/later").text
        assert problem(client.get("/customers/1/features"), 400).known_scores == ["churn"]
        for path in ("/features", "/sources", "/metrics", "//features"):
            refused = client.get(f"http://testserver.local{path}")
            assert "shows all scores" in problem(refused, 403).detail


# How often and how much -----------------------------------------------------------------------------------------------


def test_a_key_that_asks_too_often_is_told_when_to_ask_again(fresh: Path) -> None:
    slow = a_key(fresh, rate=0.01, burst=3)
    fast = a_key(fresh, name="fast")
    with TestClient(create_app(fresh)) as client:
        assert [client.get("/scores", headers=slow).status_code for _ in range(4)] == [200, 200, 200, 429]
        answer = client.get("/scores", headers=slow)
        assert "is good for 0.01 requests a second" in problem(answer, 429).detail
        assert 90 <= int(answer.headers["retry-after"]) <= 100
        assert client.get("/scores", headers=fast).status_code == 200
        assert client.get("/health/live", headers=slow).status_code == 200


def test_what_is_too_long_is_refused_by_name(fresh: Path) -> None:
    with TestClient(create_app(fresh)) as client:
        assert "16,384 are possible" in problem(client.get("/scores", headers={"X": "x" * 16_400}), 431).detail
        assert "4,096 are possible" in problem(client.get(f"/scores/churn/customers/{'x' * 4_100}"), 414).detail
        assert "4,096 are possible" in problem(client.get(f"/scores?x={'x' * 4_100}"), 414).detail
        longest = "%F0%9F%99%82" * 127
        assert client.get(f"/scores/churn/customers/{longest}").status_code == 404


def test_without_keys_only_loopback_is_answered_however_the_server_was_started(fresh: Path) -> None:
    app = create_app(fresh)
    with TestClient(app) as client:
        for server, status in (("127.0.0.1", 200), ("::1", 200), ("10.0.0.5", 403), ("0.0.0.0", 403), ("::", 403)):
            answered, body = raw(client, app, "GET", "/scores", {}, [(b"", False)], server)
            assert answered == status
            assert status == 200 or b"make key NAME=crm MAY=read" in body


def test_without_keys_a_page_whose_name_leads_to_loopback_reads_nothing(fresh: Path) -> None:
    app = create_app(fresh)
    hosts = {"localhost:8000": 200, "127.0.0.1": 200, "[::1]:8000": 200, "evil.example:8000": 403, "[x]": 403, "": 403}
    with TestClient(app) as client:
        for host, status in hosts.items():
            answered, body = raw(client, app, "GET", "/scores", {"Host": host}, [(b"", False)])
            assert answered == status, host
            _, ready = raw(client, app, "GET", "/health/ready", {"Host": host}, [(b"", False)])
            assert (b'"churn"' in body + ready) is (status == 200), host


@pytest.fixture
def pushing(fresh: Path) -> Path:
    """The same data, with a source of events that takes anything named `x`, as an example of a body."""
    contract = Contract(
        source="visits",
        table="raw.visits",
        description="",
        key=("x",),
        columns=(Column(name="x", type="text", kind="text"),),
    )
    (fresh / "events" / "visits").mkdir(parents=True, exist_ok=True)
    (fresh / "events" / "visits" / "contract.json").write_bytes(msgspec.json.encode(contract))
    return fresh


def test_a_body_is_bounded_whether_its_length_is_announced_or_not(pushing: Path) -> None:
    bounds, key = Bounds(others=Bound(1_000)), a_key(pushing, "events")
    with TestClient(create_app(pushing, bounds=bounds)) as client:
        client.headers.update(key)
        for size in (1_001, 10_000, 200_000):
            chunks = (b"x" * 500 for _ in range(size // 500 + 1))
            for answer in (
                client.post("/events/visits", content=b"x" * size),
                client.post("/events/visits", content=chunks),
            ):
                told = problem(answer, 413).detail
                assert told == "The body has more than the 1,000 bytes that one request may have. Send several."
        assert client.post("/events/visits", json={"x": "x" * 980}).status_code == 202


@pytest.mark.parametrize("pieces", [[], [(b'{"x"', True)], [(b"", True), (b"{", True)], [(b"x" * 2_000, True)]])
def test_a_body_that_does_not_come_in_time_is_answered_and_not_waited_for(
    pushing: Path, pieces: list[tuple[bytes, bool]]
) -> None:
    key = a_key(pushing, "events")
    app = create_app(pushing, bounds=Bounds(others=Bound(1_000, seconds=0.05)))
    with TestClient(app) as client:
        status, body = raw(client, app, "POST", "/events/visits", key, pieces)
        assert (status, json.loads(body)["detail"]) == (
            408,
            "The body was not complete within 0.05 s. Send it again.",
        )
        assert raw(client, app, "POST", "/events/visits", key, [(b'{"x": "1"}', False)])[0] == 202


def test_a_body_that_breaks_off_or_is_no_chunk_is_the_callers_fault(tmp_path: Path) -> None:
    publish(tmp_path / "generations")
    head = b"POST /scores/churn/%s HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/csv\r\n"
    head += b"Transfer-Encoding: chunked\r\n\r\n"
    with serving(tmp_path) as server:
        for what, came in product((b"lookup", b"predict", b"jobs"), (b"", b"5\r\n", b"5\r\n{", b"zz\r\n", b"f" * 40)):
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
                connection.sendall(head % what + came)
                connection.shutdown(socket.SHUT_WR)
                assert b" 500 " not in connection.makefile("rb").readline(), (what, came)
        metrics = server.get("/metrics")[1].decode()
    assert 'status="400"' in metrics
    assert 'status="500"' not in metrics


def test_an_upload_may_take_its_time_while_it_goes_on() -> None:
    bounds = Bounds(jobs=Bound(100, seconds=0.5, by_piece=True))
    assert bounds.of(["scores", "churn", "jobs"]) is bounds.jobs
    assert bounds.of(["scores", "churn", "predict"]) is bounds.of(["jobs"]) is bounds.others
    came: list[bytes] = []

    async def receive() -> Any:
        if len(came) == 12:
            await asyncio.Event().wait()
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def upload() -> None:
        pieces = bounded(receive, None, bounds.jobs)
        while True:
            came.append((await pieces())["body"])  # type: ignore[typeddict-item]

    with pytest.raises(TooSlow, match="The body did not go on within"):
        asyncio.run(upload())
    assert len(came) == 12, "longer than half a second, and never so long without a piece"


def test_a_sender_who_goes_away_is_no_fault_of_the_server(tmp_path: Path) -> None:
    publish(tmp_path / "generations")
    headers = a_key(tmp_path, "admin") | {"Content-Type": "text/csv", "Content-Length": "100"}
    with serving(tmp_path) as server:
        for path in ("/scores/churn/lookup", "/scores/churn/predict", "/scores/churn/jobs"):
            connection = http.client.HTTPConnection("127.0.0.1", server.port)
            connection.request("POST", path, b"customer", headers)
            connection.close()
        eventually(lambda: len(lines(tmp_path)) == 3, 5)
    assert [line["status"] for line in lines(tmp_path)] == [400, 400, 400]


# Headers, and who may change something --------------------------------------------------------------------------------


def test_every_answer_has_headers_that_keep_it_safe_and_none_for_other_origins(fresh: Path) -> None:
    key = a_key(fresh)
    paths = ("/", "/scores", "/scores/churn/customers/1", "/nothing", "/health/live", "/docs", "/scores/x" * 1_000)
    with TestClient(create_app(fresh)) as client:
        for path, headers in product(paths, (key, {})):
            answer = client.get(path, headers={**headers, "Origin": "https://elsewhere.example"})
            assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
            assert answer.headers.get_list("referrer-policy") == ["same-origin"]
            assert answer.headers.get_list("x-frame-options") == ["DENY"]
            assert answer.headers.get_list("cache-control") == ["private, no-cache"]
            assert not [name for name in answer.headers if name.startswith("access-control")]


FROM_A_PAGE: list[tuple[dict[str, str], int]] = [
    ({}, 405),
    ({"Sec-Fetch-Site": "same-origin"}, 405),
    ({"Origin": "http://testserver.local"}, 405),
    ({"Sec-Fetch-Site": "cross-site"}, 403),
    ({"Origin": "https://elsewhere.example"}, 403),
    ({"Origin": "http://testserver.local:3000", "Sec-Fetch-Site": "same-site"}, 403),
    ({"Origin": "null"}, 403),
]


def test_another_sites_page_can_not_change_anything(fresh: Path) -> None:
    with TestClient(create_app(fresh, look_every=0.02)) as client:
        for (headers, status), method in product(FROM_A_PAGE, ("POST", "DELETE")):
            assert client.request(method, "/scores", headers=headers).status_code == status, headers
            assert client.get("/scores", headers=headers).status_code == 200
        password = a_key(fresh, "admin")["Authorization"].removeprefix("Bearer ")
        eventually(lambda: client.get("/scores").status_code == 401)
        for headers, status in FROM_A_PAGE:  # a browser sends a password that it knows along
            assert client.post("/scores", headers=headers, auth=("", password)).status_code == status, headers


def test_the_document_tells_of_keys_and_refusals_at_every_operation(fresh: Path) -> None:
    with TestClient(create_app(fresh)) as client:
        document = client.get("/openapi.json").json()
        assert client.get("/openapi.json").json() == document
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for path, item in document["paths"].items():
        for operation in item.values():
            guarded = not path.startswith("/health/")
            assert operation.get("security") == ([{"key": []}] if guarded else None)
            assert ({"401", "403", "414", "429", "431"} <= set(operation["responses"])) is guarded
            assert ("413" in operation["responses"]) is ("requestBody" in operation)


# The audit log --------------------------------------------------------------------------------------------------------


def lines(data: Path) -> list[dict[str, Any]]:
    files = sorted((data / "logs" / "audit").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_the_audit_log_tells_who_asked_what_and_no_secret(tmp_path: Path) -> None:
    publish(tmp_path / "generations")
    header = a_key(tmp_path, "read", "events")
    secret = header["Authorization"].split("_", 2)[2]  # which may have a _ itself
    answered: list[tuple[Any, ...]] = []
    with TestClient(create_app(tmp_path, audit_days=30, answered=lambda *told: answered.append(told))) as client:
        client.get("/scores/churn/customers/4%2F2?token=hidden", headers=header)
        client.head("/scores/churn/customers/42", headers=header)
        client.get("/pages/churn?customer_id=7&x=hidden", headers=header)
        client.post("/events/nothing", content=b'{"feature": "hidden"}', headers=header)
        client.get("/scores")
        client.get("/health/live")
        client.get("/docs", headers=header)
        eventually(lambda: len(lines(tmp_path)) == 5, 5)
        client.get("/scores", headers=header)
    found = lines(tmp_path)
    assert len(found) == 6, "what waits at the end is written"
    key_id = header["Authorization"].split("_")[1]
    told = [(one["key"], one["method"], one["path"], one["score"], one["customers"], one["status"]) for one in found]
    assert told == [
        ("crm", "GET", "/scores/churn/customers/4%2F2", "churn", None, 404),
        ("crm", "HEAD", "/scores/churn/customers/42", "churn", 1, 200),
        ("crm", "GET", "/pages/churn?customer_id=7", "churn", 1, 200),
        ("crm", "POST", "/events/nothing", None, None, 404),
        ("nobody", "GET", "/scores", None, None, 401),
        ("crm", "GET", "/scores", None, None, 200),
    ]
    assert [one["key_id"] for one in found] == [key_id, key_id, key_id, key_id, None, key_id]
    assert found[1]["route"] == "/scores/{score}/customers/{customer_id}" and found[1]["ms"] > 0
    (file,) = (tmp_path / "logs" / "audit").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert secret not in file.read_text() and "hidden" not in file.read_text()
    assert [told[:3] for told in answered][1:3] == [
        ("/scores/{score}/customers/{customer_id}", "HEAD", 200),
        ("/pages/{score}", "GET", 200),
    ]
    assert len(answered) == 8


def asked(at: datetime) -> Asked:
    return Asked(
        at=at.timestamp(),
        key_id=None,
        key="anybody",
        method="GET",
        route="/scores",
        path=b"/scores",
        query=b"",
        score=None,
        customers=None,
        status=200,
        seconds=0.001,
        client="127.0.0.1",
    )


def test_the_audit_log_begins_a_file_each_day_and_keeps_as_many_days_as_told(tmp_path: Path) -> None:
    day = datetime(2024, 3, 10, 12, tzinfo=UTC)
    for name in ("2024-03-08-1.jsonl", "2024-03-09-1.jsonl", "2024-03-01-7.jsonl", "notes.txt"):
        (tmp_path / name).write_text("")
    audit = Audit(tmp_path, 3)
    for at in (day, day, day + timedelta(days=1)):
        audit.note(asked(at))
    audit.close()
    pid = os.getpid()
    names = [f"2024-03-10-{pid}.jsonl", f"2024-03-11-{pid}.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2024-03-09-1.jsonl", *names, "notes.txt"]
    assert [len((tmp_path / name).read_text().splitlines()) for name in names] == [2, 1]


def test_a_full_disk_fails_no_request_and_leaves_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    audit = Audit(tmp_path, 3)
    audit.note(asked(datetime(2024, 3, 10, tzinfo=UTC)))
    audit.flush()
    write = os.write

    def full(file: int, content: Any) -> int:
        if len(content) > 10:
            return write(file, content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(auditing.os, "write", full)
    for _ in range(2):
        audit.note(asked(datetime(2024, 3, 10, tzinfo=UTC)))
        audit.flush()
    monkeypatch.setattr(auditing.os, "write", write)
    audit.note(asked(datetime(2024, 3, 10, tzinfo=UTC)))
    audit.close()
    (file,) = tmp_path.iterdir()
    assert [json.loads(line)["status"] for line in file.read_text().splitlines()] == [200, 200]
    messages = [record.message for record in caplog.records]
    assert messages == [
        "the audit log can't be written: [Errno 28] No space left on device; requests are answered on",
        "the audit log is written again; 2 lines are lost",
    ]


# Under the real server ------------------------------------------------------------------------------------------------


def ask(port: int, path: str, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except OSError:
        return 0
    finally:
        connection.close()


def test_with_a_key_it_serves_on_any_address_and_a_revoked_one_is_refused_without_a_restart(tmp_path: Path) -> None:
    publish(tmp_path / "generations")
    header = a_key(tmp_path)
    port = free_port()
    process = start(tmp_path, "--host", "0.0.0.0", "--port", str(port), "--workers", "2")
    try:
        eventually(lambda: ask(port, "/scores", header) == 200, 30)
        assert ask(port, "/scores", {}) == 401
        later = a_key(tmp_path, name="later")
        eventually(lambda: all(ask(port, "/scores", later) == 200 for _ in range(10)), 5)
        revoke_key(tmp_path / "keys.json", "crm")
        waited = eventually(lambda: all(ask(port, "/scores", header) == 401 for _ in range(10)), 5)
        assert waited < 3
        assert ask(port, "/scores", later) == 200
        (tmp_path / "keys.json").unlink()
        time.sleep(0.6)
        assert {ask(port, "/scores", {}) for _ in range(10)} == {401}, "a lost file opens nothing"
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert {one["key"] for one in lines(tmp_path)} >= {"crm", "later", "nobody"}


def test_a_broken_file_of_keys_is_named_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("{")
    output, _ = (process := start(tmp_path, "--port", str(free_port()))).communicate(timeout=20)
    assert process.returncode == 1
    assert output.startswith(f"Refused to serve: {tmp_path}/keys.json: is no file of keys (")
    assert output.count("\n") == 1


def test_two_keys_in_one_request_are_refused_as_neither_counts(fresh: Path) -> None:
    _, one = create_key(fresh / "keys.json", "one", ["read"])
    _, other = create_key(fresh / "keys.json", "other", ["read"])
    app = create_app(fresh)
    with TestClient(app) as client:
        status, body = raw_get(
            client, app, "/scores", {"Authorization": f"Bearer {one}", "authorization": f"Bearer {other}"}
        )
    assert status == 400
    assert b"several Authorization headers" in body
