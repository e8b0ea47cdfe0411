"""Added up without CatBoost, the trees of any booster that is trained here come to its own raw scores, to the bit."""

from typing import Any

import numpy as np
import pytest
from catboost import sum_models
from hypothesis import given, settings
from hypothesis import strategies as st

from ml import trees
from ml.trees import raw_scores_of_few, trees_of
from tests.test_leaf_table import a_booster, some_numbers


def added_up(booster: Any, matrix: Any) -> Any:
    found = trees_of(booster)
    assert found is not None, "CatBoost would be asked"
    return raw_scores_of_few(found, matrix)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    loss=st.sampled_from(["Logloss", "RMSE", "MultiClass"]),
    depth=st.integers(1, 9),
    nulls=st.booleans(),
    iterations=st.sampled_from([1, 12, 150]),
)
def test_trees_add_up_to_the_bits_of_catboost(seed: int, loss: str, depth: int, nulls: bool, iterations: int) -> None:
    booster = a_booster(seed, loss, nulls, depth=depth, iterations=iterations)
    matrix = some_numbers(300, seed + 1)
    theirs = np.asarray(booster.predict(matrix))
    np.testing.assert_array_equal(added_up(booster, matrix), theirs)
    for row in (0, 7, 299):  # also alone, as CatBoost adds up one row by another way than many
        alone = matrix[row : row + 1]
        np.testing.assert_array_equal(added_up(booster, alone), theirs[row : row + 1])
        np.testing.assert_array_equal(np.asarray(booster.predict(alone)), theirs[row : row + 1])


@pytest.mark.parametrize("loss", ["Logloss", "RMSE", "MultiClass"])
def test_trees_that_split_nothing_are_added_up_too(loss: str) -> None:
    booster = a_booster(loss=loss, rsm=0.05)
    assert any(not trees.splits(tree) for tree in trees.as_json(booster)["oblivious_trees"])
    matrix = some_numbers(50, 1)
    np.testing.assert_array_equal(added_up(booster, matrix), np.asarray(booster.predict(matrix)))


@pytest.mark.parametrize(("loss", "bias"), [("Logloss", 1.1), ("MultiClass", [1.1, -0.3, 0.7])])
def test_scale_and_bias_are_those_of_the_booster(loss: str, bias: Any) -> None:
    booster = a_booster(loss=loss)
    booster.set_scale_and_bias(0.37, bias)
    matrix = some_numbers(300, 1)
    np.testing.assert_array_equal(added_up(booster, matrix), np.asarray(booster.predict(matrix)))


def test_trees_of_unlike_depths_are_added_up_together() -> None:
    """A tree that is less deep than others is padded, and no number is beyond the padding."""
    shallow, deep = a_booster(depth=2), a_booster(depth=6)
    booster = sum_models([shallow, deep])
    matrix = np.vstack([some_numbers(300, 1), np.full((1, 4), np.finfo(np.float32).max, dtype=np.float32)])
    np.testing.assert_array_equal(added_up(booster, matrix), np.asarray(booster.predict(matrix)))


def test_other_trees_and_too_many_are_left_to_catboost(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trees_of(a_booster(grow_policy="Lossguide", max_leaves=8)) is None
    assert trees_of(a_booster(nan_mode="Max")) is None, "a null is beyond each border of these"
    assert trees_of(a_booster(nan_mode="Max", border_count=254, iterations=150)) is None
    booster = a_booster()
    assert trees_of(booster) is not None
    monkeypatch.setattr(trees, "MOST_LEAVES", 10)
    assert trees_of(booster) is None


def test_trees_that_come_to_another_last_bit_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "raw_scores_of_few", lambda *told: np.nextafter(raw_scores_of_few(*told), np.inf))
    assert trees_of(a_booster()) is None
