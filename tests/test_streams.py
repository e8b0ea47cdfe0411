"""A JetStream subject as a source: its messages become rows once, whatever is killed, and bad ones stop nothing."""

import asyncio
import base64
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from nats.aio.client import Client
from nats.js.api import ConsumerConfig, StreamConfig

from ml.declarations import Rule, Source
from orchestration import landing, streams
from orchestration.automation import stream_sensor
from orchestration.batches import LoadError
from orchestration.project import Paths
from orchestration.streams import address_of
from orchestration.warehouse import Connection, columns, open_warehouse
from tests.conftest import REPOSITORY
from tests.test_api import free_port
from tests.test_landing import quarantined, rows_of
from tests.test_loading import load, source

SERVER = "127.0.0.1:4222"
pytestmark = pytest.mark.nats


class Stream:
    """A stream of this test alone, and a publisher to it."""

    def __init__(self, server: str, **login: str) -> None:
        self.name = f"TEST-{uuid.uuid4().hex[:12]}"
        self.runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self.client = Client()
        self.run(self.client.connect(f"nats://{server}", connect_timeout=2, allow_reconnect=False, **login))
        self.context = self.client.jetstream()
        self.run(self.context.add_stream(StreamConfig(name=self.name, subjects=[f"{self.name}.>"])))
        self.uri = f"nats://{server}/{self.name}/{self.name}.orders.*"

    def run(self, asked: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(asked)

    def send(self, *messages: Any, subject: str = "orders.web") -> None:
        """Publishes messages: bytes as they are, anything else as JSON."""

        async def send() -> None:
            for message in messages:
                payload = message if isinstance(message, bytes) else json.dumps(message).encode()
                await self.context.publish_async(f"{self.name}.{subject}", payload)
            await self.context.publish_async_completed()

        self.run(send())

    def unacknowledged(self, declared: Source) -> int:
        info = self.run(self.context.consumer_info(self.name, address_of(declared).consumer))
        return int(info.num_ack_pending)

    def close(self) -> None:
        self.run(self.context.delete_stream(self.name))
        self.run(self.client.close())
        self.runner.close()


@pytest.fixture
def stream() -> Iterator[Stream]:
    try:
        socket.create_connection(("127.0.0.1", 4222), 1).close()
    except OSError as error:
        pytest.skip(f"no NATS JetStream on {SERVER}: {error}")
    made = Stream(SERVER)
    yield made
    made.close()


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Connection]:
    with open_warehouse(tmp_path / "data" / "warehouse.duckdb") as connection:
        yield connection


def declared(stream: Stream, **more: Any) -> Source:
    return source(stream.uri, **{"key": ("order_no",), **more})


def orders(*numbers: int) -> list[dict[str, Any]]:
    return [{"order_no": number, "shop": "Zürich"} for number in numbers]


def test_messages_become_rows_once_and_are_acknowledged(stream: Stream, warehouse: Connection, tmp_path: Path) -> None:
    stream.send({"order_no": 1, "shop": "Zürich"}, orders(2, 3), [])
    stream.send({"order_no": 4, "shop": None}, subject="orders.phone")
    stream.send({"order_no": 99}, subject="returns.web")
    loaded = load(warehouse, declared(stream), tmp_path)
    assert (loaded.rows, len(loaded.batches), loaded.notes) == (4, 1, [])
    subject = f"{stream.name}.orders.*"
    assert rows_of(warehouse, "order_no", "shop", "_source") == [
        (1, "Zürich", subject),
        (2, "Zürich", subject),
        (3, "Zürich", subject),
        (4, None, subject),
    ]
    assert stream.unacknowledged(declared(stream)) == 0
    assert not load(warehouse, declared(stream), tmp_path).batches


def test_a_run_takes_batches_of_bounded_size_and_leaves_the_rest_to_the_next(
    stream: Stream, warehouse: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MAX_ROWS", 300)
    monkeypatch.setattr(streams, "MAX_RUN_ROWS", 700)
    monkeypatch.setattr(streams, "PULLED", 100)
    stream.send(*orders(*range(1000)))
    first = load(warehouse, declared(stream), tmp_path)
    assert [batch.rows for batch in first.batches] == [300, 300, 100]
    assert first.notes == [f"300 messages of {stream.name}.orders.* are left for the next run"]
    second = load(warehouse, declared(stream), tmp_path)
    assert ([batch.rows for batch in second.batches], second.rows) == ([300], 1000)


def test_a_run_that_takes_too_long_ends_after_a_batch(
    stream: Stream, warehouse: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MAX_ROWS", 10)
    stream.send(*orders(*range(30)))
    declaration = declared(stream)
    load(warehouse, declaration, tmp_path)
    monkeypatch.setattr(streams, "MAX_RUN_SECONDS", 0.0)
    stream.send(*orders(30, 31))
    assert load(warehouse, declaration, tmp_path).notes == [
        f"2 messages of {stream.name}.orders.* are left for the next run"
    ]


def test_what_is_published_while_a_run_lands_is_the_next_runs(
    stream: Stream, warehouse: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream.send(*orders(1, 2))
    land = landing.land

    def land_slowly(*arguments: Any) -> Any:
        stream.send(*orders(3))
        return land(*arguments)

    monkeypatch.setattr(landing, "land", land_slowly)
    assert load(warehouse, declared(stream), tmp_path).rows == 2
    monkeypatch.undo()
    assert load(warehouse, declared(stream), tmp_path).rows == 3


def test_messages_deleted_from_the_stream_and_large_ones_are_no_obstacle(
    stream: Stream, warehouse: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MAX_BYTES", 2 << 20)
    largest = stream.client.max_payload - 1000
    stream.send(*orders(1, 2, 3), *({"order_no": number, "shop": "x" * largest} for number in range(4, 10)))
    for sequence in (1, 3, 7):
        stream.run(stream.context.delete_msg(stream.name, sequence))
    loaded = load(warehouse, declared(stream), tmp_path)
    assert len(loaded.batches) > 1
    assert rows_of(warehouse, "order_no") == [(number,) for number in (2, 4, 5, 6, 8, 9)]


def test_what_is_no_json_object_is_set_aside_as_it_came_and_the_batch_goes_on(
    stream: Stream, warehouse: Connection, tmp_path: Path
) -> None:
    poison = [b"\xff\xfe", b"", b"  ", b"order 1", b"17", b'"text"', b"null", b'[1, {"order_no": 5}]', b'[[{"a": 1}]]']
    poison += [b'{"order_no": 1', b'{"order_no": NaN}x', b"a\x00b", b"\xef\xbb\xbf{}", b'{"a": "\\ud800"}']
    stream.send(*orders(*range(100)), *poison, {"order_no": 100, "nested": {"a": [1]}})
    loaded = load(warehouse, declared(stream, max_rejected=0.15), tmp_path)
    assert (loaded.rows, loaded.batches[0].bad_rows) == (101, len(poison))
    found = warehouse.execute("select rule, row from quarantine.orders").fetchall()
    assert ("is no UTF-8, so here in base64", base64.b64encode(b"\xff\xfe").decode()) in found
    told = "is neither a JSON object nor an array of them"
    assert {row for rule, row in found if rule == told} == {text.decode() for text in poison[1:]}
    assert stream.unacknowledged(declared(stream)) == 0


def test_rows_that_break_rules_and_odd_objects_stop_nothing(
    stream: Stream, warehouse: Connection, tmp_path: Path
) -> None:
    odd = [{}, {"": 1}, {"order_no": "x"}, {"order_no": -1}, {"order_no": 9, "_Source": "x"}]
    stream.send(*orders(1), *odd, b'{"order_no": 2, "order_no": 2}', {"order_no": 3, "a b": 1, "'\"": 2})
    declaration = declared(
        stream,
        max_rejected=1.0,
        types={"order_no": "integer", "shop": "varchar"},
        rules=(Rule("order_no fails order_no > 0", "order_no > 0"),),
    )
    load(warehouse, declaration, tmp_path)
    assert rows_of(warehouse, "order_no") == [(1,), (2,), (3,)]
    assert sorted(rule for rule, _ in quarantined(warehouse)) == [
        "has a key that is a column of the engine's own",
        "order_no fails order_no > 0",
        "order_no is no integer; order_no is null",
        "order_no is null",
        "order_no is null",
    ]


@pytest.mark.parametrize("poison", [[b"no json"], [{}], [b"no json", {}]], ids=["no object", "no key", "both"])
def test_a_batch_of_nothing_good_makes_no_column(
    stream: Stream, warehouse: Connection, tmp_path: Path, poison: list[Any]
) -> None:
    stream.send(*orders(1))
    declaration = declared(stream, max_rejected=1.0)
    load(warehouse, declaration, tmp_path)
    before = columns(warehouse, "landing", "orders")
    stream.send(*poison)
    loaded = load(warehouse, declaration, tmp_path)
    assert (loaded.rows, loaded.batches[0].bad_rows) == (1, len(poison))
    assert columns(warehouse, "landing", "orders") == before


def test_too_many_bad_messages_land_nothing_and_come_again_until_their_share_is_allowed(
    stream: Stream, warehouse: Connection, tmp_path: Path
) -> None:
    stream.send(b"no json", *orders(*range(50)))
    declaration = declared(stream)
    for _ in range(3):
        with pytest.raises(LoadError, match=r"1 of 51 rows .* are bad, more than the 1\.00% that max_rejected lets"):
            load(warehouse, declaration, tmp_path)
    assert stream.unacknowledged(declaration) == 51
    # Either there come enough good ones, or somebody allows more.
    stream.send(*orders(*range(50, 100)))
    assert load(warehouse, declaration, tmp_path).rows == 100
    stream.send(b"bad", b"worse")
    with pytest.raises(LoadError, match="2 of 2 rows"):
        load(warehouse, declaration, tmp_path)
    assert load(warehouse, declared(stream, max_rejected=1.0), tmp_path).rows == 100
    set_aside = warehouse.execute("select row from quarantine.orders order by all").fetchall()
    assert set_aside == [("bad",), ("no json",), ("worse",)]


def test_a_consumer_that_was_removed_has_all_come_again_which_changes_nothing(
    stream: Stream, warehouse: Connection, tmp_path: Path
) -> None:
    stream.send(*orders(*range(100)))
    declaration = declared(stream)
    load(warehouse, declaration, tmp_path)
    before = rows_of(warehouse, "*")
    stream.run(stream.context.delete_consumer(stream.name, address_of(declaration).consumer))
    again = load(warehouse, declaration, tmp_path)
    assert (again.changed, again.batches[0].repeated) == (False, 100)
    assert rows_of(warehouse, "*") == before


def test_a_batch_that_takes_longer_to_land_than_the_server_waits_is_acknowledged_all_the_same(
    stream: Stream, warehouse: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "ACK_WAIT", 0.3)
    monkeypatch.setattr(streams, "MAX_ROWS", 50)
    stream.send(*orders(*range(100)))
    land = landing.land

    def land_slowly(*arguments: Any) -> Any:
        time.sleep(1)
        return land(*arguments)

    monkeypatch.setattr(landing, "land", land_slowly)
    loaded = load(warehouse, declared(stream), tmp_path)
    assert [(batch.landed, batch.repeated) for batch in loaded.batches] == [(50, 0), (50, 0)]
    assert stream.unacknowledged(declared(stream)) == 0


# A loader that stops for ever at one of three moments.
LOADER = """
import sys, time
from pathlib import Path
from orchestration import landing, streams
from orchestration.warehouse import open_warehouse
from tests.test_loading import load, source

def stop(*arguments):
    print("now", file=sys.stderr, flush=True)
    time.sleep(600)

folder, uri, moment = sys.argv[1:]
streams.ACK_WAIT, streams.MAX_ROWS = 2.0, 40
land = landing.land
if moment == "taken":
    streams._batch = stop
elif moment == "landing":
    landing.land = lambda *arguments: (land(*arguments), stop())
elif moment == "landed":
    streams._Server.acknowledge = stop
with open_warehouse(Path(folder) / "data" / "warehouse.duckdb") as connection:
    load(connection, source(uri, key=("order_no",), max_rejected=0.1), Path(folder))
"""


@pytest.mark.parametrize("moment", ["taken", "landing", "landed"])
def test_a_load_that_is_killed_is_completed_by_the_next_with_each_row_once(
    stream: Stream, tmp_path: Path, moment: str
) -> None:
    stream.send(b"no json", *orders(*range(60)))
    command = [sys.executable, "-c", LOADER, str(tmp_path), stream.uri, moment]
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as loader:
        assert loader.stderr is not None
        told = loader.stderr.readline()
        loader.send_signal(signal.SIGKILL)
    assert told == "now\n"
    stream.send(*orders(*range(60, 80)))
    with open_warehouse(tmp_path / "data" / "warehouse.duckdb") as connection:
        held = 39 if moment == "landed" else 0
        if held:
            assert connection.execute("select count(*) from landing.orders").fetchall() == [(held,)]
        loaded = load(connection, declared(stream, max_rejected=0.1), tmp_path)
        assert sum(batch.landed for batch in loaded.batches) == 80 - held
        assert sum(batch.repeated for batch in loaded.batches) == held
        assert rows_of(connection, "order_no") == [(number,) for number in range(80)]
        assert connection.execute("select row from quarantine.orders").fetchall() == [("no json",)]
        assert (stream.unacknowledged(declared(stream)), loaded.notes) == (0, [])


def test_two_loads_at_once_lose_nothing(stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_ROWS", 50)
    stream.send(*orders(*range(1000)))
    declaration = declared(stream, types={"order_no": "bigint", "shop": "varchar"})

    def load_all(folder: Path) -> list[int]:
        with open_warehouse(folder / "data" / "warehouse.duckdb") as connection:
            load(connection, declaration, folder)
            return [number for (number,) in rows_of(connection, "order_no")]

    with ThreadPoolExecutor() as both:
        found = list(both.map(load_all, [tmp_path / "one", tmp_path / "other"]))
    assert sorted(number for numbers in found for number in numbers) == list(range(1000))


def test_an_empty_stream_gives_an_empty_table_if_all_columns_have_a_type(
    stream: Stream, warehouse: Connection, tmp_path: Path
) -> None:
    with pytest.raises(LoadError, match="nothing has come yet from"):
        load(warehouse, declared(stream, columns={"order_no": ""}), tmp_path)
    typed = declared(
        stream, columns={"order_no": "", "shop": "", "_loaded_at": ""}, types={"order_no": "bigint", "shop": "varchar"}
    )
    assert load(warehouse, typed, tmp_path).rows == 0
    assert list(columns(warehouse, "landing", "orders")) == ["order_no", "shop", "_loaded_at", "_batch_id", "_source"]
    assert not load(warehouse, typed, tmp_path).batches
    stream.send(*orders(1))
    assert load(warehouse, typed, tmp_path).rows == 1


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("nats://127.0.0.1:4222/{name}", "is not of the form nats://<server>:<port>/<STREAM>/<subject>"),
        ("nats://127.0.0.1:4222/{name}/a..b", "is not of the form"),
        ("nats://127.0.0.1:4222/NOT-{name}/x", "the server has no stream 'NOT-{name}'"),
        ("nats://127.0.0.1:1/{name}/x", "can't connect: .*Connect call failed"),
        ("nats://127.0.0.1:port/{name}/x", "can't connect"),
        ("nats://shop:secret@127.0.0.1:4222/{name}/x", "a password is written in it; put it into the environment"),
        ("nats://shop:${{NO_SUCH_NAME}}@127.0.0.1:4222/{name}/x", "the environment has no NO_SUCH_NAME"),
    ],
)
def test_a_stream_that_leads_nowhere_is_told(
    stream: Stream, warehouse: Connection, tmp_path: Path, uri: str, told: str
) -> None:
    with pytest.raises(LoadError, match=told.format(name=stream.name)) as raised:
        load(warehouse, source(uri.format(name=stream.name), key=("order_no",)), tmp_path)
    assert "source 'landing.orders'" in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_consumer_of_another_subject_is_told_with_what_to_do(
    stream: Stream, warehouse: Connection, tmp_path: Path
) -> None:
    consumer = address_of(declared(stream)).consumer
    other = ConsumerConfig(durable_name=consumer, filter_subject=f"{stream.name}.returns")
    stream.run(stream.context.add_consumer(stream.name, other))
    with pytest.raises(LoadError, match=rf"{consumer}.* listens to '{stream.name}\.returns', but must be.*remove it"):
        load(warehouse, declared(stream), tmp_path)


def test_a_consumer_that_somebody_made_with_room_for_few_is_used_as_it_is(
    stream: Stream, warehouse: Connection, tmp_path: Path
) -> None:
    config = ConsumerConfig(
        durable_name=address_of(declared(stream)).consumer, filter_subject=f"{stream.name}.orders.*", max_ack_pending=7
    )
    stream.run(stream.context.add_consumer(stream.name, config))
    stream.send(*orders(*range(20)))
    loaded = load(warehouse, declared(stream), tmp_path)
    assert ([batch.rows for batch in loaded.batches], loaded.rows) == ([7, 7, 6], 20)


def test_tables_that_are_called_alike_have_consumers_of_their_own() -> None:
    tables = [("raw", "a b"), ("raw", "a.b"), ("raw", "a_b"), ("raw-a", "b"), ("raw", "a-b")]
    uri = "nats://localhost:4222/ORDERS/orders.>"
    names = [address_of(source(uri, schema=schema, table=table)).consumer for schema, table in tables]
    assert len(set(names)) == len(names)
    assert address_of(source(uri)).consumer == "scorehouse-landing-orders"


PASSWORD = "p@ss:w/rd#%41"
CONFIG = """
listen: 127.0.0.1:{port}
jetstream: {{store_dir: "{folder}"}}
authorization: {{users: [
  {{user: root, password: root}}
  {{user: shop, password: "{password}"}}
  {{user: reader, password: reader, permissions: {{publish: ["$JS.API.CONSUMER.INFO.>"], subscribe: ["_INBOX.>"]}}}}
]}}
"""


@contextmanager
def own_server(folder: Path) -> Iterator[str]:
    binary = shutil.which("nats-server")
    if binary is None:
        pytest.skip("no nats-server on this machine to start one with passwords")
    port = free_port()
    config = folder / "nats.conf"
    config.write_text(CONFIG.format(port=port, folder=folder / "jetstream", password=PASSWORD))
    with subprocess.Popen([binary, "-c", str(config)], stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(100):
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    time.sleep(0.1)
            yield f"127.0.0.1:{port}"
        finally:
            server.terminate()


def test_a_password_from_the_environment_is_used_as_it_is_and_never_told(
    warehouse: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "ANSWER_SECONDS", 2.0)
    with own_server(tmp_path) as server:
        stream = Stream(server, user="root", password="root")
        stream.send(*orders(1))
        _, _, path = stream.uri.partition(server)
        shop = source(f"nats://shop:${{NATS_PASSWORD}}@{server}{path}", key=("order_no",))
        monkeypatch.setenv("NATS_PASSWORD", PASSWORD)
        assert load(warehouse, shop, tmp_path).rows == 1
        monkeypatch.setenv("NATS_PASSWORD", "another-secret")
        with pytest.raises(LoadError, match=r"can't connect: .*Authorization Violation") as refused:
            load(warehouse, shop, tmp_path)
        monkeypatch.setenv("NATS_PASSWORD", "reader")
        stream.run(stream.context.delete_consumer(stream.name, address_of(shop).consumer))
        reader = source(f"nats://reader:${{NATS_PASSWORD}}@{server}{path}", key=("order_no",))
        with pytest.raises(
            LoadError, match=r"can't make the consumer .*permissions violation for publish"
        ) as forbidden:
            load(warehouse, reader, tmp_path)
        told = f"{refused.value} {forbidden.value} {warehouse.execute('from quality.source_metrics').fetchall()}"
        assert PASSWORD not in told and "another-secret" not in told
        stream.close()


def test_a_server_that_goes_away_before_the_acknowledgement_is_told_and_nothing_is_twice(
    warehouse: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "ANSWER_SECONDS", 2.0)
    monkeypatch.setattr(streams, "ACK_WAIT", 1.0)
    monkeypatch.setenv("NATS_PASSWORD", PASSWORD)
    land = landing.land
    with ExitStack() as running:
        server = running.enter_context(own_server(tmp_path))
        stream = Stream(server, user="root", password="root")
        stream.send(*orders(1, 2))
        name = f"{stream.name}/{stream.name}.>"
        stream.run(stream.client.close())
        stream.runner.close()

        def land_and_lose(*arguments: Any) -> Any:
            running.close()
            return land(*arguments)

        monkeypatch.setattr(landing, "land", land_and_lose)
        with pytest.raises(LoadError, match="the rows have landed, but their messages can't be acknowledged"):
            load(warehouse, source(f"nats://shop:${{NATS_PASSWORD}}@{server}/{name}", key=("order_no",)), tmp_path)
        monkeypatch.setattr(landing, "land", land)
    assert rows_of(warehouse, "order_no") == [(1,), (2,)]
    with own_server(tmp_path) as server:
        again = source(f"nats://shop:${{NATS_PASSWORD}}@{server}/{name}", key=("order_no",))
        assert load(warehouse, again, tmp_path).batches[0].repeated == 2
    assert rows_of(warehouse, "order_no") == [(1,), (2,)]


NOWHERE = Paths(project=Path("/nowhere"), data=Path("/nowhere"))  # a stream is not on this disk


def look(declaration: Source, instance: dg.DagsterInstance) -> Any:
    sensor = stream_sensor(declaration, dg.AssetKey(["landing", "orders"]), [], NOWHERE)
    with dg.build_sensor_context(instance=instance) as context:
        return sensor(context)


def test_the_sensor_asks_for_one_run_of_the_same_messages_and_tells_why_it_asks_for_none(
    stream: Stream, warehouse: Connection, tmp_path: Path
) -> None:
    declaration = declared(stream)
    with dg.DagsterInstance.ephemeral() as instance:
        assert look(declaration, instance).skip_message == "nothing waits"
        stream.send(b"no json", *orders(1), {"elsewhere": 1}, subject="orders.web")
        before = look(declaration, instance)
        assert look(declaration, instance).run_key == before.run_key
        with pytest.raises(LoadError):
            load(warehouse, declaration, tmp_path)
        refused = look(declaration, instance)
        with pytest.raises(LoadError):
            load(warehouse, declaration, tmp_path)
        assert look(declaration, instance).run_key == refused.run_key
        stream.send(*orders(2))
        assert look(declaration, instance).run_key not in (before.run_key, refused.run_key)
        load(warehouse, declared(stream, max_rejected=1.0), tmp_path)
        assert look(declaration, instance).skip_message == "nothing waits"
        down = source("nats://127.0.0.1:1/ORDERS/orders", key=("order_no",))
        with pytest.raises(LoadError, match="can't connect"):
            look(down, instance)


def test_the_sensor_waits_for_the_run_that_it_has_started(stream: Stream) -> None:
    declaration = declared(stream)
    stream.send(*orders(1))
    with dg.DagsterInstance.ephemeral() as instance:
        sensor = stream_sensor(declaration, dg.AssetKey(["landing", "orders"]), [], NOWHERE)
        tags = {"dagster/sensor_name": sensor.name}
        instance.add_run(dg.DagsterRun(job_name="any", tags=tags, status=dg.DagsterRunStatus.STARTED))
        assert look(declaration, instance).skip_message == "a run that this sensor has started is not done yet"
    assert sensor.default_status == dg.DefaultSensorStatus.STOPPED


def test_messages_that_are_broken_in_the_same_way_each_time_are_noticed(
    stream: Stream, warehouse: Connection, tmp_path: Path
) -> None:
    stream.send(b"no json", *orders(*range(200)))
    load(warehouse, declared(stream), tmp_path)
    stream.send(*[b"no json"] * 50)
    with pytest.raises(LoadError, match="50 of 50 rows"):
        load(warehouse, declared(stream), tmp_path)


def test_a_consumer_that_would_lose_messages_is_refused(stream: Stream, warehouse: Connection, tmp_path: Path) -> None:
    consumer = address_of(declared(stream)).consumer
    config = ConsumerConfig(durable_name=consumer, filter_subject=f"{stream.name}.orders.*", max_deliver=2)
    stream.run(stream.context.add_consumer(stream.name, config))
    with pytest.raises(LoadError, match=r"gives a message up after some deliveries \(max_deliver\)"):
        load(warehouse, declared(stream), tmp_path)


def test_a_message_can_not_pass_for_the_engines_verdict(stream: Stream, warehouse: Connection, tmp_path: Path) -> None:
    stream.send({"order_no": 0, "_broken_0": None}, *orders(*range(1, 200)))
    loaded = load(warehouse, declared(stream), tmp_path)
    assert (loaded.rows, loaded.batches[0].bad_rows) == (199, 1)
    assert "_broken_0" not in columns(warehouse, "landing", "orders")
