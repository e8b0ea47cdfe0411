"""Pushed events, from the request to the raw table: refused with the reason, or kept for good and loaded once."""

import copy
import http.client
import json
import os
import re
import resource
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
import pytest
from litestar import Litestar
from litestar.testing import TestClient

from ml.declarations import DeclarationError, Project, Rule, Source, read_project
from orchestration import events as event_source
from orchestration.automation import stream_sensor
from orchestration.batches import LoadError
from orchestration.events import contract_of, pending_events, publish_contracts
from orchestration.loading import Loaded
from orchestration.project import Paths
from orchestration.warehouse import Connection, open_warehouse
from serving import event_log
from serving import events as pushing
from serving.answers import Problem
from serving.app import create_app
from serving.guarding.keys import create_key
from tests.conftest import REPOSITORY
from tests.test_api import eventually, free_port
from tests.test_declarations import manifest
from tests.test_landing import quarantined
from tests.test_loading import load, source

TYPES = {
    "order_no": "bigint",
    "amount": "decimal(38, 19)",
    "is_gift": "boolean",
    "note": "varchar",
    "due_on": "date",
    "placed_at": "timestamp",
    "sent_at": "timestamp with time zone",
}
ORDERS = source(
    "events://orders",
    cursor="placed_at",
    key=("order_no",),
    columns={**dict.fromkeys(TYPES, ""), "note": "What the customer wrote.", "_loaded_at": "When it came."},
    types=TYPES,
    rules=(Rule("placed_at is null", '"placed_at" is not null'), Rule("amount fails amount >= 0", "amount >= 0")),
)
PLACED = "2024-05-01T06:00:00"
Client = TestClient[Litestar]


def order(number: int, **changed: Any) -> dict[str, Any]:
    return {"order_no": number, "placed_at": PLACED, **changed}


def published(folder: Path, *sources: Source) -> Paths:
    where = Paths(project=folder, data=folder / "data")
    where.data.mkdir(exist_ok=True)
    publish_contracts(Project(name="shop", today=None, sources=sources, scores=()), where)
    return where


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The folder of the log of a shop's orders, whose contract is published."""
    published(tmp_path, ORDERS)
    return tmp_path / "data" / "events" / "orders"


@pytest.fixture
def client(log: Path) -> Iterator[Client]:
    with client_of(log) as client:
        yield client


@contextmanager
def client_of(log: Path) -> Iterator[Client]:
    key = a_key(log.parent.parent)
    with TestClient(create_app(log.parent.parent)) as client:
        client.headers["Authorization"] = f"Bearer {key}"
        yield client


def a_key(data: Path, *may: str) -> str:
    """A new key to push events with."""
    return create_key(data / "keys.json", f"shop-{secrets.token_hex(4)}", list(may) or ["events"])[1]


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Connection]:
    with open_warehouse(tmp_path / "data" / "warehouse.duckdb") as connection:
        yield connection


def push(client: Client, *events: dict[str, Any]) -> None:
    answer = client.post("/events/orders", json=list(events))
    assert (answer.status_code, answer.json()) == (202, {"accepted": len(events)})


def refused(client: Client, body: bytes, status: int, path: str = "/events/orders", **headers: str) -> Problem:
    answer = client.post(path, content=body, headers=headers)
    assert answer.headers["content-type"] == "application/problem+json"
    problem = msgspec.json.decode(answer.content, type=Problem)
    assert (answer.status_code, problem.status) == (status, status), problem
    return problem


def loaded_orders(connection: Connection, folder: Path) -> Loaded:
    return load(connection, ORDERS, folder)


def numbers(connection: Connection) -> list[int]:
    return [row[0] for row in connection.execute("select order_no from landing.orders order by all").fetchall()]


def kept(log: Path) -> list[dict[str, Any]]:
    segments = sorted(log.glob("*.jsonl"))
    return [json.loads(line) for segment in segments for line in segment.read_text().split("\n") if line]


# What is taken --------------------------------------------------------------------------------------------------------


def test_events_arrive_in_the_table_as_they_were_sent(
    client: Client, warehouse: Connection, tmp_path: Path, log: Path
) -> None:
    exact = b'{"order_no": 1, "placed_at": "2024-05-01T06:00:00Z", "amount": 0.1234567890123456789, "is_gift": true,'
    exact += b' "note": "a\\nb\\u2028c\\u0000d \\"\xf0\x9f\x99\x82\\"", "due_on": "2024-02-29",'
    exact += b' "sent_at": "2024-05-01T08:00:00.5+02:00"}'
    assert client.post("/events/orders", content=exact).json() == {"accepted": 1}
    push(client, order(2, note=None), order(3, amount=7, sent_at="2024-05-01 06:00"))
    push(client)
    assert loaded_orders(warehouse, tmp_path).rows == 3
    found = warehouse.execute(
        "select order_no, amount::varchar, is_gift, note, due_on::varchar, placed_at::varchar, sent_at::varchar,"
        " _source from landing.orders order by all"
    ).fetchall()
    placed, came = "2024-05-01 06:00:00", "events/orders"
    note = 'a\nb\u2028c\0d "\U0001f642"'
    assert found == [
        (1, "0.1234567890123456789", True, note, "2024-02-29", placed, "2024-05-01 06:00:00.5+00", came),
        (2, None, None, None, None, placed, None, came),
        (3, "7.0000000000000000000", None, None, None, placed, "2024-05-01 06:00:00+00", came),
    ]
    assert len(list(log.glob("*.jsonl"))) == 1


@pytest.mark.parametrize(
    ("changed", "column", "fault"),
    [
        ({"colour": 1}, "colour", "is no column of the source (its columns: order_no, amount, is_gift, note, due_on"),
        ({"_loaded_at": PLACED}, "_loaded_at", "is no column of the source"),
        ({"placed_at": None}, "placed_at", "is null, but required"),
        ({"order_no": "1"}, "order_no", 'is "1", not an integer'),
        ({"order_no": 1.0}, "order_no", "is 1.0, not an integer"),
        ({"order_no": True}, "order_no", "is true, not an integer"),
        ({"order_no": 2**63}, "order_no", "is 9223372036854775808, more than 9223372036854775807, the most of bigint"),
        ({"amount": "1.5"}, "amount", 'is "1.5", not a number'),
        ({"amount": False}, "amount", "is false, not a number"),
        ({"amount": -1e30}, "amount", "less than -9999999999999999999.9999999999999999999, the least of decimal(38,"),
        ({"is_gift": 1}, "is_gift", "is 1, not true or false"),
        ({"note": 5}, "note", "is 5, not text"),
        ({"note": ["a"]}, "note", "is a list, not text"),
        ({"due_on": "2023-02-29"}, "due_on", 'is "2023-02-29", not a date (write 2024-12-31)'),
        ({"due_on": "20240101"}, "due_on", "not a date"),
        ({"due_on": PLACED}, "due_on", "not a date"),
        ({"placed_at": "2024-05-01"}, "placed_at", "not a timestamp (write 2024-12-31T06:00:00Z)"),
        ({"placed_at": "2024-05-01T25:00:00"}, "placed_at", "not a timestamp"),
        ({"placed_at": PLACED + "+02:00"}, "placed_at", "not in UTC, and the column (timestamp) keeps no time zone"),
        ({"sent_at": "yesterday"}, "sent_at", "not a timestamp"),
        ({"sent_at": "x" * 1000}, "sent_at", f'is "{"x" * 59}…, not a timestamp'),
    ],
)
def test_an_event_that_breaks_the_contract_is_refused_with_row_column_and_fault(
    client: Client, log: Path, changed: dict[str, Any], column: str, fault: str
) -> None:
    problem = refused(client, json.dumps([order(1), {**order(2), **changed}]).encode(), 422)
    assert problem.errors is not None and len(problem.errors) == 1
    error = problem.errors[0]
    assert (error.row, error.column) == (2, column)
    assert fault in error.fault
    assert problem.detail.startswith(
        f"1 of 2 events break the contract of 'orders', so none is kept; row 2: {column} is"
    )
    assert kept(log) == []


def test_all_that_is_wrong_is_told_up_to_twenty_faults(client: Client) -> None:
    problem = refused(client, json.dumps([{"order_no": None}, 5, *({"note": 1} for _ in range(50))]).encode(), 422)
    assert problem.errors is not None
    assert [(error.row, error.column, error.fault) for error in problem.errors[:5]] == [
        (1, "placed_at", "is missing"),
        (1, "order_no", "is null, but required"),
        (2, None, "is 5, not an object"),
        (3, "order_no", "is missing"),
        (3, "placed_at", "is missing"),
    ]
    assert len(problem.errors) == 20
    assert problem.detail.startswith("52 of 52 events break the contract")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b'{"order_no": NaN}', b'{"note": "\xff"}', b'{"note": "\\ud800"}', b"[" * 100_000],
    ids=["nothing", "a half", "a word", "not a number", "no UTF-8", "half a sign", "too deep"],
)
def test_a_body_that_is_no_json_is_refused(client: Client, log: Path, body: bytes) -> None:
    assert refused(client, body, 400).detail.startswith("The body is no JSON that can be read: ")
    assert kept(log) == []


def test_a_number_that_nothing_can_hold_is_refused(client: Client) -> None:
    body = b'{"order_no": 1, "placed_at": "2024-05-01T06:00:00", "amount": 1e%s}'
    assert "more than 99999" in refused(client, body % b"400", 422).detail
    assert refused(client, body % (b"9" * 30), 400)


def test_more_events_or_bytes_than_one_request_may_have_are_refused(client: Client, log: Path) -> None:
    push(client, *map(order, range(10_000)))
    told = refused(client, json.dumps([order(number) for number in range(10_001)]).encode(), 413).detail
    assert told == "The body has 10,001 events; one request may have 10,000. Send several."
    told = refused(client, json.dumps(order(1, note="x" * pushing.MOST_BYTES)).encode(), 413).detail
    assert told == "The body has more than the 10,000,000 bytes that one request may have. Send several."
    assert len(kept(log)) == 10_000


def test_only_who_has_a_key_for_it_may_push(client: Client, log: Path) -> None:
    push(client, order(1))
    key = client.headers.pop("Authorization").removeprefix("Bearer ")
    assert client.post("/events/orders", json=order(2), headers={"Authorization": f"bearer {key}"}).is_success
    for header in ("Bearer wrong", "Bearer", f"Basic {key}", key, f"Bearer {key}x", f"Bearer {key},", "Bearer é"):
        answer = client.post("/events/nonsense", content=b"{", headers=[("Authorization", header.encode())])
        assert answer.status_code == 401, header
        assert answer.headers["www-authenticate"] == 'Bearer realm="scorehouse"'
        assert key not in answer.text and "orders" not in answer.text
    assert "Authorization: Bearer <key>" in refused(client, b"{}", 401).detail
    assert len(kept(log)) == 2


def test_a_key_that_may_only_read_is_told_what_it_lacks(log: Path) -> None:
    key = a_key(log.parent.parent, "read", "predict")
    with TestClient(create_app(log.parent.parent)) as client:
        detail = refused(client, b"{", 403, Authorization=f"Bearer {key}").detail
    assert detail.endswith("may not do this: it needs the permission 'events' and has predict, read.")


def test_without_a_key_pushing_is_off_and_it_says_how_to_switch_it_on(log: Path) -> None:
    with TestClient(create_app(log.parent.parent, look_every=0.02)) as client:
        detail = refused(client, b"{}", 403, Authorization="Bearer ").detail
        assert "Pushing events is off" in detail and "make key NAME=shop MAY=events" in detail
        client.headers["Authorization"] = f"Bearer {a_key(log.parent.parent)}"
        eventually(lambda: client.post("/events/orders", json=order(1)).status_code == 202)


@pytest.mark.parametrize("name", ["nonsense", "..", "%2e%2e", "orders%00", "x" * 300, "ORDERS", "é"])
def test_an_unknown_source_is_told_with_the_known_ones(client: Client, name: str) -> None:
    if name == "..":
        assert client.build_request("POST", f"/events/{name}").url.path == "/"
        return
    problem = refused(client, b"{}", 404, path=f"/events/{name}")
    assert problem.detail.endswith("Known sources of events: orders.")
    assert problem.known_sources == ["orders"]


def test_pushing_is_documented_with_every_answer_and_an_example(tmp_path: Path) -> None:
    with TestClient(create_app(tmp_path)) as client:
        document = client.get("/openapi.json").json()
    operation = document["paths"]["/events/{source}"]["post"]
    assert set(operation["responses"]) == {
        *("202", "400", "401", "403", "404", "408", "413", "414", "422", "429", "431", "503")
    }
    for status, answer in operation["responses"].items():
        assert list(answer["content"]) == ["application/json" if status == "202" else "application/problem+json"]
    assert 'curl -H "Authorization: Bearer $KEY"' in operation["description"]
    (scheme,) = operation["security"][0]
    assert document["components"]["securitySchemes"][scheme]["scheme"] == "bearer"
    body = operation["requestBody"]["content"]["application/json"]
    assert {kind["type"] for kind in body["schema"]["oneOf"]} == {"object", "array"}
    assert isinstance(body["examples"]["events"]["value"], list)


# The contract ---------------------------------------------------------------------------------------------------------


def test_a_contract_follows_the_declaration_without_a_restart(client: Client, log: Path, tmp_path: Path) -> None:
    published(tmp_path, ORDERS)
    before = (log / "contract.json").stat()
    published(tmp_path, ORDERS)
    assert (log / "contract.json").stat().st_ino == before.st_ino, "written only when it has changed"
    wider = msgspec.structs.replace(
        ORDERS, columns={**ORDERS.columns, "shop": ""}, types={**ORDERS.types, "shop": "text"}
    )
    published(tmp_path, wider)
    push(client, order(1, shop="Zürich"))
    published(tmp_path)
    assert refused(client, b"{}", 404).detail.endswith("Known sources of events: none yet.")
    assert len(kept(log)) == 1, "what was taken stays"
    published(tmp_path, wider)
    push(client, order(2, shop=None))


def test_without_sources_of_events_nothing_is_written(tmp_path: Path) -> None:
    where = published(tmp_path, source("orders.csv"))
    assert list(where.data.iterdir()) == []


@pytest.mark.parametrize(
    ("declared", "kind", "most"),
    [
        ("tinyint", "integer", "127"),
        ("INT", "integer", "2147483647"),
        ("ubigint", "integer", "18446744073709551615"),
        ("decimal(10, 2)", "number", "99999999.99"),
        ("numeric", "number", "999999999999999.999"),
        ("decimal(5)", "number", "99999"),
        ("double", "number", "1.797693134862315E+308"),
        ("real", "number", "3.402823E+38"),
        ("varchar(20)", "text", None),
        ("timestamp", "timestamp", None),
        ("timestamp(6) with  time zone", "timestamptz", None),
        ("timestamptz", "timestamptz", None),
        ("uuid", "uuid", None),
        ("interval", "any", None),
        ("integer[]", "any", None),
        ("struct(a integer)", "any", None),
        ("json", "any", None),
    ],
)
def test_a_type_of_the_warehouse_says_which_values_fit(declared: str, kind: str, most: str | None) -> None:
    (column,) = contract_of(source("events://orders", columns={"x": ""}, types={"x": declared})).columns
    assert (column.kind, column.most and str(column.most)) == (kind, most)


def test_what_the_contract_lets_pass_the_warehouse_can_hold(tmp_path: Path, warehouse: Connection) -> None:
    declared = {
        "a": "tinyint",
        "b": "decimal(5, 2)",
        "c": "real",
        "d": "double",
        "e": "uuid",
        "f": "integer[]",
        "g": "json",
        "h": "timestamp",
        "i": "uinteger",
        "j": "timestamp with time zone",
        "k": "date",
        "l": "double",
    }
    orders = source("events://orders", key=("no",), columns=dict.fromkeys(["no", *declared], ""))
    orders = msgspec.structs.replace(orders, types={"no": "integer", **declared})
    published(tmp_path, orders)
    extremes = [
        {"a": -128, "b": -999.99, "c": 3.4e38, "d": 1.79e308, "e": "00000000-0000-0000-0000-00000000000F", "f": [1, 2]},
        {"g": {"x": [1.5, None]}, "h": "0001-01-01T00:00:00", "i": 4294967295, "k": "9999-12-31"},
        {"j": "9999-12-31T23:59:59.999999999+01:00", "k": "0001-01-01", "l": 5e-324, "d": -(10**300)},
        {"h": "9999-12-31 23:59Z", "j": "0001-01-02T00:00+2359", "b": 1.50, "l": 123456789012345678901234567890},
    ]
    with client_of(tmp_path / "data" / "events" / "orders") as client:
        push(client, *({"no": number, **event} for number, event in enumerate(extremes)))
    load(warehouse, orders, tmp_path)
    assert quarantined(warehouse) == []
    found = warehouse.execute("select * exclude (_loaded_at, _batch_id, _source) from landing.orders order by no")
    names = [column[0] for column in found.description or []]
    rows = [dict(zip(names, row, strict=True)) for row in found.fetchall()]
    assert [{name for name, value in row.items() if value is not None} for row in rows] == [
        {"no", *event} for event in extremes
    ]
    assert json.loads(rows[1]["g"]) == extremes[1]["g"]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda node: node["config"]["meta"]["load"].update({"from": "events://a/b"}), "'a/b' is no name of events"),
        (lambda node: node["config"]["meta"]["load"].update({"from": "events://"}), "'' is no name of events"),
        (lambda node: node["config"]["meta"]["load"].pop("key"), "lacks key, by which a row that comes again is known"),
        (lambda node: node["columns"]["visitor_id"].pop("data_type"), "with its data_type (without: visitor_id)"),
        (lambda node: node["columns"].clear(), "with its data_type (without: all)"),
    ],
)
def test_events_that_could_not_be_judged_are_a_mistake_in_the_declaration(
    spoil: Callable[[dict[str, Any]], Any], told: str
) -> None:
    changed = manifest()
    node = changed["sources"]["source.shop.raw.visits"]
    node["config"]["meta"]["load"]["from"] = "events://visits"
    node["columns"]["visitor_id"]["data_type"] = "integer"
    assert read_project(changed, {}, "shop").sources[0].uri == "events://visits"
    spoil(node)
    with pytest.raises(DeclarationError, match=re.escape(told)):
        read_project(changed, {}, "shop")


def test_two_tables_cannot_share_the_same_events() -> None:
    changed = manifest()
    node = changed["sources"]["source.shop.raw.visits"]
    node["config"]["meta"]["load"]["from"] = "events://visits"
    node["columns"]["visitor_id"]["data_type"] = "integer"
    changed["sources"]["other"] = {**copy.deepcopy(node), "unique_id": "source.shop.raw.others"}
    with pytest.raises(DeclarationError, match="can't share the same events"):
        read_project(changed, {}, "shop")


# The log --------------------------------------------------------------------------------------------------------------


def test_events_are_on_the_disk_before_they_are_acknowledged(
    client: Client, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noted(handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        synced.append(path.name if path.is_dir() else f"{len(path.read_bytes().splitlines())} lines")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    push(client, order(1))
    assert synced == ["1 lines", "orders"]
    push(client, order(2), order(3))
    assert synced == ["1 lines", "orders", "3 lines"]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """For a while no file of this process can grow beyond so many bytes: what a full disk does to a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_events_that_find_no_room_are_cut_away_and_may_be_sent_again(
    client: Client, log: Path, warehouse: Connection, tmp_path: Path
) -> None:
    push(client, order(1))
    (segment,) = log.glob("*.jsonl")
    before = segment.read_bytes()
    many = [order(number) for number in range(2, 100)]
    with largest_file(len(before) + 300):
        problem = refused(client, json.dumps(many).encode(), 503)
        assert problem.detail.startswith("The events can't be kept at the moment: File too large. Send them")
        assert segment.read_bytes() == before
        refused(client, json.dumps(many * 5).encode(), 503)
        assert list(log.glob("*.jsonl")) == [segment], "a segment in which nothing could be kept is gone"
    assert loaded_orders(warehouse, tmp_path).rows == 1
    push(client, *many)
    assert segment.read_bytes() == before, "to a segment that had a fault nothing more is written"
    assert loaded_orders(warehouse, tmp_path).rows == 99
    assert quarantined(warehouse) == []


def test_lines_that_could_not_even_be_cut_away_do_no_harm(
    client: Client, log: Path, warehouse: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(client, order(1))
    (segment,) = log.glob("*.jsonl")
    many = [order(number) for number in range(2, 100)]

    def broken(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    with largest_file(segment.stat().st_size + 300), monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", broken)
        refused(client, json.dumps(many).encode(), 503)
    torn = segment.read_bytes()
    assert 1 < torn.count(b"\n") < 20 and not torn.endswith(b"\n")
    loaded_orders(warehouse, tmp_path)
    assert numbers(warehouse) == list(range(1, torn.count(b"\n") + 1)), "whole lines are events, if unacknowledged ones"
    assert pending_events(ORDERS, Paths(project=tmp_path, data=tmp_path / "data")).bytes == 0
    push(client, *many)
    assert loaded_orders(warehouse, tmp_path).rows == 99
    assert quarantined(warehouse) == []


def test_what_a_disk_does_not_take_is_not_acknowledged(
    client: Client, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(client, order(1))

    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        assert "Input/output error" in refused(client, json.dumps(order(2)).encode(), 503).detail
    push(client, order(3))
    assert [event["order_no"] for event in kept(log)] == [1, 3]
    assert len(list(log.glob("*.jsonl"))) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_log_that_cannot_be_written_is_told(client: Client, log: Path) -> None:
    log.chmod(0o500)
    assert "Permission denied" in refused(client, json.dumps(order(1)).encode(), 503).detail
    log.chmod(0o700)


def test_a_segment_that_somebody_has_removed_is_not_written_to(client: Client, log: Path) -> None:
    push(client, order(1))
    for segment in log.glob("*.jsonl"):
        segment.unlink()
    push(client, order(2))
    assert [event["order_no"] for event in kept(log)] == [2]


def test_a_long_segment_is_followed_by_another(
    client: Client, log: Path, warehouse: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "SEGMENT_BYTES", 200)
    for number in range(20):
        push(client, order(number))
    assert 4 < len(list(log.glob("*.jsonl"))) < 20
    loaded = loaded_orders(warehouse, tmp_path)
    assert (loaded.rows, len(loaded.batches)) == (20, 1)


def test_requests_at_once_do_not_mix_their_lines(client: Client, log: Path) -> None:
    def post(worker: int) -> None:
        for nth in range(10):
            push(client, *(order(worker * 1000 + nth * 10 + place, note="x" * 5000) for place in range(10)))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(post, range(8)))
    found = [event["order_no"] for event in kept(log)]
    assert len(set(found)) == len(found) == 800
    assert all(found[first : first + 10] == list(range(found[first], found[first] + 10)) for first in range(0, 800, 10))


# Loading --------------------------------------------------------------------------------------------------------------


def test_a_load_takes_what_is_new_and_a_replay_changes_nothing(
    client: Client, log: Path, warehouse: Connection, tmp_path: Path
) -> None:
    first = [order(number, note="first") for number in range(50)]
    push(client, *first)
    assert loaded_orders(warehouse, tmp_path).changed
    assert loaded_orders(warehouse, tmp_path).batches == []
    before = warehouse.execute("select * from landing.orders order by all").fetchall()
    push(client, *first)
    again = loaded_orders(warehouse, tmp_path)
    assert (again.changed, again.batches[0].repeated) == (False, 50)
    assert warehouse.execute("select * from landing.orders order by all").fetchall() == before
    push(client, order(7, note="newer", placed_at="2024-05-02T00:00:00"), order(8, placed_at="2024-04-01T00:00:00"))
    assert loaded_orders(warehouse, tmp_path).batches[0].superseded == 1
    found = warehouse.execute("select note, count(*) from landing.orders group by 1 order by 1").fetchall()
    assert found == [("first", 49), ("newer", 1)]


def test_before_the_first_event_there_is_an_empty_table(log: Path, warehouse: Connection, tmp_path: Path) -> None:
    assert loaded_orders(warehouse, tmp_path).rows == 0
    found = warehouse.execute("describe landing.orders").fetchall()
    assert {row[0]: row[1] for row in found} == {
        "order_no": "BIGINT",
        "amount": "DECIMAL(38,19)",
        "is_gift": "BOOLEAN",
        "note": "VARCHAR",
        "due_on": "DATE",
        "placed_at": "TIMESTAMP",
        "sent_at": "TIMESTAMP WITH TIME ZONE",
        "_loaded_at": "TIMESTAMP WITH TIME ZONE",
        "_batch_id": "VARCHAR",
        "_source": "VARCHAR",
    }
    assert loaded_orders(warehouse, tmp_path).batches == []
    with client_of(log) as client:
        push(client, order(1))
    assert loaded_orders(warehouse, tmp_path).rows == 1


def test_a_line_without_an_end_is_left_until_it_has_one(
    client: Client, log: Path, warehouse: Connection, tmp_path: Path
) -> None:
    where = Paths(project=tmp_path, data=tmp_path / "data")
    push(client, order(1))
    (segment,) = log.glob("*.jsonl")
    whole = segment.stat().st_size
    line = json.dumps(order(2)).encode()
    with segment.open("ab") as torn:
        torn.write(line[:-5])
    assert pending_events(ORDERS, where).bytes == whole
    assert loaded_orders(warehouse, tmp_path).rows == 1
    assert pending_events(ORDERS, where).bytes == 0
    assert loaded_orders(warehouse, tmp_path).batches == []
    with segment.open("ab") as torn:
        torn.write(line[-5:] + b"\n")
    assert pending_events(ORDERS, where).bytes == len(line) + 1
    assert loaded_orders(warehouse, tmp_path).rows == 2


def test_a_line_that_is_no_event_goes_to_quarantine(
    client: Client, log: Path, warehouse: Connection, tmp_path: Path
) -> None:
    push(client, *map(order, range(200)), order(200, amount=-1))
    with (log / "20240101-other.jsonl").open("wb") as damaged:
        damaged.write(b'{"order_no": 1000, "pla\x00\xff\n' + json.dumps(order(1001)).encode() + b"\n")
    orders = msgspec.structs.replace(ORDERS, max_rejected=0.02)
    assert load(warehouse, orders, tmp_path).rows == 201
    found = warehouse.execute("select rule, row from quarantine.orders order by all").fetchall()
    assert [rule for rule, _ in found] == ["amount fails amount >= 0", "is no JSON object"]
    assert load(warehouse, orders, tmp_path).batches == []


def test_bad_events_that_are_too_many_wait_for_good_ones_or_a_higher_max_rejected(
    client: Client, warehouse: Connection, tmp_path: Path
) -> None:
    push(client, order(1), order(2, amount=-1))
    with pytest.raises(LoadError, match=r"1 of 2 rows of events/orders are bad, more than the 1\.00%"):
        loaded_orders(warehouse, tmp_path)
    assert pending_events(ORDERS, Paths(project=tmp_path, data=tmp_path / "data")).bytes > 0
    push(client, *map(order, range(10, 200)))
    assert loaded_orders(warehouse, tmp_path).rows == 191
    push(client, order(3, amount=-1))
    assert load(warehouse, msgspec.structs.replace(ORDERS, max_rejected=1.0), tmp_path).rows == 191
    assert [row["order_no"] for _, row in quarantined(warehouse)] == ["2", "3"]


def test_much_is_loaded_in_bounded_batches_and_what_comes_meanwhile_is_left(
    client: Client, log: Path, warehouse: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_source, "BATCH_BYTES", 1000)
    for first in range(0, 100, 10):
        push(client, *map(order, range(first, first + 10)))
    tell = event_source._lines

    def meanwhile(*given: Any) -> None:
        push(client, order(1000))
        tell(*given)

    monkeypatch.setattr(event_source, "_lines", meanwhile)
    loaded = loaded_orders(warehouse, tmp_path)
    assert loaded.rows == 100
    assert len(loaded.batches) == 5
    sizes = warehouse.execute("select max(bytes) from quality.source_metrics").fetchall()
    assert sizes[0][0] <= 1000
    monkeypatch.setattr(event_source, "_lines", tell)
    assert loaded_orders(warehouse, tmp_path).rows == 101


def test_a_line_longer_than_any_event_is_told(
    log: Path, warehouse: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_source, "BATCH_BYTES", 100)
    (log / "20240101-other.jsonl").write_bytes(b'{"note": "' + b"x" * 200 + b'"}\n')
    with pytest.raises(LoadError, match=r"20240101-other\.jsonl: the line at byte 0 has more than 100 bytes"):
        loaded_orders(warehouse, tmp_path)


def test_a_table_that_was_dropped_is_loaded_again_from_the_log(
    client: Client, warehouse: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_source, "BATCH_BYTES", 1000)
    push(client, *map(order, range(100)))
    loaded_orders(warehouse, tmp_path)
    warehouse.execute("drop table landing.orders")
    gathered = event_source._gathered

    def killed(pieces: Any) -> Iterator[Any]:
        yield next(gathered(pieces))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(event_source, "_gathered", killed)
        with pytest.raises(KeyboardInterrupt):
            loaded_orders(warehouse, tmp_path)
    assert 0 < len(numbers(warehouse)) < 100
    assert loaded_orders(warehouse, tmp_path).rows == 100


LOADER = """
import sys, orchestration.events
from pathlib import Path
from orchestration.warehouse import open_warehouse
from tests.test_events import loaded_orders
orchestration.events.BATCH_BYTES = 200_000
folder = Path(sys.argv[1])
with open_warehouse(folder / "data" / "warehouse.duckdb") as connection:
    print("loading", flush=True)
    loaded_orders(connection, folder)
"""


@pytest.mark.parametrize("batches", [1, 4])
def test_a_load_of_events_that_is_killed_is_completed_by_the_next_with_each_event_once(
    client: Client, tmp_path: Path, batches: int
) -> None:
    for first in range(0, 40_000, 10_000):
        push(client, *map(order, range(first, first + 10_000)))
    with subprocess.Popen(
        [sys.executable, "-c", LOADER, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    ) as loader:
        assert loader.stdout is not None
        for _ in range(batches + 1):
            loader.stdout.readline()
        loader.send_signal(signal.SIGKILL)
    where = Paths(project=tmp_path, data=tmp_path / "data")
    assert pending_events(ORDERS, where).bytes > 0
    with open_warehouse(where.warehouse) as connection:
        committed = connection.execute("select count(*) from landing.orders").fetchall()[0][0]
        assert 0 < committed < 40_000
        rest = loaded_orders(connection, tmp_path)
        assert sum(batch.rows for batch in rest.batches) == 40_000 - committed, "nothing is read twice"
        assert numbers(connection) == list(range(40_000))
    assert pending_events(ORDERS, where).bytes == 0


# Under the real server ------------------------------------------------------------------------------------------------


class Server:
    """`python -m serving` with a key for events, and posts to it."""

    def __init__(self, data: Path) -> None:
        self.port = free_port()
        self.key = a_key(data)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SCOREHOUSE_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "serving", "--data", str(data), "--port", str(self.port), "--workers", "2"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd=REPOSITORY,
        )
        eventually(self.is_up, 30)

    def post(self, *events: dict[str, Any]) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("POST", "/events/orders", json.dumps(events), {"Authorization": f"Bearer {self.key}"})
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    def is_up(self) -> bool:
        try:
            return self.post() == 202
        except (OSError, http.client.HTTPException):
            return False

    def workers(self) -> list[int]:
        """The processes that this server has started and that answer requests."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
        return [child for child, command in commands.items() if b"resource_tracker" not in command]

    def kill(self) -> None:
        for process in (*self.workers(), self.process.pid):
            os.kill(process, signal.SIGKILL)
        self.process.wait()


@contextmanager
def posting(server: Server, *, senders: int = 4, most: int = 100_000) -> Iterator[tuple[list[int], list[int]]]:
    """Posts orders from several threads until left: the numbers of those sent, and of those acknowledged."""
    sent: list[int] = []
    acknowledged: list[int] = []
    stop = threading.Event()

    def post(sender: int) -> None:
        for first in range(sender * 1_000_000, sender * 1_000_000 + most, 5):
            if stop.is_set():
                return
            batch = list(range(first, first + 5))
            sent.extend(batch)
            try:
                if server.post(*map(order, batch)) == 202:
                    acknowledged.extend(batch)
            except (OSError, http.client.HTTPException):
                time.sleep(0.05)

    threads = [threading.Thread(target=post, args=(sender,)) for sender in range(senders)]
    for thread in threads:
        thread.start()
    try:
        yield sent, acknowledged
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_server_killed_again_and_again_loses_no_event_that_it_acknowledged(log: Path, tmp_path: Path) -> None:
    server = Server(tmp_path / "data")
    try:
        with posting(server) as (sent, acknowledged):
            workers = server.workers()
            assert len(workers) == 2
            for worker in (*workers, None):  # a server starts a worker again, but not the same one time and again
                before = len(acknowledged)
                eventually(lambda before=before: len(acknowledged) > before + 50, 30)  # type: ignore[misc]
                if worker is not None:
                    os.kill(worker, signal.SIGKILL)
            server.kill()
            eventually(lambda: not server.is_up(), 10)
    finally:
        server.process.kill()
        server.process.wait()
    with open_warehouse(tmp_path / "data" / "warehouse.duckdb") as connection:
        loaded_orders(connection, tmp_path)
        found = numbers(connection)
    assert len(found) == len(set(found))
    assert set(acknowledged) <= set(found) <= set(sent)
    assert len(acknowledged) > 150
    assert len(list(log.glob("*.jsonl"))) >= 2, "each worker that has taken events has a segment"


def test_loads_while_events_are_pushed_and_a_replay_end_with_each_event_once(log: Path, tmp_path: Path) -> None:
    server = Server(tmp_path / "data")
    try:
        with open_warehouse(tmp_path / "data" / "warehouse.duckdb") as connection:
            with posting(server, senders=3, most=1000) as (sent, acknowledged):
                for share in range(1, 5):
                    eventually(lambda share=share: len(acknowledged) >= share * 150, 30)  # type: ignore[misc]
                    assert loaded_orders(connection, tmp_path).batches
            loaded_orders(connection, tmp_path)
            assert numbers(connection) == sorted(acknowledged)
            assert sorted(sent) == sorted(acknowledged)
            before = connection.execute("select * from landing.orders order by all").fetchall()
            for first in range(0, len(acknowledged), 500):
                assert server.post(*map(order, acknowledged[first : first + 500])) == 202
            assert not loaded_orders(connection, tmp_path).changed
            assert connection.execute("select * from landing.orders order by all").fetchall() == before
            assert len(list(log.glob("*.jsonl"))) <= 2, "a segment for each worker"
    finally:
        server.process.terminate()
        server.process.wait(20)


def test_a_body_that_is_too_large_is_answered_over_http(log: Path, tmp_path: Path) -> None:
    server = Server(tmp_path / "data")
    try:
        assert server.post(order(1, note="x" * (pushing.MOST_BYTES + 1000))) == 413
        assert server.post(order(1, note="x" * (pushing.MOST_BYTES - 1000))) == 202
    finally:
        server.process.terminate()
        server.process.wait(20)
    (event,) = kept(log)
    assert len(event["note"]) == pushing.MOST_BYTES - 1000


def test_the_sensor_of_events_asks_for_a_run_when_there_are_new_ones(tmp_path: Path) -> None:
    where = Paths(project=tmp_path, data=tmp_path / "data")
    sensor = stream_sensor(ORDERS, dg.AssetKey(["landing", "orders"]), [], where)
    with dg.DagsterInstance.ephemeral() as instance, dg.build_sensor_context(instance=instance) as context:
        assert sensor(context).skip_message == "nothing waits"
        log = tmp_path / "data" / "events" / ORDERS.uri.partition("://")[2]
        log.mkdir(parents=True)
        (log / "a.jsonl").write_text("{}\n")
        first = sensor(context).run_key
        (log / "a.jsonl").write_text("{}\n{}\n{torn")
        assert (first, sensor(context).run_key) == ("a.jsonl:3", "a.jsonl:6")
