"""The Dagster instance under the data folder, which `make run` and `make ui` share, which of its runs live, and whose
turn it is."""

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.errors import raise_execution_interrupts
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DatabaseError

from orchestration.project import REPOSITORY, Paths, ProjectError, exclusively, no_room

# Seconds that the UI may take from recording a run to the start of its process.
STARTING = 60


def open_instance(where: Paths) -> dg.DagsterInstance:
    """The Dagster instance under the data folder, made on first use, with the slots of dead runs given back."""
    with exclusively(where.data / "dagster.lock"):
        where.dagster_home.mkdir(parents=True, exist_ok=True)
        (where.dagster_home / "dagster.yaml").write_bytes((REPOSITORY / "dagster.yaml").read_bytes())
        try:
            instance = dg.DagsterInstance.get()
            bury_the_dead(instance, where)
            instance.event_log_storage.get_concurrency_keys()  # so that a damaged event log is told before a run begins
        except DatabaseError as error:
            raise storage_fault(where, error) from None
    return instance


@contextmanager
def storage_kept_open() -> Iterator[None]:
    """Keeps what this process opens of Dagster's storage open until the end of the block.

    Dagster opens SQLite anew for each event. Whoever closes it last has all that was written copied into the file and
    forced to the disk, as each commit is: where the disk is busy that is a third of a run's time. Here a commit is
    forced to the disk now and then, and by the end: nothing is lost where the process is killed, and where the power
    fails the history of the last run at most.
    """
    kept: dict[str, sqlite3.Connection] = {}

    def connected(connection: Any, _: object) -> None:
        if not isinstance(connection, sqlite3.Connection):
            return
        with suppress(sqlite3.Error):  # who reads or writes meets it too, and tells it
            connection.execute("pragma synchronous = normal")
            (_, _, file), *_ = connection.execute("pragma database_list").fetchall()
            is_in_wal = connection.execute("pragma journal_mode").fetchone() == ("wal",)
            if is_in_wal and file not in kept:
                kept[file] = sqlite3.connect(file, check_same_thread=False)
                kept[file].execute("select 1 from sqlite_master").fetchall()

    event.listen(Engine, "connect", connected)
    try:
        yield
    finally:
        event.remove(Engine, "connect", connected)
        for connection in kept.values():
            connection.close()


def storage_fault(where: Paths, error: DatabaseError) -> ProjectError:
    """What ails Dagster's storage, and what to do: make room on the disk, or remove the folder."""
    said = str(error.orig)
    if "is full" in said or "disk I/O error" in said:
        return no_room(where, said)
    damaged = [str(file) for file in sorted(where.dagster_home.rglob("*.db")) if not _is_sound(file)]
    return ProjectError(
        f"{', '.join(damaged) or where.dagster_home}: Dagster can't read its storage ({said});"
        f" {'' if damaged else 'run again, and if that does not help, '}remove the folder {where.dagster_home}, and"
        " only the history of runs is lost"
    )


def _is_sound(file: Path) -> bool:
    """Whether SQLite can read all of a file."""
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
            return connection.execute("pragma quick_check(1)").fetchall() == [("ok",)]
    except sqlite3.DatabaseError:
        return False


def bury_the_dead(instance: dg.DagsterInstance, where: Paths) -> None:
    """Ends the runs whose process is gone, and gives their slots to others."""
    status = dg.DagsterRunStatus
    unfinished = [status.NOT_STARTED, status.STARTED, status.STARTING, status.CANCELING]
    for record in instance.get_run_records(dg.RunsFilter(statuses=unfinished)):
        run = record.dagster_run
        if run.status == status.NOT_STARTED and not _alive_file(where, run.run_id).is_file():
            continue  # no process has begun with it
        if _lives(_alive_file(where, run.run_id), record.update_timestamp.timestamp()):
            continue
        instance.report_run_failed(
            run, message="The process of this run ended without a word; what started later found it dead."
        )
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        _alive_file(where, run.run_id).unlink(missing_ok=True)


@contextmanager
def alive(where: Paths, run_id: str) -> Iterator[None]:
    """Shows that this process works on a run: by a lock, which a dead process can't hold. Its number can be reused."""
    file = _alive_file(where, run_id)
    with exclusively(file):
        yield
    file.unlink(missing_ok=True)


@contextmanager
def turn(where: Paths, who: str, waits: Callable[[str], None]) -> Iterator[None]:
    """Lets one run at a time work on the data folder; `waits` is told whose run is waited for, and since when it runs.

    Dagster's pools would queue the steps of two runs too, but a run that is killed keeps its slot there. This lock the
    kernel frees when its process ends, however it ends, and waiting for it can be interrupted and costs nothing.
    """
    with (where.data / "run.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            waits(lock.read() or "another run")
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(f"{who}, process {os.getpid()}, since {datetime.now():%Y-%m-%d %H:%M:%S}")
        lock.flush()
        yield


def give_slots_back(instance: dg.DagsterInstance, where: Paths, run_id: str) -> None:
    """Clears away what dead runs hold. To be called by the run whose turn it is: every slot of another is a dead one's.

    Some have no lock to tell them by, such as those of Dagster's own commands.
    """
    with exclusively(where.data / "dagster.lock"):
        bury_the_dead(instance, where)
    storage = instance.event_log_storage
    for pool in storage.get_concurrency_keys():
        held = storage.get_concurrency_info(pool)
        for other in (held.active_run_ids | held.pending_run_ids) - {run_id}:
            storage.free_concurrency_slots_for_run(other)


def _alive_file(where: Paths, run_id: str) -> Path:
    return where.dagster_home / "alive" / run_id


def _lives(file: Path, recorded: float) -> bool:
    """Whether a run's process is at work, or may be about to begin; `recorded` is when it was heard of last."""
    if not file.is_file():
        return time.time() - recorded < STARTING
    with file.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class _InProcess(dg.Executor):
    """Dagster's in-process executor, for runs that the UI or a schedule starts, which shows that they live."""

    def __init__(self, where: Paths, executor: dg.Executor, takes_turn: bool) -> None:
        self._where, self._executor, self._takes_turn = where, executor, takes_turn

    @property
    def retries(self) -> Any:
        return self._executor.retries

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[Any]:
        run_id, instance = plan_context.run_id, plan_context.instance

        def waits(whose: str) -> None:
            plan_context.log.info(f"waiting for {whose}, which works on the same data")

        with alive(self._where, run_id), ExitStack() as ours:
            if self._takes_turn:
                with raise_execution_interrupts():  # Dagster would let nobody stop a run that waits
                    ours.enter_context(turn(self._where, f"run {run_id[:8]} of make ui", waits))
                give_slots_back(instance, self._where, run_id)
            yield from self._executor.execute(plan_context, execution_plan)


def in_process_executor(where: Paths, takes_turn: bool = True) -> dg.ExecutorDefinition:
    """All steps in one process: one each would wait seconds for imports, far more than most steps' work.

    A run that writes nothing to the data folder takes no turn: it waits for nobody, and nobody for it.
    """
    dagsters = dg.in_process_executor
    assert dagsters.executor_creation_fn is not None
    make = dagsters.executor_creation_fn
    return dg.ExecutorDefinition(
        name=dagsters.name,
        config_schema=dagsters.config_schema,  # type: ignore[arg-type]
        description=dagsters.description,
        executor_creation_fn=lambda context: _InProcess(where, make(context), takes_turn),
    )
