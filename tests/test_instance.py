"""Which runs of the Dagster instance live, and what becomes of those that do not."""

import sqlite3
import subprocess
import sys
import uuid
from pathlib import Path

import dagster as dg
import pytest

from orchestration.instance import STARTING, open_instance
from orchestration.project import Paths, ProjectError, paths
from tests.conftest import LOANS, REPOSITORY


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
from orchestration.instance import alive
from orchestration.project import paths
with alive(paths(), sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_lives_as_long_as_its_process_and_gives_its_slot_back_when_that_was_killed(where: Paths) -> None:
    with open_instance(where) as instance:
        run_id = started(instance)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, run_id], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    assert status(where, run_id) == dg.DagsterRunStatus.STARTED
    holder.kill()
    holder.communicate()
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


def test_a_damaged_storage_is_told_with_what_to_do(where: Paths) -> None:
    open_instance(where).dispose()
    (where.dagster_home / "history" / "runs.db").write_bytes(b"no database" * 100)
    with pytest.raises(ProjectError, match=r"Dagster can't read its storage .* remove the folder"):
        open_instance(where)
