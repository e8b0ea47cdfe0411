"""Servers that are started for `serving.py`, and the load that wrk puts on them."""

import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import form

TICKS = os.sysconf("SC_CLK_TCK")
DONE = """
done = function(summary, latency, requests)
  local errors = summary.errors
  io.stderr:write(string.format(
    '{"requests": %d, "seconds": %f, "failed": %d, "p50_ms": %f, "p99_ms": %f}',
    summary.requests, summary.duration / 1e6,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
"""

Measured = dict[str, float]


def environment(**changes: str) -> dict[str, str]:
    """That of a process that imports the product and what is here, in this order: both have a `serving`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SCOREHOUSE_")}
    return {**inherited, "PYTHONPATH": f"{form.REPOSITORY}:{form.REPOSITORY / 'benchmarks'}", **changes}


class Server:
    """A server on loopback: its process, and what its workers use."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, ready: str) -> None:
        self.process, self.port = process, port
        self.ready = f"http://127.0.0.1:{port}{ready}"

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def workers(self) -> list[int]:
        """Its child processes."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def cpu(self) -> float:
        """Seconds of processor that its workers have used."""
        stats = [Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split() for worker in self.workers()]
        return sum(int(stat[11]) + int(stat[12]) for stat in stats) / TICKS

    def memory(self) -> float:
        """MB of the largest worker, without the pages of files, which are the system's cache."""
        statuses = [Path(f"/proc/{worker}/status").read_text() for worker in self.workers()]
        told = [status.partition("RssAnon:")[2].split() for status in statuses]  # none of one that has ended
        return max(int(words[0]) for words in told if words) / 1000


@contextmanager
def started(
    command: list[str], ready: str, *, port: int, cwd: Path = form.REPOSITORY, seconds: float = 300, **changes: str
) -> Iterator[Server]:
    """A server until the end of the block; begins when `ready` answers 200. Ends this process if it never does."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, cwd=cwd, env=environment(**changes), stdout=output, stderr=output)
        server, began = Server(process, port, ready), time.monotonic()
        try:
            while not answers(server.ready):
                if process.poll() is not None or time.monotonic() - began > seconds:
                    output.seek(0)
                    sys.exit(f"{' '.join(command)} was not ready within {seconds:.0f} s:\n{output.read()[-2000:]}")
                time.sleep(0.01)
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def status(url: str, body: bytes, headers: dict[str, str]) -> int:
    """The status of the answer to a POST of JSON."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def one_by_one(path: str, customers: int, headers: dict[str, str], delay: tuple[int, int] | None = None) -> str:
    """A script of wrk: a random customer each time; `delay` is between which milliseconds a connection then waits."""
    set_headers = "".join(f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}\n" for name, value in headers.items())
    waits = f"delay = function() return math.random({delay[0]}, {delay[1]}) end\n" if delay else ""
    ask = f'wrk.format("GET", "{path}" .. (10000000 + math.random(0, {customers - 1})))'
    return f"math.randomseed(7)\n{set_headers}{waits}request = function() return {ask} end\n{DONE}"


def posting(path: str, bodies: list[str], headers: dict[str, str]) -> str:
    """A script of wrk: one of these bodies each time."""
    told = json.dumps({"Content-Type": "application/json", **headers})
    table = told.replace('": ', '"] = ').replace('{"', '{["').replace(', "', ', ["')
    listed = ",\n".join(f"wrk.format('POST', '{path}', headers, [==[{body}]==])" for body in bodies)
    return f"""
local headers, requests = {table}, nil
init = function()
  requests = {{{listed}}}
end
request = function() return requests[math.random(#requests)] end
{DONE}"""


def wrk(server: Server, script: str, *, connections: int, seconds: float) -> Measured:
    """What wrk measures with a script for some seconds from one thread, and the workers' processor time."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        before = server.cpu()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", "10s", "-s", file.name]
        ran = subprocess.run([*command, server.url("/")], capture_output=True, text=True)
    if ran.returncode or not ran.stderr.rstrip().endswith("}"):
        sys.exit(f"wrk failed, so there is nothing to measure:\n{ran.stdout}{ran.stderr}")
    found: Measured = json.loads(ran.stderr[ran.stderr.index("{") :])
    if not found["requests"]:
        sys.exit(f"{server.url('/')} answered no request:\n{ran.stdout}")
    cpu = (server.cpu() - before) / found["requests"] * 1e6
    return {**found, "per_second": found["requests"] / found["seconds"], "cpu_us": cpu}


def alternated(
    servers: list[Server], scripts: list[str], *, connections: int, seconds: float, rounds: int
) -> list[Measured]:
    """Of each server the medians of what wrk measures, one after the other in each round, after one to warm up."""
    found: list[list[Measured]] = [[] for _ in servers]
    for round_ in range(rounds + 1):
        for place, (server, script) in enumerate(zip(servers, scripts, strict=True)):
            took = wrk(server, script, connections=connections, seconds=seconds if round_ else 2)
            if took["failed"]:
                sys.exit(f"{took['failed']:.0f} of {took['requests']:.0f} requests to {server.url('/')} failed")
            if round_:
                found[place].append(took)
    return [{name: statistics.median(one[name] for one in many) for name in many[0]} for many in found]


def check_wrk() -> None:
    if shutil.which("wrk") is None:
        sys.exit("wrk makes the load and is not installed: apt-get install wrk (Debian, Ubuntu) or brew install wrk.")
