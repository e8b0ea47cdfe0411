"""What each feature adds to a raw score, leaf by leaf: exact SHAP values that are looked up, not computed row by row.

All splits of a level of CatBoost's trees are the same, so what a tree says of a row depends on its leaf alone, and so
does what each feature has to do with it. That is worked out once for each leaf, over all sets of the tree's features;
a row then costs a lookup per tree.
"""

import math
from functools import cache
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from ml.trees import as_json, made_up_rows, splits

if TYPE_CHECKING:
    from catboost import CatBoost
    from numpy.typing import NDArray

CHUNK = 8192  # rows looked up at a time: what they are added up in stays in the processor's cache
CHECKED = 8  # rows for which CatBoost is asked too, before a table is believed
TOLERANCE = 1e-9
# What a table may cost: bytes in memory while it is made, and numbers worked out (10 to 100 million a second), which
# 1000 trees of depth 10, the most that early stopping comes to, just do.
MOST_BYTES = 256 * 2**20
MOST_NUMBERS = 2**30


class Tree(msgspec.Struct, frozen=True):
    """The places of a tree's features, and what they add, (features, classes x leaves); a class's leaves lie together.

    Of a probability or an amount there is one class.
    """

    features: tuple[int, ...]
    leaves: int
    added: "NDArray[np.float64]"


class LeafTable(msgspec.Struct, frozen=True):
    """The trees of a booster, in order, and the raw score without any feature, (classes,).

    `trees` is None for a booster that is not such a sum of lookups, or too large for them: CatBoost is then asked row
    by row, by `shap_mode`.
    """

    booster: "CatBoost"
    expected: "NDArray[np.float64]"
    trees: tuple[Tree, ...] | None
    shap_mode: str = "Auto"


def leaf_table(booster: "CatBoost") -> LeafTable:
    """The table of a booster on numbers; 1000 trees of depth 6 take a third of a second. None that would be too large.

    It is believed once it agrees with CatBoost on a few rows made up from the splits. Where a leaf without training
    rows says something, as under monotone constraints, CatBoost weighs leaves by the rows it is asked about, so that
    its ShapValues of a row differ from batch to batch (catboost/catboost#1956): there the table, which knows the
    training rows alone, must add up to the raw scores.
    """
    without = shap_values(booster, np.zeros((1, len(booster.feature_names_)), dtype=np.float32))[0, :, -1]
    if not _is_affordable(booster, len(without)):
        # By itself CatBoost would make a table of its own for each batch of many rows, several times as large.
        return LeafTable(booster, without, None, "NoPreCalc")
    model = as_json(booster)
    rows = made_up_rows(model, CHECKED)
    theirs = shap_values(booster, rows)
    by_catboost = LeafTable(booster, theirs[0, :, -1], None)
    trees = model.get("oblivious_trees")
    if trees is None or any(split["split_type"] != "FloatFeature" for tree in trees for split in splits(tree)):
        return by_catboost
    expected = np.zeros(theirs.shape[1]) + booster.get_scale_and_bias()[1]
    tables, by_weights_of_training = [], True
    for tree in trees:
        weights = np.array(tree["leaf_weights"], dtype=np.float64)
        leaf = np.array(tree["leaf_values"], dtype=np.float64).reshape(len(weights), -1)
        by_weights_of_training &= not leaf[weights == 0].any()
        known = _by_known_levels(leaf, weights)
        features = [split["float_feature_index"] for split in splits(tree)]
        distinct = tuple(dict.fromkeys(features))
        shares = _shares(tuple(distinct.index(feature) for feature in features))
        added = np.tensordot(shares, known, 1).transpose(0, 2, 1)
        tables.append(Tree(distinct, len(weights), np.ascontiguousarray(added).reshape(len(distinct), leaf.size)))
        expected += known[0, 0]
    table = LeafTable(booster, expected, tuple(tables))
    ours = np.stack(
        [added_by_features(table, rows, np.full(len(rows), place)) for place in range(len(expected))], axis=1
    )
    if by_weights_of_training:
        difference = np.append(ours - theirs[:, :, :-1], expected - theirs[:, :, -1])
    else:
        difference = ours.sum(axis=2) + expected - theirs.sum(axis=2)
    is_right = np.abs(difference).max() <= TOLERANCE * max(1.0, float(np.abs(theirs).max()))
    return table if is_right else by_catboost


def added_by_features(
    table: LeafTable, features: "NDArray[np.float32]", of_class: "NDArray[np.int64] | None" = None
) -> "NDArray[np.float64]":
    """What each feature adds to each row's raw score, (rows, columns); of a category to that of the row's `of_class`.

    The same to the bit in any batch. The sum of a row and `table.expected` of its class is the row's raw score.
    """
    if table.trees is None:
        values = shap_values(table.booster, features, table.shap_mode)
        place = np.zeros(len(features), dtype=np.int64) if of_class is None else of_class
        return values[np.arange(len(features)), place, :-1]
    sums = np.zeros((features.shape[1], len(features)))
    for start in range(0, len(features), CHUNK):
        rows = slice(start, start + CHUNK)
        _add(table, features[rows], None if of_class is None else of_class[rows], sums[:, rows])
    return sums.T


def shap_values(booster: "CatBoost", features: "NDArray[np.float32]", shap_mode: str = "Auto") -> "NDArray[np.float64]":
    """CatBoost's own, (rows, classes, columns + 1), the expected raw score last."""
    from catboost import Pool

    pool = Pool(features, feature_names=booster.feature_names_)
    values = np.asarray(booster.get_feature_importance(pool, type="ShapValues", shap_mode=shap_mode), dtype=np.float64)
    return values if values.ndim == 3 else values[:, None]


def _is_affordable(booster: "CatBoost", classes: int) -> bool:
    """Whether a table, its booster as JSON and the work on its largest tree cost no more than they may."""
    leaves = np.array(booster.get_tree_leaf_counts(), dtype=np.float64)
    features = np.minimum(np.log2(leaves), len(booster.feature_names_))
    numbers = classes * leaves**2
    in_bytes = 8 * classes * (leaves * features).sum()  # the table
    in_bytes += 64 * classes * leaves.sum()  # the text of a number, and what Python makes of it
    in_bytes += 2 * 8 * numbers.max(initial=0)  # a tree's numbers, and those of a level before
    return bool(in_bytes <= MOST_BYTES and numbers.sum() <= MOST_NUMBERS)


def _add(
    table: LeafTable,
    features: "NDArray[np.float32]",
    of_class: "NDArray[np.int64] | None",
    sums: "NDArray[np.float64]",
) -> None:
    assert table.trees is not None
    leaves = table.booster.calc_leaf_indexes(np.asfortranarray(features), thread_count=1).T.astype(np.intp)
    for tree, leaf in zip(table.trees, leaves, strict=True):
        place = leaf if of_class is None else leaf + of_class * tree.leaves
        for feature, added in zip(tree.features, tree.added.take(place, axis=1, mode="clip"), strict=True):
            sums[feature] += added


def _by_known_levels(leaf: "NDArray[np.float64]", weights: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """What a tree is expected to say where only some levels are known, (sets of levels, leaves, classes).

    `leaf` is (leaves, classes), `weights` how many training rows each leaf had. Bit i of a set stands for level i, as
    bit i of a leaf for the side of split i. An unknown level is the mean of both sides by their training rows, from
    the root, the last split, down.
    """
    leaves, classes = leaf.shape
    known = leaf[None]
    for level in range(leaves.bit_length() - 1):
        sides = weights.reshape(-1, 2)
        total = sides.sum(axis=1, keepdims=True)
        share = np.divide(sides, total, out=np.zeros_like(sides), where=total > 0)
        pairs = known.reshape(len(known), leaves >> (level + 1), 2, 1 << level, classes)
        mean = (pairs * share[None, :, :, None, None]).sum(axis=2, keepdims=True)
        known = np.concatenate([np.broadcast_to(mean, pairs.shape).reshape(known.shape), known])
        weights = total[:, 0]
    return known


@cache
def _shares(feature_of_level: tuple[int, ...]) -> "NDArray[np.float64]":
    """How much each set of known levels counts for each feature of a tree, (features, sets): the Shapley value's."""
    features = max(feature_of_level, default=-1) + 1
    levels = [sum(1 << level for level, of in enumerate(feature_of_level) if of == one) for one in range(features)]
    shares = np.zeros((features, 1 << len(feature_of_level)))
    for known in range(1 << features):
        members = [one for one in range(features) if known >> one & 1]
        place = sum(levels[one] for one in members)
        for one in range(features):
            if one in members:
                shares[one, place] = 1 / (features * math.comb(features - 1, len(members) - 1))
            else:
                shares[one, place] = -1 / (features * math.comb(features - 1, len(members)))
    return shares
