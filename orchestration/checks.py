"""Whether what an asset is made from is sound: a check that failed stops all downstream, until it has passed."""

import dagster as dg
from dagster._core.storage.asset_check_execution_record import (
    AssetCheckExecutionRecord,
    AssetCheckExecutionRecordStatus,
)

# Of the records of a check, those of runs that ended before it was evaluated tell nothing of the data.
LOOKED_BACK = 50
# The gate judges a candidate, not data: without a champion the predictions themselves refuse, and say why.
NOT_OF_DATA = ("gate",)


class Unsound(RuntimeError):
    """An asset is made from one whose check failed: which, and what to do."""


def refuse_unsound(context: dg.AssetExecutionContext) -> None:
    """Raises `Unsound` if a check failed, the last time it was evaluated, on an asset that the selected ones come from.

    In a run of everything the checks of what is upstream have just been evaluated. In a run of a part they have not,
    and Dagster would make it from whatever is there. Checks of severity warn stop nothing, nor do those that the step
    is about to evaluate itself, as dbt does with the tests of sources: mended data could never pass them.
    """
    job_graph = context.job_def.asset_layer.asset_graph
    graph = getattr(job_graph, "source_asset_graph", job_graph)
    selected = set(context.selected_asset_keys)
    upstream = {ancestor for key in selected for ancestor in graph.get_ancestor_asset_keys(key)} - selected
    own = context.selected_asset_check_keys
    checks = [key for key in graph.get_check_keys_for_assets(upstream) - own if key.name not in NOT_OF_DATA]
    latest = context.instance.event_log_storage.get_latest_asset_check_execution_by_key(checks)
    failed = sorted(key.to_user_string() for key, record in latest.items() if _failed(context.instance, key, record))
    if failed:
        raise Unsound(
            f"{', '.join(sorted(key.to_user_string() for key in selected))}: not made, as a check of what it comes from"
            f" failed last: {', '.join(failed)}. What was published before serves on; mend the data, or the check, and"
            " run everything again"
        )


def _failed(instance: dg.DagsterInstance, key: dg.AssetCheckKey, latest: AssetCheckExecutionRecord) -> bool:
    """Whether a check's last evaluation failed with severity error; False if it was never evaluated."""
    evaluated = (AssetCheckExecutionRecordStatus.SUCCEEDED, AssetCheckExecutionRecordStatus.FAILED)
    records = [latest]
    if latest.status not in evaluated:
        records = list(instance.event_log_storage.get_asset_check_execution_history(key, limit=LOOKED_BACK))
    last = next((record for record in records if record.status in evaluated), None)
    if last is None or last.status == AssetCheckExecutionRecordStatus.SUCCEEDED:
        return False
    event = last.event.dagster_event if last.event else None
    return event is None or event.asset_check_evaluation_data.severity == dg.AssetCheckSeverity.ERROR
