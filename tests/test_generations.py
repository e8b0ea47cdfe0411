"""What is published is listed and rolled back on any host, and stays rolled back whatever the next run publishes."""

import os
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from ml.declarations import Project
from orchestration import scoring, warehouse
from orchestration.judging import current_champion
from orchestration.project import Paths
from orchestration.publishing import generation_asset, publish
from serving.generations import store
from serving.generations.__main__ import main
from tests import sample_generations
from tests.conftest import REPOSITORY
from tests.sample_generations import PUBLISHED
from tests.small_data import a_score, a_warehouse


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three generations of a score, the newest of which is served."""
    monkeypatch.setenv("SCOREHOUSE_DATA", str(tmp_path / "data"))
    root = tmp_path / "data" / "generations"
    for number in (1, 2, 3):
        published_at = PUBLISHED + timedelta(hours=number)
        sample_generations.publish(root, f"g{number}", rows=10, published_at=published_at, model_version=number)
    return root


def asked(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["generations", *arguments])
    return main()


def rolled_back(monkeypatch: pytest.MonkeyPatch, to: str, reason: str = "wrong prices") -> int:
    return asked(monkeypatch, "rollback", "--score", "churn", "--generation", to, "--reason", reason)


def damage(folder: Path) -> None:
    (folder / "card.json").write_text("{ }")


def test_a_rollback_serves_the_generation_before_and_the_list_tells_who_withdrew_what_and_why(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rolled_back(monkeypatch, "previous") == 0
    assert store.current(root, "churn") == "g2"
    printed = capsys.readouterr().out
    assert "churn: g2 is served now (as of 2024-03-04, version 2, 10 customers)" in printed
    assert "g3 is withdrawn" in printed

    assert asked(monkeypatch, "list") == 0
    score, newest, served, oldest = capsys.readouterr().out.splitlines()
    assert score == "churn"
    assert newest.startswith("    g3 · as of 2024-03-04 · version 3 · 10 customers · ")
    assert "published 2024-03-05 09:00 UTC · sound · it was withdrawn on " in newest
    assert newest.endswith(": wrong prices")
    assert served.startswith("  → g2 ") and served.endswith("sound")
    assert oldest.startswith("    g1 ") and oldest.endswith("sound")


def test_going_back_twice_does_not_go_in_circles(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rolled_back(monkeypatch, "previous") == 0
    assert rolled_back(monkeypatch, "previous") == 0
    assert store.current(root, "churn") == "g1"
    assert rolled_back(monkeypatch, "previous") == 1
    assert store.current(root, "churn") == "g1"


def test_what_is_damaged_is_passed_over_and_never_served(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(root / "churn" / "g2")
    assert rolled_back(monkeypatch, "g2") == 1
    assert "churn/g2/card.json: its checksum is wrong" in capsys.readouterr().err
    assert store.current(root, "churn") == "g3"
    assert asked(monkeypatch, "list") == 1
    assert "NOT SOUND: churn/g2/card.json" in capsys.readouterr().out
    assert rolled_back(monkeypatch, "previous") == 0
    assert "passed over: churn/g2/card.json" in capsys.readouterr().out
    assert store.current(root, "churn") == "g1"


def test_a_current_that_is_lost_is_mended_by_a_rollback(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "churn" / "CURRENT").write_text("?!")
    assert rolled_back(monkeypatch, "previous") == 0
    assert store.current(root, "churn") == "g3"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["rollback", "--score", "churn", "--generation", "previous"], 2, "say make rollback SCORE=<score> GENERATION"),
        (["push"], 2, "say make push TO="),
        (["list", "--score", "nothing"], 1, "score 'nothing' has no generations in "),
        (["rollback", "--score", "../x", "--generation", "g1", "--reason", "x"], 1, "score '../x' has no generations"),
        (["rollback", "--score", "churn", "--generation", "../g1", "--reason", "x"], 1, "there are: g3, g2, g1"),
        (["rollback", "--score", "churn", "--generation", "g3", "--reason", "x"], 1, "g3 is served already"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    assert asked(monkeypatch, *arguments) == code
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    assert store.current(root, "churn") == "g3"


def test_make_rollback_of_a_generation_needs_no_warehouse(root: Path) -> None:
    outer = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    given = ["SCORE=churn", "GENERATION=g1", 'REASON=it\'s "wrong" & $HOME; says `id`']
    command = ["make", "--no-print-directory", "--assume-old=.venv/installed", "rollback", *given]
    done = subprocess.run(command, cwd=REPOSITORY, env=outer, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert store.current(root, "churn") == "g1"
    assert {path.name for path in root.parent.iterdir()} <= {"generations", "card.json", "cache"}


# With the pipeline that would publish it again ------------------------------------------------------------------------

SCORE = a_score()
SHOP = Project(name="shop", today=None, sources=(), scores=(SCORE,))


def test_what_was_withdrawn_is_not_published_again_until_there_is_new_content_or_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCOREHOUSE_DATA", str(tmp_path))
    where = Paths(project=tmp_path, data=tmp_path)

    def served() -> str | None:
        return store.current(where.generations, SCORE.name)

    def rolled_back_to(generation: str) -> None:
        arguments = ["--score", SCORE.name, "--generation", generation, "--reason", "all prices are wrong"]
        assert asked(monkeypatch, "rollback", *arguments) == 0

    with warehouse.open_warehouse(tmp_path / "warehouse.duckdb") as connection:
        a_warehouse(connection, where, SCORE, "n", rows=50)

        def published(change: str = "") -> dict[str, object]:
            if change:
                connection.execute(f"update features.customer_features set spend = {change}")
            scoring.score_dates(connection, SCORE, current_champion(connection, SCORE), where)
            return publish(connection, SCORE, SHOP, where)

        first, second = published()["generation"], published("1")["generation"]
        assert second != first and served() == second
        rolled_back_to("previous")
        again = published()
        assert served() == first == again["generation"]
        assert (again["changed"], again["rows"]) == (False, 50)
        assert "all prices are wrong" in str(again["withdrawn"])
        shutil.rmtree(where.generations / SCORE.name / str(second))  # as prune does, in time
        assert published()["generation"] == first == served()

    monkeypatch.setenv("SCOREHOUSE_PUSH_TO", str(tmp_path / "shelf"))
    asset = generation_asset(SCORE, SHOP, where)
    run = dg.materialize([asset, *[dg.AssetSpec(key) for key in asset.dependency_keys]], selection=[asset])
    (check,) = run.get_asset_check_evaluations()
    assert run.success and not check.passed and check.severity == dg.AssetCheckSeverity.WARN
    assert "all prices are wrong" in str(check.metadata["difference"].value)
    assert store.current(tmp_path / "shelf", SCORE.name) == first, "other hosts are served what this one is"

    with warehouse.open_warehouse(tmp_path / "warehouse.duckdb") as connection:
        third = published("2")["generation"]
        assert third not in (first, second) and served() == third
        rolled_back_to(str(first))
        assert published()["generation"] == first
        rolled_back_to(str(third))  # forward: what was withdrawn is taken back, and the one left behind is not
        assert (published()["generation"], served()) == (third, third)
        assert "withdrawn" not in published()
