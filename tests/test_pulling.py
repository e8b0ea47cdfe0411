"""An API host pulls what a publisher pushes, from a folder or S3: whole or not at all, and the old one serves on."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from litestar.testing import TestClient

from serving.__main__ import main
from serving.app import create_app
from serving.generations import store
from serving.generations.carrying import push
from serving.generations.generation import PublicationError
from serving.generations.pulling import STATUS, Puller, PullStatus
from serving.generations.withdrawing import roll_back
from tests.sample_generations import PUBLISHED, publish
from tests.test_api import Server, eventually, free_port
from tests.test_remote_files import bucket, s3_server

__all__ = ["bucket", "s3_server"]


@pytest.fixture
def publisher(tmp_path: Path) -> Path:
    """The generations of the host that publishes."""
    return tmp_path / "publisher" / "generations"


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """The folder that both hosts reach."""
    return tmp_path / "shelf"


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """The generations of the host that serves."""
    return tmp_path / "host" / "generations"


def published(publisher: Path, to: str, name: str, **changes: Any) -> None:
    number = int(name[1:])
    publish(publisher, name, rows=20, published_at=PUBLISHED + timedelta(hours=number), **changes)
    push(publisher, to)


def pushed_folder(shelf: Path, name: str) -> Path:
    return shelf / "churn" / name


def test_a_published_generation_is_pulled_and_served_byte_for_byte(publisher: Path, shelf: Path, host: Path) -> None:
    puller = Puller(host, str(shelf), 10)
    puller.look()  # nobody has pushed yet
    published(publisher, str(shelf), "g1")
    published(publisher, f"file://{shelf}", "g1", score="upsell")
    with TestClient(create_app(host.parent, look_every=0.02)) as client:
        assert client.get("/health/ready").status_code == 503
        assert puller.look() == 10
        eventually(lambda: client.get("/health/ready").json()["status"] == "ready")
        with store.open_store(publisher / "churn" / "g1") as here:
            assert client.get("/scores/churn/customers/7").json()["value"] == json.loads(here.get("7") or b"")["value"]
        eventually(lambda: client.get("/scores/upsell/customers/7").status_code == 200)
        published(publisher, str(shelf), "g2")
        puller.look()
        eventually(lambda: client.get("/scores/churn/customers/7").json()["generation"] == "g2")
    files = {path.name: path.read_bytes() for path in (publisher / "churn" / "g2").iterdir()}
    assert {path.name: path.read_bytes() for path in (host / "churn" / "g2").iterdir()} == files


def test_what_is_there_already_is_neither_pushed_nor_pulled_again(publisher: Path, shelf: Path, host: Path) -> None:
    published(publisher, str(shelf), "g1")
    assert push(publisher, str(shelf)) == {"churn": False}
    puller = Puller(host, str(shelf), 10)
    puller.look()
    (pushed_folder(shelf, "g1") / "store.mdb").unlink()
    before = (host / "churn" / "CURRENT").stat().st_mtime_ns
    puller.look()
    assert (host / "churn" / "CURRENT").stat().st_mtime_ns == before
    assert store.current(host, "churn") == "g1"


def test_the_newest_three_are_kept_and_what_a_killed_puller_left_is_removed(
    publisher: Path, shelf: Path, host: Path
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    orphans = [host / "churn" / f".staging-g0-{dead.pid}", host / "churn" / f".removed-g0-{dead.pid}"]
    for orphan in orphans:
        orphan.mkdir(parents=True)
        (orphan / "store.mdb").write_bytes(b"half")
    puller = Puller(host, str(shelf), 10)
    for number in range(1, 6):
        published(publisher, str(shelf), f"g{number}")
        puller.look()
    for folder in (host, shelf):
        assert sorted(path.name for path in (folder / "churn").iterdir() if not path.name.startswith(".verified-")) == [
            "CURRENT",
            "g3",
            "g4",
            "g5",
        ]


def cut_short(folder: Path) -> None:
    file = folder / "features.mdb"
    file.write_bytes(file.read_bytes()[:-100])


def another_byte(folder: Path) -> None:
    file = folder / "store.mdb"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def another_generation(folder: Path) -> None:
    for name in ("generation.json", "generation.json.sha256"):
        (folder / name).write_bytes((folder.parent / "g1" / name).read_bytes())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_short, r"/churn/g2/features.mdb: its checksum is wrong: changed or incomplete \([\d,]+ bytes\)"),
        (another_byte, "/churn/g2/store.mdb: its checksum is wrong"),
        (remove("card.json"), "/churn/g2/card.json: is missing"),
        (remove("generation.json"), "/churn/g2/generation.json: is missing"),
        (remove("generation.json.sha256"), "/churn/g2/generation.json.sha256: is missing"),
        (lambda folder: (folder / "generation.json").write_text("{"), "/churn/g2/generation.json: its checksum is"),
        (another_generation, "/churn/g2/generation.json: generation is 'g1', expected 'g2'"),
        (lambda folder: (folder.parent / "CURRENT").write_text("../g2"), "/churn/CURRENT: '../g2' is no name of a"),
        (lambda folder: (folder.parent / "CURRENT").write_text("g"), "/churn/g/generation.json: is missing"),
    ],
)
def test_what_is_not_whole_is_refused_with_file_and_fault_told_once_and_tried_again(
    publisher: Path,
    shelf: Path,
    host: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
    message: str,
) -> None:
    published(publisher, str(shelf), "g1")
    puller = Puller(host, str(shelf), 10)
    puller.look()
    published(publisher, str(shelf), "g2")
    sound = {path: path.read_bytes() for path in shelf.rglob("*") if path.is_file()}
    damage(pushed_folder(shelf, "g2"))
    caplog.set_level(logging.INFO, "serving")
    caplog.clear()
    for _ in range(3):
        assert puller.look() == 10
    assert store.current(host, "churn") == "g1"
    assert sorted(path.name for path in (host / "churn").iterdir() if not path.name.startswith(".verified-")) == [
        "CURRENT",
        "g1",
    ]
    (told,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert re.search(message, told) and "\n" not in told and str(shelf) in told
    for path, content in sound.items():
        path.write_bytes(content)
    puller.look()
    assert store.current(host, "churn") == "g2"
    assert "works again" in caplog.text


def test_what_was_damaged_here_is_pulled_anew(publisher: Path, shelf: Path, host: Path) -> None:
    published(publisher, str(shelf), "g1")
    Puller(host, str(shelf), 10).look()
    cut_short(host / "churn" / "g1")
    Puller(host, str(shelf), 10).look()  # as a server does when it starts
    assert store.verify(host / "churn" / "g1").rows == 20
    assert sorted(path.name for path in (host / "churn").iterdir() if not path.name.startswith(".verified-")) == [
        "CURRENT",
        "g1",
    ]


def test_a_rollback_of_the_publisher_reaches_the_hosts_and_one_of_a_host_stays(
    publisher: Path, shelf: Path, host: Path
) -> None:
    puller = Puller(host, str(shelf), 10)
    for name in ("g1", "g2"):
        published(publisher, str(shelf), name)
        puller.look()
    roll_back(publisher, "churn", "previous", "wrong prices", "me")
    push(publisher, str(shelf))
    puller.look()
    assert store.current(host, "churn") == "g1"

    published(publisher, str(shelf), "g3")
    puller.look()
    roll_back(host, "churn", "previous", "too slow", "me")
    puller.look()
    assert store.current(host, "churn") == "g2"
    published(publisher, str(shelf), "g4")
    puller.look()
    assert store.current(host, "churn") == "g4"


def test_a_damaged_generation_is_not_pushed(publisher: Path, shelf: Path) -> None:
    published(publisher, str(shelf), "g1")
    publish(publisher, "g2", rows=20)
    cut_short(publisher / "churn" / "g2")
    with pytest.raises(store.CorruptGeneration, match=r"churn/g2/features.mdb"):
        push(publisher, str(shelf))
    assert store.current(shelf, "churn") == "g1"


def test_s3_carries_generations_and_while_it_is_down_that_is_told_once_and_looked_for_less_often(
    publisher: Path,
    host: Path,
    bucket: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = "s3://towns/scores/live"
    published(publisher, url, "g1")
    assert bucket.get_object(Bucket="towns", Key="scores/live/churn/CURRENT")["Body"].read() == b"g1\n"
    puller = Puller(host, url, 10)
    puller.look()
    assert store.current(host, "churn") == "g1"
    publish(publisher, "g2", rows=20, published_at=PUBLISHED + timedelta(hours=2))
    original = bucket.get_object(Bucket="towns", Key="scores/live/churn/g1/store.mdb")["Body"].read()
    push(publisher, url)
    bucket.put_object(Bucket="towns", Key="scores/live/churn/g2/store.mdb", Body=original)
    caplog.clear()
    puller.look()
    assert "s3://towns/scores/live/churn/g2/store.mdb: its checksum is wrong" in caplog.text
    with (publisher / "churn" / "g2" / "store.mdb").open("rb") as whole:
        bucket.put_object(Bucket="towns", Key="scores/live/churn/g2/store.mdb", Body=whole)
    puller.look()
    assert store.current(host, "churn") == "g2"
    for name in ("g3", "g4"):
        published(publisher, url, name)
    listed = bucket.list_objects_v2(Bucket="towns")["Contents"]
    assert {found["Key"].split("/")[3] for found in listed} == {"CURRENT", "g2", "g3", "g4"}

    there = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    caplog.clear()
    down = Puller(host, url, 10)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    assert [down.look() for _ in range(3)] == [20, 40, 80]
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith("not pulled: s3://towns/scores/live: ") and "t0ps3cret" not in told
    with pytest.raises(PublicationError, match=r"churn/g4 was not pushed: s3://towns/scores/live/churn/g4/"):
        push(publisher, url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", there)
    s3fs.S3FileSystem.clear_instance_cache()
    assert Puller(host, url, 10).look() == 10


def test_a_url_of_no_file_system_is_told_without_its_password(host: Path, caplog: pytest.LogCaptureFixture) -> None:
    Puller(host, "nothing://me:t0ps3cret@there/prefix?key=t0ps3cret", 10).look()
    assert "not pulled: nothing://there/prefix: ValueError: Protocol not known: nothing" in caplog.text
    assert "t0ps3cret" not in caplog.text + (host / STATUS).read_text()


@pytest.mark.parametrize(
    ("minutes", "fault", "status"),
    [(4, "no such folder", "ready"), (6, "no such folder", "degraded"), (6, None, "degraded"), (0, None, "ready")],
)
def test_readiness_tells_that_nothing_new_was_pulled_for_long(
    host: Path, minutes: int, fault: str | None, status: str
) -> None:
    publish(host)
    long_ago = datetime.now(UTC) - timedelta(minutes=minutes)
    looked_at = datetime.now(UTC) if fault else long_ago
    since = long_ago if fault else None
    told = PullStatus(pulled_from="s3://x", looked_at=looked_at, fault=fault, failing_since=since, next_in=10)
    (host / STATUS).write_bytes(msgspec.json.encode(told))
    with TestClient(create_app(host.parent)) as client:
        answer = client.get("/health/ready")
        assert (answer.status_code, answer.json()["status"]) == (200, status)
        if status == "degraded":
            assert "since" in answer.json()["detail"]


def test_a_host_to_which_nothing_was_pulled_yet_says_from_where_it_waits_for_it(host: Path, shelf: Path) -> None:
    Puller(host, str(shelf), 10).look()
    with TestClient(create_app(host.parent)) as client:
        answer = client.get("/health/ready")
    assert (answer.status_code, answer.json()["detail"]) == (
        503,
        f"Nothing was pulled from {shelf} yet ({shelf}: no such folder): make push there; it is picked up without a"
        " restart.",
    )


# Under the real server ------------------------------------------------------------------------------------------------


@contextmanager
def serving_pulled(host: Path, pulled_from: str) -> Iterator[Server]:
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SCOREHOUSE_")}
    environment |= {"SCOREHOUSE_PULL_FROM": pulled_from, "SCOREHOUSE_PULL_EVERY": "0.1"}
    arguments = ["--data", str(host.parent), "--port", str(port), "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "serving", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=Path(__file__).parent.parent,
    )
    try:
        yield Server(process, port)
    finally:
        process.terminate()
        try:
            process.wait(10)
        finally:
            process.kill()
            process.communicate()


def pullers(server: int) -> list[int]:
    """The processes that pull for a server."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    children = {int(pid) for pid, parent, _ in rows if int(parent) == server}
    return [int(pid) for pid, parent, told in rows if int(parent) in children and "serving.generations.pulling" in told]


def test_a_server_pulls_and_a_killed_puller_is_started_again_and_ends_with_its_server(
    publisher: Path, shelf: Path, host: Path
) -> None:
    published(publisher, str(shelf), "g1")
    with serving_pulled(host, str(shelf)) as server:
        eventually(server.is_ready, 20)
        (puller,) = pullers(server.process.pid)
        os.kill(puller, signal.SIGKILL)
        published(publisher, str(shelf), "g2")
        eventually(lambda: store.current(host, "churn") == "g2", 20)
        (another,) = pullers(server.process.pid)
        assert another != puller
        eventually(lambda: json.loads(server.get("/scores/churn/customers/7")[1])["generation"] == "g2")
        server.process.kill()
        eventually(lambda: not Path(f"/proc/{another}").exists(), 10)


def test_a_puller_killed_in_the_middle_of_a_copy_leaves_the_old_generation_serving(
    publisher: Path, shelf: Path, host: Path
) -> None:
    published(publisher, str(shelf), "g1")
    Puller(host, str(shelf), 10).look()
    published(publisher, str(shelf), "g2")
    file = pushed_folder(shelf, "g2") / "store.mdb"
    content = file.read_bytes()
    file.unlink()
    os.mkfifo(file)  # whoever reads it waits
    environment = {**os.environ, "SCOREHOUSE_DATA": str(host.parent), "SCOREHOUSE_PULL_FROM": str(shelf)}
    with subprocess.Popen([sys.executable, "-m", "serving.generations.pulling"], env=environment) as puller:
        eventually(lambda: any((host / "churn").glob(".staging-g2-*")), 20)
        time.sleep(0.1)
        puller.kill()
    assert store.current(host, "churn") == "g1" and store.verify(host / "churn" / "g1")
    assert any((host / "churn").glob(".staging-g2-*"))
    file.unlink()
    file.write_bytes(content)
    Puller(host, str(shelf), 10).look()
    assert sorted(path.name for path in (host / "churn").iterdir() if not path.name.startswith(".verified-")) == [
        "CURRENT",
        "g1",
        "g2",
    ]
    assert store.current(host, "churn") == "g2"


@pytest.mark.parametrize("every", ["soon", "0", "nan", "-1"])
def test_a_time_between_looks_that_cannot_be_is_one_line(
    host: Path, every: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCOREHOUSE_PULL_EVERY", every)
    monkeypatch.setenv("SCOREHOUSE_PULL_FROM", "/nowhere")
    monkeypatch.setenv("SCOREHOUSE_DATA", str(host.parent))
    monkeypatch.setattr(sys, "argv", ["serving", "--port", str(free_port())])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == f"SCOREHOUSE_PULL_EVERY is '{every}', no number of seconds from 0.05 to 86400."
