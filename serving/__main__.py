"""`python -m serving`: the API and pages under granian, on loopback only until there are API keys.

`--help` lists what can be set.
"""

import argparse
import ipaddress
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server import Server
from litestar import Litestar

from serving.app import app_from_environment
from serving.catalogue import Catalogue, shelf_at
from serving.generations.addresses import without_login
from serving.generations.generation import StoreUnavailable
from serving.generations.pulling import STATUS, pull_every
from serving.guarding.keys import FILE as KEYS
from serving.guarding.keys import KeyFault, any_good
from serving.leaving import leaves_in_peace
from serving.watching import metrics


def main() -> None:
    settings = _settings()
    pull_every()  # exits if it cannot be
    try:
        shelf_at(Path(settings.data), os.environ.get("SCOREHOUSE_STORE", ""))
    except StoreUnavailable as error:
        sys.exit(f"{error}.")
    data = Path(settings.data).absolute()
    address = _address(settings.host, data)
    _check_port(settings.host, address, settings.port)
    os.environ["SCOREHOUSE_DATA"], os.environ["SCOREHOUSE_WORKERS"] = str(data), str(settings.workers)
    counts = _place_for_counts(data)
    # Beside the workers, which verify the same files: that takes seconds of large ones. No thread, as they are forked.
    told = (data / "generations", settings.host, settings.port)
    multiprocessing.Process(target=_tell, args=told, daemon=True).start()
    if os.environ.get("SCOREHOUSE_PULL_FROM"):
        multiprocessing.Process(target=_keep_pulling, args=(os.getpid(),), daemon=True).start()
    server = Server(
        "serving.__main__:app_of_worker",
        factory=True,
        address=address,
        port=settings.port,
        interface=Interfaces.ASGI,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=30_000),  # ms
        workers=settings.workers,
        websockets=False,
        respawn_failed_workers=True,
        workers_kill_timeout=5,  # a worker told to stop while it still starts does not hear it
        log_level=LogLevels.warning,
    )
    try:
        server.serve()
    finally:
        shutil.rmtree(counts, ignore_errors=True)


def _place_for_counts(data: Path) -> Path:
    """Where the workers keep their counts. Exits if it cannot be made; removes what a server that pulled has left."""
    try:
        if not os.environ.get("SCOREHOUSE_PULL_FROM"):
            (data / "generations" / STATUS).unlink(missing_ok=True)
        return metrics.begin(data, os.getpid())
    except OSError as error:
        sys.exit(
            f"The data folder {data} cannot be written ({error.strerror}). The server keeps its counts, its audit log"
            " and jobs there: give another with --data or SCOREHOUSE_DATA."
        )


def app_of_worker() -> Litestar:
    """The app in a worker process, which ends when its server is gone: an orphan would hold the port."""
    # So long the event loop waits for each busy thread, such as the one that writes the audit log: with Python's own
    # 5 ms one request in a hundred takes several times what it takes others.
    sys.setswitchinterval(0.001)
    server = os.getppid()
    threading.Thread(target=_end_after, args=(server,), daemon=True).start()
    app = app_from_environment(server)
    leaves_in_peace(app)
    return app


def _end_after(server: int) -> None:
    while os.getppid() == server:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def _keep_pulling(server: int) -> None:
    """Runs the puller, and starts it again when it dies. It ends when this process does, and this with the server."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_after, args=(server,), daemon=True).start()
    while True:
        subprocess.run([sys.executable, "-m", "serving.generations.pulling"], check=False)
        print("pulling ended; it is started again", file=sys.stderr, flush=True)
        time.sleep(1)


def _tell(generations: Path, host: str, port: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    print(describe(generations, host, port), flush=True)


def describe(generations: Path, host: str, port: int) -> str:
    """What is served, and where, in a few lines: of generations that are verified as the API does it."""
    environment, lines = os.environ.get, []
    catalogue = Catalogue(generations, shelf=shelf_at(generations, os.environ.get("SCOREHOUSE_STORE", "")))
    for found in catalogue.look():
        if found.served is None:
            lines.append(f"  {found.score}: cannot be served. {found.fault}")
            continue
        one = found.served.generation
        found.served.store.close()
        served = f"{one.rows:,} customers as of {one.as_of_date}, generation {one.generation}"
        lines.append(f"  {found.score}: {served}")
    base = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    if catalogue.down:
        lines = [f"  nothing as yet: {catalogue.down}"]
    if not lines:
        pulled_from = environment("SCOREHOUSE_PULL_FROM")
        elsewhere = pulled_from or environment("SCOREHOUSE_STORE")
        where = without_login(elsewhere) if elsewhere else generations
        do = "make push" if pulled_from else "make run"
        lines = [f"  No score is published in {where} yet ({do}); what appears there is served at once."]
    return "\n".join(
        ["Scorehouse serves", *lines, f"  pages {base}/", f"  API   {base}/scores, described at {base}/docs"]
    )


def _settings() -> argparse.Namespace:
    environment = os.environ.get
    parser = argparse.ArgumentParser(prog="python -m serving", description="Serve the published scores.")
    parser.add_argument("--host", default=environment("SCOREHOUSE_HOST") or "127.0.0.1", help="or SCOREHOUSE_HOST")
    parser.add_argument("--port", default=environment("SCOREHOUSE_PORT") or "8000", help="or SCOREHOUSE_PORT")
    parser.add_argument("--workers", default=environment("SCOREHOUSE_WORKERS") or "2", help="or SCOREHOUSE_WORKERS")
    parser.add_argument("--data", default=environment("SCOREHOUSE_DATA") or "data", help="or SCOREHOUSE_DATA")
    settings = parser.parse_args()
    for name, highest in (("port", 65535), ("workers", 64)):
        given = getattr(settings, name)
        if not (given.isascii() and given.isdigit() and 1 <= int(given) <= highest):
            sys.exit(f"--{name} or SCOREHOUSE_{name.upper()} is '{given}', no number from 1 to {highest}.")
        setattr(settings, name, int(given))
    for name in ("SCOREHOUSE_AUDIT_DAYS", "SCOREHOUSE_JOB_BYTES"):
        given = environment(name) or "0"
        if not (given.isascii() and given.isdigit()):
            sys.exit(f"{name} is '{given}', no whole number.")
    if Path(settings.data).exists() and not Path(settings.data).is_dir():
        sys.exit(f"--data or SCOREHOUSE_DATA is '{settings.data}', no folder. Give the one that make run has written.")
    return settings


def _address(host: str, data: Path) -> str:
    """The address of a host, if it is loopback or there is a key: without one anybody could read every score."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        sys.exit(f"--host or SCOREHOUSE_HOST is '{host}', no IP address.")
    try:
        any_key = any_good(data / KEYS)
    except KeyFault as fault:
        sys.exit(f"Refused to serve: {fault}.")
    if not any_key and not address.is_loopback:
        sys.exit(
            f"Refused to serve on {host}: there are no API keys yet, or none that is good any more, so anybody who"
            " reaches it could read every score. Make one (make key NAME=crm MAY=read), or serve on 127.0.0.1."
        )
    return str(address)


def _check_port(host: str, address: str, port: int) -> None:
    """Exit with one line if the port cannot be had; granian itself would share it with another server."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            sys.exit(f"Port {port} of {host} cannot be had ({error.strerror}). Choose another: SCOREHOUSE_PORT=8001")


if __name__ == "__main__":
    main()
