"""A candidate is trained when its score says so, and never within the cool-down or beyond the budget."""

import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import duckdb
import msgspec
import pytest

from ml import registry
from ml.declarations import Project
from ml.learning import Retrain
from ml.scores import Score
from orchestration import automation, versions
from orchestration.automation import retraining_sensor
from orchestration.project import Paths
from orchestration.retraining import Decision, decide, when_trained
from tests.small_data import a_model, a_score

LEARNED_UNTIL = date(2024, 5, 6)


@pytest.fixture
def where(tmp_path: Path) -> Paths:
    return Paths(project=tmp_path / "project", data=tmp_path)


@pytest.fixture
def connection(where: Paths) -> Any:
    """A champion, version 1, that learned from what was known on 2024-05-06, and a label per day since."""
    with duckdb.connect() as opened:
        versions.create_tables(opened)
        model = a_model(version=1, training_set="old", trained_on=LEARNED_UNTIL)
        card = registry.save(where.models / "leaving" / "1", model.booster, model.card)
        versions.record_training_set(opened, a_score(), {"training_set": "old", "known_until": LEARNED_UNTIL})
        versions.record_version(opened, card, "engine")
        versions.record_gate(opened, a_score(), 1, [])
        opened.execute(
            """
            create schema labels;
            create table labels.customer_left as
            select date '2024-05-06' + n::integer as matures_on from range(-20, 100) as days (n)
            """
        )
        yield opened


def decided(
    connection: Any, where: Paths, retrain: Retrain | None, today: date, changed: bool = True, **told: Any
) -> Decision:
    score = a_score(retrain=retrain) if "score" not in told else told.pop("score")
    asked = {"trained_by": "engine", "is_whole": True, **told}
    current = {"training_set": "new" if changed else "old"}
    return decide(connection, score, current, today=today, where=where, **asked)


def drift_report(where: Paths, *drifted: str, version: int = 1, broken: Sequence[str] = ()) -> None:
    folder = where.reports / "leaving" / "2024-05-06"
    folder.mkdir(parents=True)
    verdicts = {
        f"column.{name}.verdict": "drifted" if name in drifted else "stable" for name in a_model().card.importance
    }
    faults = {f"column.{name}.is_broken": name in broken for name in drifted}
    (folder / "drift.json").write_text(json.dumps({"model_version": version, "metrics": verdicts | faults}))


def test_without_a_declaration_any_new_label_starts_a_training(connection: Any, where: Paths) -> None:
    assert decided(connection, where, None, date(2024, 5, 9)) == Decision("3 new labels")
    assert decided(connection, where, None, LEARNED_UNTIL) == Decision("the rows it learns from have changed")


def test_the_same_rows_are_never_learned_from_twice_whatever_is_asked(connection: Any, where: Paths) -> None:
    for retrain in (None, Retrain(every_days=1.0)):
        waits = decided(connection, where, retrain, date(2024, 8, 1), changed=False, asked="I want to")
        assert waits.trigger is None
        assert "version 1 has learned from all there is" in waits.waits


def test_the_schedule_counts_days_of_the_projects_clock(connection: Any, where: Paths) -> None:
    weekly = Retrain(every_days=7.0)
    assert decided(connection, where, weekly, date(2024, 5, 12)) == Decision(
        waits="6 new labels since 2024-05-06; it is trained after 7 days"
    )
    assert decided(connection, where, weekly, date(2024, 5, 13)).trigger == "schedule: 7 days since the last training"


def test_new_labels_are_those_that_have_matured_since(connection: Any, where: Paths) -> None:
    ten = Retrain(new_labels=10)
    assert decided(connection, where, ten, date(2024, 5, 15)).trigger is None
    assert decided(connection, where, ten, date(2024, 5, 16)).trigger == "new labels: 10, of 10 asked for"


def test_drift_counts_by_what_the_features_mean_to_the_champion(connection: Any, where: Paths) -> None:
    drift = Retrain(drift=0.5)
    today = date(2024, 5, 9)
    assert decided(connection, where, drift, today).trigger is None
    drift_report(where, "days_away", "seen_at")
    importance = a_model().card.importance
    share = importance["days_away"] + importance["seen_at"]
    assert share > 50
    assert decided(connection, where, drift, today).trigger == (
        f"drift: {share:.0f}% of the importance of version 1 has drifted (days_away, seen_at)"
    )
    assert decided(connection, where, Retrain(drift=1.0), today).trigger is None


def test_columns_that_seem_broken_start_no_training(connection: Any, where: Paths) -> None:
    drift_report(where, "days_away", "seen_at", broken=["days_away"])
    assert decided(connection, where, Retrain(drift=0.5), date(2024, 5, 9)).trigger is None


def test_drift_of_another_version_starts_nothing(connection: Any, where: Paths) -> None:
    drift_report(where, *a_model().card.importance, version=2)
    assert decided(connection, where, Retrain(drift=0.5), date(2024, 5, 9)).trigger is None


def test_a_damaged_champion_keeps_no_candidate_from_being_trained(connection: Any, where: Paths) -> None:
    drift_report(where, *a_model().card.importance)
    (where.models / "leaving" / "1" / registry.CARD).write_text("{}")
    today = date(2024, 5, 9)
    assert decided(connection, where, Retrain(drift=0.5), today).trigger is None
    assert decided(connection, where, Retrain(drift=0.5, new_labels=3), today).trigger is not None


def test_without_a_champion_of_whom_reports_could_tell_new_labels_start_a_training(
    connection: Any, where: Paths
) -> None:
    connection.execute("delete from ml.promotions")
    assert versions.champion(connection, a_score()) is None
    today = date(2024, 5, 9)
    for told_by_reports in (Retrain(drift=0.5), Retrain(performance=True)):
        assert decided(connection, where, told_by_reports, LEARNED_UNTIL).trigger is None
        assert decided(connection, where, told_by_reports, today).trigger == (
            "no version has passed its gate yet, and there are 3 new labels"
        )
        cautious = msgspec.structs.replace(told_by_reports, cooldown_days=5.0)
        assert decided(connection, where, cautious, today).is_held_back
    for waiting in (Retrain(every_days=7.0, drift=0.5), Retrain(new_labels=10, performance=True)):
        assert decided(connection, where, waiting, today).trigger is None


def test_a_cool_down_holds_back_what_has_fired_and_says_until_when(connection: Any, where: Paths) -> None:
    cautious = Retrain(new_labels=1, cooldown_days=5.0)
    assert decided(connection, where, cautious, date(2024, 5, 10)) == Decision(
        waits="new labels: 4, of 1 asked for, but it cools down until 2024-05-11", is_held_back=True
    )
    assert decided(connection, where, cautious, date(2024, 5, 11)).trigger is not None


def test_a_budget_is_spent_by_every_version_of_28_days(connection: Any, where: Paths) -> None:
    thrifty = Retrain(new_labels=1, budget=1)
    assert decided(connection, where, thrifty, date(2024, 6, 2)).waits.endswith(
        "but 1 trainings since 2024-05-05 are its budget of 28 days"
    )
    assert decided(connection, where, thrifty, date(2024, 6, 3)).trigger is not None


def test_days_count_from_the_training_and_labels_from_those_that_it_knew(connection: Any, where: Paths) -> None:
    connection.execute("update ml.model_versions set trained_on = date '2024-05-10'")
    assert decided(connection, where, Retrain(every_days=7.0), date(2024, 5, 16)).trigger is None
    assert decided(connection, where, Retrain(every_days=7.0), date(2024, 5, 17)).trigger is not None
    cautious = Retrain(new_labels=10, cooldown_days=7.0)
    held_back = decided(connection, where, cautious, date(2024, 5, 16))
    assert held_back.waits == "new labels: 10, of 10 asked for, but it cools down until 2024-05-17"
    # A version of before days were kept was trained when its labels were known.
    connection.execute("update ml.model_versions set trained_on = null")
    versions.create_tables(connection)
    assert decided(connection, where, cautious, date(2024, 5, 16)).trigger is not None


def test_a_sensor_asks_once_a_day_as_long_as_a_report_says_so(
    connection: Any, where: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = a_score(retrain=Retrain(drift=0.5))
    served = SimpleNamespace(generation="2024-05-06-v1", model_version=1)

    def asks(today: date) -> dg.RunRequest | dg.SkipReason:
        project = Project(name="shop", sources=(), scores=(score,), today=today)
        with dg.build_sensor_context() as context:
            found = retraining_sensor(score, [], project, where)(context)
        assert isinstance(found, dg.RunRequest | dg.SkipReason)
        return found

    assert asks(date(2024, 5, 9)) == dg.SkipReason("nothing is served yet")
    monkeypatch.setattr(automation, "served_now", lambda *_: served)
    assert asks(date(2024, 5, 9)) == dg.SkipReason("version 1 has neither drifted nor broken its promise")
    drift_report(where, *a_model().card.importance)
    first, again, next_day = (asks(date(2024, 5, day)) for day in (9, 9, 10))
    assert isinstance(first, dg.RunRequest) and isinstance(next_day, dg.RunRequest)
    assert first.tags["scorehouse/trigger"].startswith("drift: 100% of the importance of version 1 has drifted")
    assert first == again
    assert first.run_key != next_day.run_key


def test_who_asks_is_not_held_back(connection: Any, where: Paths) -> None:
    held = Retrain(new_labels=1, cooldown_days=50.0, budget=1)
    assert decided(connection, where, held, date(2024, 5, 9), asked="asked by ann") == Decision("asked by ann")


def test_the_first_training_and_a_changed_recipe_wait_for_nothing(connection: Any, where: Paths) -> None:
    held = Retrain(every_days=1000.0, cooldown_days=1000.0)
    today = date(2024, 5, 7)
    assert decided(connection, where, held, today, trained_by="another").trigger == (
        "what trains it has changed since version 1"
    )
    assert decided(connection, where, held, today, is_whole=False).trigger == "the files of version 1 are damaged"
    fewer = a_score(retrain=held, columns=a_score().columns[:2])
    assert decided(connection, where, held, today, score=fewer).trigger == "its features have changed"
    amount = a_score("amount", retrain=held)
    assert "its kind is amount" in str(decided(connection, where, held, today, score=amount).trigger)
    other: Score = msgspec.structs.replace(a_score(retrain=held), name="another")
    assert decided(connection, where, held, today, score=other).trigger == "first training"


def test_when_a_score_is_trained_is_told_in_words() -> None:
    assert when_trained(a_score()) == "after new labels"
    both = a_score(retrain=Retrain(every_days=28.0, drift=0.3, performance=True))
    assert when_trained(both) == "after 28 days or drift of 30% of the importance or a broken promise"
