"""Raw tables from files on the web and on S3: downloaded once per change, whole or not at all, without secrets told."""

import gzip
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import duckdb
import pytest

from ml.declarations import Source
from orchestration.batches import LoadError
from orchestration.loading import Loaded, load
from orchestration.project import Paths
from orchestration.warehouse import Connection, open_warehouse

CLOCK = datetime(2024, 5, 1, 6, tzinfo=UTC)
CSV = b"no,town\n1,Bern\n2,Chur\n"


class Server:
    """A web server on loopback with one file: what it says of it, and what it was asked."""

    def __init__(self) -> None:
        self.content, self.headers, self.status = CSV, {"ETag": '"one"'}, 200
        self.sent: int | None = None  # bytes after which the connection breaks
        self.meanwhile: bytes | None = None  # the content when it is asked for, not what was told of it
        self.stall: threading.Event | None = None  # until then the second half waits
        self.half_sent = threading.Event()
        self.tells_size = True
        self.asked: list[str] = []
        self.authorizations: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                server.asked.append(self.command)
                server.authorizations.append(self.headers["Authorization"])
                self.send_response(server.status)
                length = {"Content-Length": str(len(server.content))} if server.tells_size else {}
                for name, value in {**length, **server.headers}.items():
                    self.send_header(name, value)
                self.end_headers()

            def do_GET(self) -> None:
                server.content = server.meanwhile or server.content
                self.do_HEAD()
                if server.status != 200:
                    return
                if server.stall:
                    self.wfile.write(server.content[:10])
                    server.half_sent.set()
                    server.stall.wait(60)
                    return
                self.wfile.write(server.content[: server.sent])

            def log_message(self, *_: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.at = f"127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    @property
    def downloads(self) -> int:
        return self.asked.count("GET")


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Connection]:
    with open_warehouse(tmp_path / "data" / "warehouse.duckdb") as connection:
        yield connection
    downloads = tmp_path / "data" / "cache" / "downloads"
    assert not downloads.exists() or not list(downloads.iterdir())


def source(uri: str, **declared: Any) -> Source:
    return Source(
        **{
            "id": "source.shop.raw.towns",
            "schema": "landing",
            "table": "towns",
            "description": "",
            "uri": uri,
            "file": "project/models/sources.yml",
            **declared,
        }
    )


def run(connection: Connection, declared: Source, folder: Path) -> Loaded:
    return load(connection, declared, Paths(project=folder, data=folder / "data"), CLOCK)


def fault(connection: Connection, declared: Source, folder: Path) -> str:
    with pytest.raises(LoadError) as raised:
        run(connection, declared, folder)
    assert str(raised.value).startswith("project/models/sources.yml: source 'landing.towns': ")
    return str(raised.value)


def towns(connection: Connection) -> list[tuple[Any, ...]]:
    return connection.execute("select no, town, _source from landing.towns order by all").fetchall()


def test_a_file_on_the_web_is_downloaded_when_it_is_new_or_has_changed(
    warehouse: Connection, server: Server, tmp_path: Path
) -> None:
    declared = source(f"http://{server.at}/a/towns.csv")
    assert run(warehouse, declared, tmp_path).changed
    assert warehouse.execute("select bytes from quality.source_metrics").fetchall() == [(len(CSV),)]
    assert not run(warehouse, declared, tmp_path).changed
    assert server.downloads == 1
    server.content, server.headers = b"no,town\n3,Sion\n", {"ETag": '"two"'}
    assert run(warehouse, declared, tmp_path).changed
    assert towns(warehouse) == [(3, "Sion", f"http://{server.at}/a/towns.csv")]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"Last-Modified": "Mon, 01 Apr 2024 10:00:00 GMT"}, {"Last-Modified": "Tue, 02 Apr 2024 10:00:00 GMT"}),
        ({}, {}),
    ],
    ids=["by its date", "by its content"],
)
@pytest.mark.parametrize("tells_size", [True, False], ids=["with a size", "without a size"])
def test_a_server_without_marks_of_the_content_is_believed_by_what_it_has(
    warehouse: Connection,
    server: Server,
    tmp_path: Path,
    before: dict[str, str],
    after: dict[str, str],
    tells_size: bool,
) -> None:
    declared = source(f"http://{server.at}/towns.csv")
    server.headers, server.tells_size = before, tells_size
    assert run(warehouse, declared, tmp_path).changed
    assert not run(warehouse, declared, tmp_path).batches
    server.headers, server.content = after, CSV.replace(b"Chur", b"Sion")
    assert run(warehouse, declared, tmp_path).changed
    assert [row[1] for row in towns(warehouse)] == ["Bern", "Sion"]


def parquet(folder: Path, rows: str) -> bytes:
    file = folder / "made.parquet"
    duckdb.sql(f"select * from (values {rows}) as towns (no, town)").write_parquet(str(file))
    return file.read_bytes()


@pytest.mark.parametrize("ending", ["parquet", "csv.gz", "jsonl", "json.gz"])
def test_each_kind_of_file_can_be_on_the_web(
    warehouse: Connection, server: Server, tmp_path: Path, ending: str
) -> None:
    lines = b'{"no": 1, "town": "Bern"}\n{"no": 2, "town": "Chur"}\n'
    server.content = {
        "parquet": parquet(tmp_path, "(1, 'Bern'), (2, 'Chur')"),
        "csv.gz": gzip.compress(CSV),
        "jsonl": lines,
        "json.gz": gzip.compress(lines),
    }[ending]
    if ending.endswith("gz"):  # as some servers do
        server.headers["Content-Encoding"] = "gzip"
    run(warehouse, source(f"http://{server.at}/towns.{ending}"), tmp_path)
    assert [row[:2] for row in towns(warehouse)] == [(1, "Bern"), (2, "Chur")]


def test_a_password_and_a_query_are_sent_and_told_nowhere(
    warehouse: Connection, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOWNS_KEY", "t0ps3cret")
    declared = source(f"http://reader:${{TOWNS_KEY}}@{server.at}/${{TOWNS_KEY}}/towns.csv?key=${{TOWNS_KEY}}")
    run(warehouse, declared, tmp_path)
    assert server.authorizations[0] == "Basic cmVhZGVyOnQwcHMzY3JldA=="
    name = f"http://{server.at}/${{TOWNS_KEY}}/towns.csv"
    assert {row[2] for row in towns(warehouse)} == {name}
    monkeypatch.setenv("TOWNS_KEY", "another t0ps3cret")
    assert not run(warehouse, declared, tmp_path).batches
    told = []
    for status in (401, 404, 500):
        server.status = status
        told.append(fault(warehouse, declared, tmp_path))
    server.close()
    told.append(fault(warehouse, declared, tmp_path))
    for text, wanted in zip(
        told,
        (
            "can't be had: HTTP 401 Unauthorized; does the environment have the right key or password?",
            "no such file",
            "can't be had: HTTP 500 Internal Server Error; is the address right, and the server there?",
            "can't be had: ClientConnectorError: Cannot connect to host 127.0.0.1",
        ),
        strict=True,
    ):
        assert f"load: from '{name}': {wanted}" in text
        assert "t0ps3cret" not in text and "\n" not in text
    assert len(towns(warehouse)) == 2


def test_an_environment_without_the_secret_is_told(warehouse: Connection, tmp_path: Path) -> None:
    told = fault(warehouse, source("https://reader:${NO_SUCH_KEY}@127.0.0.1/towns.csv"), tmp_path)
    assert "load: from 'https://127.0.0.1/towns.csv': the environment has no NO_SUCH_KEY; set it" in told


@pytest.mark.parametrize("tells_size", [True, False], ids=["with a size", "without a size"])
def test_a_download_that_breaks_off_lands_nothing(
    warehouse: Connection, server: Server, tmp_path: Path, tells_size: bool
) -> None:
    name = "towns.csv" if tells_size else "towns.parquet"  # a text that ends early is a text
    declared = source(f"http://{server.at}/{name}?key=t0ps3cret")
    server.content = CSV if tells_size else parquet(tmp_path, "(1, 'Bern'), (2, 'Chur')")
    run(warehouse, declared, tmp_path)
    server.headers, server.sent, server.tells_size = {"ETag": '"two"'}, 15, tells_size
    told = fault(warehouse, declared, tmp_path)
    assert ("the download broke off: can't be had: ClientPayloadError" if tells_size else "no Parquet footer") in told
    assert "t0ps3cret" not in told
    assert len(towns(warehouse)) == 2
    server.sent = None
    assert run(warehouse, declared, tmp_path).changed


def test_a_file_that_changes_between_question_and_download_lands_in_the_next_run(
    warehouse: Connection, server: Server, tmp_path: Path
) -> None:
    declared = source(f"http://{server.at}/towns.csv")
    server.meanwhile = CSV + b"3,Sion\n"
    told = fault(warehouse, declared, tmp_path)
    assert "the file changed meanwhile (29 bytes of 22); run again" in told
    assert run(warehouse, declared, tmp_path).rows == 3


def test_a_file_that_has_no_ending_is_told(warehouse: Connection, server: Server, tmp_path: Path) -> None:
    told = fault(warehouse, source(f"http://{server.at}/export?format=csv"), tmp_path)
    assert "files end in nothing; one kind of .parquet, .csv, .jsonl, .json can be read" in told


LOAD = """
import sys
from pathlib import Path
import tests.test_remote_files as here
from orchestration.warehouse import open_warehouse

folder = Path(sys.argv[2])
with open_warehouse(folder / "data" / "warehouse.duckdb") as connection:
    here.run(connection, here.source(sys.argv[1]), folder)
"""


def test_a_load_killed_amid_a_download_leaves_nothing_for_long(server: Server, tmp_path: Path) -> None:
    url, server.stall = f"http://{server.at}/towns.csv", threading.Event()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen([sys.executable, "-c", LOAD, url, str(tmp_path)], env=environment) as killed:
        assert server.half_sent.wait(60)
        killed.send_signal(signal.SIGKILL)
    server.stall.set()
    server.stall = None
    with open_warehouse(tmp_path / "data" / "warehouse.duckdb") as connection:
        run(connection, source(url), tmp_path)
        assert len(towns(connection)) == 2
    assert not list((tmp_path / "data" / "cache").rglob("*.csv"))


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket `towns` on loopback, where the environment says S3 is."""
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "t0ps3cret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    forget_connections()
    client = boto3.client("s3")
    client.create_bucket(Bucket="towns", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    yield client
    for found in client.list_objects_v2(Bucket="towns").get("Contents", []):
        client.delete_object(Bucket="towns", Key=found["Key"])
    client.delete_bucket(Bucket="towns")
    client.close()
    forget_connections()


def forget_connections() -> None:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


def test_the_files_of_a_glob_on_s3_are_one_table_and_only_what_is_new_or_changed_is_read(
    warehouse: Connection, bucket: Any, tmp_path: Path
) -> None:
    declared = source("s3://towns/2024/*.parquet")
    bucket.put_object(Bucket="towns", Key="2024/", Body=b"")
    bucket.put_object(Bucket="towns", Key="2024/a.parquet", Body=parquet(tmp_path, "(1, 'Bern')"))
    bucket.put_object(Bucket="towns", Key="2024/b #1.parquet", Body=parquet(tmp_path, "(2, 'Chur')"))
    bucket.put_object(Bucket="towns", Key="2024/notes.txt", Body=b"none of the table")
    assert len(run(warehouse, declared, tmp_path).batches) == 2
    assert towns(warehouse) == [(1, "Bern", "s3://towns/2024/a.parquet"), (2, "Chur", "s3://towns/2024/b #1.parquet")]
    assert not run(warehouse, declared, tmp_path).batches

    bucket.put_object(Bucket="towns", Key="2024/a.parquet", Body=parquet(tmp_path, "(1, 'Genf')"))
    bucket.put_object(Bucket="towns", Key="2024/c.parquet", Body=parquet(tmp_path, "(3, 'Sion')"))
    bucket.delete_object(Bucket="towns", Key="2024/b #1.parquet")
    loaded = run(warehouse, declared, tmp_path)
    assert [batch.rows for batch in loaded.batches] == [1, 1]
    assert [row[1] for row in towns(warehouse)] == ["Genf", "Chur", "Sion"]
    assert loaded.notes == ["gone, their rows stay: s3://towns/2024/b #1.parquet"]


def test_a_single_compressed_file_on_s3_is_read(warehouse: Connection, bucket: Any, tmp_path: Path) -> None:
    bucket.put_object(Bucket="towns", Key="towns.csv.gz", Body=gzip.compress(CSV))
    declared = source("s3://towns/towns.csv.gz")
    run(warehouse, declared, tmp_path)
    assert towns(warehouse) == [(1, "Bern", "s3://towns/towns.csv.gz"), (2, "Chur", "s3://towns/towns.csv.gz")]
    assert not run(warehouse, declared, tmp_path).batches


def test_a_file_on_s3_of_many_parts_is_the_same_file(warehouse: Connection, bucket: Any, tmp_path: Path) -> None:
    rows = "".join(f"{number},{'x' * 1000}\n" for number in range(60_000))
    bucket.put_object(Bucket="towns", Key="towns.csv", Body=f"no,town\n{rows}".encode())
    assert run(warehouse, source("s3://towns/towns.csv"), tmp_path).rows == 60_000
    assert warehouse.execute("select count(distinct no) from landing.towns").fetchall() == [(60_000,)]


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("s3://towns/*.parquet", "no such file"),
        ("s3://towns/towns.csv", "no such file"),
        ("s3://no-such-bucket/*.parquet", "no such file"),
        ("s3://no-such-bucket/towns.csv", "The specified bucket does not exist"),
    ],
)
def test_what_is_not_on_s3_is_told(warehouse: Connection, bucket: Any, tmp_path: Path, uri: str, told: str) -> None:
    found = fault(warehouse, source(uri), tmp_path)
    assert f"load: from '{uri}': " in found and told in found


@pytest.mark.parametrize("uri", ["s3://towns/*.csv", "s3://towns/towns.csv"])
def test_an_s3_that_refuses_or_is_down_is_told_without_secrets(
    warehouse: Connection, bucket: Any, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{server.at}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    forget_connections()
    server.status, server.content, server.headers = 403, b"", {}
    told = fault(warehouse, source(uri), tmp_path)
    assert re.search("can't be had: PermissionError: .*; does the environment have the right key or password", told)
    server.close()
    told = fault(warehouse, source(uri), tmp_path)
    assert "can't be had: EndpointConnectionError" in told and "is the address right, and the server there?" in told
    assert "t0ps3cret" not in told and "someone" not in told and "\n" not in told
