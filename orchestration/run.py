"""`make run`: the job `everything`, in this process, shown while it happens and recorded where `make ui` looks."""

import argparse
import errno
import importlib
import os
import shlex
import sys
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from sqlalchemy.exc import DatabaseError

from ml.declarations import DeclarationError, Project
from orchestration.backfilling import backfill_of
from orchestration.checks import AS_PROMISED, RIGHT_IN_TIME
from orchestration.instance import alive, give_slots_back, open_instance, storage_fault, storage_kept_open, turn
from orchestration.pinned import refuse_broken_contracts
from orchestration.project import (
    REPOSITORY,
    Paths,
    ProjectError,
    claim_data,
    load_manifest,
    load_project,
    no_room,
    paths,
    read_json,
)
from orchestration.warehouse import WarehouseError
from serving.answers import summarise
from serving.generations import store
from serving.generations.generation import CorruptGeneration, Generation

if TYPE_CHECKING:
    from dagster import EventLogEntry


DEFAULT_PORTS = {"PORT": 8000, "UI_PORT": 3000}
MOST_LINES = 20  # of what dbt says of a failed node
MADE_ANEW = "an incremental model keeps such rows: mend what they come from, then make run FULL_REFRESH=1"
# Shown with the run in the UI.
BY = {"scorehouse/by": "make run"}


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
        if check.check_name in (AS_PROMISED, "gate") or (not told and check.check_name in ("freshness", RIGHT_IN_TIME)):
            told = check.description or ""
        if warns and check.check_name == "gate":
            told += "; the champion goes on scoring"
        sign = "[yellow]![/]" if warns else "[red]✗[/]"
        self.console.print(
            f"{sign} {asset}: check {check.check_name} failed{': ' + escape(told) if told else ''}",
            highlight=False,
            soft_wrap=check.check_name in (AS_PROMISED, RIGHT_IN_TIME),
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
            for stream in (sys.stdout, sys.stderr):
                _flush_or_drop(stream)
            os.dup2(terminal, 1)
            os.dup2(errors, 2)
            os.close(errors)


def _flush_or_drop(stream: TextIO) -> None:
    """Writes what a stream still holds. What doesn't fit on a full disk is dropped, else the terminal would get it."""
    try:
        stream.flush()
    except OSError:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)
        stream.flush()


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


def summary(project: Project, where: Paths) -> Table:
    """Per score: its gate with the figures, its champion, and what is served."""
    from orchestration import versions, warehouse
    from orchestration.judging import described
    from serving.generations.generation import read_manifest

    table = Table(title="Scores", title_justify="left", show_lines=True)
    for title in ("score", "gate of the newest version", "champion", "as of", "customers published"):
        table.add_column(title, justify="right" if title == "customers published" else "left")
    with warehouse.open_warehouse(where.warehouse) as connection:
        for score in project.scores:
            champion, newest = versions.champion(connection, score), versions.newest_version(connection, score)
            verdict = versions.gate_of(connection, score, newest["version"]) if newest else []
            gate = "\n".join(f"{'✓' if result.passed else '✗'} {described(result)}" for result in verdict)
            served = store.current(where.generations, score.name)
            generation = read_manifest(where.generations / score.name / served) if served else None
            promoted = f"version {champion['version']}" if champion else "none"
            if champion:
                last = [row for row in versions.promotions(connection, score) if row["version"] == champion["version"]]
                if last and last[-1]["how"] != "gate":
                    promoted += f"\n(by {last[-1]['how']}: {last[-1]['reason']})"
                elif newest and champion["version"] == newest["version"] and not all(r.passed for r in verdict):
                    promoted += "\n(by an earlier gate)"
            table.add_row(
                score.name,
                gate,
                promoted,
                as_of_told(generation) if generation else "-",
                f"{generation.rows:,}" if generation else "0",
            )
    return table


def as_of_told(generation: Generation) -> str:
    """The as-of date of what is served, and what callers find out about its age."""
    told = summarise(generation, generation.today or datetime.now(UTC).date())
    if told.freshness == "fresh":
        return str(told.as_of_date)
    refused = "\nlookups are refused" if told.when_stale == "refuse" else ""
    return f"{told.as_of_date}\nstale since {told.fresh_until + timedelta(days=1)}{refused}"


def run(build: Mapping[str, Any] | None = None) -> int:
    """Runs everything and tells how it went; the exit code. `build` is the config of the dbt models' step, `Build`."""
    return in_sight(lambda where, console, log: _run(where, console, log, build or {}))


def in_sight(work: Callable[[Paths, Console, Path], int]) -> int:
    """Does some work on the data folder: what it prints goes to a log, why it can't be done to the screen; exit code.

    `work` is given the folders, the screen to speak on and the log's path.
    """
    warnings.simplefilter("ignore")
    try:
        where = paths()
        with full_log(where.logs) as (log, screen), storage_kept_open():
            console = Console(file=screen, width=None if screen.isatty() else 120)
            console.print(
                f"Scorehouse: {where.project.name} into {where.data}; the full log is {log}",
                highlight=False,
                soft_wrap=True,
            )
            try:
                return work(where, console, log)
            except Exception as error:
                for line in _reason(error, where, log).splitlines():
                    sign = "" if line.startswith(" ") else "[red]✗[/] "
                    console.print(f"{sign}{escape(line)}", highlight=False, soft_wrap=True)
                return 1
            except KeyboardInterrupt:
                console.print(f"[yellow]stopped[/]: {_published(where)}; run again to go on")
                return 130
    except ProjectError as error:
        print(f"✗ {error}", file=sys.stderr)
        return 1


def _reason(error: Exception, where: Paths, log: Path) -> str:
    """Why a run could not be made, in the engine's words; of what it has none for, the kind, and where to read more."""
    if isinstance(error, DatabaseError):
        error = storage_fault(where, error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        error = no_room(where, str(error))
    if isinstance(error, DeclarationError | ProjectError | WarehouseError | CorruptGeneration):
        return str(error)
    with suppress(OSError):
        traceback.print_exc()  # into the log
    reason = (str(error).strip() or "no reason was given").splitlines()[0]
    return f"{type(error).__name__}: {reason}\n  Read more in {log}"


def read_and_import(where: Paths, champion_goes_on: bool = True) -> Project:
    """The project, whose data folder this is then, once all that defines it for Dagster is imported.

    Where the champion goes on, it must be able to.
    """
    with ThreadPoolExecutor() as beside:
        # dbt parses in a process of its own: time enough for this one's imports.
        importing = beside.submit(importlib.import_module, "orchestration.definitions")
        project = load_project(where)
        claim_data(where, project)
        if champion_goes_on:
            refuse_broken_contracts(project, where)
        importing.result()
    return project


def _run(where: Paths, console: Console, log: Path, build: Mapping[str, Any]) -> int:
    started, display = time.monotonic(), Display(console)
    with display.progress:
        project = read_and_import(where)
        if build.get("as_of_from") or build.get("as_of_to"):  # a mistake in them is told before anything runs
            backfill_of(load_manifest(where), build.get("as_of_from"), build.get("as_of_to"))
        from orchestration.definitions import define
        from orchestration.jobs import work_off

        run_id, asked = str(uuid.uuid4()), time.monotonic()

        def waits(whose: str) -> None:
            console.print(f"waiting for {whose}, which works on the same data", highlight=False, soft_wrap=True)
            display.progress.update(display.task, description="waiting for another run")

        with turn(where, "make run", waits):
            started += time.monotonic() - asked
            job = define(where).resolve_job_def("everything")
            instance = open_instance(where)
            give_slots_back(instance, where, run_id)
            display.progress.update(display.task, total=len(set(job.asset_layer.executable_asset_keys)))
            instance.add_event_listener(run_id, display)
            has_models = "dbt_build" in job.graph.node_dict
            config = {"ops": {"dbt_build": {"config": build}}} if has_models else {}
            with alive(where, run_id):
                result = job.execute_in_process(
                    instance=instance, run_id=run_id, raise_on_error=False, tags=BY, run_config=config
                )
            if result.success:
                work_off(define(where).resolve_job_def("scoring_jobs"), instance, where, "make run", Display(console))
    seconds = time.monotonic() - started
    if display.failures or not result.success:
        tell_failures(display, where, run_id)
        console.print(
            f"[red]Failed[/] after {seconds:.0f} s; {_published(where)}. Read more in {log} or with `make ui`.",
            soft_wrap=True,
        )
        return 1
    console.print(summary(project, where))
    for score in sorted(set(store.published_scores(where.generations)) - {score.name for score in project.scores}):
        console.print(
            f"[yellow]![/] {score} is served on, but no longer declared; to end that, remove"
            f" {where.generations / score} and restart the API",
            highlight=False,
            soft_wrap=True,
        )
    failed = f", {display.failed} failed" if display.failed else ""
    console.print(f"Done in {seconds:.0f} s; {display.passed} checks passed{failed}. Next:", highlight=False)
    for target, what, port in (("serve", "API and pages", "PORT"), ("ui", "lineage and runs", "UI_PORT")):
        command = f"{_settings(where)}make {target}"
        address = f"http://127.0.0.1:{os.environ.get(f'SCOREHOUSE_{port}') or DEFAULT_PORTS[port]}"
        apart = "\n     " if len(command) > 13 else " "
        console.print(f"  {command:<13}{apart}{what} on {address}", highlight=False, soft_wrap=True)
    return 0


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


def _published(where: Paths) -> str:
    """What becomes of what is published when a run fails, as a person is told it."""
    before = store.published_scores(where.generations)
    return "what was published before serves on" if before else "nothing has been published yet"


def _settings(where: Paths) -> str:
    """What a shell needs before a command that is to find the same project and data."""
    defaults = {"PROJECT": (where.project, REPOSITORY / "dbt_project"), "DATA": (where.data, REPOSITORY / "data")}
    return "".join(f"SCOREHOUSE_{name}={shlex.quote(str(is_))} " for name, (is_, by) in defaults.items() if is_ != by)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make run", description=__doc__)
    parser.add_argument("--full-refresh", action="store_true", help="build all dbt models from scratch")
    parser.add_argument("--as-of-from", metavar="DATE", help="build as-of dates again, from this one on (YYYY-MM-DD)")
    parser.add_argument("--as-of-to", metavar="DATE", help="build as-of dates again, up to this one (YYYY-MM-DD)")
    code = run(vars(parser.parse_args()))
    sys.stdout.flush()
    sys.stderr.flush()
    # All is closed. Threads of the network libraries hold objects of the warehouse to the end, which it would list as
    # leaked, over the last lines of a run.
    os._exit(code)
