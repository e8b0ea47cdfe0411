"""An interval says how far a metric may be off by chance of who was held out, whatever the order of the rows."""

from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pytest

from ml import intervals as bootstrap
from ml.intervals import entity_numbers, intervals, standard_errors
from ml.metrics import METRICS, RANGES, Kind, evaluate

RANDOM = np.random.default_rng(3)
ROWS = 400
SCORE = {
    "probability": RANDOM.uniform(0, 1, ROWS),
    "amount": RANDOM.gamma(2, 20, ROWS),
    "category": RANDOM.dirichlet([1, 1, 1], ROWS),
}
LABEL = {
    "probability": (RANDOM.uniform(0, 1, ROWS) < SCORE["probability"]).astype(float),
    "amount": SCORE["amount"] + RANDOM.normal(0, 10, ROWS),
    "category": np.array([RANDOM.choice(3, p=shares) for shares in SCORE["category"]]),
}
EVERY_ROW = np.arange(ROWS)
KINDS: list[Kind] = ["probability", "amount", "category"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_metric_lies_within_an_interval_of_its_own_and_within_its_range(kind: Kind) -> None:
    metrics = evaluate(kind, LABEL[kind], SCORE[kind])
    found = intervals(kind, LABEL[kind], SCORE[kind], EVERY_ROW, metrics)
    assert set(found) == set(METRICS[kind])
    for name, (low, high) in found.items():
        least, most = RANGES[name]
        assert least <= low < metrics[name] < high <= most, name


def one_by_one(kind: Kind, label: Any, score: Any, entity: Any, drawn: int, resamples: int) -> dict[str, float]:
    """The plain way: the rows of the entities that were drawn, measured, and that again and again."""
    rows_of = [np.flatnonzero(entity == one) for one in np.unique(entity)]
    random = np.random.default_rng(0)
    measured = []
    for _ in range(resamples):
        rows = np.concatenate([rows_of[one] for one in random.integers(0, len(rows_of), drawn)])
        measured.append(evaluate(kind, label[rows], score[rows]))
    values = {name: np.array([one[name] for one in measured]) for name in METRICS[kind]}
    finite = {name: some[np.isfinite(some)] for name, some in values.items()}
    share = np.sqrt(drawn / len(rows_of))
    return {name: some.std(ddof=1) * share for name, some in finite.items() if len(some) > resamples / 2}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at_once", [1, 3000, 1_000_000])
@pytest.mark.parametrize("decimals", [1, 9])
def test_all_resamples_at_once_have_the_errors_of_one_by_one(
    kind: Kind, at_once: int, decimals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "WEIGHTS_AT_ONCE", at_once)
    score = np.round(SCORE[kind], decimals).clip(0, None if kind == "amount" else 1)
    entity = RANDOM.integers(0, ROWS // 3, ROWS)
    entities = len(np.unique(entity))
    expected = one_by_one(kind, LABEL[kind], score, entity, entities, 100)
    assert standard_errors(kind, LABEL[kind], score, entity) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    rough = one_by_one(kind, LABEL[kind], score, entity, entities * 50 // ROWS, 25)
    monkeypatch.setattr(bootstrap, "ROUGH_ROWS", 50)
    found = standard_errors(kind, LABEL[kind], score, entity, is_rough=True)
    assert found == pytest.approx(rough, rel=1e-9, abs=1e-12)


def test_a_resample_that_can_not_be_measured_is_left_out() -> None:
    label = (EVERY_ROW == 7).astype(float)  # about one resample in three has no outcome
    found = standard_errors("probability", label, SCORE["probability"], EVERY_ROW)
    expected = one_by_one("probability", label, SCORE["probability"], EVERY_ROW, ROWS, 100)
    assert set(expected) == set(METRICS["probability"])
    assert found == pytest.approx(expected, rel=1e-9)


def test_the_standard_error_of_a_mean_is_the_one_of_the_textbook() -> None:
    error = standard_errors("amount", LABEL["amount"], SCORE["amount"], EVERY_ROW)["bias"]
    expected = np.std(SCORE["amount"] - LABEL["amount"], ddof=1) / np.sqrt(ROWS)
    assert error == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_rows_makes_no_difference(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 10)
    entity = EVERY_ROW // 2
    other = RANDOM.permutation(ROWS)
    mixed = standard_errors(kind, LABEL[kind][other], SCORE[kind][other], entity[other])
    assert mixed == standard_errors(kind, LABEL[kind], SCORE[kind], entity)


def test_the_dates_of_a_customer_go_together() -> None:
    four_times = np.repeat(EVERY_ROW, 4)
    label, score = LABEL["probability"][four_times], SCORE["probability"][four_times]
    once = standard_errors("probability", LABEL["probability"], SCORE["probability"], EVERY_ROW)
    together = standard_errors("probability", label, score, four_times)
    apart = standard_errors("probability", label, score, np.arange(4 * ROWS))
    assert together["brier"] == pytest.approx(once["brier"])
    assert apart["brier"] == pytest.approx(once["brier"] / 2, rel=0.25)


def test_of_many_rows_smaller_resamples_tell_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = standard_errors("amount", LABEL["amount"], SCORE["amount"], EVERY_ROW)
    monkeypatch.setattr(bootstrap, "MOST_ROWS", ROWS // 4)
    parts = standard_errors("amount", LABEL["amount"], SCORE["amount"], EVERY_ROW)
    assert parts != whole
    assert parts["mae"] == pytest.approx(whole["mae"], rel=0.4)


def test_what_can_not_be_measured_has_no_interval() -> None:
    zeros = np.zeros(ROWS)
    metrics = evaluate("probability", zeros, SCORE["probability"])
    found = intervals("probability", zeros, SCORE["probability"], EVERY_ROW, metrics)
    assert set(METRICS["probability"]) - set(found) == {"roc_auc", "average_precision", "lift_top_decile"}
    assert intervals("probability", zeros, SCORE["probability"], zeros.astype(int), metrics) == {}, "one customer"


def test_entities_are_told_apart_by_all_parts_of_their_key_in_any_order_of_the_rows() -> None:
    rows = pa.table({"bank": ["b", "a", "a", "b", "a"], "account": [UUID(int=n).bytes for n in (1, 1, 2, 1, 1)]})
    uuids = pa.ExtensionArray.from_storage(pa.uuid(), rows.column("account").combine_chunks().cast(pa.binary(16)))
    rows = rows.set_column(1, "account", uuids)
    assert entity_numbers(rows, ["bank", "account"]).tolist() == [2, 0, 1, 2, 0]
    assert entity_numbers(rows.take([4, 3, 2]), ["bank", "account"]).tolist() == [0, 2, 1]
    assert entity_numbers(rows.slice(0, 1), ["bank"]).tolist() == [0]
    assert entity_numbers(rows.slice(0, 0), ["bank"]).tolist() == []
