"""Which runs of the Dagster instance live, and what becomes of those that do not."""

import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import dagster as dg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from orchestration.instance import (
    STARTING,
    bury_the_dead,
    in_process_executor,
    open_instance,
    storage_fault,
    storage_kept_open,
)
from orchestration.project import Paths, ProjectError, paths
from tests.conftest import LOANS, REPOSITORY, environment_of

Holding = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setenv("DAGSTER_HOME", "")  # so that what is set is put back
    monkeypatch.setenv("SCOREHOUSE_PROJECT", str(LOANS))
    monkeypatch.setenv("SCOREHOUSE_DATA", str(tmp_path))
    return paths()


def started(instance: dg.DagsterInstance, seconds_ago: float = 0) -> str:
    """A run that was recorded as started, by whatever process, and holds the pool's only slot."""
    run_id = str(uuid.uuid4())
    instance.add_run(dg.DagsterRun(job_name="everything", run_id=run_id, status=dg.DagsterRunStatus.STARTED))
    storage = instance.event_log_storage
    storage.set_concurrency_slots("warehouse", 1)
    assert storage.claim_concurrency_slot("warehouse", run_id, "step").is_claimed
    if seconds_ago:
        file = Path(str(instance.root_directory)) / "history" / "runs.db"
        with sqlite3.connect(file) as connection:
            connection.execute(f"update runs set update_timestamp = datetime('now', '-{seconds_ago} seconds')")
    return run_id


def status(where: Paths, run_id: str) -> dg.DagsterRunStatus:
    """After the next `make run` or `make ui` has begun."""
    with open_instance(where) as instance:
        run = instance.get_run_by_id(run_id)
        assert run is not None
        return run.status


HOLD = """
import sys
from orchestration.instance import alive, turn
from orchestration.project import paths
with turn(paths(), "make run", lambda whose: print(f"waits for {whose}", flush=True)), alive(paths(), sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holding() -> Iterator[Holding]:
    """Starts processes that work on a run, until each is killed or its input ends."""
    with ExitStack() as all_of_them:

        def start(run_id: str) -> subprocess.Popen[str]:
            command = [sys.executable, "-c", HOLD, run_id]
            process = subprocess.Popen(
                command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            all_of_them.callback(process.communicate)
            return process

        yield start


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_run_lives_as_long_as_its_process_and_gives_its_slot_back_when_that_was_killed(
    where: Paths, holding: Holding
) -> None:
    with open_instance(where) as instance:
        run_id = started(instance)
    holder = holding(run_id)
    assert said(holder) == "held"
    assert status(where, run_id) == dg.DagsterRunStatus.STARTED
    holder.kill()
    holder.wait()
    assert status(where, run_id) == dg.DagsterRunStatus.FAILURE
    with open_instance(where) as instance:
        assert instance.event_log_storage.claim_concurrency_slot("warehouse", "another run", "step").is_claimed


@pytest.mark.parametrize(
    ("seconds_ago", "found"),
    [(0, dg.DagsterRunStatus.STARTED), (2 * STARTING, dg.DagsterRunStatus.FAILURE)],
    ids=["the UI is about to start its process", "it never had a process"],
)
def test_a_run_without_a_process_is_given_a_minute(
    where: Paths, seconds_ago: float, found: dg.DagsterRunStatus
) -> None:
    with open_instance(where) as instance:
        run_id = started(instance, seconds_ago)
    assert status(where, run_id) == found


def test_a_run_waits_for_the_one_before_by_name_and_goes_on_when_that_is_killed(where: Paths, holding: Holding) -> None:
    first = holding("first")
    assert said(first) == "held"
    second = holding("second")
    assert re.fullmatch(rf"waits for make run, process {first.pid}, since [\d-]+ [\d:]+", said(second))
    first.kill()
    assert said(second) == "held"


@dg.op(pool="warehouse")
def work() -> None: ...


def of_the_ui() -> dg.JobDefinition:
    return dg.GraphDefinition(name="everything", node_defs=[work]).to_job(executor_def=in_process_executor(paths()))


def test_a_run_of_the_ui_waits_too_and_takes_the_slot_of_the_one_that_was_killed(
    where: Paths, holding: Holding
) -> None:
    with open_instance(where) as instance:
        run_id = started(instance)
        holder = holding(run_id)
        assert said(holder) == "held"
        with ThreadPoolExecutor() as beside:
            running = beside.submit(dg.execute_job, dg.reconstructable(of_the_ui), instance)

            def log() -> str:
                runs = [run.run_id for run in instance.get_runs() if run.run_id != run_id]
                return " ".join(entry.user_message for run in runs for entry in instance.all_logs(run))

            while not running.done() and f"waiting for make run, process {holder.pid}" not in log():
                time.sleep(0.1)
            assert not running.done()
            holder.kill()
            assert running.result().success


def test_ctrl_c_ends_a_run_that_waits(where: Paths, tmp_path: Path, holding: Holding) -> None:
    holder = holding("first")
    assert said(holder) == "held"
    (tmp_path / "home").mkdir()
    waiting = subprocess.Popen(
        [sys.executable, "-m", "orchestration.run"],
        cwd=REPOSITORY,
        env=environment_of(where.project, where.data, tmp_path / "home"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert said(waiting).startswith("Scorehouse: loans")
    assert said(waiting).startswith(f"waiting for make run, process {holder.pid}, since ")
    waiting.send_signal(signal.SIGINT)
    printed, _ = waiting.communicate()
    assert waiting.returncode == 130
    assert "stopped: nothing has been published yet" in printed


@pytest.mark.parametrize("damaged", ["history/runs.db", "history/runs/index.db", "schedules/schedules.db"])
def test_a_damaged_storage_is_told_by_name_with_what_to_do(where: Paths, damaged: str) -> None:
    open_instance(where).dispose()
    file = where.dagster_home / damaged
    file.write_bytes(b"no database" * 100)
    with pytest.raises(ProjectError) as raised:
        open_instance(where)
    assert str(raised.value) == (
        f"{file}: Dagster can't read its storage (file is not a database); remove the folder {where.dagster_home}, and"
        " only the history of runs is lost"
    )


def test_a_full_disk_is_no_damage(where: Paths) -> None:
    open_instance(where).dispose()
    full = sqlite3.OperationalError("database or disk is full")
    told = str(storage_fault(where, OperationalError("insert", {}, full)))
    said = r"can't be written to \(database or disk is full; \d+ MB are free there\)"
    assert re.fullmatch(f"{where.data}: {said}; make room, and run again", told)


def test_the_ui_says_that_its_port_is_taken_and_leaves_nothing_running(tmp_path: Path) -> None:
    environment = environment_of(LOANS, tmp_path / "data", tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environment["SCOREHOUSE_UI_PORT"] = port = str(taken.getsockname()[1])
        ui = [sys.executable, "-m", "orchestration.ui"]
        done = subprocess.run(ui, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert f"Port {port} of 127.0.0.1 cannot be had" in done.stderr
    assert not (tmp_path / "data" / "dagster").exists()


def test_a_run_whose_process_died_between_its_record_and_its_start_is_dead(where: Paths) -> None:
    with open_instance(where) as instance:
        begun, waits = (str(uuid.uuid4()) for _ in range(2))
        for run_id in (begun, waits):
            instance.add_run(dg.DagsterRun(job_name="everything", run_id=run_id))
        (where.dagster_home / "alive").mkdir(exist_ok=True)
        (where.dagster_home / "alive" / begun).touch()
        bury_the_dead(instance, where)
        statuses = {run.run_id: run.status for run in instance.get_runs()}
    assert statuses == {begun: dg.DagsterRunStatus.FAILURE, waits: dg.DagsterRunStatus.NOT_STARTED}
    assert not (where.dagster_home / "alive" / begun).exists()


def test_what_is_written_while_storage_is_kept_open_is_in_the_file_afterwards(tmp_path: Path) -> None:
    file = tmp_path / "events.db"

    def written(value: int) -> int:
        """Writes as Dagster does, with a connection of its own, and gives how durable it was."""
        engine = create_engine(f"sqlite:///{file}", poolclass=NullPool)
        with engine.begin() as connection:
            connection.execute(text(f"insert into written values ({value})"))
            found: int = connection.execute(text("pragma synchronous")).scalar_one()
        return found

    with closing(sqlite3.connect(file)) as connection:
        connection.execute("pragma journal_mode = wal")
        connection.execute("create table written (value integer)")
        connection.commit()
    wal = tmp_path / "events.db-wal"
    with storage_kept_open():
        assert [written(value) for value in (1, 2)] == [1, 1]
        assert wal.stat().st_size, "the connection that wrote was not the last one"
    assert not wal.exists()
    assert written(3) == 2, "as it is without"
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("select * from written").fetchall() == [(1,), (2,), (3,)]
