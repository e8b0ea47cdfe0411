"""What `make run` tells of a failure, and at its end."""

import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from orchestration.display import reasons_of_dbt
from orchestration.project import Paths
from orchestration.run import as_of_told, run
from tests.conftest import LOANS, REPOSITORY, environment_of, run_pipeline
from tests.sample_generations import a_generation


def test_what_dbt_said_in_an_earlier_run_does_not_explain_this_one(tmp_path: Path) -> None:
    where = Paths(project=tmp_path / "project", data=tmp_path / "data")
    earlier, this = str(uuid.UUID(int=1 << 120)), str(uuid.UUID(int=2 << 120))
    results = where.dbt_target / f"dbt_build-{earlier[:7]}-1234567" / "run_results.json"
    results.parent.mkdir(parents=True)
    failed = {"status": "fail", "message": "Got 1 result", "unique_id": "test.shop.unique.1"}
    results.write_text(json.dumps({"results": [failed]}))
    assert [thing for thing, _ in reasons_of_dbt(where, earlier)] == ["shop.unique.1"]
    assert reasons_of_dbt(where, this) == []


def test_a_run_on_a_full_disk_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SCOREHOUSE_PROJECT", str(LOANS))
    monkeypatch.setenv("SCOREHOUSE_DATA", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3 << 20))
    assert run() == 1
    assert capsys.readouterr().err == (
        f"✗ {tmp_path}: only 3 MB are free there, and a run needs 64 MB at the least; make room, or set SCOREHOUSE_DATA"
        " to a folder that has it\n"
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_up_is_told_in_one_line(small_disk: Path, tmp_path: Path) -> None:
    anyway = "import sys; from orchestration import project, run; project.LEAST_FREE = 0; sys.exit(run.run())"
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", anyway],
        cwd=REPOSITORY,
        env=environment_of(LOANS, small_disk, tmp_path / "home"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert f"✗ {small_disk}: can't be written to (" in done.stdout and "make room, and run again" in done.stdout
    assert "Traceback" not in done.stdout and "remove" not in done.stdout


def test_a_project_of_sources_alone_is_loaded(tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "models").mkdir(parents=True)
    for name in ("dbt_project.yml", "profiles.yml"):
        shutil.copy(LOANS / name, project)
    (project / "visits.csv").write_text("visit_id\n1\n2\n")
    (project / "models" / "sources.yml").write_text(
        "sources: [{name: raw, tables: [{name: visits, config: {meta: {load: {from: visits.csv}}}}]}]"
    )
    (tmp_path / "home").mkdir()
    done = run_pipeline(project, tmp_path / "data", tmp_path / "home")
    assert done.code == 0, done.printed
    assert re.search(r"✓ raw\.visits +2 rows", done.printed)


def test_the_summary_says_since_when_what_is_served_is_stale_and_that_lookups_are_refused() -> None:
    on = {day: a_generation("g1", today=date(2024, 3, day)) for day in (12, 13)}
    assert as_of_told(on[12]) == "2024-03-04"
    assert as_of_told(on[13]) == "2024-03-04\nstale since 2024-03-13"
    refusing = msgspec.structs.replace(on[13], when_stale="refuse")
    assert as_of_told(refusing) == "2024-03-04\nstale since 2024-03-13\nlookups are refused"
