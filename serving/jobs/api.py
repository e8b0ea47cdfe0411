"""Jobs: a caller uploads customers or rows of features, or names a date, and fetches the scores when they are made."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from litestar import Request, Response, delete, get, post
from litestar.exceptions import (
    ClientException,
    HTTPException,
    NotFoundException,
    ServiceUnavailableException,
)
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import ResponseSpec
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIResponse, Operation, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIFormat, OpenAPIType
from litestar.params import Parameter
from litestar.response import File, Stream

from serving.catalogue import Catalogue
from serving.guarding.callers import Caller, caller_of
from serving.jobs import folder as jobs
from serving.jobs.answers import RETRY_SECONDS, Format, JobDetails, Jobs, as_csv, details, without_errors
from serving.jobs.folder import Job, JobRefused
from serving.jobs.uploads import MEDIA_TYPES, UNNAMED, UNTOLD, BadUpload, columns_of, named, save, what_it_holds
from serving.lookups import UNKNOWN_SCORE, ScoreName, problem_spec, served_score
from serving.pages.handlers import page
from serving.problems import short

log = logging.getLogger("serving")

LONGEST_KEY = 200
PARQUET = "application/vnd.apache.parquet"

_ABOUT = """Has a file or a date scored in a batch. When the answer comes, the job is on the disk, and it will be done.

A file is known by its columns: `customer_id` alone (or the columns of the score's `entity`) asks for the published
scores of these customers; all features of the score, and if you like the id, for scores of these rows by the
champion's model. Without a body, `?as_of=2024-03-04` asks for the scores of all customers at that date.
The same `Idempotency-Key` gives the same job.

    curl -H "Content-Type: text/csv" --data-binary @customers.csv http://127.0.0.1:8000/scores/churn/jobs
"""

JobId = Annotated[str, Parameter(description="Id of a job, as GET /jobs lists it.")]
UNKNOWN_JOB = problem_spec("There is no such job of this caller.")
_ANSWERS = {
    400: problem_spec("The request can't be read, its body was cut short, or says nothing."),
    404: UNKNOWN_SCORE,
    409: problem_spec("The Idempotency-Key was used for another request."),
    413: problem_spec("The file is too large: SCOREHOUSE_JOB_BYTES says how large one may be."),
    415: problem_spec("The file is neither text/csv nor application/vnd.apache.parquet."),
    422: problem_spec(
        "The file's columns say nothing that can be scored, or the date has no scores yet; see `detail`."
    ),
    503: problem_spec(
        "Nothing is served of the score, it is too old for its owner, or the file can't be written to the disk;"
        " `detail` says why."
    ),
}


@dataclass
class _UploadOperation(Operation):
    """The operation with its body, which the handler reads itself."""

    def __post_init__(self) -> None:
        about = "The file: a header, then a row per line; or Parquet. An octet-stream is known by its first bytes."
        file = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY, description=about)
        content = {kind: OpenAPIMediaType(schema=file) for kind in (*MEDIA_TYPES, UNTOLD)}
        self.request_body = RequestBody(content=content, required=False)


@dataclass
class _DownloadOperation(Operation):
    """The operation, whose answer has two forms."""

    def __post_init__(self) -> None:
        found = (self.responses or {}).get("200")
        if isinstance(found, OpenAPIResponse) and found.content:
            file = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY)
            found.content[PARQUET] = OpenAPIMediaType(schema=file)


def job_handlers(catalogue: Catalogue, root: Path) -> Sequence[HTTPRouteHandler]:
    """The handlers of jobs over a catalogue and the folder of jobs."""

    def job_of(caller: Caller, name: str) -> Job:
        job = jobs.read_job(root, name)
        if job is None or not _may_see(caller, job):
            raise NotFoundException(detail=f"There is no job '{short(name)}'. GET /jobs lists yours.")
        return job

    def keep(folder: Path, job: Job, refusal: str | None) -> tuple[Job, bool]:
        if refusal and jobs.read_job(root, job.job) is None:  # what was accepted before is still told
            raise ServiceUnavailableException(detail=refusal)
        try:
            jobs.accept(root, folder, job)
        except JobRefused:
            kept = jobs.read_job(root, job.job)
            if kept is None or kept.request != job.request:
                raise HTTPException(
                    status_code=409,
                    detail="This Idempotency-Key belongs to another request of yours"
                    + (f", of score '{kept.score}'" if kept and job.score != kept.score else "")
                    + ". Another request needs another key.",
                ) from None
            return kept, False
        return job, True

    @post(
        "/scores/{score:str}/jobs",
        status_code=202,
        tags=["jobs"],
        summary="Have a file or a date scored",
        description=_ABOUT,
        operation_class=_UploadOperation,
        responses={
            200: ResponseSpec(
                JobDetails, generate_examples=False, description="The job of an earlier request with the same key."
            ),
            **_ANSWERS,
        },
    )
    async def submit_job(
        request: Request[Any, Any, Any],
        score: ScoreName,
        as_of: Annotated[
            date | None, Parameter(query="as_of", description="Instead of a file: all customers of this as-of date.")
        ] = None,
        key: Annotated[
            str | None,
            Parameter(header="Idempotency-Key", description="The same key gives the same job.", max_length=LONGEST_KEY),
        ] = None,
    ) -> Response[JobDetails]:
        caller = caller_of(request.scope)
        served = served_score(catalogue, score, caller)
        generation = served.generation
        announced = int(length) if (length := request.headers.get("content-length", "")).isdigit() else None
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        name = None if as_of else _file_of(kind, announced)
        columns: tuple[str, ...] = ()
        try:
            async with _staged(root) as folder:
                file = folder / (name or "nothing")
                size, digest = await save(request.stream(), file, announced)
                if as_of:
                    _refuse_date(as_of, generation.as_of_date, size)
                    file.unlink()
                    what: jobs.What = "as_of_date"
                else:
                    file, name = await asyncio.to_thread(named, file)
                    found = await asyncio.to_thread(columns_of, file)
                    what, columns = what_it_holds(found, generation), tuple(found)
                asked = hashlib.sha256(f"{score}\0{name}\0{as_of}\0{digest}".encode()).hexdigest()
                job = Job(
                    job=jobs.new_id(caller.name, key),
                    score=score,
                    caller=caller.name,
                    what=what,
                    as_of_date=as_of,
                    file=name,
                    columns=columns,
                    bytes=size,
                    request=asked,
                    submitted_at=datetime.now(UTC),
                )
                # Published scores may be too old for their owner; who names a date knows how old it is.
                refusal = served.refusal() if what == "ids" else None
                kept, is_new = await asyncio.to_thread(keep, folder, job, refusal)
        except OSError as error:
            log.error("a job of %s can't be kept: %s", score, error)
            raise ServiceUnavailableException(
                detail=f"The job can't be kept at the moment: {error.strerror or error}. Nothing of it was; send it"
                " again later.",
                headers={"Retry-After": "60"},
            ) from None
        return _told(await asyncio.to_thread(details, root, kept), 202 if is_new else 200)

    @get(
        "/jobs",
        tags=["jobs"],
        summary="The caller's jobs",
        description="The newest first; of a key with the permission `admin` those of all keys. A browser gets a page.",
        responses={200: ResponseSpec(Jobs, generate_examples=False, description="The jobs, or their page.")},
    )
    async def list_jobs(
        request: Request[Any, Any, Any],
        only: Annotated[
            jobs.Progress | None, Parameter(query="state", description="Those in this state alone.")
        ] = None,
        limit: Annotated[int, Parameter(ge=1, le=1000, description="How many at most.")] = 100,
    ) -> Response[Any]:
        caller = caller_of(request.scope)

        def found() -> list[JobDetails]:
            seen = (details(root, job) for job in jobs.all_jobs(root) if _may_see(caller, job))
            return list(islice((job for job in seen if only in (None, job.state)), limit))

        listed = await asyncio.to_thread(found)
        if "text/html" in request.headers.get("accept", ""):
            return page("jobs.html", here="jobs", jobs=listed)
        return Response(Jobs([without_errors(job) for job in listed]), headers={"Vary": "Accept"})

    @get("/jobs/{job:str}", tags=["jobs"], summary="How far a job is", responses={404: UNKNOWN_JOB})
    async def one_job(request: Request[Any, Any, Any], job: JobId) -> Response[JobDetails]:
        found = await asyncio.to_thread(job_of, caller_of(request.scope), job)
        return _told(await asyncio.to_thread(details, root, found))

    @delete(
        "/jobs/{job:str}",
        status_code=200,
        tags=["jobs"],
        summary="Cancel a job",
        description="One that waits ends at once, one that runs before its next batch. It has no result then.",
        responses={
            404: UNKNOWN_JOB,
            409: problem_spec("The job is over."),
            503: problem_spec("That can't be written to the disk; `detail` says why."),
        },
    )
    async def cancel_job(request: Request[Any, Any, Any], job: JobId) -> Response[JobDetails]:
        found = await asyncio.to_thread(job_of, caller_of(request.scope), job)
        try:
            state = await asyncio.to_thread(jobs.cancel, root, found.job)
        except OSError as error:
            log.error("job %s can't be cancelled: %s", found.job, error)
            raise ServiceUnavailableException(
                detail=f"The job can't be cancelled at the moment: {error.strerror or error}. Ask again later.",
                headers={"Retry-After": "60"},
            ) from None
        if state.state in ("done", "failed"):
            raise HTTPException(status_code=409, detail=f"Job {found.job} is {state.state}, and can't be cancelled.")
        return _told(await asyncio.to_thread(details, root, found))

    def download(name: str, summary: str, what: str) -> HTTPRouteHandler:
        @get(
            f"/jobs/{{job:str}}/{name}",
            tags=["jobs"],
            summary=summary,
            description=what,
            name=f"job_{name}",
            operation_id=f"job_{name}",
            operation_class=_DownloadOperation,
            responses={
                200: ResponseSpec(
                    str, generate_examples=False, description="CSV, or the same as Parquet.", media_type="text/csv"
                ),
                404: UNKNOWN_JOB,
                409: problem_spec("The job is not done, or never will be; `detail` says which."),
            },
        )
        async def of_job(
            request: Request[Any, Any, Any],
            job: JobId,
            wanted: Annotated[
                Format | None, Parameter(query="format", description="By default what Accept asks for, else CSV.")
            ] = None,
        ) -> Response[Any]:
            found = await asyncio.to_thread(job_of, caller_of(request.scope), job)
            told = await asyncio.to_thread(details, root, found)
            if told.state != "done":
                waits = told.state not in jobs.OVER
                raise HTTPException(
                    status_code=409,
                    detail=f"Job {found.job} is {told.state}, so it has no {name}{' yet' if waits else ''}."
                    + (f" {told.note}" if told.note else ""),
                    headers={"Retry-After": str(RETRY_SECONDS)} if waits else None,
                )
            file = root / found.job / f"{name}.parquet"
            as_parquet = wanted == "parquet" or (wanted is None and PARQUET in request.headers.get("accept", ""))
            filename = f"{found.score}-{found.job}{'' if name == 'result' else '-errors'}"
            if as_parquet:
                return File(file, media_type=PARQUET, filename=f"{filename}.parquet", headers={"Vary": "Accept"})
            headers = {"Content-Disposition": f'attachment; filename="{filename}.csv"', "Vary": "Accept"}
            return Stream(as_csv(file), media_type="text/csv; charset=utf-8", headers=headers)

        return of_job

    return [
        submit_job,
        list_jobs,
        one_job,
        download(
            "result",
            "The scores of a job",
            "A row per row of the file, in its order: row, customer_id, score, value, band, percentile, reasons (in CSV"
            " as JSON), model_version, as_of_date, scored_at, error. A row with an error has no value.",
        ),
        download("errors", "The errors of a job", "What was wrong with which row: row, customer_id, column, fault."),
        cancel_job,
    ]


@asynccontextmanager
async def _staged(root: Path) -> AsyncIterator[Path]:
    """`jobs.staged` off the event loop: it looks through all jobs, and removes what may be large."""
    with ExitStack() as stack:
        folder = await asyncio.to_thread(stack.enter_context, jobs.staged(root, "upload"))
        try:
            yield folder
        finally:
            await asyncio.to_thread(stack.close)


def _may_see(caller: Caller, job: Job) -> bool:
    return (job.caller == caller.name or caller.may("admin")) and caller.may_see(job.score)


def _file_of(kind: str, announced: int | None) -> Any:
    """The name under which a file of this Content-Type is kept."""
    if kind in MEDIA_TYPES or kind == UNTOLD:
        return MEDIA_TYPES.get(kind, UNNAMED)
    possible = f"Send a file with Content-Type {' or '.join(MEDIA_TYPES)}, or no body and ?as_of=YYYY-MM-DD."
    if not kind and not announced:
        raise ClientException(detail=f"There is nothing to score. {possible}")
    raise HTTPException(status_code=415, detail=f"'{short(kind)}' is no Content-Type of a job. {possible}")


def _refuse_date(as_of: date, newest: date, size: int) -> None:
    if size:
        raise BadUpload(detail="A job scores a file or a date: send a body, or ?as_of=, not both.")
    if as_of > newest:
        raise BadUpload(detail=f"There are no scores as of {as_of} yet: the newest are of {newest}.")


def _told(told: JobDetails, status: int = 200) -> Response[JobDetails]:
    headers = {"Location": f"/jobs/{told.job}"} if status == 202 else {}
    if told.state not in jobs.OVER:
        headers["Retry-After"] = str(RETRY_SECONDS)
    return Response(told, status_code=status, headers=headers)
