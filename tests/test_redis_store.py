"""Generations in a real Redis: published all or nothing, served as from files, and told when Redis is down or full."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from litestar.testing import TestClient

from serving.__main__ import describe
from serving.app import create_app
from serving.generations import redis_publishing, redis_store, store
from serving.generations.__main__ import main
from serving.generations.carrying import carry, push
from serving.generations.generation import PublicationError, StoreUnavailable
from serving.generations.redis_store import RedisShelf
from tests.sample_generations import PUBLISHED, publish
from tests.test_api import eventually, free_port

URL = "redis://127.0.0.1:6379/9"


@pytest.fixture
def there() -> Iterator[Any]:
    """A client of database 9 of the Redis on loopback, which is empty."""
    client = redis.Redis.from_url(URL)
    try:
        client.ping()
    except redis.ConnectionError:
        pytest.skip("needs Redis on 127.0.0.1:6379")
    client.flushdb()
    yield client
    client.flushdb()
    client.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data" / "generations"


def published(root: Path, url: str, name: str, rows: int = 100, **changes: Any) -> None:
    publish(root, name, rows=rows, published_at=PUBLISHED + timedelta(hours=int(name[1:])), **changes)
    push(root, url)


def generations_in(client: Any) -> set[str]:
    return {key.decode().split(":")[2] for key in client.keys("scorehouse:churn:*:*")}


class OwnRedis:
    """A Redis of a test's own on loopback, which may be stopped, and started again, empty."""

    def __init__(self, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://:t0ps3cret@127.0.0.1:{self.port}/0"
        self.options = ["--bind", "127.0.0.1", "--save", "", "--requirepass", "t0ps3cret", *options]
        self.start()

    def start(self) -> None:
        command = ["redis-server", "--port", str(self.port), *self.options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self.client = redis.Redis.from_url(self.url)
        eventually(self._answers, 10)

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def stop(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def own() -> Iterator[OwnRedis]:
    if not shutil.which("redis-server"):
        pytest.skip("needs the program redis-server")
    server = OwnRedis()
    yield server
    server.stop()


@pytest.mark.redis
def test_it_is_served_from_redis_as_from_files_and_needs_no_file(there: Any, root: Path, tmp_path: Path) -> None:
    published(root, URL, "g1", rows=2500)
    published(root, URL, "g1", score="upsell", features=())
    paths = ["/scores", "/scores/churn", "/scores/churn/customers/42", "/scores/churn/customers/2499"]
    paths += ["/customers/42/features?score=churn", "/scores/churn/customers/nobody", "/scores/nothing"]
    paths += ["/scores/churn/customers/" + "x" * 600, "/customers/x/features?score=churn", "/health/ready"]
    paths += ["/customers/42/features?score=upsell", "/scores/churn/customers/%00", "/scores/churn/customers/%F0"]
    paths += ["/customers/42", "/scores/churn/customers?limit=7&band=medium", "/scores/churn/customers?format=csv"]
    with (
        TestClient(create_app(root.parent)) as files,
        TestClient(create_app(tmp_path / "empty", store=URL, look_every=0.02)) as client,
    ):
        for path in paths:
            expected, answer = files.get(path), client.get(path)
            assert (answer.status_code, answer.content) == (expected.status_code, expected.content), path
        for asked in (["42", "nobody", "7"], ["x" * 600]):
            sent = {"ids": asked}
            found = client.post("/scores/churn/lookup", json=sent)
            assert (found.status_code, found.content) == (200, files.post("/scores/churn/lookup", json=sent).content)
        page = client.get("/pages/churn?customer_id=42")
        assert page.status_code == 200 and "42" in page.text
        published(root, URL, "g2", rows=30)
        eventually(lambda: client.get("/scores/churn/customers/7").json()["generation"] == "g2")
        assert client.get("/scores/churn/customers/42").status_code == 404
        store.flip(root, "churn", "g1")
        push(root, URL)
        eventually(lambda: client.get("/scores/churn/customers/7").json()["generation"] == "g1")
    with RedisShelf(URL).open("churn", "g1") as opened:
        assert opened.attachment("card.json") == b"{}"
        assert opened.get_many(["1", "nobody", "2"]) == [opened.get("1"), None, opened.get("2")]
        assert len({key for key, _ in opened.sample(10**6)}) == 2500


@pytest.mark.redis
def test_the_newest_three_are_kept_and_nothing_is_done_twice(there: Any, root: Path) -> None:
    for number in range(1, 6):
        published(root, URL, f"g{number}", rows=1500)
    assert generations_in(there) == {"g3", "g4", "g5"}
    assert push(root, URL) == {"churn": False}
    assert not there.exists("scorehouse:churn:publishing")


@pytest.mark.redis
def test_a_rollback_of_what_is_published_reaches_redis(
    there: Any, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SCOREHOUSE_DATA", str(root.parent))
    monkeypatch.setenv("SCOREHOUSE_STORE", URL)
    for name in ("g1", "g2"):
        publish(root, name, published_at=PUBLISHED + timedelta(hours=int(name[1:])))
        assert carry(root, "churn") == ["redis://127.0.0.1:6379/9"]
    assert carry(root, "churn") == []
    arguments = ["--score", "churn", "--generation", "previous", "--reason", "wrong prices"]
    monkeypatch.setattr(sys, "argv", ["generations", "rollback", *arguments])
    assert main() == 0
    assert "pushed to redis://127.0.0.1:6379/9" in capsys.readouterr().out
    assert there.get("scorehouse:churn:CURRENT") == b"g1"


@pytest.mark.redis
def test_customers_are_ranked_in_redis_as_in_the_file(there: Any, root: Path) -> None:
    folder = publish(root, "g1")
    push(root, URL)
    with RedisShelf(URL).open("churn", "g1") as opened, store.open_store(folder) as on_disk:
        for asked in (("medium", 28, 10), (None, 0, 3), ("low", 60, 10), (None, 95, 10)):
            assert opened.ranked(*asked) == on_disk.ranked(*asked)
        assert len(opened.ranked("medium", 28, 10)) == 2
        with pytest.raises(KeyError):
            opened.ranked("none", 0, 1)


PUBLISHER = """
import sys, time
from pathlib import Path
from serving.generations import redis_publishing
point, root, url = sys.argv[1:]
def stop(*_, **__):
    print(point, flush=True)
    time.sleep(60)
if point == "mid_write":
    write, batches = redis_publishing._write_batch, []
    def _write_batch(*given):
        batches.append(given)
        return stop() if len(batches) == 2 else write(*given)
    redis_publishing._write_batch = _write_batch
elif point == "before_manifest":
    redis_publishing._compare = stop
else:
    redis_publishing.RedisShelf.open = stop
redis_publishing.publish_to_redis(Path(root), url, "churn")
"""


@pytest.mark.redis
@pytest.mark.parametrize("point", ["mid_write", "before_manifest", "before_flip"])
def test_a_publisher_killed_at_any_point_leaves_the_old_generation_serving(there: Any, root: Path, point: str) -> None:
    published(root, URL, "g1")
    publish(root, "g2", rows=6000, published_at=PUBLISHED + timedelta(hours=2))
    command = [sys.executable, "-c", PUBLISHER, point, str(root), URL]
    with (
        TestClient(create_app(root.parent, store=URL, look_every=0.02)) as client,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as publisher,
    ):
        assert publisher.stdout and publisher.stdout.readline() == f"{point}\n"
        publisher.kill()
        publisher.wait()
        assert there.exists("scorehouse:churn:publishing") and "g2" in generations_in(there)
        assert client.get("/scores/churn/customers/7").json()["generation"] == "g1"
        # The next is of other content, so that all of what was left is an orphan.
        published(root, URL, "g3")
        eventually(lambda: client.get("/scores/churn/customers/7").json()["generation"] == "g3")
    assert generations_in(there) == ({"g1", "g2", "g3"} if point == "before_flip" else {"g1", "g3"})


@pytest.mark.redis
def test_a_publisher_waits_for_another(there: Any, root: Path) -> None:
    publish(root, "g1")
    there.set("scorehouse:churn:publishing", f"{socket.gethostname()} {os.getppid()}", ex=1)
    start = time.monotonic()
    push(root, URL)
    assert time.monotonic() - start > 0.5, "it went ahead of another"
    assert there.get("scorehouse:churn:CURRENT") == b"g1"


@pytest.mark.redis
def test_a_publisher_that_another_has_taken_for_dead_publishes_nothing(
    there: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(root, "g1")
    write = redis_publishing._write_batch

    def stall(*given: Any) -> None:
        write(*given)
        there.set("scorehouse:churn:publishing", "another 1", ex=60)

    monkeypatch.setattr(redis_publishing, "_write_batch", stall)
    with pytest.raises(PublicationError, match="another publisher, another 1, has taken over"):
        push(root, URL)
    assert not there.exists("scorehouse:churn:CURRENT")
    assert there.get("scorehouse:churn:publishing") == b"another 1"


@pytest.mark.redis
def test_what_is_read_back_is_what_was_written_or_it_is_not_published(
    there: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(root, URL, "g1")
    publish(root, "g2", published_at=PUBLISHED + timedelta(hours=2))
    write = redis_publishing._write_batch

    def lose(shelf: Any, score: str, name: str, table: str, plan: Any, batch: Any) -> None:
        write(shelf, score, name, table, plan, batch[:-1] if table == "features.mdb" else batch)

    monkeypatch.setattr(redis_publishing, "_write_batch", lose)
    with pytest.raises(PublicationError, match=r"/9: churn/g2/features.mdb: 99 customers are there, 100 were written"):
        push(root, URL)

    def mistake(shelf: Any, score: str, name: str, table: str, plan: Any, batch: Any) -> None:
        write(shelf, score, name, table, plan, [(key, stored.replace(b"churn", b"chorn")) for key, stored in batch])

    monkeypatch.setattr(redis_publishing, "_write_batch", mistake)
    with pytest.raises(PublicationError, match=r"churn/g2/store.mdb: b'0' is not what was written"):
        push(root, URL)
    assert there.get("scorehouse:churn:CURRENT") == b"g1" and generations_in(there) == {"g1"}


@pytest.mark.redis
def test_a_full_redis_is_told_and_keeps_serving_what_it_has(own: OwnRedis, root: Path) -> None:
    published(root, own.url, "g1")
    own.client.config_set("maxmemory", 6_000_000)
    publish(root, "g2", rows=20_000, published_at=PUBLISHED + timedelta(hours=2))
    with pytest.raises(PublicationError, match="its memory is full: give it more") as refused:
        push(root, own.url)
    assert "t0ps3cret" not in str(refused.value) and "churn/g2 was not published to Redis at redis://" in str(
        refused.value
    )
    assert generations_in(own.client) == {"g1"}
    with TestClient(create_app(root.parent, store=own.url)) as client:
        assert client.get("/scores/churn/customers/7").json()["generation"] == "g1"
    own.client.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(PublicationError, match="would lose customers; set noeviction"):
        push(root, own.url)


@pytest.mark.redis
def test_while_redis_is_down_that_is_told_and_it_recovers_by_itself(own: OwnRedis, root: Path) -> None:
    published(root, own.url, "g1")
    with TestClient(create_app(root.parent, store=own.url, look_every=0.02)) as client:
        assert client.get("/scores/churn/customers/7").status_code == 200
        own.stop()
        answer = client.get("/scores/churn/customers/7")
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json" and answer.headers["retry-after"] == "5"
        assert f"Redis at redis://127.0.0.1:{own.port}/0: " in answer.json()["detail"]
        assert "t0ps3cret" not in answer.text
        eventually(lambda: client.get("/health/ready").status_code == 503)
        assert "Redis at redis://" in client.get("/health/ready").json()["detail"]
        assert client.get("/health/live").status_code == 200
        with pytest.raises(PublicationError, match=r"churn/g1 was not published to Redis at redis://127"):
            push(root, own.url)

        own.start()  # and it has forgotten all
        eventually(lambda: "CURRENT: is missing" in client.get("/health/ready").text, 10)
        assert client.get("/health/ready").status_code == client.get("/scores/churn/customers/7").status_code == 503
        push(root, own.url)
        eventually(lambda: client.get("/scores/churn/customers/7").status_code == 200, 10)
        eventually(lambda: client.get("/health/ready").json()["status"] == "ready")


def test_where_redis_is_down_from_the_start_no_customer_is_said_to_be_unknown(tmp_path: Path) -> None:
    with TestClient(create_app(tmp_path, store=f"redis://127.0.0.1:{free_port()}/0")) as client:
        for path in ("/scores", "/scores/churn", "/scores/churn/customers/7", "/customers/7"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5"), path
            assert answer.json()["detail"].endswith("Connection refused."), path


@pytest.mark.redis
def test_a_redis_that_hangs_does_not_keep_the_server_from_answering(
    own: OwnRedis, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "TIMEOUT_SECONDS", 0.3)
    published(root, own.url, "g1")
    with TestClient(create_app(root.parent, store=own.url, look_every=0.02)) as client:
        own.process.send_signal(signal.SIGSTOP)
        eventually(lambda: client.get("/health/ready").status_code == 503, 10)
        assert client.get("/health/live").status_code == 200
        assert client.get("/scores/churn/customers/7").status_code == 503
        own.process.send_signal(signal.SIGCONT)
        eventually(lambda: client.get("/scores/churn/customers/7").status_code == 200, 10)


@pytest.mark.redis
def test_customers_that_redis_has_lost_are_not_told_to_be_unknown(there: Any, root: Path) -> None:
    published(root, URL, "g1", rows=4000)
    with TestClient(create_app(root.parent, store=URL, look_every=0.02)) as client:
        there.delete(*[f"scorehouse:churn:g1:store.mdb:{bucket}" for bucket in range(4)])
        answer = client.get("/scores/churn/customers/7")
        assert answer.status_code == 503 and "churn/g1/store.mdb is there no more" in answer.json()["detail"]
    assert "churn/g1/store.mdb: has 0 customers, generation.json says 4000" in described(root)
    assert push(root, URL) == {"churn": True}
    assert "4,000 customers" in described(root)


def described(root: Path) -> str:
    """What a server that starts now says it serves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCOREHOUSE_STORE", URL)
        return describe(root, "127.0.0.1", 8000)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memcached://me:t0ps3cret@there", "SCOREHOUSE_STORE is 'memcached://there'; possible: redis://"),
        ("redis://:t0ps3cret@there/x?socket_timeout=t0ps3cret", "redis://there/x is no address of a Redis"),
    ],
)
def test_a_store_that_cannot_be_is_one_line_without_its_password(tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(StoreUnavailable) as refused:
        create_app(tmp_path, store=url)
    assert message in str(refused.value) and "t0ps3cret" not in str(refused.value)
