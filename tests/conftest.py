"""Whole runs that several tests look at: each is made once a session, the way a user makes it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest
from hypothesis.configuration import set_hypothesis_home_dir

from orchestration.project import exclusively
from serving.generations import store

REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLE = REPOSITORY / "dbt_project"
LOANS = REPOSITORY / "tests" / "projects" / "loans"

set_hypothesis_home_dir(REPOSITORY / "data" / "cache" / "hypothesis")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under `pytest -n 2 --dist loadgroup`: what is made once for several tests is made in one process.

    That is the sample's run, and what the tests of a file share. Half of all time goes into tests that look at the
    bank's run, so that these are better dealt out. The long ones come first, so that no process is left alone with one
    in the end.
    """
    long: list[pytest.Item] = []
    for item in items:
        uses = set(getattr(item, "fixturenames", ()))
        if "sample_run" in uses:
            item.add_marker(pytest.mark.xdist_group("sample_run"))
        elif "loans_run" not in uses:
            item.add_marker(pytest.mark.xdist_group(item.path.name))
        if uses & {"sample_run", "loans_run"} or item.get_closest_marker("slow"):
            long.append(item)
    longest = [item for item in long if item.get_closest_marker("slow")]
    items[:] = list(dict.fromkeys([*longest, *long, *items]))


class Run(msgspec.Struct):
    """A pipeline run in a process of its own: where its data lies, what it printed, how it ended."""

    project: Path
    data: Path
    home: Path
    printed: str
    code: int

    def again(self, project: Path | None = None) -> "Run":
        return run_pipeline(project or self.project, self.data, self.home)


def environment_of(project: Path, data: Path, home: Path) -> dict[str, str]:
    """What `make` exports, with a home directory that ought to stay empty."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "XDG_CACHE_HOME": str(data / "cache"),
        "MPLCONFIGDIR": str(data / "cache" / "matplotlib"),
        "SCOREHOUSE_DATA": str(data),
        "SCOREHOUSE_PROJECT": str(project),
    }


def run_pipeline(project: Path, data: Path, home: Path, *arguments: str) -> Run:
    done = subprocess.run(
        [sys.executable, "-m", "orchestration.run", *arguments],
        cwd=REPOSITORY,
        env=environment_of(project, data, home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    return Run(project=project, data=data, home=home, printed=done.stdout, code=done.returncode)


def _first_run(project: Path, folder: Path) -> Run:
    home = folder / "home"
    home.mkdir()
    run = run_pipeline(project, folder / "data", home)
    assert run.code == 0, run.printed
    return run


@pytest.fixture(scope="session")
def loans_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The second project, built once for all processes. Tests read it; who changes anything takes a `copy_of` it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / "loans"
    with exclusively(shared / "loans.lock"):
        if not (folder / "printed").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            (folder / "printed").write_text(_first_run(LOANS, folder).printed)
    printed = (folder / "printed").read_text()
    return Run(project=LOANS, data=folder / "data", home=folder / "home", printed=printed, code=0)


@pytest.fixture(scope="session")
def sample_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The sample company, built once."""
    return _first_run(SAMPLE, tmp_path_factory.mktemp("sample"))


def copy_of(run: Run, folder: Path) -> Run:
    """The same run with a project and data of its own, to change."""
    shutil.copytree(run.project, folder / "project")
    shutil.copytree(run.data, folder / "data")
    return msgspec.structs.replace(run, project=folder / "project", data=folder / "data")


def query(run: Run, sql: str) -> list[tuple[Any, ...]]:
    """Rows of a run's warehouse."""
    with duckdb.connect(str(run.data / "warehouse.duckdb"), read_only=True) as connection:
        return connection.execute(sql).fetchall()


def materialize(run: Run, key: str) -> subprocess.CompletedProcess[str]:
    """One asset alone, as the UI's button does it."""
    dagster = [str(Path(sys.executable).parent / "dagster"), "asset", "materialize", "--select", f'key:"{key}"']
    return subprocess.run(
        [*dagster, "--module-name", "orchestration.definitions"],
        cwd=REPOSITORY,
        env={**environment_of(run.project, run.data, run.home), "DAGSTER_HOME": str(run.data / "dagster")},
        capture_output=True,
        text=True,
    )


def served_rows(run: Run, score: str) -> tuple[store.Generation, list[tuple[str, str, float]]]:
    """What is served: the generation, and each customer's id, band and value."""
    name = store.current(run.data / "generations", score)
    with store.open_store(run.data / "generations" / score / str(name)) as opened:
        rows = [json.loads(opened.get(key) or b"") for key, _ in opened.sample(10**9)]
    return opened.generation, [(row["customer_id"], row["band"], row["value"]) for row in rows]
