"""What runs by itself: the one job that brings everything up to date, and when."""

import dagster as dg

# In one process: a step of its own process would wait seconds for imports, far more than most steps' work.
everything = dg.define_asset_job(
    "everything",
    selection=dg.AssetSelection.all(),
    description="Brings all of it up to date: loads, builds, trains, gates, scores, publishes, reports.",
    executor_def=dg.in_process_executor,
)
daily = dg.ScheduleDefinition(
    name="daily",
    job=everything,
    cron_schedule="0 5 * * *",
    execution_timezone="UTC",
    description="Everything, each day at 05:00 UTC. Off until it is switched on in the UI.",
)
