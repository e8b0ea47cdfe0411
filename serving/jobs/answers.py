"""What the API says of a job, and its result and errors as they are downloaded."""

import csv
import io
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from serving.jobs import folder as jobs
from serving.jobs.folder import Job, JobFault, State

RETRY_SECONDS = 5
LOST_SECONDS = 60  # without a look for waiting jobs, after which nothing seems to be there to do them
AT_ONCE = 4096  # rows of a download that are in memory

Format = Literal["csv", "parquet"]


class JobAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A job, and how far it is."""

    job: Annotated[str, Meta(description="Its id.")]
    score: str
    submitted_by: Annotated[str, Meta(description="The name of the key that asked for it.")]
    submitted_at: datetime
    what: Annotated[
        jobs.What, Meta(description="What is scored: customers by id, rows of features, or all customers of a date.")
    ]
    as_of_date: Annotated[date | None, Meta(description="Of a job over a date; null else.")]
    bytes: Annotated[int, Meta(description="Of the uploaded file.")]
    state: jobs.Progress
    attempts: Annotated[int, Meta(description=f"An attempt that died is made again, {jobs.MOST_ATTEMPTS} at most.")]
    rows: Annotated[int, Meta(description="Rows done.")]
    total_rows: Annotated[int | None, Meta(description="Rows to do; null until they are counted.")]
    wrong_rows: Annotated[int, Meta(description="Rows with errors, which are not scored.")]
    started_at: datetime | None
    finished_at: datetime | None
    model_version: int | None
    generation: Annotated[str | None, Meta(description="The published bundle that scored it.")]
    note: Annotated[str | None, Meta(description="Why it failed, or what it waits for and what to do about it.")]


class JobDetails(JobAnswer, frozen=True, kw_only=True):
    """A job with the first of its errors."""

    errors: Annotated[
        list[JobFault],
        Meta(description=f"The first {jobs.MOST_FAULTS:,}, of a job that is not done too; its download has all."),
    ]


class Jobs(msgspec.Struct, frozen=True):
    """The newest jobs first."""

    jobs: list[JobAnswer]


def details(root: Path, job: Job) -> JobDetails:
    """What is said of a job at this moment."""
    is_held, state = jobs.is_held(root, job.job), jobs.read_state(root, job.job)
    progress = "queued" if state.state == "running" and not is_held else state.state
    return JobDetails(
        job=job.job,
        score=job.score,
        submitted_by=job.caller,
        submitted_at=job.submitted_at,
        what=job.what,
        as_of_date=job.as_of_date,
        bytes=job.bytes,
        state=progress,
        attempts=state.attempts,
        rows=state.rows,
        total_rows=state.total,
        wrong_rows=state.wrong_rows,
        started_at=state.started_at,
        finished_at=state.finished_at,
        model_version=state.model_version,
        generation=state.generation,
        note=_note(root, job, state, is_held),
        errors=list(state.faults),
    )


def without_errors(told: JobDetails) -> JobAnswer:
    return msgspec.convert({name: getattr(told, name) for name in JobAnswer.__struct_fields__}, JobAnswer)


def _note(root: Path, job: Job, state: State, is_held: bool) -> str | None:
    if state.state in jobs.OVER:
        return state.reason
    if jobs.is_cancelled(root, job.job):
        return "It is being cancelled: it ends before its next batch."
    if is_held:
        return None
    before = f"Attempt {state.attempts} ended early ({state.reason or 'its process died'}). " if state.attempts else ""
    since = jobs.seconds_since_look(root)
    if since is not None and since < LOST_SECONDS:
        return before + f"It waits for a run: Dagster looked for jobs {since:.0f} s ago, and starts one."
    last = "nothing has looked for jobs yet" if since is None else f"nothing has looked for jobs for {since:.0f} s"
    return before + f"It waits, and {last}: make ui starts what does them, and make jobs does them at once."


def columns(file: Path) -> list[str]:
    """The columns of a result or of errors."""
    import pyarrow.parquet as pq

    return list(pq.read_schema(file).names)


def as_csv(file: Path) -> Iterator[bytes]:
    """A Parquet file as CSV, a few thousand rows at a time; lists in it are JSON."""
    import pyarrow.parquet as pq

    def lines(rows: Any) -> bytes:
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        return text.getvalue().encode()

    with pq.ParquetFile(file) as opened:
        yield lines([opened.schema_arrow.names])
        for batch in opened.iter_batches(AT_ONCE):
            # A list of null is none; numbers are written so that they are read back the same.
            cells = [map(_cell, column.to_pylist()) for column in batch.columns]
            yield lines(zip(*cells, strict=True))


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return msgspec.json.encode(value).decode()
    return value.isoformat() if isinstance(value, date) else value
