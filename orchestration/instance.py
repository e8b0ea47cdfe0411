"""The Dagster instance under the data folder, which `make run` and `make ui` share."""

import fcntl
from pathlib import Path

import dagster as dg

from orchestration.project import REPOSITORY, Paths, exclusively

BY = {"scorehouse/by": "make run"}


def open_instance(where: Paths) -> dg.DagsterInstance:
    """The Dagster instance under the data folder, made on first use, with the slots of dead runs given back."""
    with exclusively(where.data / "dagster.lock"):
        where.dagster_home.mkdir(parents=True, exist_ok=True)
        (where.dagster_home / "dagster.yaml").write_bytes((REPOSITORY / "dagster.yaml").read_bytes())
        instance = dg.DagsterInstance.get()
        unfinished = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.CANCELING]
        for run in instance.get_runs(dg.RunsFilter(statuses=unfinished, tags=BY)):
            lock = alive_file(where, run.run_id)
            with lock.open("a") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
            instance.report_run_failed(
                run, message="The process of this run ended without a word; a later run found it dead."
            )
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            lock.unlink(missing_ok=True)
    return instance


def alive_file(where: Paths, run_id: str) -> Path:
    """A file that a run's process holds locked while it lives: a process number may be used again, a lock is not."""
    folder = where.dagster_home / "alive"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / run_id
