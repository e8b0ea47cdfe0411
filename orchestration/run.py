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
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy.exc import DatabaseError

from ml.declarations import DeclarationError, Project
from orchestration.backfilling import backfill_of
from orchestration.display import Display, tell_failures
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
)
from orchestration.warehouse import WarehouseError
from serving.answers import summarise
from serving.generations import store
from serving.generations.generation import CorruptGeneration, Generation

DEFAULT_PORTS = {"PORT": 8000, "UI_PORT": 3000}
# Shown with the run in the UI.
BY = {"scorehouse/by": "make run"}


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
