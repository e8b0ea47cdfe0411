"""What a score's owner may say of its training does what it says, and what makes no sense is refused by name."""

from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml

from ml.calibration import Calibration, calibrated, learn_calibration
from ml.encoding import encode
from ml.fitting import SPACE
from ml.gains import CONTACT_EXAMPLES, CONTACT_KEYS, read_contact
from ml.labels import TooFewRows
from ml.learning import (
    REASONS_EXAMPLES,
    REASONS_KEYS,
    RETRAIN_EXAMPLES,
    RETRAIN_KEYS,
    SEARCH_EXAMPLES,
    SEARCH_KEYS,
    Learning,
    read_explained,
    read_learning,
    read_retrain,
)
from ml.metrics import Kind, evaluate
from ml.prediction import raw_scores
from ml.scores import SCORE_EXAMPLES, SCORE_KEYS
from ml.slices import sliced, slicing_columns
from ml.strictness import sound_part
from ml.training import Candidate, held_out, metrics_in_slices, train
from tests.small_data import FIRST_DAY, a_candidate, a_model, a_score, some_rows, with_column

# --- Parameters, search, window, directions


def learned(kind: Kind = "probability", rows: pa.Table | None = None, **said: Any) -> Candidate:
    return train(rows if rows is not None else some_rows(kind=kind), a_score(kind, learning=Learning(**said)))


def test_parameters_that_are_set_are_those_of_the_booster() -> None:
    candidate = learned(params={"trees": 7, "depth": 2, "l2_leaf_reg": 9.0})
    assert candidate.trees == 7
    told = candidate.booster.get_all_params()
    assert (told["depth"], told["l2_leaf_reg"], told["learning_rate"]) == (2, 9, pytest.approx(0.08))


def test_trees_that_are_set_are_not_stopped_early() -> None:
    assert a_candidate().trees < 150
    assert learned(params={"trees": 150}).trees == 150
    searched = learned(params={"trees": 150}, trials=2)
    assert [trial["trees"] for trial in searched.search] == [150, 150] and searched.trees == 150


def test_a_weight_of_the_rare_outcome_raises_the_scores() -> None:
    rows = some_rows(customers=100)
    plain, weighted = learned(rows=rows), learned(rows=rows, params={"positive_weight": 20.0})
    matrix = encode(plain.encoder, plain.holdout)
    assert raw_scores(weighted.booster, matrix).mean() > raw_scores(plain.booster, matrix).mean() + 1


def test_a_weight_whose_scores_are_no_probabilities_and_cannot_be_calibrated_is_refused() -> None:
    with pytest.raises(TooFewRows, match="positive_weight moves the scores away from probabilities, and the newest"):
        learned(params={"positive_weight": 20.0})


def test_a_weight_is_calibrated_away_with_fewer_rows_than_it_takes_to_choose_how() -> None:
    candidate = learned(rows=some_rows(customers=100), params={"positive_weight": 20.0})
    assert (candidate.calibration.method, candidate.calibration.log_loss) == ("platt", {})
    assert candidate.scores.mean() == pytest.approx(candidate.rates["holdout"], abs=0.1)


def test_a_search_tries_as_often_as_it_is_told_and_keeps_what_is_best_on_the_newest_training_dates() -> None:
    candidate = learned(trials=4, params={"depth": 3})
    assert len(candidate.search) == 4
    assert all("depth" not in trial for trial in candidate.search)
    best = min(candidate.search, key=lambda trial: trial["loss"])
    assert candidate.params["depth"] == 3
    assert candidate.params["learning_rate"] == best["learning_rate"]
    assert candidate.trees == best["trees"]
    # The first has what there is without a search, so a search never loses on these dates.
    assert candidate.search[0]["learning_rate"] == 0.08


def test_a_search_gives_the_same_each_time() -> None:
    assert learned(trials=3).search == learned(trials=3).search


def test_only_as_of_dates_of_the_window_before_the_first_held_out_one_are_trained_on() -> None:
    candidate = learned(train_on_days=42.0)
    assert candidate.dates["holdout_from"] == FIRST_DAY + timedelta(weeks=12)
    assert candidate.dates["train_from"] == FIRST_DAY + timedelta(weeks=6)
    assert candidate.rows["train"] == 5 * 20  # weeks 6 to 10: those of 11 mature too late


def test_a_window_without_rows_is_named() -> None:
    with pytest.raises(TooFewRows, match="or lie before the window of train_on") as raised:
        learned(train_on_days=7.0)
    assert str(raised.value).endswith(
        "20 are needed, which a train_on of 14 days would have: the window ends on 2024-03-25, the first held-out date,"
        " and the newest labels that had matured by then are of 2024-03-11"
    )
    assert learned(train_on_days=14.0).rows["train"] == 20
    with pytest.raises(TooFewRows, match="20 are needed, which a train_on of 21 days would have"):
        learned(rows=some_rows(customers=19), train_on_days=14.0)
    with pytest.raises(TooFewRows, match=r"20 are needed$"):
        learned(rows=some_rows(weeks=4, customers=9), train_on_days=1.0)


@pytest.mark.parametrize("kind", ["probability", "amount"])
@pytest.mark.parametrize("direction", ["increasing", "decreasing"])
def test_a_monotone_feature_moves_the_score_one_way_alone(kind: Kind, direction: str) -> None:
    candidate = learned(kind, monotone={"days_away": direction})
    row = encode(candidate.encoder, some_rows(kind=kind).slice(1, 1))
    rows = np.repeat(row, 70, axis=0)
    rows[:, candidate.encoder.names.index("days_away")] = np.arange(70)
    steps = np.diff(raw_scores(candidate.booster, rows))
    assert (steps >= -1e-9).all() if direction == "increasing" else (steps <= 1e-9).all()


# --- Calibration


def outcomes(rows: int, shift: float = 0.0, slope: float = 1.0) -> tuple[Any, Any, Any]:
    """Log-odds, outcomes that come true by slope × log-odds + shift, and the number of the date of each."""
    random = np.random.default_rng(5)
    raw = random.normal(0, 2, rows)
    label = (random.random(rows) < 1 / (1 + np.exp(-(slope * raw + shift)))).astype(float)
    return raw, label, np.arange(rows) % 4


def test_probabilities_that_come_true_are_left_alone() -> None:
    assert learn_calibration(*outcomes(20_000)).method in ("none", "platt")
    raw = outcomes(100)[0]
    assert calibrated(Calibration(), raw) == pytest.approx(1 / (1 + np.exp(-raw)))


def test_too_sure_probabilities_are_mended_by_a_logistic() -> None:
    raw, label, moment = outcomes(20_000, shift=-1.0, slope=0.5)
    found = learn_calibration(raw, label, moment)
    assert (found.method, found.slope) == ("platt", pytest.approx(0.5, abs=0.05))
    assert found.log_loss["platt"] < found.log_loss["none"]
    assert calibrated(found, raw).mean() == pytest.approx(calibrated(Calibration(), raw).mean(), abs=0.02)
    weighted = learn_calibration(raw, label, moment, weighted=True)
    assert (weighted.slope, weighted.intercept) == (pytest.approx(0.5, abs=0.05), pytest.approx(-1, abs=0.1))


@pytest.mark.parametrize("now", [-1.5, 1.5])
def test_a_season_that_makes_the_outcome_rarer_or_commoner_calibrates_nothing(now: float) -> None:
    raw, label, moment = outcomes(20_000, shift=now)
    assert learn_calibration(raw, label, moment).method == "none"
    assert learn_calibration(raw, label, moment, weighted=True).method != "none"


def test_a_bent_curve_is_mended_by_steps_that_never_say_never() -> None:
    random = np.random.default_rng(6)
    raw = random.normal(0, 2, 20_000)
    label = (random.random(20_000) < np.where(raw > 0, 0.6, 0.1)).astype(float)
    found = learn_calibration(raw, label, np.arange(20_000) % 4)
    assert found.method == "isotonic"
    assert calibrated(found, raw).mean() == pytest.approx(calibrated(Calibration(), raw).mean(), abs=0.05)
    weighted = learn_calibration(raw, label, np.arange(20_000) % 4, weighted=True)
    assert weighted.method == "isotonic"
    told = calibrated(weighted, np.array([-50.0, -1.0, 1.0, 50.0]))
    assert told == pytest.approx([0.1, 0.1, 0.6, 0.6], abs=0.1)
    for one in (calibrated(found, np.array([-50.0, 50.0])), told):
        assert one.min() > 0 and one.max() < 1


def test_scores_that_rank_the_wrong_way_round_are_not_turned() -> None:
    found = learn_calibration(*outcomes(20_000, slope=-1.0))
    assert found.slope > 0
    low, high = calibrated(found, np.array([-3.0, 3.0]))
    assert low <= high, "a reason that raises the raw score raises the probability"


@pytest.mark.parametrize("moment", [np.zeros(20_000), np.concatenate([np.zeros(19_900), np.ones(100)])])
def test_one_date_or_hardly_a_row_calibrates_nothing(moment: Any) -> None:
    raw, label, _ = outcomes(20_000, shift=-2.0)
    assert learn_calibration(raw, label, moment) == Calibration()


def test_a_trained_score_is_calibrated_on_dates_that_neither_its_trees_nor_its_metrics_come_from() -> None:
    candidate = learned(rows=some_rows(customers=400), params={"positive_weight": 20.0})
    assert candidate.calibration.method != "none"
    assert candidate.calibration.log_loss[candidate.calibration.method] == min(candidate.calibration.log_loss.values())
    raw = raw_scores(candidate.booster, encode(candidate.encoder, candidate.holdout))
    uncalibrated = evaluate("probability", candidate.holdout.column("label").to_numpy(), calibrated(Calibration(), raw))
    assert candidate.metrics["log_loss"] < uncalibrated["log_loss"] - 0.1
    assert a_candidate("amount").calibration == Calibration()


# --- Slices


def test_slices_have_the_metrics_of_their_rows_and_the_unknown_are_one() -> None:
    rows = some_rows(customers=200)
    model, holdout = a_model(), held_out(rows, a_score())
    found = metrics_in_slices(model, holdout, ["colour", "member"])
    assert [(one.column, one.value) for one in found] == [
        *(("colour", value) for value in ("blue", "green", "red")),
        *(("member", value) for value in ("false", "true", "unknown")),
    ]  # too few rows have no colour
    blue = holdout.filter(pc.equal(holdout.column("colour"), "blue"))
    (alone,) = metrics_in_slices(model, blue, ["colour"])
    assert alone == found[0]
    assert found[0].rows == blue.num_rows


def test_columns_with_one_value_or_many_make_no_slices_by_themselves() -> None:
    rows = with_column(some_rows(), "name", [str(number) for number in range(320)])
    rows = with_column(rows, "country", ["fr"] * 320)
    assert slicing_columns(rows, ["colour", "member", "spend", "name", "country", "joined_on"]) == ["colour", "member"]
    label = score = np.linspace(0, 1, 320).round()
    assert sliced("probability", rows, label, score, ["name"]) == []


# --- What is declared


def faults_of(declared: dict[str, Any], kind: str = "probability") -> list[str]:
    faults: list[str] = []
    read_learning(declared, kind, ["spend"], ["spend", "colour"], "here", faults)
    read_explained(declared.get("reasons"), ["high", "low"], kind, "here", faults)
    read_retrain(declared.get("retrain"), "here", faults)
    read_contact(declared.get("contact"), kind, "here", faults)
    return faults


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown parameter": ({"params": {"deep": 3}}, "here: params: unknown key 'deep' (known: trees, depth,"),
    "parameter out of range": ({"params": {"depth": 40}}, "here: params: depth is 40, not a whole number from 1 to 10"),
    "parameter that is no number": (
        {"params": {"learning_rate": "fast"}},
        "here: params: learning_rate is 'fast', not a number from 0.001 to 1",
    ),
    "half a tree": ({"params": {"trees": 1.5}}, "here: params: trees is 1.5, not a whole number from 1 to 10000"),
    "weight of no outcome": (
        {"params": {"positive_weight": 2}, "kind": "amount"},
        "here: params: positive_weight weighs the outcome 1 of a probability, and this is a amount",
    ),
    "search without bound": ({"search": {}}, "here: search: lacks trials (keys: trials)"),
    "search of nothing": (
        {"search": {"trials": 3}, "params": {**dict.fromkeys(SPACE, 1), "depth": 4}},
        "here: search: params sets all that a search tries (depth, learning_rate, l2_leaf_reg, random_strength, rsm)",
    ),
    "search without end": ({"search": {"trials": 10_000}}, "search: trials is 10000, not a whole number from 1 to 200"),
    "search that is a number": ({"search": 20}, "here: search: is 20, not a mapping (keys: trials)"),
    "trials in words": ({"search": {"trials": "few"}}, "trials is 'few', not a whole number (write e.g. trials: 20)"),
    "reasons of one band": (
        {"reasons": {"bands": "high"}},
        "here: reasons: bands is 'high', not a list (write e.g. bands: [high])",
    ),
    "cool-down without a unit": (
        {"retrain": {"every": "4 weeks", "cooldown": 7}},
        "here: retrain: cooldown is 7, not text (write e.g. cooldown: 7 days)",
    ),
    "window in other digits": ({"train_on": "٣ days"}, "here: train_on: '٣ days' is no length of time"),
    "window with a separator": ({"train_on": "1_000 days"}, "here: train_on: '1_000 days' is no length of time"),
    "window that is no time": ({"train_on": "a while"}, "here: train_on: 'a while' is no length of time"),
    "monotone of nothing": ({"monotone": {"spent": "increasing"}}, "monotone names 'spent', which is no feature"),
    "monotone text": ({"monotone": {"colour": "increasing"}}, "monotone names 'colour', which is text"),
    "monotone up": ({"monotone": {"spend": "up"}}, "'spend' is 'up' (possible: increasing, decreasing)"),
    "monotone category": (
        {"monotone": {"spend": "increasing"}, "kind": "category"},
        "monotone is for a probability or an amount",
    ),
    "reasons for nobody": ({"reasons": {"bands": ["hihg"]}}, "here: reasons: bands names hihg (bands: high, low)"),
    "too many reasons": ({"reasons": {"top": 99}}, "here: reasons: top is 99, not a whole number from 0 to 20"),
    "more than any number": (
        {"reasons": {"sample": 10**400}},
        f"here: reasons: sample is {10**400}, larger than any number (1.8e+308)",
    ),
    "more than all": ({"reasons": {"sample": 3}}, "here: reasons: sample is 3, not a share from 0 to 1"),
    "retrain by nothing": ({"retrain": {"cooldown": "3 days"}}, "here: retrain: names nothing that starts a training"),
    "cool-down of hours": (
        {"retrain": {"every": "1 day", "cooldown": "23 hours"}},
        "here: retrain: cooldown is '23 hours', which is none: days are counted by date (write 1 day at least)",
    ),
    "trained by the minute": (
        {"retrain": {"every": "5 minutes"}},
        "here: retrain: every is '5 minutes', which is none",
    ),
    "no budget": ({"retrain": {"every": "7 days", "budget": 0}}, "here: retrain: budget is 0, not a whole number"),
    "contact without its cost": ({"contact": {"value": 4.0}}, "here: contact: lacks cost (keys: value, cost)"),
    "contact with a name": ({"contact": {"value": 4, "cost": 1, "unit": "USD"}}, "here: contact: unknown key 'unit'"),
    "contact for nothing": ({"contact": {"value": 4, "cost": 0}}, "here: contact: cost is 0, not an amount of money"),
    "worth less than nothing": ({"contact": {"value": -1, "cost": 1}}, "here: contact: value is -1, not an amount"),
    "contact by class": (
        {"contact": {"value": 4, "cost": 1}, "kind": "category"},
        "here: contact: is for a probability or an amount",
    ),
    "all drifted": ({"retrain": {"drift": 30}}, "here: retrain: drift is 30, not a share of the importance"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_what_makes_no_sense_is_refused_with_what_is_possible(mistake: str) -> None:
    declared, message = WRONG[mistake]
    (told,) = faults_of(declared, declared.get("kind", "probability"))
    assert message in told


@pytest.mark.parametrize(
    ("keys", "examples"),
    [
        (SCORE_KEYS, SCORE_EXAMPLES),
        (SEARCH_KEYS, SEARCH_EXAMPLES),
        (REASONS_KEYS, REASONS_EXAMPLES),
        (RETRAIN_KEYS, RETRAIN_EXAMPLES),
        (CONTACT_KEYS, CONTACT_EXAMPLES),
    ],
)
def test_what_is_told_of_a_key_is_right(keys: dict[str, type], examples: dict[str, str]) -> None:
    faults: list[str] = []
    written = {key: yaml.safe_load(example) for key, example in examples.items()}
    assert sound_part(written, keys, list(keys), "here", faults).keys() == keys.keys()
    assert faults == []


def test_what_makes_sense_is_read() -> None:
    assert (
        faults_of(
            {
                "params": {"depth": 4, "learning_rate": 1},
                "search": {"trials": 20},
                "train_on": "26 weeks",
                "monotone": {"spend": "increasing"},
                "reasons": {"top": 5, "bands": ["high"], "sample": 0.1},
                "retrain": {"every": "4 weeks", "new_labels": 5000, "drift": 0.3, "performance": True, "budget": 2},
                "contact": {"value": 4, "cost": 0.15},
            }
        )
        == []
    )
