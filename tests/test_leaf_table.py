"""Looked up leaf by leaf, contributions are CatBoost's own, of any booster that is trained here."""

from typing import Any

import numpy as np
import pytest
from catboost import CatBoost, Pool
from hypothesis import given, settings
from hypothesis import strategies as st

from ml import leaf_table as tables
from ml.leaf_table import CHUNK, added_by_features, leaf_table, shap_values
from ml.trees import as_json

QUIET: dict[str, Any] = {"allow_writing_files": False, "logging_level": "Silent", "boosting_type": "Plain"}


def some_numbers(rows: int, seed: int, columns: int = 4) -> Any:
    """Numbers, codes and nulls, and now and then the largest number there is."""
    random = np.random.default_rng(seed)
    matrix = random.normal(0, 3, (rows, columns)).astype(np.float32)
    matrix[:, 0] = random.integers(0, 5, rows)
    matrix[random.random(matrix.shape) < 0.15] = np.nan
    matrix[random.random(matrix.shape) < 0.02] = np.finfo(np.float32).max
    return matrix


def a_booster(seed: int = 0, loss: str = "Logloss", nulls: bool = True, **params: Any) -> CatBoost:
    """Trained on few rows, so that many leaves have none, and with fewer features than a tree has levels."""
    random = np.random.default_rng(seed)
    matrix = some_numbers(300, seed)
    plain = np.nan_to_num(np.clip(matrix, -9, 9))
    if not nulls:
        matrix = plain
    amount = plain[:, 0] + plain[:, 1] * plain[:, 2] + random.normal(0, 1, 300)
    label = {"RMSE": amount + 100, "Logloss": amount > 2, "MultiClass": np.digitize(amount, [0, 4])}[loss]
    booster = CatBoost({"iterations": 12, "depth": 5, "loss_function": loss, "random_seed": seed, **QUIET, **params})
    booster.fit(Pool(matrix, label))
    return booster


def looked_up(booster: CatBoost, matrix: Any) -> Any:
    """Of all classes, (rows, classes, columns)."""
    table = leaf_table(booster)
    assert table.trees is not None, "CatBoost would be asked row by row"
    places = range(len(table.expected))
    return np.stack([added_by_features(table, matrix, np.full(len(matrix), place)) for place in places], axis=1)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    loss=st.sampled_from(["Logloss", "RMSE", "MultiClass"]),
    depth=st.integers(1, 7),
    nulls=st.booleans(),
    nan_mode=st.sampled_from(["Min", "Max"]),
)
def test_contributions_are_those_of_catboost(seed: int, loss: str, depth: int, nulls: bool, nan_mode: str) -> None:
    booster = a_booster(seed, loss, nulls, depth=depth, nan_mode=nan_mode)
    matrix = some_numbers(200, seed + 1)
    theirs, table = shap_values(booster, matrix), leaf_table(booster)
    np.testing.assert_allclose(looked_up(booster, matrix), theirs[:, :, :-1], rtol=0, atol=1e-7)
    np.testing.assert_allclose(np.tile(table.expected, (200, 1)), theirs[:, :, -1], rtol=0, atol=1e-7)


def test_a_tree_that_splits_nothing_adds_nothing() -> None:
    booster = CatBoost({"iterations": 3, "loss_function": "RMSE", **QUIET})
    booster.fit(Pool(some_numbers(50, 0), np.arange(50) % 2, weight=np.where(np.arange(50) < 48, 0, 1)))
    matrix = some_numbers(20, 1)
    np.testing.assert_allclose(looked_up(booster, matrix)[:, 0], shap_values(booster, matrix)[:, 0, :-1], atol=1e-9)


@pytest.mark.parametrize("loss", ["Logloss", "RMSE", "MultiClass"])
def test_a_tree_that_found_no_split_among_few_features_adds_nothing(loss: str) -> None:
    booster = a_booster(loss=loss, rsm=0.05)
    assert any(tree["splits"] is None for tree in as_json(booster)["oblivious_trees"]), "as CatBoost writes it"
    matrix = some_numbers(20, 1)
    np.testing.assert_allclose(looked_up(booster, matrix), shap_values(booster, matrix)[:, :, :-1], rtol=0, atol=1e-7)


def test_under_monotone_constraints_a_row_is_explained_alike_in_any_batch_and_its_contributions_add_up() -> None:
    booster = a_booster(monotone_constraints=[1, 0, 0, -1], depth=6)
    matrix = some_numbers(400, 3)
    few, many = shap_values(booster, matrix[:5]), shap_values(booster, matrix)[:5]
    assert np.abs(few - many).max() > 1e-3, "CatBoost explains a row alike in any batch: ours can be held against it"
    ours = looked_up(booster, matrix)[:, 0]
    assert looked_up(booster, matrix[:5])[:, 0].tolist() == ours[:5].tolist()
    np.testing.assert_allclose(ours.sum(axis=1) + leaf_table(booster).expected, booster.predict(matrix), atol=1e-9)


def test_many_rows_are_explained_in_parts_to_the_same_bits() -> None:
    table, matrix = leaf_table(a_booster()), some_numbers(2 * CHUNK + 5, 4)
    at_once = added_by_features(table, matrix)
    parts = [added_by_features(table, matrix[start : start + 5000]) for start in range(0, len(matrix), 5000)]
    assert np.concatenate(parts).tolist() == at_once.tolist()
    assert added_by_features(table, matrix[:0]).shape == (0, 4)


def test_a_booster_whose_levels_have_several_splits_is_explained_by_catboost_itself() -> None:
    booster, matrix = a_booster(grow_policy="Lossguide"), some_numbers(50, 5)
    table = leaf_table(booster)
    assert table.trees is None
    assert added_by_features(table, matrix).tolist() == shap_values(booster, matrix)[:, 0, :-1].tolist()


def test_a_table_that_differs_from_catboost_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = tables._by_known_levels
    monkeypatch.setattr(tables, "_by_known_levels", lambda leaf, weights: right(leaf, weights[::-1]))
    booster, matrix = a_booster(), some_numbers(50, 6)
    table = leaf_table(booster)
    assert table.trees is None
    assert added_by_features(table, matrix).tolist() == shap_values(booster, matrix)[:, 0, :-1].tolist()


@pytest.mark.parametrize("limit", ["MOST_BYTES", "MOST_NUMBERS"])
@pytest.mark.parametrize("loss", ["Logloss", "MultiClass"])
def test_a_model_too_large_for_a_table_is_explained_alike_by_catboost_and_none_is_begun(
    limit: str, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    booster, matrix = a_booster(loss=loss, depth=10, iterations=3), some_numbers(30, 7)
    ours = looked_up(booster, matrix)
    expected = leaf_table(booster).expected
    monkeypatch.setattr(tables, limit, 1_000_000)
    monkeypatch.delattr(tables, "as_json")
    table = leaf_table(booster)
    assert table.trees is None
    np.testing.assert_allclose(table.expected, expected, rtol=0, atol=1e-7)
    for place in range(len(expected)):
        theirs = added_by_features(table, matrix, np.full(len(matrix), place))
        np.testing.assert_allclose(ours[:, place], theirs, rtol=0, atol=1e-7)


class Declared:
    """As much of a booster as its settings decide."""

    def __init__(self, trees: int, depth: int) -> None:
        self.trees, self.depth, self.feature_names_ = trees, depth, tuple(map(str, range(40)))

    def get_tree_leaf_counts(self) -> Any:
        return np.full(self.trees, 2**self.depth)


def test_what_early_stopping_comes_to_has_a_table_and_what_takes_gigabytes_or_minutes_has_none() -> None:
    small = [(1000, 5, 50), (1000, 8, 5), (1000, 10, 1), (10_000, 5, 5)]
    large = [(1000, 8, 50), (3, 10, 50), (10_000, 10, 1), (10_000, 8, 5)]
    told = {one: tables._is_affordable(Declared(*one[:2]), one[2]) for one in (*small, *large)}  # type: ignore[arg-type]
    assert [one for one, affordable in told.items() if affordable] == small
