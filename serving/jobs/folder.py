"""The format and protocol of jobs: what callers have asked to be scored in a batch, kept until it is done.

    <root>/<job>/        one accepted job; its name is its id
        job.json         `Job`: what is asked, by whom; never changes
        input.csv        what was uploaded, or input.parquet; none of a job over an as-of date
        lock             held by the process that works on the job: the kernel frees it, however that process ends
        state.json       `State`: how far it is, replaced whole by who holds the lock; none before the first attempt
        cancel           there once somebody has cancelled the job
        result.parquet   what came of it, errors.parquet what was wrong with it: there when its state is done
    <root>/LOOKED        touched by each look for waiting jobs

`accept` renames a staged folder into place once all of it is on the disk. A job is there whole or not at all, and it
waits until its state is done, failed or cancelled, whichever processes are killed meanwhile.
"""

import fcntl
import hashlib
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from serving.durable import sync

log = logging.getLogger("serving")

JOB_ID = re.compile(r"[0-9a-f]{24}")
MOST_ATTEMPTS = 3
TRIES = 5  # to hold a job: who only asks whether it is held, holds it for an instant
MOST_FAULTS = 1000  # that a state lists; errors.parquet has all
BEGUN_SECONDS = 60  # that a process is given to hold the folder which it has made

What = Literal["ids", "features", "as_of_date"]
Progress = Literal["queued", "running", "done", "failed", "cancelled"]
OVER = ("done", "failed", "cancelled")


class JobFault(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with one row of a job."""

    row: Annotated[int, Meta(description="The row's place in the file, from 1; of a CSV the header is not counted.")]
    customer_id: str | None
    column: Annotated[str | None, Meta(description="Null where the row as a whole is wrong.")]
    fault: str


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What job.json says: what is to be scored, and who has asked for it."""

    job: str
    score: str
    caller: str
    what: What
    as_of_date: date | None = None
    file: Literal["input.csv", "input.parquet"] | None = None
    columns: tuple[str, ...] = ()  # of the file
    bytes: int = 0
    request: str  # sha256 of all that was asked
    submitted_at: datetime


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What state.json says: how far a job is."""

    state: Progress = "queued"
    attempts: int = 0
    run: str | None = None  # Dagster's id of the newest attempt
    rows: int = 0
    total: int | None = None
    wrong_rows: int = 0
    faults: tuple[JobFault, ...] = ()  # the first
    started_at: datetime | None = None
    finished_at: datetime | None = None
    reason: str | None = None  # why it failed, or why the newest attempt did
    generation: str | None = None
    model_version: int | None = None


class JobRefused(Exception):
    """A job that is not kept: another one has its id."""


def new_id(caller: str, key: str | None) -> str:
    """The id of a job: of a caller's idempotency key always the same, so that a rename decides who was first."""
    if key is None:
        return secrets.token_hex(12)
    return hashlib.sha256(f"{caller}\0{key}".encode()).hexdigest()[:24]


@contextmanager
def staged(root: Path, job: str) -> Iterator[Path]:
    """A folder to put a job's file into, for `accept`. It is gone at the end; the next one removes a dead process's."""
    root.mkdir(parents=True, exist_ok=True)
    _clear(root)
    name = f"{job}-{secrets.token_hex(4)}"
    begun, folder = root / f".begun-{name}", root / f".staging-{name}"
    try:
        begun.mkdir()
        with held(begun) as mine:
            assert mine, "nobody else looks at its lock"
            os.rename(begun, folder)  # not before it is held: it would be taken for a dead process's
            yield folder
    finally:
        shutil.rmtree(begun, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


def accept(root: Path, folder: Path, job: Job) -> None:
    """Keeps a job whose file is in its `staged` folder: on return it is on the disk, and will be done.

    Raises `JobRefused` if a job has its id already, `OSError` if the disk is full: nothing is kept then.
    """
    (folder / "job.json").write_bytes(msgspec.json.format(msgspec.json.encode(job)))
    for file in folder.iterdir():
        sync(file)
    sync(folder)
    try:
        os.rename(folder, root / job.job)
    except OSError:
        if (root / job.job).exists():
            raise JobRefused(job.job) from None
        raise
    sync(root)
    sync(root.parent)


def read_job(root: Path, job: str) -> Job | None:
    """What is asked by a job, None if there is no such job."""
    if not JOB_ID.fullmatch(job):
        return None
    try:
        return msgspec.json.decode((root / job / "job.json").read_bytes(), type=Job)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:  # one must not stop the others
        log.error("%s/job.json can't be read, so nothing becomes of the job: %s", job, error)
        return None


def read_state(root: Path, job: str) -> State:
    """How far a job is. A running one may be a dead process's: `is_held` tells."""
    folder = root / job
    try:
        return msgspec.json.decode((folder / "state.json").read_bytes(), type=State)
    except FileNotFoundError:
        return State()
    except msgspec.MsgspecError as error:
        return State(state="failed", reason=f"its state can't be read: {error}")


def all_jobs(root: Path) -> list[Job]:
    """All jobs, the newest first."""
    found = [read_job(root, path.name) for path in root.glob("*/") if JOB_ID.fullmatch(path.name)]
    return sorted((job for job in found if job is not None), key=lambda job: (job.submitted_at, job.job), reverse=True)


def waiting(root: Path) -> list[Job]:
    """The jobs that nobody works on and that are not over, the oldest first."""
    jobs = [job for job in all_jobs(root) if read_state(root, job.job).state not in OVER]
    return [job for job in reversed(jobs) if not is_held(root, job.job)]


def write_state(root: Path, job: str, state: State) -> None:
    """Replaces a job's state; to be called by who holds the job. On return it is on the disk."""
    folder = root / job
    new = folder / "state.json.new"
    new.write_bytes(msgspec.json.encode(state))
    sync(new)
    os.replace(new, folder / "state.json")
    sync(folder)


@contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Holds a job for this process, unless another holds it: says which. The kernel lets go of it for a dead one."""
    with (folder / "lock").open("a") as lock:
        yield any(_lock(lock, fcntl.LOCK_EX) for _ in range(TRIES))


def _lock(file: IO[Any], how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(0.01)
        return False
    return True


def is_held(root: Path, job: str) -> bool:
    """Whether a process works on a job at this moment."""
    try:
        with (root / job / "lock").open("rb") as lock:
            return not _lock(lock, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def cancel(root: Path, job: str) -> State:
    """Asks for a job's end, at once if nobody works on it, else before its next batch; gives its state then.

    A state that is done or failed already is left as it is.
    """
    folder = root / job
    with held(folder) as mine:
        state = read_state(root, job)
        if state.state in OVER:
            return state
        (folder / "cancel").touch()
        sync(folder)
        if mine:
            state = msgspec.structs.replace(state, state="cancelled", finished_at=datetime.now(UTC))
            write_state(root, job, state)
    return state


def is_cancelled(root: Path, job: str) -> bool:
    """Whether somebody has asked for a job's end."""
    return (root / job / "cancel").exists()


def look_recorded(root: Path) -> None:
    """Notes that something has looked for waiting jobs: `seconds_since_look` tells how long ago."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "LOOKED").touch()


def seconds_since_look(root: Path) -> float | None:
    """How long ago something looked for waiting jobs, None if nothing ever did."""
    try:
        return max(0.0, time.time() - (root / "LOOKED").stat().st_mtime)
    except FileNotFoundError:
        return None


def tidy(root: Path, days: float) -> list[str]:
    """Removes jobs that were over `days` ago and what dead uploads have left, ends those whose end a dead process was
    asked for and those that have died too often; gives the ids of the removed."""
    removed = []
    for job in all_jobs(root):
        state = cancel(root, job.job) if is_cancelled(root, job.job) else read_state(root, job.job)
        finished = state.finished_at
        if state.attempts >= MOST_ATTEMPTS and state.state not in OVER:
            _give_up(root, job.job)
        if state.state in OVER and finished and (datetime.now(UTC) - finished).total_seconds() > days * 86_400:
            # Renamed first: who is killed here leaves no half job.
            os.rename(root / job.job, root / f".removed-{job.job}-{secrets.token_hex(4)}")
            removed.append(job.job)
    _clear(root)
    return removed


def _clear(root: Path) -> None:
    """Removes what dead processes have left behind."""
    for path in root.glob(".*/"):
        kind = path.name[1:].partition("-")[0]
        if kind == "removed" or (kind == "begun" and _is_old(path)) or (kind == "staging" and _is_orphan(path)):
            shutil.rmtree(path, ignore_errors=True)


def _give_up(root: Path, job: str) -> None:
    """Ends a job whose last attempt has died."""
    with held(root / job) as mine:
        state = read_state(root, job)
        if mine and state.state not in OVER:
            why = state.reason or "its process died"
            reason = f"{state.attempts} attempts ended early, the last one because: {why}"
            failed = msgspec.structs.replace(state, state="failed", finished_at=datetime.now(UTC), reason=reason)
            write_state(root, job, failed)


def _is_old(folder: Path) -> bool:
    """Whether the process that made a folder, and does not hold it yet, has had time enough to."""
    with suppress(FileNotFoundError):
        return time.time() - folder.stat().st_mtime > BEGUN_SECONDS
    return False


def _is_orphan(folder: Path) -> bool:
    """Whether the process that staged a job there is dead."""
    with suppress(FileNotFoundError), (folder / "lock").open("rb") as lock:
        return _lock(lock, fcntl.LOCK_SH)
    return False
