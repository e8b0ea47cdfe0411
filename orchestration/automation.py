"""What runs by itself: the job that brings everything up to date, and the one that looks for leaks, and when; and what
a stream's messages start."""

import hashlib
from collections.abc import Sequence

import dagster as dg

from ml.declarations import Project, Score, Source
from orchestration.events import pending_events
from orchestration.instance import in_process_executor
from orchestration.project import Paths
from orchestration.publishing import served_now
from orchestration.retraining import told_by_reports, when_trained
from orchestration.training_sets import clock

LOOK_SECONDS = 60  # between two looks at a stream: what is built of its messages takes about as long
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def daily(guards: Sequence[dg.AssetChecksDefinition]) -> dg.ScheduleDefinition:
    """The job `everything`, each day, without the `guards`, which would make it longer by minutes."""
    everything = dg.define_asset_job(
        "everything",
        selection=dg.AssetSelection.all() - dg.AssetSelection.checks(*guards),
        description="Brings all of it up to date: loads, builds, trains, gates, scores, publishes, reports.",
    )
    return dg.ScheduleDefinition(
        name="daily",
        job=everything,
        cron_schedule="0 5 * * *",
        execution_timezone="UTC",
        description="Everything, each day at 05:00 UTC. Off until it is switched on in the UI.",
    )


def weekly(guards: Sequence[dg.AssetChecksDefinition], where: Paths) -> dg.ScheduleDefinition:
    """The job `leaks`, each week: the `guards`, which let other runs go on meanwhile."""
    leaks = dg.define_asset_job(
        "leaks",
        selection=dg.AssetSelection.checks(*guards),
        executor_def=in_process_executor(where, takes_turn=False),
        description="Recomputes features of past as-of dates from what was known then, and compares: make leaks.",
    )
    return dg.ScheduleDefinition(
        name="weekly",
        job=leaks,
        cron_schedule="0 7 * * 0",
        execution_timezone="UTC",
        description="Looks for leaks, each Sunday at 07:00 UTC. Off until it is switched on in the UI.",
    )


def stream_sensor(
    source: Source, key: dg.AssetKey, guards: Sequence[dg.AssetChecksDefinition], where: Paths
) -> dg.SensorDefinition:
    """Runs the raw table of a stream or of pushed events, and what is downstream of it, when there are new ones.

    Off until it is switched on. What a run could not load starts no other one: the next message does, or the daily run.
    A server that does not answer fails the look, so that Dagster shows it in red, and the next one tries again.
    """
    name = f"{source.schema}_{source.table}_stream"

    @dg.sensor(
        name=name,
        target=dg.AssetSelection.assets(key).downstream().materializable() - dg.AssetSelection.checks(*guards),
        minimum_interval_seconds=LOOK_SECONDS,
        description=f"Loads {source.schema}.{source.table}, and builds all that comes of it, when messages wait.",
    )
    def look(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        started = dg.RunsFilter(tags={"dagster/sensor_name": name}, statuses=UNFINISHED)
        if context.instance.get_runs_count(started):
            return dg.SkipReason("a run that this sensor has started is not done yet")
        state = _waiting(source, where)
        return dg.RunRequest(run_key=state) if state else dg.SkipReason("nothing waits")

    return look


def retraining_sensor(
    score: Score, guards: Sequence[dg.AssetChecksDefinition], project: Project, where: Paths
) -> dg.SensorDefinition:
    """Trains a score as soon as a report says that it has drifted or broken its promise, if it declares that.

    Off until it is switched on; without it the next run of everything does the same. Whether it may train yet, by its
    cool-down and budget, is decided in the run: as long as a report says so, it is asked once a day.
    """
    name = f"{score.name}_retraining"
    first = dg.AssetSelection.keys(["training_sets", score.name])

    @dg.sensor(
        name=name,
        target=first | first.downstream().materializable() - dg.AssetSelection.checks(*guards),
        minimum_interval_seconds=LOOK_SECONDS,
        description=f"Trains {score.name} {when_trained(score)}, when a report says so.",
    )
    def look(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        served = served_now(score, where)
        if served is None:
            return dg.SkipReason("nothing is served yet")
        told = told_by_reports(score, served.model_version, where)
        if not told:
            return dg.SkipReason(f"version {served.model_version} has neither drifted nor broken its promise")
        why = "; ".join(told)
        key = hashlib.sha256(f"{clock(project)} {served.generation} {why}".encode()).hexdigest()[:16]
        return dg.RunRequest(run_key=key, tags={"scorehouse/trigger": why})

    return look


def _waiting(source: Source, where: Paths) -> str | None:
    """What waits: the same text as long as it is the same; None if nothing does. Raises `LoadError`."""
    from orchestration.streams import waiting

    if source.scheme == "events":
        pending = pending_events(source, where)
        return pending.state if pending.bytes else None
    found = waiting(source)
    return found.state if found.messages else None
