"""What a metric will be is told before anything has come true, and is checked here by outcomes drawn from the score."""

from typing import Any

import numpy as np
import pytest

from ml.estimation import EstimatedMetric, estimated_metrics
from ml.metrics import METRICS, Kind, evaluate

DRAWS = 120


def estimates(kind: Kind, scores: Any) -> dict[str, EstimatedMetric]:
    return {found.metric: found for found in estimated_metrics(kind, scores)}


def drawn(kind: Kind, scores: Any) -> dict[str, Any]:
    """Metric -> its values where outcomes come as often as the scores say, drawn many times."""
    random = np.random.default_rng(11)
    found = []
    for _ in range(DRAWS):
        if kind == "probability":
            labels = (random.random(len(scores)) < scores).astype(float)
        else:
            labels = (random.random((len(scores), 1)) > np.cumsum(scores, axis=1)[:, :-1]).sum(axis=1)
        found.append(evaluate(kind, labels, scores))
    return {name: np.array([one[name] for one in found]) for name in METRICS[kind]}


def agrees(kind: Kind, scores: Any) -> dict[str, EstimatedMetric]:
    found, outcomes = estimates(kind, scores), drawn(kind, scores)
    for name, one in found.items():
        spread = outcomes[name].std()
        assert abs(one.estimated - outcomes[name].mean()) < 4 * spread / np.sqrt(DRAWS) + 1e-3, name
        assert (one.high - one.low) / 2 == pytest.approx(1.96 * spread, rel=0.25), name
    return found


SCORES = {
    "spread": np.random.default_rng(1).beta(0.6, 1.4, 1000),
    "rare": np.random.default_rng(2).beta(0.5, 12, 1500),
    "in steps": np.round(np.random.default_rng(3).beta(1, 2, 1000), 1) * 0.9 + 0.05,  # most rows tie with others
}


@pytest.mark.parametrize("shape", SCORES)
def test_each_estimate_of_a_probability_is_the_mean_of_what_comes_true_and_its_interval_the_spread(shape: str) -> None:
    found = agrees("probability", SCORES[shape])
    assert list(found) == [name for name in METRICS["probability"] if name != "calibration_error"]


def test_each_estimate_of_a_category_is_the_mean_of_what_comes_true_and_its_interval_the_spread() -> None:
    found = agrees("category", np.random.default_rng(4).dirichlet([1.5, 1, 0.5], 900))
    assert list(found) == [name for name in METRICS["category"] if name != "calibration_error"]


def test_an_amount_and_no_row_at_all_have_no_estimate() -> None:
    assert estimated_metrics("amount", np.arange(100.0)) == []
    assert estimated_metrics("probability", np.array([])) == []


def test_where_an_outcome_is_hardly_expected_no_rank_is_estimated() -> None:
    assert set(estimates("probability", np.full(50, 0.001))) == {"log_loss", "brier"}
    rare = np.column_stack([np.full(100, 0.69), np.full(100, 0.30), np.full(100, 0.01)])
    assert set(estimates("category", rare)) == {"accuracy", "log_loss"}


def test_a_score_that_is_certain_is_expected_to_be_right() -> None:
    found = estimates("probability", np.array([0.0] * 90 + [1.0] * 10))
    assert {name: one.estimated for name, one in found.items()} == pytest.approx(
        {"roc_auc": 1, "average_precision": 1, "log_loss": 0, "brier": 0, "lift_top_decile": 10}
    )
    assert found["roc_auc"].low == pytest.approx(1)


def test_the_same_score_for_all_is_expected_to_be_a_guess() -> None:
    found = estimates("probability", np.full(400, 0.3))
    assert found["roc_auc"].estimated == pytest.approx(0.5)
    assert found["lift_top_decile"].estimated == pytest.approx(1)


def test_the_order_of_rows_makes_no_difference_to_an_estimate() -> None:
    scores = SCORES["in steps"]
    for one, other in zip(
        estimated_metrics("probability", scores), estimated_metrics("probability", scores[::-1]), strict=True
    ):
        assert one.estimated == pytest.approx(other.estimated, rel=1e-12)
