"""A data folder belongs to one dbt project: another's run would mix two companies' scores."""

import subprocess
import sys
from pathlib import Path

import pytest

from ml.declarations import Project
from orchestration.project import Paths, ProjectError, claim_data
from tests.conftest import LOANS, REPOSITORY, environment_of
from tests.sample_generations import publish
from tests.small_data import a_score

SHOP = Project(name="shop", today=None, sources=(), scores=(a_score(name="churn"),))
BANK = Project(name="bank", today=None, sources=(), scores=(a_score(name="default_risk"),))


@pytest.fixture
def where(tmp_path: Path) -> Paths:
    return Paths(project=tmp_path / "project", data=tmp_path / "data")


def test_the_first_run_makes_the_folder_its_projects_and_the_next_finds_it_so(where: Paths) -> None:
    claim_data(where, SHOP)
    assert where.owner.read_text() == "shop\n"
    claim_data(where, SHOP)


def test_another_project_is_told_whose_the_folder_is_and_what_to_do(where: Paths) -> None:
    claim_data(where, SHOP)
    with pytest.raises(ProjectError) as raised:
        claim_data(where, BANK)
    assert str(raised.value) == (
        f"{where.data}: belongs to the dbt project 'shop', and this one is 'bank' ({where.project}); set"
        f" SCOREHOUSE_DATA to a folder of its own; if it was only renamed, remove {where.owner}"
    )
    assert where.owner.read_text() == "shop\n"


def test_a_folder_from_before_is_taken_by_the_project_whose_scores_it_serves(where: Paths) -> None:
    publish(where.generations, score="churn")
    publish(where.generations, score="of_yore")
    with pytest.raises(ProjectError, match="serves churn, of_yore, no score of the dbt project 'bank'"):
        claim_data(where, BANK)
    assert not where.owner.exists()
    claim_data(where, SHOP)
    assert where.owner.read_text() == "shop\n"


def test_all_that_shows_or_changes_anothers_folder_is_refused_and_check_reads_it(tmp_path: Path) -> None:
    data, home = tmp_path / "data", tmp_path / "home"
    for folder in (data, home):
        folder.mkdir()

    def printed_by(*command: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=REPOSITORY,
            env=environment_of(LOANS, data, home),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stdout

    assert printed_by("orchestration.project")[0] == 0
    assert not (data / "PROJECT").exists()
    (data / "PROJECT").write_text("journey\n")
    assert printed_by("orchestration.project")[0] == 0
    refusal = f"{data}: belongs to the dbt project 'journey', and this one is 'loans'"
    for module in ("orchestration.run", "orchestration.ui"):
        code, printed = printed_by(module)
        assert code == 1
        assert refusal in printed
    lists = (["orchestration.promoting", "list"], ["orchestration.training_sets"])
    for command in lists:
        code, printed = printed_by(*command)
        assert code == 1
        assert f"{data}: nothing has been run there yet; make run does it" in printed
    assert not (data / "warehouse.duckdb").exists() and not (data / "dagster").exists()
    (data / "warehouse.duckdb").touch()
    for command in lists:
        code, printed = printed_by(*command)
        assert code == 1
        assert refusal in printed
