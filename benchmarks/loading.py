"""What loading costs, for each kind of source: rows a second and memory, against DuckDB reading the same rows.

The floor is `create table as select * from read_parquet(...)` on the same rows; it has a process of its own, as each
load has. PostgreSQL is held against `psql`'s COPY TO STDOUT of the same table. The last figures load a day's rows on
top of 1, 10 and 100 times as much history. A kind whose server is not on this machine is left out, and said so.
`--quick` takes 50,000 rows, `--full` 1,500,000 (events and messages: a tenth).
"""

import asyncio
import json
import os
import resource
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import form

ROWS = {False: 50_000, True: 1_500_000}
HISTORIES = (1, 10, 100)
DAY = {False: 2_000, True: 20_000}  # rows of the increment, and of the smallest history
POSTGRES = "postgresql://postgres@127.0.0.1:5432/test"
NATS = "nats://127.0.0.1:4222"
TABLE = f"bench_{secrets.token_hex(4)}"
MAKE = """
    select
        i as line_id, i // 7 as basket_id, (i * 7919) % 2469 as customer_id, (i * 104729) % 92331 as product_id,
        (i % 9) + 1 as quantity, ((i * 31) % 10000) / 100.0 as amount, 'store ' || (i % 111) as store,
        i % 13 = 0 as has_coupon, timestamp '2017-01-01' + to_seconds(i * 20) as sold_at,
        date '2017-01-01' as loaded_for
    from range({first}, {last}) as numbers(i)
"""
COLUMNS = {
    "line_id": "bigint",
    "basket_id": "bigint",
    "customer_id": "bigint",
    "product_id": "bigint",
    "quantity": "bigint",
    "amount": "double",
    "store": "varchar",
    "has_coupon": "boolean",
    "sold_at": "timestamp",
    "loaded_for": "date",
}
POSTGRES_COLUMNS = ", ".join(f"{name} {kind.replace('double', 'double precision')}" for name, kind in COLUMNS.items())


def make_files(folder: Path, rows: int) -> None:
    """The same rows as Parquet (several row groups), CSV and JSON lines; a tenth of them as lines for the streams."""
    import duckdb

    query = MAKE.format(first=0, last=rows)
    duckdb.execute(f"copy ({query}) to '{folder}/lines.parquet' (format parquet)")
    duckdb.execute(f"copy ({query}) to '{folder}/lines.csv' (format csv, header)")
    duckdb.execute(f"copy ({query}) to '{folder}/lines.jsonl' (format json)")
    duckdb.execute(f"copy ({MAKE.format(first=0, last=rows // 10)}) to '{folder}/tenth.jsonl' (format json)")


def load(uri: str, folder: Path, keyed: bool) -> dict[str, float]:
    """Loads a source in this process; seconds, rows, and the largest memory in GB."""
    from ml.declarations import Api, Source
    from orchestration import warehouse
    from orchestration.loading import load as load_source
    from orchestration.project import Paths

    declared: dict[str, Any] = {}
    if keyed:
        declared = {"key": ("line_id",), "cursor": "sold_at"}
    source = Source(
        id="source.bench.raw.lines",
        schema="raw",
        table="lines",
        description="",
        uri=uri,
        types=COLUMNS,
        columns=dict.fromkeys(COLUMNS, ""),
        api=Api(rows="rows", pages={"type": "json_link", "next_url_path": "next"}),
        file="benchmarks/loading.py",
        **declared,
    )
    where = Paths(project=folder, data=folder / "data")
    where.data.mkdir(exist_ok=True)
    with warehouse.open_warehouse(where.warehouse) as connection:
        started = time.monotonic()
        before = 0
        while True:  # a stream bounds each run
            loaded = load_source(connection, source, where, datetime.now(UTC), lambda _: None)
            if loaded.rows == before or not uri.startswith(("nats", "events")):
                break
            before = loaded.rows
        seconds = time.monotonic() - started
    return {
        "seconds": seconds,
        "rows": loaded.rows,
        "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def floor(folder: Path) -> dict[str, float]:
    """DuckDB alone, on the Parquet file."""
    import duckdb

    with duckdb.connect(str(folder / "floor.duckdb")) as connection:
        started = time.monotonic()
        connection.execute(f"create table lines as select * from read_parquet('{folder}/lines.parquet')")
        seconds = time.monotonic() - started
        (rows,) = connection.execute("select count(*) from lines").fetchall()[0]
    return {
        "seconds": seconds,
        "rows": rows,
        "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def alone(*arguments: str, environment: dict[str, str] | None = None) -> dict[str, float]:
    """What another process of this script measures, so that each has its own memory."""
    done = subprocess.run(
        [sys.executable, __file__, "--alone", *arguments],
        cwd=form.REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(form.REPOSITORY), **(environment or {})},
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed, so there is nothing to measure")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def in_postgres(folder: Path) -> float:
    """Makes the table in PostgreSQL; seconds that psql takes to COPY it out."""
    psql(
        f"create table {TABLE} ({POSTGRES_COLUMNS});\n"
        f"\\copy {TABLE} from '{folder}/lines.csv' csv header\n"
        f"analyze {TABLE};"
    )
    return min(_copied_out() for _ in range(2))


def _copied_out() -> float:
    started = time.monotonic()
    psql(f"copy {TABLE} to stdout")
    return time.monotonic() - started


def psql(sql: str) -> None:
    subprocess.run(
        ["psql", "-q", "-v", "ON_ERROR_STOP=1", POSTGRES], input=sql, text=True, check=True, stdout=subprocess.DEVNULL
    )


async def in_nats(folder: Path) -> None:
    """Publishes a tenth of the rows, a message each."""
    import nats

    client = await nats.connect(NATS)
    stream = client.jetstream()
    await stream.add_stream(name=TABLE, subjects=[TABLE])
    with (folder / "tenth.jsonl").open("rb") as lines:
        for number, line in enumerate(lines):
            await client.publish(TABLE, line)
            if number % 5000 == 4999:
                await client.flush()
    await client.flush()
    await client.close()


async def without_stream() -> None:
    import nats

    client = await nats.connect(NATS)
    await client.jetstream().delete_stream(TABLE)
    await client.close()


def an_api(folder: Path, page: int = 5000) -> tuple[ThreadingHTTPServer, str]:
    """An API that gives a tenth of the rows in pages."""
    lines = (folder / "tenth.jsonl").read_text().splitlines()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            number = int(self.path.rpartition("page=")[2] or 0) if "page=" in self.path else 0
            rows = ",".join(lines[number * page : (number + 1) * page])
            more = (number + 1) * page < len(lines)
            following = f'"http://127.0.0.1:{self.server.server_port}/lines?page={number + 1}"' if more else "null"
            body = f'{{"rows":[{rows}],"next":{following}}}'.encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"api+http://127.0.0.1:{server.server_port}/lines"


def landed_events(folder: Path) -> None:
    """A tenth of the rows, as the API's landing log holds them."""
    log = folder / "data" / "events" / "lines"
    log.mkdir(parents=True)
    (log / "bench.jsonl").write_bytes((folder / "tenth.jsonl").read_bytes())


def in_a_file(place: Path, first: int, last: int) -> str:
    """Rows that come as one more file; the URI of all of them."""
    import duckdb

    place.mkdir(exist_ok=True)
    duckdb.execute(f"copy ({MAKE.format(first=first, last=last)}) to '{place}/{last}.parquet' (format parquet)")
    return f"{place}/*.parquet"


def in_a_table(place: Path, first: int, last: int) -> str:
    """Rows that are inserted, or updated, in a PostgreSQL table; its URI."""
    import duckdb

    place.mkdir(exist_ok=True)
    table = f"{TABLE}_{place.name}"
    duckdb.execute(f"copy ({MAKE.format(first=first, last=last)}) to '{place}/lines.csv' (format csv, header)")
    psql(
        "set client_min_messages = warning;\n"
        f"create table if not exists {table} ({POSTGRES_COLUMNS}, primary key (line_id));\n"
        f"create index if not exists {table}_cursor on {table} (sold_at);\n"
        f"delete from {table} where line_id between {first} and {last};\n"
        f"\\copy {table} from '{place}/lines.csv' csv header\n"
        f"analyze {table};"
    )
    return f"{POSTGRES}?table={table}"


def increments(folder: Path, day: int, arrive: Callable[[Path, int, int], str]) -> dict[int, float]:
    """History as a multiple of the day -> seconds to load the day's rows, by key and cursor, on top of it."""
    seconds = {}
    for times in HISTORIES:
        place = folder / f"{arrive.__name__}_{times}"
        history = day * times
        alone("load", arrive(place, 0, history), str(place), "keyed")
        runs = []
        for number in (1, 2, 3):
            first = history + (number - 1) * day
            # the last tenth of the day before comes again, as with an overlap
            uri = arrive(place, first - day // 10, first + day)
            runs.append(alone("load", uri, str(place), "keyed")["seconds"])
        seconds[times] = min(runs)
    return seconds


def measured(folder: Path, rows: int) -> Iterator[tuple[str, dict[str, float]]]:
    """(kind, what its load took); each kind in a warehouse of its own."""

    def place(name: str) -> Path:
        made = folder / name
        made.mkdir()
        for file in folder.glob("*.*"):
            if file.suffix in (".parquet", ".csv", ".jsonl"):
                (made / file.name).symlink_to(file)
        return made

    for kind in ("parquet", "csv", "jsonl"):
        yield f"files, {kind}", alone("load", f"lines.{kind}", str(place(kind)), "")
    yield "files, parquet, with key and cursor", alone("load", "lines.parquet", str(place("keyed")), "keyed")
    if answers(5432):
        yield "postgresql", alone("load", f"{POSTGRES}?table={TABLE}", str(place("postgres")), "keyed")
    if answers(4222):
        asyncio.run(in_nats(folder))
        try:
            yield "nats", alone("load", f"{NATS}/{TABLE}/{TABLE}", str(place("nats")), "keyed")
        finally:
            asyncio.run(without_stream())
    server, uri = an_api(folder)
    yield "api, pages of 5,000", alone("load", uri, str(place("api")), "keyed")
    server.shutdown()
    events = place("events")
    landed_events(events)
    yield "events", alone("load", "events://lines", str(events), "keyed")


def main() -> None:
    full = form.is_full(__doc__ or "")
    rows, notes = ROWS[full], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_files(folder, rows)
        bare = alone("floor", str(folder))
        floor_rate = bare["rows"] / bare["seconds"]
        notes["the floor, rows a second"] = floor_rate
        notes["the floor, GB of memory"] = bare["gigabytes"]
        figures = []
        copied = in_postgres(folder) if answers(5432) else None
        try:
            for kind, took in measured(folder, rows):
                expected = rows if kind.startswith(("files", "postgresql")) else rows // 10
                if took["rows"] != expected:
                    sys.exit(f"{kind}: {took['rows']} rows were loaded of {expected}, so there is nothing to measure")
                rate = took["rows"] / took["seconds"]
                figures.append(
                    form.figure(f"{kind}: rows/s, floor", rate, floor_rate, None, unit="1/s", more_is_better=True)
                )
                notes[f"{kind}: GB of memory"] = took["gigabytes"]
                if kind == "postgresql" and copied:
                    figures.append(
                        form.figure(
                            "postgresql: rows/s, psql copy to stdout",
                            rate,
                            rows / copied,
                            0.5,
                            unit="1/s",
                            more_is_better=True,
                        )
                    )
            for kind, arrive in (("files", in_a_file), ("postgresql", in_a_table))[: 2 if copied else 1]:
                took = increments(folder, DAY[full], arrive)
                for times in HISTORIES[1:]:
                    figures.append(form.figure(f"{kind}: a day on {times}× history, on 1×", took[times], took[1], 1.3))
        finally:
            if copied:
                made = [TABLE, *(f"{TABLE}_{in_a_table.__name__}_{times}" for times in HISTORIES)]
                psql(f"drop table if exists {', '.join(made)}")
    for server, port in (("postgresql", 5432), ("nats", 4222)):
        if not answers(port):
            notes[f"{server}: not measured, no server on this machine"] = 0.0
    form.report("loading" if full else "loading_quick", figures, notes)


ALONE: dict[str, Callable[..., dict[str, float]]] = {
    "load": lambda uri, folder, keyed: load(uri, Path(folder), bool(keyed)),
    "floor": lambda folder: floor(Path(folder)),
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--alone"]:
        print(json.dumps(ALONE[sys.argv[2]](*sys.argv[3:])))
    else:
        main()
