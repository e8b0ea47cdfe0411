"""Metrics against what pencil and paper, and scikit-learn, say."""

import math
from typing import Any, get_args

import numpy as np
import pytest

from ml.declarations import Kind
from ml.metrics import HIGHER_IS_BETTER, METRICS, RANGES, equal_bins, evaluate, evaluate_resamples

LABELS, SCORES = [1, 0, 1, 0], [0.9, 0.8, 0.3, 0.1]


def probability(label: Any, score: Any) -> dict[str, float]:
    return evaluate("probability", np.array(label), np.array(score))


def amount(label: Any, score: Any) -> dict[str, float]:
    return evaluate("amount", np.array(label), np.array(score))


BY_HAND: dict[Kind, tuple[list[float], list[Any], dict[str, float]]] = {
    "probability": (
        [1, 0, 1, 0],
        [0.9, 0.8, 0.3, 0.1],
        {
            "roc_auc": 3 / 4,  # of the four pairs only 0.3 and 0.8 are the wrong way round
            "average_precision": (1 / 1 + 2 / 3) / 2,  # hits at the first and third place
            "log_loss": -(math.log(0.9) + math.log(0.2) + math.log(0.3) + math.log(0.9)) / 4,
            "brier": (0.01 + 0.64 + 0.49 + 0.01) / 4,
            "lift_top_decile": 1 / 0.5,  # the one highest is a hit
            "calibration_error": (0.1 + 0.8 + 0.7 + 0.1) / 4,  # a bin per row
        },
    ),
    "amount": (
        [1, 2, 6],
        [2, 2, 8],
        {
            "r2": 1 - (1 + 0 + 4) / (4 + 1 + 9),
            "mae": (1 + 0 + 2) / 3,
            "rmse": math.sqrt((1 + 0 + 4) / 3),
            "bias": 12 / 3 - 9 / 3,
        },
    ),
    "category": (
        [0, 1, 0, 2],
        [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1], [0.5, 0.0, 0.5]],
        {
            "balanced_accuracy": (1 / 2 + 1 + 0) / 3,
            "accuracy": 2 / 4,
            "f1_macro": (2 * 0.5 * 0.5 / 1 + 2 * 0.5 * 1 / 1.5 + 0) / 3,
            "roc_auc": (3 / 4 + 1 + 1) / 3,  # of class 0: 0.3 is below 0.5
            "log_loss": -(math.log(0.7) + math.log(0.8) + math.log(0.3) + math.log(0.5)) / 4,
            "calibration_error": (0.3 + 0.2 + 0.6 + 0.5) / 4,  # a bin per row
        },
    ),
}


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_metric_is_what_it_is_by_hand(kind: Kind) -> None:
    label, score, expected = BY_HAND[kind]
    assert list(expected) == list(METRICS[kind])
    assert evaluate(kind, np.array(label), np.array(score)) == pytest.approx(expected, abs=1e-12)


def by_sklearn(kind: Kind, label: Any, score: Any) -> dict[str, float]:
    """What scikit-learn says, of those metrics that it knows."""
    from sklearn import metrics as known

    if kind == "probability":
        return {
            "roc_auc": known.roc_auc_score(label, score),
            "average_precision": known.average_precision_score(label, score),
            "log_loss": known.log_loss(label, score),
            "brier": known.brier_score_loss(label, score),
        }
    if kind == "amount":
        return {
            "r2": known.r2_score(label, score),
            "mae": known.mean_absolute_error(label, score),
            "rmse": known.root_mean_squared_error(label, score),
        }
    chosen, happened = score.argmax(axis=1), np.unique(label)
    sides = [(label == place, score[:, place]) for place in happened if place < score.shape[1]]
    padded = score if happened[-1] < score.shape[1] else np.column_stack([score, np.zeros(len(score))])
    return {
        "balanced_accuracy": float(np.mean([(chosen[label == place] == place).mean() for place in happened])),
        "accuracy": known.accuracy_score(label, chosen),
        "f1_macro": known.f1_score(label, chosen, labels=happened, average="macro", zero_division=0.0),
        "roc_auc": float(np.mean([known.roc_auc_score(truth, values) for truth, values in sides])),
        "log_loss": known.log_loss(label, padded, labels=range(padded.shape[1])),
    }


def drawn(kind: Kind, rows: int, decimals: int, seed: int) -> tuple[Any, Any]:
    """Labels and scores of a kind; the fewer decimals, the more ties, and with none probabilities of 0 and 1."""
    random = np.random.default_rng(seed)
    if kind == "category":
        score = random.dirichlet([1, 2, 0.5], rows)
        score[:, 1:] = np.round(score[:, 1:] / 2, decimals)
        score[:, 0] = 1 - score[:, 1:].sum(axis=1)
        return random.integers(0, 3 + seed % 2, rows), score  # of odd seeds with a class that is not known
    score = np.round(random.random(rows), decimals)
    return ((random.random(rows) < 0.3).astype(int) if kind == "probability" else random.gamma(2, 20, rows)), score


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize(("rows", "decimals"), [(30, 0), (30, 9), (2000, 0), (2000, 2), (2000, 9)])
def test_every_metric_is_what_scikit_learn_says(kind: Kind, rows: int, decimals: int) -> None:
    for seed in range(4):
        label, score = drawn(kind, rows, decimals, seed)
        expected = by_sklearn(kind, label, score)
        measured = evaluate(kind, label, score)
        assert set(METRICS[kind]) - set(expected) <= {"lift_top_decile", "calibration_error", "bias"}
        assert {name: measured[name] for name in expected} == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize(("rows", "decimals"), [(3, 1), (12, 0), (40, 1), (300, 9)])
def test_a_weight_is_as_many_rows(kind: Kind, rows: int, decimals: int) -> None:
    for seed in range(4):
        label, score = drawn(kind, rows, decimals, seed)
        weights = np.random.default_rng(seed).poisson(1, (50, rows))
        weights[:, 0] += weights.sum(axis=1) == 0
        measured = evaluate_resamples(kind, label, score, weights.astype(float))
        for place, weight in enumerate(weights):
            expected = evaluate(kind, np.repeat(label, weight), np.repeat(score, weight, axis=0))
            found = {name: values[place] for name, values in measured.items()}
            assert found == pytest.approx(expected, rel=1e-12, abs=1e-12, nan_ok=True)


def as_scores(kind: Kind, score: Any) -> Any:
    """Scores (rows,) as this kind has them: of a category the probabilities of two classes."""
    score = np.array(score, dtype=np.float64)
    return np.stack([1 - score, score], axis=-1) if kind == "category" else score


def noisy(rows: int = 300) -> tuple[Any, Any]:
    """Labels and scores of one decimal, so with many ties."""
    random = np.random.default_rng(3)
    score = np.round(random.random(rows), 1)
    return (random.random(rows) < score).astype(int), score


def test_the_auc_counts_pairs_and_half_of_those_that_tie() -> None:
    label, score = noisy()
    pairs = [(hit > miss) + 0.5 * (hit == miss) for hit in score[label == 1] for miss in score[label == 0]]
    assert probability(label, score)["roc_auc"] == pytest.approx(sum(pairs) / len(pairs))


def test_average_precision_takes_rows_of_equal_score_together() -> None:
    label, score = noisy()
    expected, hits_above = 0.0, 0
    for threshold in sorted(set(score), reverse=True):
        hits = int(label[score >= threshold].sum())
        expected += (hits - hits_above) / label.sum() * hits / (score >= threshold).sum()
        hits_above = hits
    assert probability(label, score)["average_precision"] == pytest.approx(expected)


def test_rows_that_tie_at_the_edge_of_the_top_decile_count_with_their_mean() -> None:
    # Twenty rows, two in the decile: the highest (a hit) and one of four that tie, of which one is a hit.
    label = [1] + [1, 0, 0, 0] + [0] * 10 + [1] * 5
    score = [0.9] + [0.5] * 4 + [0.1] * 15
    assert probability(label, score)["lift_top_decile"] == pytest.approx((1 + 1 / 4) / 2 / (7 / 20))


def test_the_top_decile_of_a_constant_score_has_no_lift() -> None:
    assert probability([1, 0, 0] * 11, [0.3] * 33)["lift_top_decile"] == pytest.approx(1)


@pytest.mark.parametrize(("rows", "in_decile"), [(1, 1), (9, 1), (10, 1), (11, 2), (30, 3), (70, 7), (71, 8)])
def test_the_top_decile_is_rounded_up_and_has_one_row_at_least(rows: int, in_decile: int) -> None:
    score = np.arange(rows, 0, -1) / (rows + 1)
    label = np.arange(rows) < 8  # the eight highest
    hits = min(in_decile, 8)
    assert probability(label, score)["lift_top_decile"] == pytest.approx(hits / in_decile / label.mean())


def test_calibration_is_measured_in_ten_bins_of_equal_count() -> None:
    score = np.repeat(np.arange(10) / 10 + 0.05, 3)
    label = np.tile([1, 0, 0], 10)  # a third comes true in every bin
    assert probability(label, score)["calibration_error"] == pytest.approx(np.abs(score - 1 / 3).mean())


def test_a_bin_is_as_far_off_as_its_mean_score_from_its_rate() -> None:
    # Bins of two rows: a hit and a miss in each, at scores that lie 0.02 apart.
    score = np.arange(20) / 50 + 0.4
    centres = score.reshape(10, 2).mean(axis=1)
    assert probability([1, 0] * 10, score)["calibration_error"] == pytest.approx(np.abs(centres - 0.5).mean())


@pytest.mark.parametrize("rows", [1, 7, 10, 23, 299])
def test_bins_are_cut_by_count_alone_and_rows_of_equal_score_share_their_mean_label(rows: int) -> None:
    label, score = noisy(rows)
    order = np.argsort(score)
    shared = np.array([label[score == value].mean() for value in score])
    parts = [part for part in np.array_split(order, 10) if len(part)]
    bins = equal_bins(label, score)
    assert [one.rows for one in bins] == [len(part) for part in parts]
    assert [one.predicted for one in bins] == pytest.approx([score[part].mean() for part in parts], abs=1e-12)
    assert [one.observed for one in bins] == pytest.approx([shared[part].mean() for part in parts], abs=1e-12)
    apart = sum(abs((score - shared)[part].sum()) for part in parts) / rows
    assert probability(label, score)["calibration_error"] == pytest.approx(apart, abs=1e-12)


def test_a_calibrated_score_has_no_calibration_error() -> None:
    assert probability([1, 0] * 20 + [1, 0, 0, 0] * 10, [0.5] * 40 + [0.25] * 40)["calibration_error"] == pytest.approx(
        0
    )


@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_order_of_the_rows_changes_no_metric(kind: Kind) -> None:
    label, score = noisy()
    score = as_scores(kind, score)
    order = np.random.default_rng(5).permutation(len(label))
    assert evaluate(kind, label[order], score[order]) == pytest.approx(evaluate(kind, label, score), rel=1e-12)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int64, np.float32])
def test_outcomes_may_come_as_booleans_or_any_number(dtype: Any) -> None:
    assert probability(np.array(LABELS, dtype=dtype), SCORES) == probability(LABELS, SCORES)


@pytest.mark.parametrize(
    ("label", "undefined"),
    [
        ([0, 0, 0], {"roc_auc", "average_precision", "lift_top_decile"}),
        ([1, 1, 1], {"roc_auc"}),
    ],
)
def test_a_metric_without_meaning_for_one_outcome_is_nan(label: list[int], undefined: set[str]) -> None:
    measured = probability(label, [0.2, 0.5, 0.7])
    assert {name for name, value in measured.items() if math.isnan(value)} == undefined


@pytest.mark.parametrize("label", [[4.0, 4.0, 4.0], [4.0]])
def test_the_r2_of_equal_amounts_is_nan(label: list[float]) -> None:
    measured = amount(label, np.arange(len(label)))
    assert [name for name, value in measured.items() if math.isnan(value)] == ["r2"]


def test_certain_and_wrong_has_a_finite_log_loss() -> None:
    assert 30 < probability([1, 0], [0.0, 1.0])["log_loss"] < 1000


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_label_or_score_that_is_not_finite_is_refused(kind: Kind, wrong: float) -> None:
    for label, score in (([0, wrong], [0.5, 0.5]), ([0, 1], [0.5, wrong])):
        with pytest.raises(ValueError, match="null, NaN or infinite"):
            evaluate(kind, np.array(label), as_scores(kind, score))


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize(("label", "score"), [([], []), ([1, 0], [0.5]), ([[1, 0]], [[0.5, 0.5]])])
def test_scores_that_do_not_match_their_labels_are_refused_with_both_shapes(kind: Kind, label: Any, score: Any) -> None:
    with pytest.raises(ValueError, match=r"as many scores as labels, and one at least: \(.*\) scores, \(.*\) labels"):
        evaluate(kind, np.array(label), as_scores(kind, score))


@pytest.mark.parametrize("label", [[0, 2], [0.5, 1], [-1, 1]])
def test_the_label_of_a_probability_is_0_or_1(label: list[float]) -> None:
    with pytest.raises(ValueError, match="is 0 or 1"):
        probability(label, [0.5, 0.5])


@pytest.mark.parametrize("wrong", [-0.1, 1.1])
def test_a_probability_below_0_or_above_1_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        probability([1, 0], [0.5, wrong])
    with pytest.raises(ValueError, match="between 0 and 1"):
        evaluate("category", np.array([0, 1]), np.array([[0.5, 0.5], [1 - wrong, wrong]]))


def test_every_metric_says_which_way_is_better_and_how_far_it_goes() -> None:
    assert set(HIGHER_IS_BETTER) == set(RANGES) == {name for kind in METRICS for name in METRICS[kind]}


def test_a_class_that_the_model_does_not_know_counts_as_wrong() -> None:
    known = [[0.9, 0.1], [0.2, 0.8]]
    measured = evaluate("category", np.array([0, 1, 7]), np.array([*known, [0.6, 0.4]]))
    assert measured["accuracy"] == pytest.approx(2 / 3)
    assert measured["balanced_accuracy"] == pytest.approx((1 + 1 + 0) / 3)
    assert 10 < measured["log_loss"] < 100
