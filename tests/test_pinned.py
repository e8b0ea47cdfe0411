"""What a champion needs of its feature model: a column of it can't go or change unseen, one that is new is free."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import LOANS, REPOSITORY, Run, copy_of, environment_of, query, served_rows

SCORE = "default_risk"
VERSIONS = (
    "select version, promoted_at is not null, champion_metrics is not null, contract from ml.model_versions"
    f" where score = '{SCORE}' order by version"
)
MODEL = Path("models/risk_features/loan_features.sql")
CONTRACT = Path("models/risk_features/risk_features.yml")


def check(run: Run) -> subprocess.CompletedProcess[str]:
    """The declarations' part of `make check`."""
    return subprocess.run(
        [sys.executable, "-m", "orchestration.project"],
        cwd=REPOSITORY,
        env=environment_of(run.project, run.data, run.home),
        capture_output=True,
        text=True,
    )


def changed(file: Path, *changes: tuple[str, str]) -> None:
    text = file.read_text()
    for old, new in changes:
        assert re.search(old, text), f"{file} has no {old}"
        text = re.sub(old, new, text, count=1)
    file.write_text(text)


def without_the_joint_account(project: Path) -> None:
    changed(project / MODEL, (r"        accounts\.is_joint_account,\n", ""))
    changed(
        project / CONTRACT,
        (r"      - name: is_joint_account\n(?:        .*\n)+|      - \{name: is_joint_account.*\n", ""),
    )


def with_a_joint_account_in_words(project: Path) -> None:
    changed(
        project / MODEL,
        (
            r"accounts\.is_joint_account,",
            "case when accounts.is_joint_account then 'yes' else 'no' end as is_joint_account,",
        ),
    )
    changed(project / CONTRACT, (r"(name: is_joint_account(?:,|\n +)\s*data_type: )boolean", r"\1varchar"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            without_the_joint_account,
            "column 'is_joint_account' is gone, but version 1 of score 'default_risk', the champion,",
        ),
        (
            with_a_joint_account_in_words,
            "column 'is_joint_account' is declared as varchar, which is read as category, but version 1 of score"
            " 'default_risk', the champion, needs it as a boolean (boolean)",
        ),
    ],
)
def test_a_column_that_a_champion_needs_can_not_go_or_change(
    loans_run: Run, tmp_path: Path, change: Callable[[Path], None], told: str
) -> None:
    run = copy_of(loans_run, tmp_path)
    change(run.project)
    before = (run.data / "warehouse.duckdb").read_bytes()
    checked, again = check(run), run.again()
    for code, printed in ((checked.returncode, checked.stderr), (again.code, again.printed)):
        assert code == 1, printed
        assert f"project/{CONTRACT}: model 'loan_features': {told}" in printed
        assert "exclude: [is_joint_account] in the exposure 'default_risk'" in printed
    assert (run.data / "warehouse.duckdb").read_bytes() == before, "nothing was loaded or built"


def test_a_text_may_be_declared_as_an_enum_which_models_read_as_text(loans_run: Run, tmp_path: Path) -> None:
    run = copy_of(loans_run, tmp_path)
    an_enum = "enum('employee', 'self-employed')"
    changed(run.project / CONTRACT, (r"(name: segment, data_type: )varchar", rf'\1"{an_enum}"'))
    checked = check(run)
    assert checked.returncode == 0, checked.stderr


def test_a_new_column_is_free_and_one_goes_once_a_champion_was_trained_without_it_and_may_come_back(
    loans_run: Run, tmp_path: Path
) -> None:
    run = copy_of(loans_run, tmp_path)
    (run.data / "generations" / "of_yore").mkdir()
    (run.data / "generations" / "of_yore" / "CURRENT").write_text("g1\n")
    exposures = run.project / "models" / "scores.yml"
    changed(
        exposures,
        (r"(features: loan_features\n)", r"\1          exclude: [is_joint_account, has_another]\n"),
        (r"\{watch: 0\.15, elevated: 0\.05, normal: 0\.0\}", "{seen: 0.3, unseen: 0.0}"),
    )
    changed(
        run.project / MODEL,
        (r"(        accounts\.is_joint_account,\n)", r"\1        accounts.is_joint_account as has_another,\n"),
    )
    changed(
        run.project / CONTRACT,
        (
            r"(      - \{name: is_joint_account)",
            r"      - {name: has_another, data_type: boolean, description: New}\n\1",
        ),
    )
    assert check(run).returncode == 0
    first = run.again()
    assert first.code == 0, first.printed
    assert "of_yore is served on, but no longer declared" in first.printed.replace("\n", " ")
    versions = query(run, VERSIONS)
    assert [version[:2] for version in versions] == [(1, True), (2, True)], first.printed
    assert versions[1][2], "the champion was compared on the same rows, though it reads what is excluded now"
    assert versions[0][3] != versions[1][3]
    generation, rows = served_rows(run, SCORE)
    assert generation.model_version == 2
    features = {feature.name for feature in generation.features}
    assert not features & {"is_joint_account", "has_another"}
    assert [band for _, band, _ in rows] == ["seen" if value >= 0.3 else "unseen" for _, _, value in rows]
    counted = {name: sum(band == name for _, band, _ in rows) for name in ("seen", "unseen")}
    assert generation.band_counts == counted and all(counted.values())

    changed(exposures, (r"exclude: \[is_joint_account, has_another\]", "exclude: [has_another]"))
    without_the_joint_account(run.project)
    second = run.again()
    assert second.code == 0, second.printed

    for file in (MODEL, CONTRACT, Path("models/scores.yml")):
        (run.project / file).write_bytes((LOANS / file).read_bytes())
    back = check(run)
    assert back.returncode == 0, back.stderr


def test_a_champion_scores_on_while_what_is_excluded_has_not_passed_the_gate(loans_run: Run, tmp_path: Path) -> None:
    run = copy_of(loans_run, tmp_path)
    changed(
        run.project / "models" / "scores.yml",
        (r"(features: loan_features\n)", r"\1          exclude: [returned_365d_count]\n"),
        (r"- roc_auc >= 0\.70", "- roc_auc >= 0.99"),
    )
    again = run.again()
    assert again.code == 0, again.printed
    assert "predictions.default_risk" in again.printed
    without = run.project / CONTRACT
    changed(
        without, (r"      - name: returned_365d_count\n(?:        .*\n)+|      - \{name: returned_365d_count.*\n", "")
    )
    refused = check(run)
    assert refused.returncode == 1
    assert "exclude names 'returned_365d_count', which is no feature of its model" in refused.stderr
