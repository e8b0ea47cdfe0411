"""Metrics against what pencil and paper say, and gates that pass nothing they should not."""

import math
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import pytest

from ml.declarations import Kind
from ml.evaluation import (
    HIGHER_IS_BETTER,
    METRICS,
    GateError,
    GateResult,
    check_gate,
    evaluate,
    gate_names,
    known_gate_names,
)

LABELS, SCORES = [1, 0, 1, 0], [0.9, 0.8, 0.3, 0.1]


def probability(label: Any, score: Any) -> dict[str, float]:
    return evaluate("probability", np.array(label), np.array(score))


def amount(label: Any, score: Any) -> dict[str, float]:
    return evaluate("amount", np.array(label), np.array(score))


BY_HAND: dict[Kind, tuple[list[float], list[float], dict[str, float]]] = {
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
}


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_metric_is_what_it_is_by_hand(kind: Kind) -> None:
    label, score, expected = BY_HAND[kind]
    assert list(expected) == list(METRICS[kind])
    assert evaluate(kind, np.array(label), np.array(score)) == pytest.approx(expected, abs=1e-12)


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


def test_a_calibrated_score_has_no_calibration_error() -> None:
    assert probability([1, 0] * 20 + [1, 0, 0, 0] * 10, [0.5] * 40 + [0.25] * 40)["calibration_error"] == pytest.approx(
        0
    )


@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_order_of_the_rows_changes_no_metric(kind: Kind) -> None:
    label, score = noisy()
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
            evaluate(kind, np.array(label), np.array(score))


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize(("label", "score"), [([], []), ([1, 0], [0.5]), ([[1, 0]], [[0.5, 0.5]])])
def test_scores_that_do_not_match_their_labels_are_refused_with_both_shapes(kind: Kind, label: Any, score: Any) -> None:
    with pytest.raises(ValueError, match=r"as many scores as labels, and one at least: \(.*\) scores, \(.*\) labels"):
        evaluate(kind, np.array(label), np.array(score))


@pytest.mark.parametrize("label", [[0, 2], [0.5, 1], [-1, 1]])
def test_the_label_of_a_probability_is_0_or_1(label: list[float]) -> None:
    with pytest.raises(ValueError, match="is 0 or 1"):
        probability(label, [0.5, 0.5])


def test_every_metric_says_which_way_is_better() -> None:
    assert set(HIGHER_IS_BETTER) == {name for kind in METRICS for name in METRICS[kind]}


# --- The gate

METRIC = {"roc_auc": 0.8, "brier": 0.1}
NAIVE = {"roc_auc": 0.7, "brier": 0.2}
CHAMPION = {"roc_auc": 0.85, "brier": 0.05}


def gate(
    condition: str, champion: Mapping[str, float] | None = CHAMPION, metrics: Mapping[str, float] = METRIC
) -> GateResult:
    (result,) = check_gate([condition], metrics, NAIVE, champion)
    return result


PASSED = [
    "roc_auc >= 0.8",
    "roc_auc between 0.5 and 0.9",
    "not roc_auc < 0.5",
    "roc_auc > baseline_roc_auc + 0.05",
    "roc_auc >= champion_roc_auc - 0.06",
    "abs(roc_auc - champion_roc_auc) < 0.1",
    "brier < 0.2 and (roc_auc > 0.9 or baseline_brier > 0.1)",
    "least(roc_auc, baseline_roc_auc) = 0.7",
    "greatest(roc_auc, champion_roc_auc) = 0.85",
    "coalesce(champion_roc_auc, 0) = 0.85",
    "roc_auc in (0.8, 0.9)",
    "roc_auc not in (0.1)",
    "roc_auc is not null",
    "-brier / 2 * 4 < -0.1",
    'ROC_AUC >= 0.8 and "roc_auc" >= 0.8',
    "roc_auc\n  >= 8e-1",
]
FAILED = [
    "roc_auc >= 0.81",
    "roc_auc >= champion_roc_auc",
    "not roc_auc = 0.8",
    "baseline_roc_auc > roc_auc",
    "roc_auc is null",
]


@pytest.mark.parametrize("condition", PASSED)
def test_a_condition_that_holds_passes_without_a_note(condition: str) -> None:
    result = gate(condition)
    assert (result.condition, result.passed, result.note) == (condition, True, "")


@pytest.mark.parametrize("condition", FAILED)
def test_a_condition_that_does_not_hold_fails_without_a_note(condition: str) -> None:
    assert (gate(condition).passed, gate(condition).note) == (False, "")


def test_a_result_has_the_values_that_the_condition_named() -> None:
    assert gate("roc_auc > baseline_roc_auc and champion_brier < 1").values == {
        "roc_auc": 0.8,
        "baseline_roc_auc": 0.7,
        "champion_brier": 0.05,
    }


def test_conditions_are_judged_each_for_itself_in_their_order() -> None:
    results = check_gate([*PASSED, *FAILED], METRIC, NAIVE, CHAMPION)
    assert [result.condition for result in results] == [*PASSED, *FAILED]
    assert [result.passed for result in results] == [True] * len(PASSED) + [False] * len(FAILED)


ABSENT = "there was no champion to compare with"


@pytest.mark.parametrize(
    ("condition", "passed", "note"),
    [
        ("roc_auc >= champion_roc_auc", True, ABSENT),
        ("not champion_roc_auc > roc_auc", True, ABSENT),
        ("roc_auc >= 0.5 and roc_auc >= champion_roc_auc - 0.01", True, ABSENT),
        ("roc_auc >= 0.9 and roc_auc >= champion_roc_auc", False, ""),  # fails whatever a champion reached
        ("roc_auc >= coalesce(champion_roc_auc, 0.7)", True, ""),
        ("roc_auc >= coalesce(champion_roc_auc, 0.9)", False, ""),
        ("champion_roc_auc is null", True, ""),
        ("roc_auc >= 0.9", False, ""),
    ],
)
def test_without_a_champion_only_what_hangs_on_it_alone_passes(condition: str, passed: bool, note: str) -> None:
    result = gate(condition, champion=None)
    assert (result.passed, result.note) == (passed, note)
    assert "champion_roc_auc" not in result.values


@pytest.mark.parametrize(
    "condition", ["null and true", "roc_auc > null", "roc_auc / 0 > 1", "0 / (brier - brier) > 1", "roc_auc = 1 / 0"]
)
def test_a_condition_that_gives_null_does_not_pass(condition: str) -> None:
    assert (gate(condition).passed, gate(condition).note) == (False, "the condition gives null")


@pytest.mark.parametrize("condition", ["roc_auc > 0.5", "not roc_auc > 0.5", "roc_auc is not null", "brier < roc_auc"])
def test_a_metric_that_could_not_be_measured_never_passes(condition: str) -> None:
    result = gate(condition, metrics={"roc_auc": math.nan, "brier": 0.1})
    assert (result.passed, result.note) == (False, "roc_auc can't be measured on these rows")


def test_a_champion_that_could_not_be_measured_lets_nothing_pass() -> None:
    result = gate("roc_auc >= champion_roc_auc", champion={"roc_auc": math.nan, "brier": 0.1})
    assert (result.passed, result.note) == (False, "champion_roc_auc can't be measured on these rows")


@pytest.mark.parametrize("champion", [CHAMPION, None])
def test_an_unknown_name_is_told_with_the_known_ones(champion: Mapping[str, float] | None) -> None:
    with pytest.raises(GateError) as raised:
        gate("auc >= 0.8 and roc_auc > gini", champion)
    assert str(raised.value) == (
        "names no metric: auc, gini"
        " (known: baseline_brier, baseline_roc_auc, brier, champion_brier, champion_roc_auc, roc_auc)"
    )


def test_what_a_gate_may_name_is_each_metric_and_that_of_champion_and_baseline() -> None:
    assert known_gate_names("amount")[:5] == ["r2", "mae", "rmse", "bias", "champion_r2"]
    for kind in METRICS:
        measured = dict.fromkeys(METRICS[kind], 0.5)
        conditions = [f"{name} = 0.5" for name in known_gate_names(kind)]
        assert all(result.passed for result in check_gate(conditions, measured, measured, measured))


def test_the_names_in_a_condition_are_found_wherever_they_stand() -> None:
    assert gate_names("a > 1 or not (b in (c, 2) and -d between e and abs(f + 1)) or coalesce(G, 0) is null") == set(
        "abcdefg"
    )


ODD = {
    "semicolon": ("roc_auc > 0.5;", "holds a semicolon"),
    "two statements": ("true; drop table x", "holds a semicolon"),
    "comment": ("roc_auc > 0.5 -- and brier < 0.1", "holds a comment"),
    "comment within": ("roc_auc /* is */ > 0.5", "holds a comment"),
    "empty": ("", "is no SQL condition"),
    "blank": (" \n", "is no SQL condition"),
    "unfinished": ("roc_auc >=", "is no SQL condition"),
    "chained": ("0.5 < roc_auc < 0.9", "is no SQL condition"),
    "alias": ("roc_auc > 0.5 as passed", "is no SQL condition"),
    "bare alias": ("roc_auc > 0.5 passed", "is no SQL condition"),
    "prefix alias": ("passed: roc_auc > 0.5", "is no SQL condition"),
    "named argument": ("abs(x := roc_auc) > 0", "names its result 'x'"),
    "second column": ("roc_auc > 0.5, true", "is more than one SQL condition"),
    "closed too early": ("roc_auc > 0.9) or (true", "is no SQL condition"),
    "where": ("roc_auc > 0.5 where true", "is no SQL condition"),
    "from": ("roc_auc > 0.5 from range(9)", "is no SQL condition"),
    "union": ("roc_auc > 0.9 union select true", "is no SQL condition"),
    "distinct": ("distinct roc_auc > 0.5", "is no SQL condition"),
    "order": ("roc_auc > 0.5 order by 1 limit 1", "is no SQL condition"),
    "subselect": ("roc_auc > (select 0.5)", "holds a subquery"),
    "exists": ("exists (select 1)", "holds a subquery"),
    "in a subselect": ("roc_auc in (select 0.8)", "holds a subquery"),
    "function that reads": ("read_csv('/etc/passwd') = 1", "calls read_csv"),
    "function that tells": ("getenv('HOME') = 1", "calls getenv"),
    "function by chance": ("random() > 0.5", "calls random"),
    "aggregate": ("sum(roc_auc) > 0.5", "calls sum"),
    "aggregate in an allowed name": ("abs(distinct roc_auc) > 0.5", "calls abs"),
    "method": ("roc_auc.abs() > 0.5", "calls roc_auc.abs"),
    "function of a schema": ("main.abs(roc_auc) > 0.5", "calls main.abs"),
    "other operator": ("roc_auc % 2 = 0.8", "calls %"),
    "window": ("row_number() over () = 1", "holds a window"),
    "case": ("case when roc_auc > 0.5 then true end", "holds a case"),
    "cast": ("roc_auc::int = 1", "holds a operator cast"),
    "lambda": ("x -> x > 1", "holds a lambda"),
    "star": ("*", "holds a star"),
    "columns": ("columns('roc.*') > 0.5", "holds a star"),
    "parameter": ("roc_auc > ?", "holds a value parameter"),
    "place": ("#1 > 0.5", "holds a positional reference"),
    "list": ("[roc_auc] is not null", "calls list_value"),
    "text": ("roc_auc > '0.5'", "holds the text '0.5'"),
    "text in dollars": ("roc_auc > $$0.5$$", "holds the text '0.5'"),
    "table": ("metrics.roc_auc > 0.5", "names 'metrics.roc_auc'"),
    "number": ("roc_auc", "gives a double, not true or false"),
    "sum": ("roc_auc + 1", "gives a double, not true or false"),
    "null": ("null", "not true or false"),
    "wrong arguments": ("abs(roc_auc, 1) > 0", "is no condition that can be evaluated"),
    "name that breaks out": ('"x"", (select 1) as ""y" > 1', 'names no metric: x", (select 1) as "y'),
    "deep": ("(" * 2000 + "roc_auc > 0.5" + ")" * 2000, "is no SQL condition"),
}


@pytest.mark.parametrize("odd", ODD)
def test_what_is_not_one_plain_condition_of_metrics_is_refused(odd: str) -> None:
    condition, fault = ODD[odd]
    with pytest.raises(GateError) as raised:
        gate(condition)
    assert fault in str(raised.value)
