"""What people decide of versions is refused with the reason, or recorded, and then what is served."""

import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import msgspec
import pytest

from ml import registry
from ml.declarations import Feature, Project
from orchestration import scoring, versions, warehouse
from orchestration.judging import current_champion
from orchestration.listing import told_of_score
from orchestration.project import Paths
from orchestration.promoting import NotPromoted, main, promote, rescore, roll_back, score_named
from orchestration.publishing import publish
from orchestration.realised import served_versions
from orchestration.training import engine
from orchestration.training_sets import ScoringError
from orchestration.warehouse import Connection
from tests.conftest import REPOSITORY, Run, copy_of, environment_of, query, served_rows
from tests.small_data import a_score, a_warehouse, another_version

TYPES = {
    "days_away": "integer",
    "spend": "double",
    "member": "boolean",
    "colour": "varchar",
    "joined_on": "date",
    "seen_at": "timestamptz",
}
COLUMNS = tuple(Feature(name=name, data_type=kind, description="") for name, kind in TYPES.items())
SCORE = a_score(columns=COLUMNS)
SHOP = Project(name="shop", today=date(2024, 5, 7), sources=(), scores=(SCORE,))


class Shop(msgspec.Struct):
    """Version 3, the champion, has scored ten customers; version 4 is there."""

    connection: Connection
    where: Paths

    def publish(self) -> int:
        """What the next run does; gives the version that is served then."""
        champion = current_champion(self.connection, SCORE)
        scoring.score_dates(self.connection, SCORE, champion, self.where)
        return int(publish(self.connection, SCORE, SHOP, self.where)["model_version"])


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    where = Paths(project=tmp_path, data=tmp_path)
    with warehouse.open_warehouse(where.warehouse) as connection:
        a_warehouse(connection, where, SCORE, "n", rows=10)
        another_version(connection, where, SCORE, 4)
        yield Shop(connection, where)


def test_what_was_decided_is_served_by_the_next_run_if_nothing_came_of_it_at_once(shop: Shop) -> None:
    assert shop.publish() == 3
    promote(shop.connection, SCORE, 4, "a reason", shop.where)
    with pytest.raises(NotPromoted) as raised:
        promote(shop.connection, SCORE, 4, "a reason", shop.where)
    assert str(raised.value) == (
        "score 'leaving': version 4 is the champion already; served is still version 3: make run publishes it"
    )
    with pytest.raises(ScoringError, match="version 4 has scored nobody"):  # published is what was scored, as ever
        publish(shop.connection, SCORE, SHOP, shop.where)
    assert shop.publish() == 4
    roll_back(shop.connection, SCORE, None, "another", shop.where)
    assert shop.publish() == 3
    with pytest.raises(NotPromoted, match="version 3 is the first champion, so there is none to go back to"):
        roll_back(shop.connection, SCORE, None, "once more", shop.where)
    with pytest.raises(NotPromoted, match=r"version 4 is no champion to go back to \(those are: none\); make promote"):
        roll_back(shop.connection, SCORE, 4, "once more", shop.where)


def test_a_version_that_could_not_score_is_not_promoted(shop: Shop) -> None:
    def told(version: int = 4, columns: tuple[Feature, ...] = COLUMNS) -> str:
        before = versions.promotions(shop.connection, SCORE)
        with pytest.raises(NotPromoted) as raised:
            promote(shop.connection, a_score(columns=columns), version, "a reason", shop.where)
        assert versions.promotions(shop.connection, SCORE) == before
        return str(raised.value)

    assert told(7) == "score 'leaving': there is no version 7 (there are: 3, 4)"
    assert told(columns=COLUMNS[1:]) == (
        "score 'leaving': version 4 can't read its features: models/features.yml: model 'customer_features': column"
        " 'days_away' is gone, but version 4 needs it"
    )
    a_text = Feature(name="days_away", data_type="varchar", description="")
    assert "column 'days_away' is declared as varchar, which is read as category, but" in told(
        columns=(a_text, *COLUMNS[1:])
    )
    new = Feature(name="visits", data_type="integer", description="")
    assert "can't score yet: models/features.yml: model 'customer_features' is not built with visits;" in told(
        columns=(*COLUMNS, new)
    )
    another_version(shop.connection, shop.where, SCORE, 5, kind="amount")
    assert told(5) == (
        "score 'leaving': version 5 is of kind amount, but the score of kind probability now; make run trains one"
    )
    model = shop.where.models / SCORE.name / "4" / registry.BOOSTER
    model.write_bytes(model.read_bytes()[:-1])
    assert "version 4 can't be read: " in told() and "bring model.cbm and card.json back" in told()
    with pytest.raises(NotPromoted, match=r"no score is called 'leave' \(there are: leaving\)"):
        score_named(SHOP, "leave")


def test_scored_anew_are_all_dates_of_the_champion_and_the_same_scores_are_the_same_generation(shop: Shop) -> None:
    shop.publish()
    served = publish(shop.connection, SCORE, SHOP, shop.where)["generation"]
    predictions = warehouse.name("predictions", SCORE.name)
    shop.connection.execute(f"update {predictions} set score = 0.5")
    assert rescore(shop.connection, SCORE, shop.where) == "version 3 scores its 1 as-of dates anew"
    with pytest.raises(ScoringError, match="are not those that were scored"):
        publish(shop.connection, SCORE, SHOP, shop.where)
    shop.publish()
    assert publish(shop.connection, SCORE, SHOP, shop.where)["generation"] == served
    assert warehouse.one(shop.connection, f"select count(*), count(*) filter (score = 0.5) from {predictions}") == (
        10,
        0,
    )


def test_who_served_a_date_first_is_known_after_a_rollback_and_another_scoring(shop: Shop) -> None:
    shop.publish()
    promote(shop.connection, SCORE, 4, "a reason", shop.where)
    shop.publish()
    roll_back(shop.connection, SCORE, None, "scores were too low", shop.where)
    rescore(shop.connection, SCORE, shop.where)
    shop.publish()
    assert served_versions(shop.connection, SCORE) == {date(2024, 5, 6): 3}


def test_a_library_that_only_trains_scores_and_publishes_nothing_anew_and_one_that_scores_does(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.publish()
    served = publish(shop.connection, SCORE, SHOP, shop.where)["generation"]
    champion, before, version = current_champion(shop.connection, SCORE), engine(), importlib.metadata.version
    for package, dates in (("optuna", 0), ("scikit-learn", 0), ("catboost", 1)):
        other = lambda name, of=package: "99" if name == of else version(name)  # noqa: E731
        monkeypatch.setattr(importlib.metadata, "version", other)
        assert engine() != before, "a version is trained"
        assert len(scoring.score_dates(shop.connection, SCORE, champion, shop.where)[0]) == dates
        assert (publish(shop.connection, SCORE, SHOP, shop.where)["generation"] == served) == (dates == 0)


def test_a_damaged_champion_scores_nothing_anew_and_what_it_scored_is_published_on(shop: Shop) -> None:
    shop.publish()
    (shop.where.models / SCORE.name / "3" / registry.BOOSTER).write_bytes(b"cut short")
    with pytest.raises(NotPromoted, match=r"version 3 can't be read: .*model\.cbm: has the checksum"):
        rescore(shop.connection, SCORE, shop.where)
    assert shop.publish() == 3


def test_what_is_listed_says_what_became_of_each_version(shop: Shop) -> None:
    def listed() -> str:
        return "\n".join(told_of_score(shop.connection, SCORE, shop.where))

    shop.publish()
    assert "leaving: version 3 is served as of 2024-05-06 to 10 customers\n  version 4: not judged yet;" in listed()
    promote(shop.connection, SCORE, 4, "a reason", shop.where)
    assert "; the champion is version 4, which make run publishes\n  version 4: champion;" in listed()
    assert "\n  version 3: was champion;" in listed()
    roll_back(shop.connection, SCORE, 3, "scores were too low", shop.where)
    shutil.rmtree(shop.where.models / SCORE.name / "4")
    told = listed()
    assert "\n  version 4: taken back;" in told and "\n  version 3: champion;" in told
    assert "    promoted: version 4 by force instead of version 3, " in told
    assert f"by {versions.user()}: scores were too low" in told
    assert "leaving/4 are gone or damaged" in told
    assert "\n    trained for: new labels\n" in told
    assert "roc_auc 0." in told and "champion then 0." in told and "naive 0." in told


def command(run: Run, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestration.promoting", *words],
        cwd=REPOSITORY,
        env=environment_of(run.project, run.data, run.home),
        capture_output=True,
        text=True,
    )


def test_a_decision_is_published_when_its_command_ends_and_the_ui_shows_it(loans_run: Run, tmp_path: Path) -> None:
    import dagster as dg

    run = copy_of(loans_run, tmp_path)
    models = run.data / "models" / "default_risk"
    model = registry.load(models / "1")
    made = msgspec.structs.replace(model.card, version=2, champion=model.card.metrics, champion_version=1)
    card = registry.save(models / "2", model.booster, made)
    with warehouse.open_warehouse(run.data / "warehouse.duckdb") as connection:
        versions.record_version(connection, card, "another engine")
    promoted = command(run, "promote", "--score", "default_risk", "--version", "2", "--reason", 'Say "why"; $HOME')
    assert promoted.returncode == 0, promoted.stdout
    assert "default_risk: version 2 by force instead of version 1, " in promoted.stdout
    assert "✓ predictions.default_risk" in promoted.stdout and "expected_card_spend" not in promoted.stdout
    generation, _ = served_rows(run, "default_risk")
    assert generation.model_version == 2
    assert f"default_risk is served by version 2 as of 2024-07-01 ({generation.generation}, " in promoted.stdout
    with dg.DagsterInstance.from_config(str(run.data / "dagster")) as instance:
        last = instance.get_runs(limit=1)[0]
    assert last.status == dg.DagsterRunStatus.SUCCESS
    assert last.tags["scorehouse/by"] == "make promote"
    assert last.tags["scorehouse/decision"].endswith('Say "why"; $HOME')
    assert query(run, "select reason from ml.promotions where how = 'force'") == [('Say "why"; $HOME',)]

    # A check that failed stops what comes of it, here too: the decision stands, and what was published serves on.
    with dg.DagsterInstance.from_config(str(run.data / "dagster")) as instance:
        evaluation = dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(["risk_features", "loan_features"]),
            check_name="no_loan_feature_is_stuck",
            passed=False,
            metadata={},
            severity=dg.AssetCheckSeverity.ERROR,
        )
        instance.report_runless_asset_event(evaluation)
    rolled_back = command(run, "rollback", "--score", "default_risk", "--reason", "in haste")
    assert rolled_back.returncode == 1, rolled_back.stdout
    told = rolled_back.stdout.replace("\n", " ")
    assert "failed last: risk_features/loan_features:no_loan_feature_is_stuck" in told
    assert "Not published: the decision stands, and default_risk is served by version 2 as of 2024-07-01 until" in told
    assert served_rows(run, "default_risk")[0].model_version == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["promote", "--score", "a", "--version", "2"], 'make promote: say SCORE=… VERSION=… REASON="…"\n'),
        (["promote", "--score", "a", "--version", "2", "--reason", "  "], "make promote: say SCORE=…"),
        (["rollback", "--score", "a", "--version", "x", "--reason", "x"], "make rollback: 'x' is no version; say"),
        (["rollback", "--score", "a", "--version", "9" * 5000, "--reason", "x"], "make rollback: '9999"),
        (["rescore"], "make rescore: say SCORE=…\n"),
    ],
)
def test_what_is_missing_from_a_command_is_told_at_once(
    words: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["make", *words])
    assert main() == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith(told)
