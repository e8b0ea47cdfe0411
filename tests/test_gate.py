"""Gates that pass nothing they should not."""

import math
from collections.abc import Mapping

import pytest

from ml.gate import GateError, GateResult, check_gate, gate_names, known_gate_names
from ml.metrics import METRICS
from ml.slices import Slice

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
    "whole number": ("1", "gives an integer, not true or false"),
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


# --- Slices

SLICES = [
    Slice(column="age", value=value, rows=80, metrics={"roc_auc": auc})
    for value, auc in (("young", 0.7), ("old", 0.8), ("unknown", math.nan))
]


def judged_in_slices(condition: str, champion: list[Slice] | None = None) -> GateResult:
    whole = {"roc_auc": 0.75}
    (result,) = check_gate([condition], whole, whole, whole if champion is not None else None, SLICES, champion or [])
    return result


def test_a_gate_may_ask_for_the_worst_slice_and_is_told_which_that_is() -> None:
    asked = "min_by('age', roc_auc)"
    result = judged_in_slices(f"{asked} >= 0.75")
    assert (result.values, result.passed, result.note) == ({asked: 0.7}, False, "age 'young'")
    assert judged_in_slices("MIN_BY( 'age' ,roc_auc) >= 0.7 and roc_auc > 0.7").passed
    assert not judged_in_slices(f"max_by('age', roc_auc) - {asked} < 0.05").passed


def test_slices_may_be_compared_with_those_of_the_champion() -> None:
    worse = [Slice(column="age", value="old", rows=80, metrics={"roc_auc": 0.65})]
    condition = "min_by('age', roc_auc) >= min_by('age', champion_roc_auc)"
    assert judged_in_slices(condition, worse).passed
    alone = judged_in_slices(condition)
    assert (alone.passed, alone.note) == (True, "age 'young'; there was no champion to compare with")


def test_a_column_without_slices_lets_nothing_pass() -> None:
    result = judged_in_slices("min_by('colour', roc_auc) > 0")
    assert not result.passed
    assert result.note.startswith("colour has no slice on which roc_auc can be measured")


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ("min_by(age, roc_auc) > 0", "calls min_by otherwise than min_by('<column>', <metric>)"),
        ("min_by('age', roc_auc)", "gives a double, not true or false"),
        ("min_by('age', baseline_roc_auc) > 0", "the baseline is measured as a whole only"),
    ],
)
def test_slices_are_asked_for_in_one_way(condition: str, told: str) -> None:
    with pytest.raises(GateError) as raised:
        gate_names(condition)
    assert told in str(raised.value)


def test_the_metric_of_a_slice_is_among_the_names_of_a_condition() -> None:
    assert gate_names("min_by('age', rok_auc) > 0 and log_loss < 1") == {"rok_auc", "log_loss"}
