"""The Dagster instance under the data folder, which `make run` and `make ui` share, and which of its runs live."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
from sqlalchemy.exc import DatabaseError

from orchestration.project import REPOSITORY, Paths, ProjectError, exclusively

# Seconds that the UI may take from recording a run to the start of its process.
STARTING = 60


def open_instance(where: Paths) -> dg.DagsterInstance:
    """The Dagster instance under the data folder, made on first use, with the slots of dead runs given back."""
    with exclusively(where.data / "dagster.lock"):
        where.dagster_home.mkdir(parents=True, exist_ok=True)
        (where.dagster_home / "dagster.yaml").write_bytes((REPOSITORY / "dagster.yaml").read_bytes())
        try:
            instance = dg.DagsterInstance.get()
            _bury_the_dead(instance, where)
        except DatabaseError as error:
            raise ProjectError(
                f"{where.dagster_home}: Dagster can't read its storage ({error.orig}); remove the folder, and only the"
                " history of runs is lost"
            ) from None
    return instance


def _bury_the_dead(instance: dg.DagsterInstance, where: Paths) -> None:
    """Ends the runs whose process is gone, and gives their slots to others."""
    unfinished = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.CANCELING]
    for record in instance.get_run_records(dg.RunsFilter(statuses=unfinished)):
        run = record.dagster_run
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

    def __init__(self, where: Paths, executor: dg.Executor) -> None:
        self._where, self._executor = where, executor

    @property
    def retries(self) -> Any:
        return self._executor.retries

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[Any]:
        with alive(self._where, plan_context.run_id):
            yield from self._executor.execute(plan_context, execution_plan)


def in_process_executor(where: Paths) -> dg.ExecutorDefinition:
    """All steps in one process: one each would wait seconds for imports, far more than most steps' work."""
    dagsters = dg.in_process_executor
    assert dagsters.executor_creation_fn is not None
    make = dagsters.executor_creation_fn
    return dg.ExecutorDefinition(
        name=dagsters.name,
        config_schema=dagsters.config_schema,  # type: ignore[arg-type]
        description=dagsters.description,
        executor_creation_fn=lambda context: _InProcess(where, make(context)),
    )
