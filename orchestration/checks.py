"""Whether what an asset is made from is sound: a check that failed stops all downstream, until it has passed."""

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluation
from dagster._core.storage.asset_check_execution_record import (
    AssetCheckExecutionRecord,
    AssetCheckExecutionRecordStatus,
)

# Of the records of a check, those of runs that ended before it was evaluated tell nothing of the data.
LOOKED_BACK = 50
EVALUATED = (AssetCheckExecutionRecordStatus.SUCCEEDED, AssetCheckExecutionRecordStatus.FAILED)
# The check of a score's drift: see drifting.py.
IN_ORDER = "nothing_drifted"
# The gate judges a candidate, not data: without a champion the predictions themselves refuse, and say why. Drift is
# told, and what tells it further is made all the more.
NOT_OF_DATA = ("gate", IN_ORDER)
# The check of feature models that no run of everything evaluates: see leaks.py.
RIGHT_IN_TIME = "right_in_time"
# The check of a champion's realised performance: see performance.py.
AS_PROMISED = "as_promised"
MEND_LEAK = (
    "mend the model, run everything, so that what is stored is built anew, then make leaks, which alone evaluates"
    f" {RIGHT_IN_TIME}, and when that passes everything again"
)


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
    wrong = [key for key, record in latest.items() if _failed(context.instance, key, record)]
    if wrong:
        failed = sorted(key.to_user_string() for key in wrong)
        mend = ["mend the data, or the check, and run everything again"] if any(map(_is_of_run, wrong)) else []
        mend += [] if all(map(_is_of_run, wrong)) else [MEND_LEAK]
        raise Unsound(
            f"{', '.join(sorted(key.to_user_string() for key in selected))}: not made, as a check of what it comes from"
            f" failed last: {', '.join(failed)}. What was published before serves on; {'; '.join(mend)}"
        )


def _is_of_run(key: dg.AssetCheckKey) -> bool:
    """Whether a run of everything evaluates a check."""
    return key.name != RIGHT_IN_TIME


def _failed(instance: dg.DagsterInstance, key: dg.AssetCheckKey, latest: AssetCheckExecutionRecord) -> bool:
    """Whether a check's last evaluation failed with severity error; False if it was never evaluated."""
    last = latest if latest.status in EVALUATED else _last_evaluated(instance, key)
    if last is None or last.status == AssetCheckExecutionRecordStatus.SUCCEEDED:
        return False
    event = last.event.dagster_event if last.event else None
    return event is None or event.asset_check_evaluation_data.severity == dg.AssetCheckSeverity.ERROR


def last_evaluation(instance: dg.DagsterInstance, key: dg.AssetCheckKey) -> AssetCheckEvaluation | None:
    """What came of a check the last time it was evaluated; None if it never was."""
    last = _last_evaluated(instance, key)
    event = last.event.dagster_event if last and last.event else None
    return event.asset_check_evaluation_data if event else None


def _last_evaluated(instance: dg.DagsterInstance, key: dg.AssetCheckKey) -> AssetCheckExecutionRecord | None:
    records = instance.event_log_storage.get_asset_check_execution_history(key, limit=LOOKED_BACK)
    return next((record for record in records if record.status in EVALUATED), None)
