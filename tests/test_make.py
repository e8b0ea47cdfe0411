"""What `make check` does, and in which order, for a project that lies elsewhere."""

import os
import subprocess
from pathlib import Path

import pytest

from orchestration.project import main
from tests.conftest import LOANS, REPOSITORY, SAMPLE


def commands_of_check(project: Path, data: Path) -> list[str]:
    outer = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environment = {**outer, "SCOREHOUSE_PROJECT": str(project), "SCOREHOUSE_DATA": str(data)}
    told = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "--assume-old=.venv/installed", "check"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return [line for line in told.stdout.splitlines() if "--jobs" not in line]


def test_the_declarations_are_checked_first_and_the_slow_linter_runs_last(tmp_path: Path) -> None:
    commands = commands_of_check(tmp_path / "shop", tmp_path / "data")
    assert "orchestration.project" in commands[0]
    assert "sqlfluff" in commands[-1]
    assert len(commands) == 2, "who writes a project waits for no check of the engine"
    of_sample = commands_of_check(SAMPLE, tmp_path / "data")
    assert {"mypy", "lint-imports", "ruff"} <= {Path(line.split()[0]).name for line in of_sample}
    assert "orchestration.project" in of_sample[0]


def test_the_sql_of_a_project_elsewhere_is_linted_by_the_same_rules(tmp_path: Path) -> None:
    models = tmp_path / "shop" / "models"
    models.mkdir(parents=True)
    (models / "orders.sql").write_text("SELECT 1 as one\n")
    linter = commands_of_check(tmp_path / "shop", tmp_path / "data")[-1].replace("--quiet", "")
    done = subprocess.run(linter, shell=True, cwd=REPOSITORY, capture_output=True, text=True)
    assert "orders.sql" in done.stdout and "must be lower case" in done.stdout, done.stdout + done.stderr


def test_a_project_that_declares_nothing_yet_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("DBT_TARGET_PATH", "DBT_LOG_PATH", "DBT_PROFILES_DIR", "DAGSTER_HOME"):
        monkeypatch.setenv(name, "")  # so that what is set is put back
    (tmp_path / "shop" / "models").mkdir(parents=True)
    (tmp_path / "shop" / "dbt_project.yml").write_text("{name: shop, profile: loans}")
    (tmp_path / "shop" / "profiles.yml").write_text((LOANS / "profiles.yml").read_text())
    (tmp_path / "shop" / "models" / "sources.yml").write_text(
        "sources: [{name: raw, tables: [{name: orders, config: {meta: {load: {from: orders.csv}}}}]}]"
    )
    monkeypatch.setenv("SCOREHOUSE_PROJECT", str(tmp_path / "shop"))
    monkeypatch.setenv("SCOREHOUSE_DATA", str(tmp_path / "data"))
    main()
    assert capsys.readouterr().out == "shop: 1 source to load, scores: none\n"
