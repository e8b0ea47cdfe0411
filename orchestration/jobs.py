"""The jobs that callers have asked for: a sensor looks for those that wait, a Dagster run does each; `make jobs` does
them at once."""

import os
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import msgspec

from ml.declarations import Project
from orchestration.instance import alive, bury_the_dead, in_process_executor, open_instance
from orchestration.project import Paths
from serving.jobs import folder as jobs
from serving.jobs.folder import MOST_ATTEMPTS, Job, State

if TYPE_CHECKING:
    from rich.console import Console

LOOK_SECONDS = 5
DAYS = 30.0
TAG = "scorehouse/job"
ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


def jobs_root(where: Paths) -> Path:
    return where.data / "jobs"


def kept_days() -> float:
    """How long a job that is over is kept: SCOREHOUSE_JOB_DAYS."""
    return float(os.environ.get("SCOREHOUSE_JOB_DAYS") or DAYS)


def do(job: Job, project: Project, where: Paths, run: str, log: Any) -> State | None:
    """Does a job, unless it is over, and gives its state then; None if another process works on it.

    What can't be done however often it is tried ends the job, and so does the last attempt. Raises what made this one
    fail where there is another: the job waits for it.
    """
    from orchestration.job_scoring import JobCancelled, JobFailed, score_job

    root = jobs_root(where)
    with jobs.held(root / job.job) as mine:
        state = jobs.read_state(root, job.job)
        if not mine or state.state in jobs.OVER:
            return state if mine else None

        def tell(told: State) -> None:
            nonlocal state
            state = told  # however this attempt ends, that is how far it came
            jobs.write_state(root, job.job, state)
            log.info(f"{state.rows:,} of {state.total or 0:,} rows, {state.wrong_rows:,} with errors")

        def end(state: State, how: jobs.Progress, reason: str | None = None) -> State:
            over = msgspec.structs.replace(state, state=how, finished_at=datetime.now(UTC), reason=reason)
            jobs.write_state(root, job.job, over)
            return over

        state = State(state="running", attempts=state.attempts + 1, run=run, started_at=datetime.now(UTC))
        jobs.write_state(root, job.job, state)
        try:
            if jobs.is_cancelled(root, job.job):
                raise JobCancelled
            score = next((score for score in project.scores if score.name == job.score), None)
            if score is None:
                raise JobFailed(f"score '{job.score}' is no longer declared")
            return end(score_job(job, score, where, state, tell), "done")
        except JobCancelled:
            return end(state, "cancelled")
        except JobFailed as failed:
            return end(state, "failed", _without_paths(str(failed), where))
        except Exception as error:
            reason = _without_paths((str(error).strip() or type(error).__name__).splitlines()[0], where)
            if state.attempts >= MOST_ATTEMPTS:
                return end(state, "failed", f"{state.attempts} attempts failed, the last one because: {reason}")
            jobs.write_state(root, job.job, msgspec.structs.replace(state, state="queued", reason=reason))
            raise
        finally:
            for staged in (root / job.job).glob(".*.new"):
                staged.unlink()


def _without_paths(reason: str, where: Paths) -> str:
    """A reason as a caller is told it: of files only what they are, not where this machine has them."""
    for folder in sorted({str(where.data), str(where.warehouse.parent)}, key=len, reverse=True):
        reason = reason.replace(f"{folder}/", "")
    return reason


def scoring_jobs(project: Project, where: Paths) -> dg.JobDefinition:
    """The Dagster job whose runs each do one job of a caller's. It takes no turn: of the warehouse it only needs what
    no other run does meanwhile, and it holds it while it writes."""

    @dg.op(name="score_job", config_schema={"job": str}, description="Scores what a caller has uploaded.")
    def score_job(context: dg.OpExecutionContext) -> None:
        name = context.op_config["job"]
        job = jobs.read_job(jobs_root(where), name)
        if job is None:
            context.log.info(f"there is no job {name} any more")
            return
        state = do(job, project, where, context.run_id, context.log)
        if state is None:
            context.log.info(f"another process works on job {name}")
            return
        told = f"job {name} of {job.score}: {state.rows:,} rows, {state.wrong_rows:,} with errors"
        context.add_output_metadata(
            {
                "score": job.score,
                "state": state.state,
                "dagster/row_count": state.rows,
                "rows with errors": state.wrong_rows,
                "asked for by": job.caller,
                "result": dg.MetadataValue.path(str(jobs_root(where) / name / "result.parquet")),
            }
        )
        if state.state == "failed":
            context.log.info(f"✗ {told}: {state.reason}")
            raise dg.Failure(description=f"{told}: {state.reason}", allow_retries=False)
        context.log.info(f"{'✓' if state.state == 'done' else '·'} {told}: {state.state}")

    @dg.job(
        name="scoring_jobs",
        description="What callers have uploaded to POST /scores/{score}/jobs: a run scores one of them.",
        executor_def=in_process_executor(where, takes_turn=False),
    )
    def scoring() -> None:
        score_job()

    return scoring


def jobs_sensor(job: dg.JobDefinition, where: Paths) -> dg.SensorDefinition:
    """Starts a run for each job that waits, on from the start of Dagster. A job whose run has died gets another one."""

    @dg.sensor(
        name="jobs_waiting",
        job=job,
        minimum_interval_seconds=LOOK_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Scores what callers upload to POST /scores/{score}/jobs.",
    )
    def look(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        root = jobs_root(where)
        jobs.tidy(root, kept_days())
        jobs.look_recorded(root)
        waits = jobs.waiting(root)
        if not waits:
            return dg.SkipReason("no job waits")
        bury_the_dead(context.instance, where)
        return dg.SensorResult(run_requests=[_request(context.instance, job) for job in waits])

    return look


def _request(instance: dg.DagsterInstance, job: Job) -> dg.RunRequest:
    """The run of a job's next attempt: the same one, which Dagster starts once, until that has ended."""
    ended = instance.get_runs_count(dg.RunsFilter(tags={TAG: job.job}, statuses=ENDED))
    return dg.RunRequest(run_key=f"{job.job}-{ended + 1}", run_config=_config(job), tags=_tags(job))


def _config(job: Job) -> dict[str, Any]:
    return {"ops": {"score_job": {"config": {"job": job.job}}}}


def _tags(job: Job) -> dict[str, str]:
    return {TAG: job.job, "scorehouse/score": job.score}


def work_off(scoring: dg.JobDefinition, instance: dg.DagsterInstance, where: Paths, by: str, display: Any) -> int:
    """Does the jobs that wait, each in a run in this process; gives how many did not succeed."""
    root = jobs_root(where)
    jobs.tidy(root, kept_days())
    failed: set[str] = set()
    while waits := jobs.waiting(root):
        job, run_id = waits[0], str(uuid.uuid4())
        instance.add_event_listener(run_id, display)
        with alive(where, run_id):
            done = scoring.execute_in_process(
                instance=instance,
                run_id=run_id,
                run_config=_config(job),
                tags={**_tags(job), "scorehouse/by": by},
                raise_on_error=False,
            )
        failed = failed - {job.job} if done.success else failed | {job.job}
    return len(failed)


def main() -> int:
    """`make jobs`."""
    from orchestration.display import Display
    from orchestration.run import in_sight, read_and_import

    def work(where: Paths, console: "Console", log: Path) -> int:
        display = Display(console)
        with display.progress:
            project = read_and_import(where, champion_goes_on=False)
            count = len(jobs.waiting(jobs_root(where)))
            if not count:
                console.print("No job waits.")
                return 0
            display.progress.update(display.task, total=count)
            failed = work_off(scoring_jobs(project, where), open_instance(where), where, "make jobs", display)
        console.print(f"{count} job{'' if count == 1 else 's'} worked off, {failed} failed. GET /jobs tells of each.")
        return 1 if failed else 0

    return in_sight(work)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # as make run does
