"""What a person sees of a run on the screen: each asset as it is made, and what went wrong, in dbt's words or ours."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from orchestration.checks import AS_PROMISED, IN_ORDER, RIGHT_IN_TIME
from orchestration.project import Paths, read_json

if TYPE_CHECKING:
    from dagster import EventLogEntry

MOST_LINES = 20  # of what dbt says of a failed node
MADE_ANEW = "an incremental model keeps such rows: mend what they come from, then make run FULL_REFRESH=1"


class Display:
    """What a person sees of a run: a line per asset as it is made, what is being done now, and what went wrong."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.steps: dict[str, float] = {}
        self.passed = self.failed = 0
        self.failures: list[tuple[str, str]] = []
        self.changed: dict[str, bool] = {}
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        # The streams already lead to the log, and are to be left alone.
        self.progress = Progress(
            *columns,
            console=console,
            transient=True,
            disable=not console.is_terminal,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self.task = self.progress.add_task("reading the dbt project", total=None)

    def __call__(self, entry: "EventLogEntry") -> None:
        """Takes each event as Dagster records it."""
        event = entry.dagster_event
        if event is None:
            if entry.user_message.startswith(("✓ ", "✗ ", "· ")):  # a step tells of its parts
                self.console.print(escape(entry.user_message), highlight=False, soft_wrap=True)
            elif entry.step_key and not entry.user_message.startswith("dbt "):
                self.progress.update(self.task, description=entry.user_message.splitlines()[0][:70])
            return
        kind, data = event.event_type_value, event.event_specific_data
        if kind == "STEP_START":
            self.steps[event.step_key or ""] = time.monotonic()
            self.progress.update(self.task, description=event.step_key or "")
        elif kind == "ASSET_MATERIALIZATION":
            self._made(event)
        elif kind == "ASSET_CHECK_EVALUATION":
            self._checked(data)
        elif kind == "STEP_FAILURE":
            self._failed(event.step_key or "", data)

    def _made(self, event: Any) -> None:
        materialization = event.event_specific_data.materialization
        metadata = {key: value.value for key, value in materialization.metadata.items()}
        asset = ".".join(materialization.asset_key.path)
        seconds = metadata.get("Execution Duration", time.monotonic() - self.steps[event.step_key])
        rows = metadata.get("dagster/row_count")
        changed = metadata.get("changed", True)
        self.changed[asset] = bool(changed)
        figures = f"{rows:>12,} rows" if rows is not None else f"{'':>12}     "
        note = f"  {metadata['note']}" if metadata.get("note") else "" if changed else "  unchanged"
        self.console.print(f"[green]✓[/] {asset:<48} {figures} {seconds:>7.1f} s[dim]{note}[/]", highlight=False)
        self.progress.advance(self.task)

    def _checked(self, check: Any) -> None:
        if check.passed:
            self.passed += 1
            return
        self.failed += 1
        asset = ".".join(check.asset_key.path)
        told = "; ".join(str(value.value) for key, value in check.metadata.items() if key == "difference")
        warns = check.severity.value == "WARN"
        by_description = check.check_name in (AS_PROMISED, IN_ORDER, "gate")
        if by_description or (not told and check.check_name in ("freshness", RIGHT_IN_TIME)):
            told = check.description or ""
        if warns and check.check_name == "gate":
            told += "; the champion goes on scoring"
        sign = "[yellow]![/]" if warns else "[red]✗[/]"
        self.console.print(
            f"{sign} {asset}: check {check.check_name} failed{': ' + escape(told) if told else ''}",
            highlight=False,
            soft_wrap=check.check_name in (AS_PROMISED, IN_ORDER, RIGHT_IN_TIME),
        )

    def _failed(self, step: str, data: Any) -> None:
        error = data.error
        if error is not None and error.cls_name == "DagsterAssetCheckFailedError":
            return  # told when it was evaluated
        while error is not None and error.cause is not None:
            error = error.cause
        reason = error.message.strip() if error else "no reason was given"
        kind, _, text = reason.partition(": ")
        # What the engine raises says it all; of anything else its kind is part of the reason.
        own = kind.startswith(("orchestration.", "ml.", "serving.", "reports."))
        self.failures.append((step.replace("__", "."), text.strip() if own and text else reason))


def tell_failures(display: Display, where: Paths, run_id: str) -> None:
    """Says which steps of a run failed, and why; a cause that several share is told once."""
    alike: dict[str, list[str]] = {}
    for step, reason in display.failures:
        reasons = reasons_of_dbt(where, run_id) if step == "dbt_build" else []
        for thing, why in reasons or [(step, reason)]:
            alike.setdefault(why, []).append(thing)
    for why, (thing, *others) in alike.items():
        if others:
            thing += f" and {len(others)} more"
        display.console.print(f"[red]✗[/] {escape(f'{thing}: {why}')}", highlight=False, soft_wrap=True)


def reasons_of_dbt(where: Paths, run_id: str) -> list[tuple[str, str]]:
    """The nodes that failed in a run's invocation of dbt, each with why in dbt's words, and where its SQL is.

    None if dbt left no results: the step has failed before it, or it was killed.
    """
    return [
        (result["unique_id"].partition(".")[2], _in_short(result, file.parent / "compiled"))
        for file in where.dbt_target.glob(f"dbt_build-{run_id[:7]}-*/run_results.json")
        for result in read_json(file).get("results", [])
        if result["status"] in ("error", "fail")
    ]


def _in_short(result: Mapping[str, Any], compiled: Path) -> str:
    """What dbt says of a failed node, without the macros that it went through, and the file with its compiled SQL."""
    lines = (result["message"] or result["status"]).strip().splitlines()
    told = [line.rstrip() for line in lines if line.strip() and not line.strip().startswith((">", "compiled code at"))]
    sql = next(compiled.rglob(f"{result['unique_id'].split('.')[2]}.sql"), None)
    where = [f"its SQL: {sql}"] if sql else []
    hint = [MADE_ANEW] if result["unique_id"].startswith("test.") else []
    return "\n  ".join([*(line.strip() for line in told[:MOST_LINES]), *where, *hint])
