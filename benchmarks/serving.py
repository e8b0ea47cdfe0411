"""What serving costs: lookups, predictions and publications over HTTP, beside what could at best be had.

`python -m serving` with 2 workers serves a generation of 5 M customers that `serving.generations.store` wrote; wrk asks
from one thread for random ones, with a key. The floor is a bare ASGI app under the same server with the same settings,
which answers each request with the bytes of a customer. Both run at once and are asked in turn, after a warm-up;
medians of the rounds count. Requests a second are of a closed loop: each connection asks again when it is answered.
With that both are busy, so the p99 is measured again at the same rate for both, far below what either can do: each
connection waits 10 to 30 ms between requests. Workers, wrk and all else share the machine; the workers' processor time
for a request, which does not depend on that, is told too. Lookups of 1,000 ids, predictions, a publication of 500,000
customers under load, and the workers' memory over the requests of an hour at 500 a second follow. Beside them Feast's
Python feature server with a SQLite online store, in an environment of its own that `--full` makes, with fewer customers
as it takes them in slowly, which is to its advantage. `--quick` takes 200,000 customers, and Feast where it is already
there."""

import json
import random
import re
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import form
import serving_load as load
from features import peers
from serving_load import Measured, Server

SIDES, PEERS = str(Path(__file__).with_name("serving_sides.py")), str(Path(__file__).with_name("serving_peers.py"))
WORKERS, CONNECTIONS, MANY_CONNECTIONS = 2, 32, 4
CUSTOMERS = {False: 200_000, True: 5_000_000}
PUBLISHED = {False: 50_000, True: 500_000}
OF_FEAST = {False: 5_000, True: 100_000}
SECONDS, ROUNDS = {False: 2, True: 10}, {False: 1, True: 5}
HOUR = {False: 50_000, True: 500 * 3600}  # requests
MOMENTS = 6
BATCH, BODIES = 1000, 50
PACE = (10, 30)  # ms between the requests of a connection, where the p99 at the same rate is measured
AIM_LOOKUPS, AIM_P99, AIM_IDS, AIM_VISIBLE, AIM_PREDICT, AIM_MEMORY = 0.45, 2.0, 400_000, 1.0, 3.0, 1.05
AIM_FEAST, AIM_START, AIM_PUBLISHING = 8.0, 2.0, 0.7
SCORE, PREDICTED, FEAST_FIELDS = (
    "churn",
    "predicted",
    "value band reasons as_of_date model_version generation scored_at",
)
LOOKUPS = f"/scores/{SCORE}/customers/"

Figures = list[dict[str, Any]]


def side(work: str, data: Path, *arguments: object) -> Measured:
    """What a function of serving_sides.py measures in a process of its own, with its memory in GB."""
    command = [sys.executable, "-P", SIDES, "--alone", work, str(data), *map(str, arguments)]
    said, _, gigabytes = form.run(command, PYTHONPATH=load.environment()["PYTHONPATH"])
    return {**json.loads(said.splitlines()[-1]), "gigabytes": gigabytes}


def a_key(data: Path) -> dict[str, str]:
    """Headers with a key to read and predict."""
    command = [sys.executable, "-P", "-m", "serving.guarding.keys", "--data", str(data), "create", "bench"]
    said, _, _ = form.run([*command, "--may", "read predict"])
    return {"Authorization": f"Bearer {re.findall(r'sh_[^ ]+', said)[-1].strip()}"}


def ours(data: Path) -> Any:
    port = load.free_port()
    told = ["--data", str(data), "--port", str(port), "--workers", str(WORKERS)]
    return load.started([sys.executable, "-P", "-m", "serving", *told], "/health/ready", port=port)


def bare(data: Path) -> Any:
    port = load.free_port()
    told = [str(data), str(port), str(WORKERS)]
    return load.started([sys.executable, "-P", SIDES, "--alone", "floor", *told], "/", port=port)


def lookups(server: Server, floor: Server, headers: dict[str, str], full: bool, notes: Measured) -> Figures:
    """Single lookups against the floor: how many, their processor time, and their p99 at the same rate."""
    servers, customers = [server, floor], CUSTOMERS[full]
    many = {"connections": CONNECTIONS, "seconds": SECONDS[full], "rounds": ROUNDS[full]}
    script = load.one_by_one(LOOKUPS, customers, headers)
    most, of_floor = load.alternated(servers, [script] * 2, **many)  # type: ignore[arg-type]
    script = load.one_by_one(LOOKUPS, customers, headers, PACE)
    paced, floor_paced = load.alternated(servers, [script] * 2, **many)  # type: ignore[arg-type]
    notes["lookups a second at the same rate"] = paced["per_second"]
    notes["the floor's at the same rate"] = floor_paced["per_second"]
    notes["p50 of a lookup at that rate, ms"] = paced["p50_ms"]
    at_the_same_rate = paced["p99_ms"], floor_paced["p99_ms"]
    return [
        form.figure(
            "lookups a second; a bare ASGI app",
            most["per_second"],
            of_floor["per_second"],
            AIM_LOOKUPS,
            unit="1/s",
            more_is_better=True,
        ),
        form.figure("p99 at the same rate; a bare ASGI app", *at_the_same_rate, AIM_P99, unit="ms"),
        form.figure("p99 in a closed loop; a bare ASGI app", most["p99_ms"], of_floor["p99_ms"], None, unit="ms"),
        form.figure(
            "processor time of a request; a bare ASGI app's", most["cpu_us"], of_floor["cpu_us"], None, unit="µs"
        ),
    ]


def lookups_of_many(server: Server, headers: dict[str, str], data: Path, full: bool, notes: Measured) -> Figures:
    """Ids a second in lookups of 1,000, against the aim; how many LMDB alone gives a process is told."""
    path, customers = f"/scores/{SCORE}/lookup", CUSTOMERS[full]
    bodies = [json.dumps({"ids": [a_customer(customers) for _ in range(BATCH)]}) for _ in range(BODIES)]
    if is_missing(server, path, bodies[0], headers, notes):
        return []
    took = load.alternated(
        [server],
        [load.posting(path, bodies, headers)],
        connections=MANY_CONNECTIONS,
        seconds=SECONDS[full],
        rounds=ROUNDS[full],
    )[0]
    notes["p50 of a lookup of 1,000, ms"] = took["p50_ms"]
    notes["ids a second out of LMDB alone, one process"] = side("get", data, "g1", customers)["per_second"]
    ids = took["per_second"] * BATCH
    return [
        form.figure("ids a second in lookups of 1,000; the aim", ids, AIM_IDS, 1.0, unit="1/s", more_is_better=True)
    ]


def predictions(
    server: Server, floor: Server, headers: dict[str, str], data: Path, bare_ms: float, full: bool, notes: Measured
) -> Figures:
    """The p50 of predicting one row on one connection, against CatBoost's `predict` of it, which hears no request."""
    path, body = f"/scores/{PREDICTED}/predict", (data / "predict.json").read_text()
    if is_missing(server, path, body, headers, notes):
        return []
    script = load.posting(path, [body], headers)
    took, of_floor = load.alternated(
        [server, floor], [script] * 2, connections=1, seconds=SECONDS[full], rounds=ROUNDS[full]
    )
    notes["predictions a second on one connection"] = took["per_second"]
    notes["p99 of a prediction, ms"] = took["p99_ms"]
    p50, floor_p50 = took["p50_ms"], of_floor["p50_ms"]
    return [
        form.figure("p50 of a prediction; CatBoost's predict of the row", p50, bare_ms, AIM_PREDICT, unit="ms"),
        form.figure("p50 of a prediction; a bare ASGI app's of its body", p50, floor_p50, None, unit="ms"),
    ]


def is_missing(server: Server, path: str, body: str, headers: dict[str, str], notes: Measured) -> bool:
    """Whether an endpoint is not there, which is told then. Ends this process if it refuses what is right."""
    status = load.status(server.url(path), body.encode(), headers)
    if status in (404, 405):
        notes[f"POST {path}: not measured, there is no such endpoint"] = 0.0
        return True
    if status not in (200, 201):
        sys.exit(f"POST {path} answered {status}, so there is nothing to measure")
    return False


def publication(server: Server, headers: dict[str, str], data: Path, full: bool, notes: Measured) -> Figures:
    """A generation is published while lookups go on: how many fail, and when all workers serve it."""
    stop, loads = threading.Event(), []
    script = load.one_by_one(LOOKUPS, PUBLISHED[full], headers, PACE)

    def ask() -> None:
        while not stop.is_set():
            loads.append(load.wrk(server, script, connections=CONNECTIONS, seconds=2))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        flipped = side("publish", data, "g2", PUBLISHED[full])
        seconds = seen(server, headers, "g2") - flipped["at"]
    finally:
        stop.set()
        asking.join()
    failed, requests = sum(one["failed"] for one in loads), sum(one["requests"] for one in loads)
    notes["requests during the publication"] = requests
    notes["p99 of them, ms, the worst two seconds"] = max(one["p99_ms"] for one in loads)
    return [
        form.figure("failed requests during a publication; all requests", failed, requests, 0.0, unit=""),
        form.figure("from the flip until all workers serve it; the aim", seconds, AIM_VISIBLE, 1.0),
    ]


def seen(server: Server, headers: dict[str, str], generation: str) -> float:
    """The moment from which on all workers serve a generation: the first of twenty answers in a row that do."""
    request, first, times = urllib.request.Request(server.url(f"/scores/{SCORE}"), headers=headers), 0.0, 0
    while times < 20:
        with urllib.request.urlopen(request, timeout=30) as response:  # a connection each, to either worker
            if json.load(response)["generation"] != generation:
                times = 0
                continue
        first, times = (first if times else time.time()), times + 1
    return first


def memory(server: Server, headers: dict[str, str], full: bool, notes: Measured) -> Figures:
    """The memory of the largest worker after the requests of an hour, against what it is after a few."""
    script = load.one_by_one(LOOKUPS, PUBLISHED[full], headers)
    requests, found = 0.0, []
    for moment in range(MOMENTS + 1):
        seconds = SECONDS[full]
        requests += load.wrk(server, script, connections=CONNECTIONS, seconds=seconds)["requests"]
        while requests < HOUR[full] * moment / MOMENTS:
            requests += load.wrk(server, script, connections=CONNECTIONS, seconds=seconds)["requests"]
        found.append((requests, server.memory()))
    slope = statistics.linear_regression(*zip(*found, strict=True)).slope
    notes["requests of which memory is told"] = requests
    notes["bytes of memory a request, by least squares"] = slope * 1e6
    name = (
        "memory of a worker after the requests of an hour; before" if full else "memory of a worker at the end; before"
    )
    return [form.figure(name, found[-1][1], found[0][1], AIM_MEMORY, unit="MB")]


def beside_feast(
    server: Server, headers: dict[str, str], data: Path, python: Path, full: bool, notes: Measured
) -> Figures:
    """Single lookups against Feast's feature server, which gives the same fields of the same customers."""
    folder, port = data / "feast", load.free_port()
    took = form.alone(PEERS, "feast", folder, OF_FEAST[full], python=python)
    notes["customers a second into Feast's online store"] = OF_FEAST[full] / took["seconds"]
    serve = [str(python.parent / "feast"), "serve", "--port", str(port), "--workers", str(WORKERS)]
    asked = {"features": [f"{SCORE}:{field}" for field in FEAST_FIELDS.split()]}
    bodies = [json.dumps(asked | {"entities": {"customer_id": [a_customer(OF_FEAST[full])]}}) for _ in range(1000)]
    command = [*serve, "--no-access-log", "--max-requests", "0"]
    with load.started(command, "/health", port=port, cwd=folder, HOME=str(folder)) as feast:
        scripts = [
            load.one_by_one(LOOKUPS, PUBLISHED[full], headers),
            load.posting("/get-online-features", bodies, {}),
        ]
        found = load.alternated(
            [server, feast], scripts, connections=CONNECTIONS, seconds=SECONDS[full], rounds=ROUNDS[full]
        )
    notes["p50 of Feast, ms"] = found[1]["p50_ms"]
    per_second = [one["per_second"] for one in found]
    name = "lookups a second; Feast's feature server"
    return [form.figure(name, *per_second, AIM_FEAST, unit="1/s", more_is_better=True)]


def a_customer(customers: int) -> str:
    return str(10_000_000 + random.randrange(customers))


def publishing(data: Path, full: bool, notes: Measured) -> Figures:
    """What is looked up is published, against LMDB taking in the same pairs alone."""
    customers = CUSTOMERS[full]
    took, alone = side("publish", data, "g1", customers), side("append", data, "g1", customers)
    notes["memory of a publisher, GB"] = took["gigabytes"]
    rates = (customers / took["seconds"], customers / alone["seconds"])
    name = "customers a second published; LMDB alone"
    return [form.figure(name, *rates, AIM_PUBLISHING, unit="1/s", more_is_better=True)]


def start_up(data: Path) -> Figures:
    """From the command to ready, with the files in the system's cache: the median of three starts."""
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        with ours(data):
            seconds.append(time.monotonic() - started)
    return [form.figure("from the start until ready; the aim", statistics.median(seconds), AIM_START, 1.0)]


def main() -> None:
    full, notes = form.is_full(__doc__ or ""), Measured()
    load.check_wrk()
    python = peers(full)
    if python is None:
        notes["Feast: not measured, no environment with it (--full makes it)"] = 0.0
    with tempfile.TemporaryDirectory(dir=form.results()) as name:
        data = Path(name)
        figures = publishing(data, full, notes)
        bare_ms = side("train", data)["p50_ms"]
        figures += start_up(data)
        headers = a_key(data)
        with ours(data) as server:
            with bare(data) as floor:
                figures += lookups(server, floor, headers, full, notes)
                figures += predictions(server, floor, headers, data, bare_ms, full, notes)
            figures += lookups_of_many(server, headers, data, full, notes)
            figures += publication(server, headers, data, full, notes)
            if python:
                figures += beside_feast(server, headers, data, python, full, notes)
            figures += memory(server, headers, full, notes)
    form.report("serving" if full else "serving_quick", figures, notes)


if __name__ == "__main__":
    main()
