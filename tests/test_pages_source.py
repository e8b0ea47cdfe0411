"""Raw tables from an HTTP API: pages of each type, faults of the network, and what a run that ends early leaves."""

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from ml.declarations import Api, Source
from orchestration.batches import LoadError
from orchestration.loading import Loaded, load
from orchestration.project import Paths
from orchestration.warehouse import Connection, open_warehouse

CLOCK = datetime(2024, 5, 1, 6, tzinfo=UTC)
Asked = dict[str, str]
# A status, headers, and a body: bytes are sent as they are, all else as JSON.
Reply = tuple[int, dict[str, str], Any]
READINGS = [{"no": number, "at": f"2024-04-0{number}T10:00:00Z", "value": number / 10} for number in range(1, 6)]


class Server:
    """An API on loopback. `answer` is given the query and how many requests came before; `asked` are all queries."""

    def __init__(self) -> None:
        self.answer: Callable[[Asked, int], Reply] = lambda asked, before: (200, {}, READINGS)
        self.asked: list[Asked] = []
        self.headers: list[dict[str, str]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                before, asked = len(server.asked), dict(parse_qsl(urlsplit(self.path).query))
                server.asked.append(asked)
                server.headers.append(dict(self.headers))
                status, headers, body = server.answer(asked, before)
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
                self.close_connection = int(headers.get("Content-Length", len(content))) != len(content)

            def log_message(self, *_: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/readings"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Connection]:
    with open_warehouse(tmp_path / "data" / "warehouse.duckdb") as connection:
        yield connection


@pytest.fixture(autouse=True)
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited between requests, which take no time here."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


def source(server: Server, api: dict[str, Any] | None = None, **declared: Any) -> Source:
    return Source(
        **{
            "id": "source.shop.raw.readings",
            "schema": "landing",
            "table": "readings",
            "description": "",
            "uri": f"api+{server.url}",
            "key": ("no",),
            "cursor": "at",
            "api": Api(**(api or {})),
            "file": "project/models/sources.yml",
            **declared,
        }
    )


def run(connection: Connection, declared: Source, folder: Path) -> Loaded:
    return load(connection, declared, Paths(project=folder, data=folder / "data"), CLOCK)


def fault(connection: Connection, declared: Source, folder: Path) -> str:
    with pytest.raises(LoadError) as raised:
        run(connection, declared, folder)
    assert str(raised.value).startswith("project/models/sources.yml: source 'landing.readings': ")
    return str(raised.value)


def numbers(connection: Connection) -> list[int]:
    return [row[0] for row in connection.execute("select no from landing.readings order by 1").fetchall()]


def exists(connection: Connection) -> bool:
    return bool(connection.execute("from duckdb_tables() where table_name = 'readings'").fetchall())


def two(rows: list[Any], first: int) -> list[Any]:
    return rows[first : first + 2]


def test_an_answer_that_is_a_list_is_a_table_with_types(warehouse: Connection, server: Server, tmp_path: Path) -> None:
    assert run(warehouse, source(server), tmp_path).rows == 5
    kinds = warehouse.execute("select column_name, column_type from (describe landing.readings)").fetchall()
    assert dict(kinds[:3]) == {"at": "TIMESTAMP WITH TIME ZONE", "no": "BIGINT", "value": "DOUBLE"}
    assert warehouse.execute("select distinct _source from landing.readings").fetchall() == [(server.url,)]
    (rows, size) = warehouse.execute("select rows, bytes from quality.source_metrics").fetchall()[0]
    assert (rows, size) == (5, len(json.dumps(READINGS)))


def offset(server: Server, asked: Asked) -> Reply:
    return 200, {}, {"data": {"items": two(READINGS, int(asked["offset"]))}, "total": 5}


def page_number(server: Server, asked: Asked) -> Reply:
    return 200, {}, {"data": {"items": two(READINGS, 2 * int(asked["p"]) - 2)}}


def json_link(server: Server, asked: Asked) -> Reply:
    first = int(asked.get("from", 0))
    following = f"{server.url}?from={first + 2}" if first < 4 else None
    return 200, {}, {"data": {"items": two(READINGS, first)}, "links": {"next": following}}


def header_link(server: Server, asked: Asked) -> Reply:
    first = int(asked.get("from", 0))
    headers = {"Link": f'<{server.url}?from={first + 2}>; rel="next"'} if first < 4 else {}
    return 200, headers, {"data": {"items": two(READINGS, first)}}


def cursor(server: Server, asked: Asked) -> Reply:
    first = int(asked.get("after", 0))
    return 200, {}, {"data": {"items": two(READINGS, first)}, "next": first + 2 if first < 4 else None}


@pytest.mark.parametrize(
    ("answer", "declared", "requests"),
    [
        (offset, {"type": "offset", "limit": 2}, 3),
        (page_number, {"type": "page_number", "base_page": 1, "page_param": "p", "total_path": None}, 4),
        (json_link, {"type": "json_link", "next_url_path": "links.next"}, 3),
        (header_link, {"type": "header_link"}, 3),
        (cursor, {"type": "cursor", "cursor_path": "next", "cursor_param": "after"}, 3),
    ],
    ids=["offset", "page_number", "json_link", "header_link", "cursor"],
)
def test_all_pages_of_a_type_are_one_batch(
    warehouse: Connection,
    server: Server,
    tmp_path: Path,
    answer: Callable[[Server, Asked], Reply],
    declared: dict[str, Any],
    requests: int,
) -> None:
    server.answer = lambda asked, before: answer(server, asked)
    loaded = run(warehouse, source(server, {"rows": "data.items", "pages": declared}), tmp_path)
    assert (numbers(warehouse), len(loaded.batches), len(server.asked)) == ([1, 2, 3, 4, 5], 1, requests)


def since(asked: Asked, before: int) -> Reply:
    return 200, {}, [row for row in READINGS if str(row["at"]) >= asked.get("since", "")]


def test_the_next_run_asks_since_the_newest_cursor_and_knows_a_row_that_comes_again(
    warehouse: Connection, server: Server, tmp_path: Path
) -> None:
    declared = source(server, {"cursor_param": "since"})
    server.answer = lambda asked, before: (200, {}, since(asked, before)[2][:3])
    run(warehouse, declared, tmp_path)
    server.answer = since
    (batch,) = run(warehouse, declared, tmp_path).batches
    assert server.asked == [{}, {"since": "2024-04-03T10:00:00Z"}]
    assert (batch.rows, batch.landed, batch.repeated, numbers(warehouse)) == (3, 2, 1, [1, 2, 3, 4, 5])


def test_a_cursor_that_is_a_date_or_a_number_is_asked_for_as_it_is_written(
    warehouse: Connection, server: Server, tmp_path: Path
) -> None:
    server.answer = lambda asked, before: (200, {}, [{"no": 7, "at": "2024-04-01"}])
    for _ in range(2):
        run(warehouse, source(server, {"cursor_param": "since"}), tmp_path)
    run(warehouse, source(server, {"cursor_param": "since"}, cursor="no"), tmp_path)
    assert server.asked == [{}, {"since": "2024-04-01"}, {"since": "7"}]


def test_a_row_that_comes_with_a_newer_cursor_replaces_the_one_before(
    warehouse: Connection, server: Server, tmp_path: Path
) -> None:
    run(warehouse, source(server), tmp_path)
    server.answer = lambda asked, before: (200, {}, [{"no": 2, "at": "2024-04-09T10:00:00Z", "value": 9.5}])
    (batch,) = run(warehouse, source(server), tmp_path).batches
    assert (batch.landed, batch.replaced) == (1, 1)
    assert warehouse.execute("select value from landing.readings where no = 2").fetchall() == [(9.5,)]


def test_an_answer_without_keys_is_a_whole_that_replaces_the_one_before(
    warehouse: Connection, server: Server, tmp_path: Path
) -> None:
    declared = source(server, key=(), cursor=None)
    assert run(warehouse, declared, tmp_path).changed
    assert not run(warehouse, declared, tmp_path).batches
    server.answer = lambda asked, before: (200, {}, READINGS[3:])
    assert run(warehouse, declared, tmp_path).changed
    assert numbers(warehouse) == [4, 5]
    server.answer = lambda asked, before: (200, {}, [])
    loaded = run(warehouse, declared, tmp_path)
    assert (loaded.changed, numbers(warehouse)) == (False, [4, 5])
    assert loaded.notes == [f"{server.url} has no rows; the table stays as it was"]


def test_an_empty_answer_lands_nothing_and_is_noted(warehouse: Connection, server: Server, tmp_path: Path) -> None:
    run(warehouse, source(server), tmp_path)
    server.answer = lambda asked, before: (200, {}, {"items": []})
    loaded = run(warehouse, source(server, {"rows": "items"}), tmp_path)
    assert (loaded.batches, loaded.rows, loaded.notes) == ([], 5, [f"{server.url} has no new rows"])


def test_a_new_column_is_added_and_told(warehouse: Connection, server: Server, tmp_path: Path) -> None:
    run(warehouse, source(server), tmp_path)
    server.answer = lambda asked, before: (200, {}, [{**READINGS[0], "no": 6, "unit": "°C"}])
    (batch,) = run(warehouse, source(server), tmp_path).batches
    assert batch.added_columns == ("unit",)
    found = warehouse.execute("select no, unit from landing.readings where no in (1, 6) order by 1").fetchall()
    assert found == [(1, None), (6, "°C")]


def test_a_row_that_is_no_object_goes_to_quarantine(warehouse: Connection, server: Server, tmp_path: Path) -> None:
    server.answer = lambda asked, before: (200, {}, [*READINGS, "maintenance"])
    (batch,) = run(warehouse, source(server, max_rejected=0.5), tmp_path).batches
    assert batch.rejected == {"is no JSON object": 1}
    assert warehouse.execute("select row from quarantine.readings").fetchall() == [('"maintenance"',)]


def test_headers_and_parameters_take_secrets_from_the_environment(
    warehouse: Connection, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = {"headers": {"Authorization": "Bearer ${READINGS_TOKEN}"}, "params": {"unit": "${READINGS_UNIT}", "n": 3}}
    assert "the environment has no READINGS_" in fault(warehouse, source(server, api), tmp_path)
    monkeypatch.setenv("READINGS_TOKEN", "t0ps3cret")
    monkeypatch.setenv("READINGS_UNIT", "°C")
    run(warehouse, source(server, api), tmp_path)
    assert server.headers[0]["Authorization"] == "Bearer t0ps3cret"
    assert server.asked == [{"unit": "°C", "n": "3"}]


def test_a_server_that_is_busy_is_asked_again_when_it_says_so(
    warehouse: Connection, server: Server, tmp_path: Path, waited: list[float]
) -> None:
    server.answer = lambda asked, before: (429, {"Retry-After": "17"}, {}) if not before else (200, {}, READINGS)
    assert run(warehouse, source(server), tmp_path).rows == 5
    assert waited == [17.0]


def test_errors_of_the_server_that_pass_are_outlived_with_longer_and_longer_waits(
    warehouse: Connection, server: Server, tmp_path: Path, waited: list[float]
) -> None:
    server.answer = lambda asked, before: (503, {}, {}) if before < 3 else (200, {}, READINGS)
    assert run(warehouse, source(server), tmp_path).rows == 5
    assert waited == [1.0, 2.0, 4.0]


def test_a_connection_that_breaks_amid_an_answer_is_tried_again(
    warehouse: Connection, server: Server, tmp_path: Path
) -> None:
    half = json.dumps(READINGS).encode()[:50]
    server.answer = lambda asked, before: (
        200,
        {"Content-Length": "500"} if before < 2 else {},
        half if before < 2 else READINGS,
    )
    assert run(warehouse, source(server), tmp_path).rows == 5
    assert len(server.asked) == 3


def test_the_declared_rate_is_kept_between_pages(
    warehouse: Connection, server: Server, tmp_path: Path, waited: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    server.answer = lambda asked, before: offset(server, asked)
    api = {"rows": "data.items", "pages": {"type": "offset", "limit": 2}, "per_second": 4}
    run(warehouse, source(server, api), tmp_path)
    assert waited == [0.25, 0.25]


def test_an_api_that_fails_half_way_lands_nothing_and_is_asked_for_the_same_again(
    warehouse: Connection, server: Server, tmp_path: Path
) -> None:
    declared = source(
        server, {"rows": "items", "cursor_param": "since", "pages": {"type": "offset", "limit": 2, "total_path": None}}
    )
    healthy = True

    def answer(asked: Asked, before: int) -> Reply:
        rows = READINGS[:1] if before < 2 else READINGS
        return (
            (200, {}, {"items": two(rows, int(asked["offset"]))})
            if healthy or asked["offset"] != "4"
            else (500, {}, {})
        )

    server.answer = answer
    run(warehouse, declared, tmp_path)
    healthy = False
    told = fault(warehouse, declared, tmp_path)
    assert "page 3: HTTP 500 Internal Server Error, 5 times over; nothing of this run has landed" in told
    assert numbers(warehouse) == [1]
    healthy = True
    (batch,) = run(warehouse, declared, tmp_path).batches
    assert (batch.landed, batch.repeated, numbers(warehouse)) == (4, 1, [1, 2, 3, 4, 5])
    assert [asked.get("since") for asked in server.asked[:3]] == [None, None, "2024-04-01T10:00:00Z"]
    assert server.asked[-4]["since"] == "2024-04-01T10:00:00Z"


def test_faults_are_told_once_with_what_to_do_and_without_secrets(
    warehouse: Connection, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("READINGS_TOKEN", "t0ps3cret")
    api = {"rows": "items", "params": {"token": "${READINGS_TOKEN}"}, "headers": {"X-Key": "${READINGS_TOKEN}"}}
    uri = f"api+{server.url.replace('//', '//reader:${READINGS_TOKEN}@')}?also=${{READINGS_TOKEN}}"
    page = f"load: from 'api+{server.url}': page 1"
    for reply, told in [
        (
            (401, {}, "who is t0ps3cret?"),
            f"{page}: HTTP 401 Unauthorized: it does not let us in; are api: headers right",
        ),
        ((404, {}, {}), f"{page}: HTTP 404 Not Found: there is nothing at this address; is its path right?"),
        ((422, {}, "no such token: t0ps3cret"), 'HTTP 422 Unprocessable Entity: "no such token: ${READINGS_TOKEN}"'),
        ((429, {}, {}), "HTTP 429 Too Many Requests, 5 times over; nothing of this run has landed"),
        ((200, {}, b"<html>t0ps3cret"), f"{page} is no JSON; does the address lead to the API"),
        ((200, {}, {"rows": [], "page": 1}), f"{page} has nothing at api: rows: 'items' (it has: rows, page)"),
        ((200, {}, [1]), f"{page} has nothing at api: rows: 'items' (it is a list)"),
        ((200, {"Content-Length": "90"}, b"["), f"{page} can't be had, 5 times over: IncompleteRead"),
    ]:
        server.answer = lambda asked, before, reply=reply: reply  # type: ignore[misc]
        found = fault(warehouse, source(server, api, uri=uri), tmp_path)
        assert told in found
        assert "t0ps3cret" not in found and "\n" not in found
    server.close()
    found = fault(warehouse, source(server, api, uri=uri), tmp_path)
    assert f"{page} can't be had, 5 times over: ConnectionRefusedError" in found and "t0ps3cret" not in found
    assert not exists(warehouse)


@pytest.mark.parametrize(
    ("api", "body", "told"),
    [
        (
            {},
            {"items": [], "total": 0},
            "is an object, not a list of rows; write where they are as api: rows (it has: items, total)",
        ),
        ({"rows": "items[*]"}, {"itemz": [{}]}, "has nothing at api: rows: 'items[*]' (it has: itemz)"),
        ({"rows": "a..["}, [], "api: rows: 'a..[' is no JSONPath"),
        (
            {"pages": {"type": "ofset"}},
            [],
            "(known: cursor, header_cursor, header_link, json_link, offset, page_number, single_page)",
        ),
        ({"pages": {"limit": 2}}, [], "its type is not known (known: cursor"),
        ({"pages": {"type": "offset"}}, [], "'limit' (offset takes: limit, offset, offset_param"),
        ({"pages": {"type": "json_link", "next": "n"}}, [], "'next' (json_link takes: next_url_path)"),
        (
            {"rows": "items", "pages": {"type": "offset", "limit": 2}},
            {"items": [{"no": 1}]},
            "Total `items` not found in the response",
        ),
        (
            {"rows": "items", "pages": {"type": "offset", "limit": 1, "total_path": None}},
            {"items": [{"no": 1}]},
            "page 2 has the same rows as one before, so there would be no end",
        ),
        (
            {"headers": {"X-Key": "k"}, "rows": "items", "pages": {"type": "json_link"}},
            {"items": [{"no": 1}], "next": "http://elsewhere.test/?token=t0ps3cret"},
            "page 1 names a next page on http://elsewhere.test, another server",
        ),
    ],
)
def test_a_declaration_that_does_not_fit_the_api_is_told(
    warehouse: Connection, server: Server, tmp_path: Path, api: dict[str, Any], body: Any, told: str
) -> None:
    server.answer = lambda asked, before: (200, {}, body)
    found = fault(warehouse, source(server, api), tmp_path)
    assert told in found and "t0ps3cret" not in found
    assert not exists(warehouse)


def test_a_cursor_param_without_a_cursor_is_told(warehouse: Connection, server: Server, tmp_path: Path) -> None:
    assert "but load lacks cursor" in fault(warehouse, source(server, {"cursor_param": "s"}, cursor=None), tmp_path)


LOAD = """
import sys
from pathlib import Path
import tests.test_pages_source as here
from ml.declarations import Api
from orchestration.warehouse import open_warehouse

class Server:
    url = sys.argv[1]

allowed = []
sys.addaudithook(lambda event, values: allowed.append(values[1]) if event == "socket.connect" else None)
folder = Path(sys.argv[2])
api = {"rows": "data.items", "pages": {"type": "offset", "limit": 2}}
with open_warehouse(folder / "data" / "warehouse.duckdb") as connection:
    here.run(connection, here.source(Server, api), folder)
print({address[0] for address in allowed})
"""


def command(server: Server, folder: Path) -> list[str]:
    return [sys.executable, "-c", LOAD, server.url, str(folder)]


def environment(home: Path) -> dict[str, str]:
    return {"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parent.parent)}


def test_a_load_killed_amid_the_pages_leaves_nothing_and_the_next_has_each_row_once(
    server: Server, tmp_path: Path
) -> None:
    second_page, go_on = threading.Event(), threading.Event()

    def answer(asked: Asked, before: int) -> Reply:
        if asked["offset"] == "2":
            second_page.set()
            go_on.wait(60)
        return offset(server, asked)

    server.answer = answer
    with subprocess.Popen(command(server, tmp_path), env=environment(tmp_path), cwd=tmp_path) as killed:
        assert second_page.wait(60)
        killed.send_signal(signal.SIGKILL)
    go_on.set()
    with open_warehouse(tmp_path / "data" / "warehouse.duckdb") as connection:
        assert not exists(connection)
        api = {"rows": "data.items", "pages": {"type": "offset", "limit": 2}}
        (batch,) = run(connection, source(server, api), tmp_path).batches
        assert (batch.landed, numbers(connection)) == (5, [1, 2, 3, 4, 5])


def test_nothing_is_written_outside_the_data_folder_and_no_other_server_is_asked(
    server: Server, tmp_path: Path
) -> None:
    home, work, folder = (tmp_path / name for name in ("home", "work", "project"))
    for path in (home, work, folder):
        path.mkdir()
    server.answer = lambda asked, before: offset(server, asked)
    done = subprocess.run(command(server, folder), env=environment(home), cwd=work, capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "{'127.0.0.1'}"), done.stderr
    assert [*home.rglob("*"), *work.rglob("*")] == []
    assert [path.name for path in (folder / "data").rglob("*") if path.is_file()] == [
        "warehouse.duckdb.lock",
        "warehouse.duckdb",
    ]


def test_a_decimal_keeps_its_last_digit(warehouse: Connection, server: Server, tmp_path: Path) -> None:
    server.answer = lambda asked, before: (200, {}, b'[{"no": 1, "at": "2024-01-01", "amount": 12345678901234567.89}]')
    run(warehouse, source(server, types={"amount": "decimal(20, 2)"}), tmp_path)
    (found,) = warehouse.execute("select amount::varchar from landing.readings").fetchall()
    assert found == ("12345678901234567.89",)


def test_the_headers_follow_no_redirect_to_another_server(
    warehouse: Connection, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "t0ps3cret")
    elsewhere = Server()
    server.answer = lambda asked, before: (302, {"Location": elsewhere.url}, b"")
    found = fault(warehouse, source(server, {"headers": {"X-Api-Key": "${TOKEN}"}}), tmp_path)
    elsewhere.close()
    assert "another server than" in found and elsewhere.asked == []


def test_pages_that_go_in_a_circle_have_an_end(warehouse: Connection, server: Server, tmp_path: Path) -> None:
    def answer(asked: dict[str, str], before: int) -> Any:
        page = int(asked.get("page", 0))
        return 200, {}, {"rows": [{"no": page, "at": "2024-01-01"}], "next": f"{server.url}?page={(page + 1) % 3}"}

    server.answer = answer
    api = {"rows": "rows", "pages": {"type": "json_link", "next_url_path": "next"}}
    assert "page 4 has the same rows as one before" in fault(warehouse, source(server, api), tmp_path)


def test_a_secret_with_a_line_break_is_refused_and_one_with_the_signs_of_a_url_works_and_stays_secret(
    warehouse: Connection, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("READINGS_TOKEN", "t0ps3cret\n")
    told = fault(warehouse, source(server, {"headers": {"Authorization": "Bearer ${READINGS_TOKEN}"}}), tmp_path)
    assert "READINGS_TOKEN of the environment has a line break" in told
    assert "t0ps3cret" not in told

    password = "t0ps3cret/x@y z"
    monkeypatch.setenv("READINGS_TOKEN", password)
    uri = f"api+{server.url.replace('//', '//reader:${READINGS_TOKEN}@')}"
    run(warehouse, source(server, uri=uri), tmp_path)
    login = base64.b64encode(f"reader:{password}".encode()).decode()
    assert server.headers[-1]["Authorization"] == f"Basic {login}"
    server.answer = lambda asked, before: (422, {}, f"who is {password}, {login}?")
    told = fault(warehouse, source(server, uri=uri), tmp_path)
    assert "t0ps3cret" not in told and login not in told


def test_a_secret_that_is_written_into_a_header_is_refused(
    warehouse: Connection, server: Server, tmp_path: Path
) -> None:
    told = fault(warehouse, source(server, {"headers": {"Authorization": "Bearer t0ps3cret"}}), tmp_path)
    assert "api: headers: a secret is written in Authorization; put it into the environment" in told
    assert "t0ps3cret" not in told and not server.asked
