"""A card shows the held-out rows as people look at them: curves, parts, and what moves the score."""

from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest

from ml import evaluation
from ml.calibration import Calibration
from ml.cards import evaluated
from ml.declarations import Kind
from ml.encoding import encode
from ml.evaluation import Evaluation, confusion, evaluate_holdout
from ml.explanation import contributions
from ml.gains import held_by_highest
from ml.metrics import METRICS, equal_bins
from ml.prediction import score_rows
from ml.registry import Card, Model, load_card, save
from ml.training import label_rates
from tests.small_data import a_candidate, a_model

KINDS: list[Kind] = ["probability", "amount"]


@cache
def a_card(kind: Kind) -> Card:
    return evaluated(a_candidate(kind), a_model(kind).card)


def shown(kind: Kind) -> Evaluation:
    found = a_card(kind).evaluation
    assert found is not None
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_card_has_the_interval_of_each_metric_and_how_long_labels_take(kind: Kind) -> None:
    card = a_card(kind)
    assert set(card.intervals) == set(METRICS[kind])
    assert all(low <= card.metrics[name] <= high for name, (low, high) in card.intervals.items())
    assert card.matures_in_days == (14, 14)
    label = a_candidate(kind).holdout.column("label").to_numpy()
    assert card.rates["holdout"] == pytest.approx(label.mean()) and set(card.rates) == {"train", "holdout"}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_card_shows_comes_back_as_it_was_saved(kind: Kind, tmp_path: Path) -> None:
    signed = save(tmp_path / "model", a_model(kind).booster, a_card(kind))
    assert load_card(tmp_path / "model") == signed
    assert signed.evaluation == shown(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_bins_hold_all_rows_and_rise_with_the_score(kind: Kind) -> None:
    bins = shown(kind).bins["score"]
    holdout = a_candidate(kind).holdout
    assert len(bins) == 10 and sum(one.rows for one in bins) == holdout.num_rows
    assert [one.predicted for one in bins] == sorted(one.predicted for one in bins)
    total = sum(one.observed * one.rows for one in bins)
    assert total == pytest.approx(float(holdout.column("label").to_numpy().sum()))


@pytest.mark.parametrize("kind", KINDS)
def test_gains_rise_to_all_and_are_better_than_chance(kind: Kind) -> None:
    gains = shown(kind).gains["score"]
    assert len(gains) == 20 and gains[-1] == 1
    assert list(gains) == sorted(gains)
    assert all(gain >= (place + 1) / 20 for place, gain in enumerate(gains))


def test_slices_have_the_naive_forecast_too_and_are_also_of_the_columns_that_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ml.slices.LEAST_ROWS", 3)
    monkeypatch.setattr("ml.slices.LEAST_OUTCOMES", 0)
    holdout = a_candidate().holdout
    label = holdout.column("label").to_numpy()
    slices = evaluate_holdout(a_model(), holdout, label, slice_by=["customer_id", "no column"]).slices
    assert {"member", "colour", "customer_id", "week"} == {part.column for part in slices}
    (member,) = [part for part in slices if (part.column, part.value) == ("member", "true")]
    assert member.metrics.keys() == member.baseline.keys() and member.metrics != member.baseline


def test_rows_of_equal_score_share_what_they_hold() -> None:
    gains = held_by_highest(np.array([1.0, 0, 0, 0]), np.full(4, 0.3))
    assert gains == pytest.approx(np.arange(1, 21) / 20)
    assert held_by_highest(np.zeros(4), np.arange(4.0)) == (), "where nothing happened there is nothing to hold"


def test_a_calibrated_score_is_shown_beside_what_it_was_before() -> None:
    model = a_model(calibration=Calibration(method="platt", slope=0.5, intercept=-1))
    holdout = a_candidate().holdout
    found = evaluate_holdout(model, holdout, holdout.column("label").to_numpy())
    assert found.bins["uncalibrated"] == shown("probability").bins["score"]
    assert found.bins["score"] != found.bins["uncalibrated"]


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_those_of_texts_booleans_and_held_out_dates(kind: Kind) -> None:
    candidate = a_candidate(kind)
    many = candidate.holdout.take(list(range(candidate.holdout.num_rows)) * 4)  # a part needs 50 rows
    found = evaluate_holdout(a_model(kind), many, many.column("label").to_numpy())
    assert {part.column for part in found.slices} == {"member", "colour", "week"}
    weeks = [part for part in found.slices if part.column == "week"]
    assert [part.value for part in weeks] == ["2024-03-25", "2024-04-01", "2024-04-08", "2024-04-15"]
    assert all(np.isfinite(value) for part in found.slices for value in part.metrics.values())


@pytest.mark.parametrize("kind", KINDS)
def test_what_moves_the_score_are_its_contributions_beside_the_rank_of_each_value(kind: Kind) -> None:
    model, holdout = a_model(kind), a_candidate(kind).holdout
    added, _ = contributions(model.leaf_table, encode(model.card.encoder, holdout))
    moves = {one.feature: one for one in shown(kind).moves}
    assert next(iter(moves)) in ("days_away", "seen_at"), "the features that the outcome was made from"
    for place, name in enumerate(model.card.encoder.names):
        if name in moves:
            np.testing.assert_allclose(moves[name].contributions, added[:, place], rtol=0.01, atol=1e-12)
    days, values = holdout.column("days_away").to_pylist(), moves["days_away"].values
    assert [value is None for value in values] == [day is None for day in days]
    known = [(day, value) for day, value in zip(days, values, strict=True) if day is not None and value is not None]
    assert min(known)[1] == 0 and max(known)[1] == 1
    assert [value for _, value in sorted(known)] == sorted(value for _, value in known)
    if "colour" in moves:
        codes = {None: None, **{name: place + 1 for place, name in enumerate(moves["colour"].categories)}}
        assert moves["colour"].values == tuple(codes[name] for name in holdout.column("colour").to_pylist())


def test_of_many_rows_a_few_are_drawn_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "EXPLAINED_ROWS", 10)
    monkeypatch.setattr(evaluation, "EXPLAINED_FEATURES", 2)
    card = evaluated(a_candidate(), a_model().card)
    assert card.evaluation is not None
    assert [len(one.contributions) for one in card.evaluation.moves] == [10, 10]
    assert evaluated(a_candidate(), a_model().card) == card


def test_a_category_is_shown_class_by_class() -> None:
    label, score = np.array([0, 1, 1, 5]), np.array([[0.7, 0.3], [0.2, 0.8], [0.6, 0.4], [0.1, 0.9]])
    assert confusion(label, score) == ((1, 0), (1, 1), (0, 1)), "the last row is a class that the model does not know"
    assert confusion(label[:3], score[:3]) == ((1, 0), (1, 1))
    sides = evaluation._sides("category", ("gold", "silver"), label, score)
    assert [one.observed for one in equal_bins(*sides["gold"])] == [0, 0, 0, 1]
    assert label_rates(("gold", "silver"), holdout=label) == {"holdout gold": 0.25, "holdout silver": 0.5}


def test_the_metrics_of_a_card_are_those_of_what_it_shows() -> None:
    model = Model(a_candidate().booster, a_card("probability"))
    assert shown("probability").bins["score"] == tuple(
        equal_bins(a_candidate().holdout.column("label").to_numpy(), score_rows(model, a_candidate().holdout))
    )
    assert len(msgspec.json.encode(a_card("probability"))) < 30_000
