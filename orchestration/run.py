"""`make run`: the job `everything`, in this process, shown while it happens and recorded where `make ui` looks."""

import argparse
import fcntl
import importlib
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ml.declarations import DeclarationError, Project
from orchestration.instance import BY, alive_file, open_instance
from orchestration.project import Paths, ProjectError, load_project, paths

if TYPE_CHECKING:
    from dagster import EventLogEntry


class Display:
    """What a person sees of a run: a line per asset as it is made, what is being done now, and what went wrong."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.steps: dict[str, float] = {}
        self.passed = 0
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
            if entry.step_key and not entry.user_message.startswith("dbt "):
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
        note = "" if changed else "  unchanged"
        self.console.print(f"[green]✓[/] {asset:<48} {figures} {seconds:>7.1f} s[dim]{note}[/]", highlight=False)
        self.progress.advance(self.task)

    def _checked(self, check: Any) -> None:
        if check.passed:
            self.passed += 1
            return
        asset = ".".join(check.asset_key.path)
        told = "; ".join(
            str(value.value)
            for key, value in check.metadata.items()
            if key in ("difference",) or check.check_name == "gate"
        )
        sign = "[yellow]![/]" if check.severity.value == "WARN" else "[red]✗[/]"
        self.console.print(
            f"{sign} {asset}: check {check.check_name} failed{': ' + told if told else ''}", highlight=False
        )

    def _failed(self, step: str, data: Any) -> None:
        error = data.error
        while error is not None and error.cause is not None:
            error = error.cause
        reason = error.message.strip() if error else "no reason was given"
        kind, _, text = reason.partition(": ")
        # What the engine raises says it all; of anything else its kind is part of the reason.
        own = kind.startswith(("orchestration.", "ml.", "serving.", "reports."))
        self.failures.append((step.replace("__", "."), text.strip() if own and text else reason))


@contextmanager
def full_log(folder: Path) -> Iterator[tuple[Path, TextIO]]:
    """Sends all that this process and its children print to a file; gives its path, and the terminal to speak on."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"run-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.log"
    sys.stdout.flush()
    sys.stderr.flush()
    terminal, errors = os.dup(1), os.dup(2)
    with file.open("w") as log, os.fdopen(terminal, "w") as screen:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            yield file, screen
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(terminal, 1)
            os.dup2(errors, 2)
            os.close(errors)


def reasons_of_dbt(where: Paths) -> list[tuple[str, str]]:
    """The nodes that failed in dbt's last invocation, each with the first line of why."""
    results = sorted(where.dbt_target.glob("dbt_build-*/run_results.json"), key=lambda file: file.stat().st_mtime)
    if not results:
        return []
    failed = [
        result for result in json.loads(results[-1].read_bytes())["results"] if result["status"] in ("error", "fail")
    ]
    return [
        (result["unique_id"].partition(".")[2], " ".join((result["message"] or result["status"]).split()))
        for result in failed
    ]


def summary(project: Project, where: Paths) -> Table:
    """Per score: its gate with the figures, its champion, and what is served."""
    from orchestration import versions, warehouse
    from orchestration.training import described
    from serving import store
    from serving.generation import read_manifest

    table = Table(title="Scores", title_justify="left", show_lines=True)
    for title in ("score", "gate of the newest version", "champion", "as of", "customers published"):
        table.add_column(title, justify="right" if title == "customers published" else "left")
    with warehouse.open_warehouse(where.warehouse) as connection:
        for score in project.scores:
            champion = versions.champion(connection, score)
            newest = versions.next_version(connection, score) - 1
            gate = "\n".join(
                f"{'✓' if result.passed else '✗'} {described(result)}"
                for result in versions.gate_of(connection, score, newest)
            )
            served = store.current(where.generations, score.name)
            generation = read_manifest(where.generations / score.name / served) if served else None
            table.add_row(
                score.name,
                gate,
                f"version {champion['version']}" if champion else "none",
                str(generation.as_of_date) if generation else "-",
                f"{generation.rows:,}" if generation else "0",
            )
    return table


def run(full_refresh: bool = False) -> int:
    """Runs everything and tells how it went; the exit code."""
    warnings.simplefilter("ignore")
    try:
        where = paths()
    except ProjectError as error:
        print(f"✗ {error}", file=sys.stderr)
        return 1
    with full_log(where.logs) as (log, screen):
        console = Console(file=screen, width=None if screen.isatty() else 120)
        console.print(
            f"Scorehouse: {where.project.name} into {where.data}; the full log is {log}",
            highlight=False,
            soft_wrap=True,
        )
        try:
            return _run(where, console, log, full_refresh)
        except (DeclarationError, ProjectError) as error:
            for line in str(error).splitlines():
                console.print(
                    f"[red]✗[/] {line}" if not line.startswith(" ") else line, highlight=False, soft_wrap=True
                )
            return 1
        except KeyboardInterrupt:
            console.print("[yellow]stopped[/]: what was published before serves on; run again to go on")
            return 130


def _run(where: Paths, console: Console, log: Path, full_refresh: bool) -> int:
    started, display = time.monotonic(), Display(console)
    with display.progress:
        with ThreadPoolExecutor() as beside:
            # dbt parses in a process of its own: time enough for this one's imports.
            importing = beside.submit(importlib.import_module, "orchestration.definitions")
            project = load_project(where)
            importing.result()
        import dagster as dg

        from orchestration.definitions import define

        job = define(where).resolve_job_def("everything")
        instance = open_instance(where)
        display.progress.update(display.task, total=len(set(job.asset_layer.executable_asset_keys)))
        run_id = dg._core.utils.make_new_run_id()
        instance.add_event_listener(run_id, display)
        config = {"ops": {"dbt_build": {"config": {"full_refresh": full_refresh}}}}
        with alive_file(where, run_id).open("w") as alive:
            fcntl.flock(alive, fcntl.LOCK_EX)
            result = job.execute_in_process(
                instance=instance, run_id=run_id, raise_on_error=False, tags=BY, run_config=config
            )
    alive_file(where, run_id).unlink(missing_ok=True)
    seconds = time.monotonic() - started
    if display.failures or not result.success:
        for step, reason in display.failures:
            reasons = reasons_of_dbt(where) if step == "dbt_build" else []
            for thing, why in reasons or [(step, reason)]:
                console.print(f"[red]✗[/] {thing}: {why}", highlight=False, soft_wrap=True)
        console.print(
            f"[red]Failed[/] after {seconds:.0f} s; what was published before serves on."
            f" Read more in {log} or with `make ui`.",
            soft_wrap=True,
        )
        return 1
    console.print(summary(project, where))
    console.print(f"Done in {seconds:.0f} s; {display.passed} checks passed. Next:", highlight=False)
    console.print(
        "  make serve    API and pages on http://127.0.0.1:8000\n  make ui       lineage and runs on http://127.0.0.1:3000",
        highlight=False,
    )
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make run", description=__doc__)
    parser.add_argument("--full-refresh", action="store_true", help="build all dbt models from scratch")
    sys.exit(run(parser.parse_args().full_refresh))
