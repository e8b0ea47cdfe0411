"""Files of the data folder that were cut short, by a full disk or a bad copy: made anew, or told by name."""

from datetime import date
from pathlib import Path

import pytest

from ml import registry
from ml.declarations import Project
from orchestration import versions
from orchestration.drifting import report_drift
from orchestration.project import Paths, load_project, read_json
from orchestration.training import train_version
from orchestration.training_sets import ScoringError, freeze_training_set
from orchestration.warehouse import open_warehouse
from tests.conftest import Run, copy_of
from tests.small_data import a_model, a_score, some_rows

TODAY = date(2024, 7, 1)


class Log:
    def info(self, _: str) -> None: ...


def cut(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


@pytest.fixture
def loans(loans_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Paths, Project]:
    """The second project, built, and its data."""
    run = copy_of(loans_run, tmp_path)
    for name in ("DBT_TARGET_PATH", "DBT_LOG_PATH", "DBT_PROFILES_DIR", "DAGSTER_HOME", "SCOREHOUSE_PROJECT"):
        monkeypatch.setenv(name, "")  # so that what is set is put back
    monkeypatch.setenv("SCOREHOUSE_DATA", str(run.data))
    where = Paths(project=loans_run.project, data=run.data)
    return where, load_project(where)


def test_a_training_set_cut_short_is_frozen_again(loans: tuple[Paths, Project]) -> None:
    where, project = loans
    (file,) = (where.training_sets / project.scores[0].name).iterdir()
    whole = file.read_bytes()
    cut(file)
    with open_warehouse(where.warehouse) as connection:
        frozen = freeze_training_set(connection, project.scores[0], TODAY, where.training_sets)
    assert not frozen["changed"]
    assert len(file.read_bytes()) == len(whole)


def test_a_training_set_that_a_candidate_cant_read_is_named(loans: tuple[Paths, Project]) -> None:
    where, project = loans
    (file,) = (where.training_sets / project.scores[0].name).iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:1000] + bytes(1000) + content[2000:])
    with open_warehouse(where.warehouse) as connection, pytest.raises(ScoringError) as raised:
        train_version(connection, project.scores[0], file.stem, where, Log(), "asked for", TODAY)
    assert f"training set {file} can't be read" in str(raised.value)


def test_drift_figures_cut_short_are_told_anew(loans: tuple[Paths, Project]) -> None:
    where, project = loans
    score = project.scores[0]
    files = sorted((where.reports / score.name).rglob("drift.json"))
    contents = [file.read_bytes() for file in files]
    assert len(files) > 1, "there is one of each as-of date"
    for file in files:
        cut(file)
    with open_warehouse(where.warehouse) as connection:
        assert not report_drift(connection, project, score, where)["measured"]
    assert [file.read_bytes() for file in files] == contents


@pytest.mark.parametrize("content", ["", '{"of": "a', "[]", "\udcff"], ids=["empty", "cut", "a list", "no text"])
def test_figures_that_are_no_json_are_as_if_there_were_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "figures.json").write_bytes(content.encode(errors="surrogateescape"))
    assert read_json(tmp_path / "figures.json") == {}
    assert read_json(tmp_path / "none.json") == {}


def test_models_outlive_a_warehouse_that_was_removed(tmp_path: Path) -> None:
    where, score = Paths(project=tmp_path, data=tmp_path), a_score()
    with open_warehouse(where.warehouse) as connection:
        connection.register("rows_of_both", some_rows())
        connection.execute("""
            create schema features; create schema labels;
            create table features.customer_features as select * exclude (label, matures_on) from rows_of_both;
            create table labels.customer_left as select customer_id, week, label, matures_on from rows_of_both;
        """)
        versions.create_tables(connection)
        frozen = freeze_training_set(connection, score, TODAY, where.training_sets)
        models = where.models / score.name
        kept = registry.save(models / "3", a_model().booster, a_model().card)
        (models / "4.tmp").mkdir()  # killed while it was written
        (models / "4.tmp" / "model.cbm").touch()
        trained = train_version(connection, score, frozen["training_set"], where, Log(), "asked for", TODAY)
    assert (trained["version"], trained["trigger"], trained["trained_on"]) == (4, "asked for", TODAY)
    assert registry.verify(models / "3") == kept.booster_sha256
    assert registry.verify(models / "4") == trained["booster_sha256"]
    assert sorted(folder.name for folder in models.iterdir()) == ["3", "4"]
