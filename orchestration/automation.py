"""What runs by itself: the one job that brings everything up to date, and when."""

import dagster as dg

everything = dg.define_asset_job(
    "everything",
    selection=dg.AssetSelection.all(),
    description="Brings all of it up to date: loads, builds, trains, gates, scores, publishes, reports.",
)
daily = dg.ScheduleDefinition(
    name="daily",
    job=everything,
    cron_schedule="0 5 * * *",
    execution_timezone="UTC",
    description="Everything, each day at 05:00 UTC. Off until it is switched on in the UI.",
)
