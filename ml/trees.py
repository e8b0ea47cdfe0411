"""The trees of a booster: read out of CatBoost, and added up for a few rows without it.

Of one row CatBoost's Python takes a tenth of a millisecond, of which some hundred trees are the least. Added up here
they take a tenth of that, and come to the same bits, or it is not done. Of many trees or rows CatBoost is the faster.
"""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

if TYPE_CHECKING:
    from catboost import CatBoost
    from numpy.typing import NDArray

CHECKED = 200  # rows for which CatBoost is asked too, before trees are believed: more than it works on at a time
MOST_LEAVES = 2**20  # of all trees, times classes, and
MOST_SPLITS = 2**17  # in all: either takes 100 MB while the booster is read as JSON


class Trees(msgspec.Struct, frozen=True):
    """A booster's trees, all padded to one depth by splits that no value is beyond.

    `features` (trees, depth) are columns of the matrix, `borders` what a value is to be beyond for its level's bit,
    `bits` what it counts in the number of a leaf. A tree's leaves lie in `leaves` (all leaves, classes) from its place
    in `starts` on. The sum of a row's leaves, times `scale` and plus `bias` (classes,), is its raw score.
    """

    features: "NDArray[np.intp]"
    borders: "NDArray[np.float32]"
    bits: "NDArray[np.float32]"
    starts: "NDArray[np.intp]"
    leaves: "NDArray[np.float64]"
    scale: float
    bias: "NDArray[np.float64]"


def trees_of(booster: "CatBoost") -> Trees | None:
    """The trees of a booster on numbers; 1000 of depth 6 take a fifth of a second.

    None where there are others, or too many of them, or where a null goes the way of large numbers, or where they do
    not add up to CatBoost's own raw scores, to the bit, for rows made up of their borders.
    """
    counts = booster.get_tree_leaf_counts()
    leaves = np.asarray(booster.get_leaf_values(), dtype=np.float64)
    if not len(counts) or len(leaves) > MOST_LEAVES or np.log2(counts).sum() > MOST_SPLITS:
        return None
    model = as_json(booster)
    told = model.get("oblivious_trees")
    if told is None or any(split["split_type"] != "FloatFeature" for tree in told for split in splits(tree)):
        return None
    if any(feature["nan_value_treatment"] == "AsTrue" for feature in model["features_info"]["float_features"]):
        return None
    depth = max(1, *(len(splits(tree)) for tree in told))
    features = np.zeros((len(told), depth), dtype=np.intp)
    borders = np.full((len(told), depth), np.inf, dtype=np.float32)
    for place, tree in enumerate(told):
        for level, split in enumerate(splits(tree)):
            features[place, level] = split["float_feature_index"]
            borders[place, level] = split["border"]
    scale, bias = model["scale_and_bias"]
    trees = Trees(
        features=features,
        borders=borders,
        bits=(1 << np.arange(depth)).astype(np.float32),
        starts=np.cumsum(counts, dtype=np.intp) - counts,
        leaves=leaves.reshape(int(np.sum(counts)), -1),
        scale=scale,
        bias=np.array(bias, dtype=np.float64),
    )
    rows = made_up_rows(model, CHECKED)
    theirs = np.asarray(booster.predict(rows, thread_count=1), dtype=np.float64)
    return trees if np.array_equal(theirs, raw_scores_of_few(trees, rows)) else None


def raw_scores_of_few(trees: Trees, features: "NDArray[np.float32]") -> "NDArray[np.float64]":
    """What the trees add up to, as `ml.prediction.raw_scores`: (rows,), or (rows, classes) where there are several.

    Each row has (trees, depth) numbers in memory.
    """
    is_beyond = features.take(trees.features, axis=1) > trees.borders  # which a null is not
    found = trees.leaves.take((is_beyond @ trees.bits).astype(np.intp) + trees.starts, axis=0)
    # Tree by tree, as CatBoost does it: `sum` would add them up in another order, to other bits.
    raw: NDArray[np.float64] = np.add.accumulate(found, axis=1)[:, -1] * trees.scale + trees.bias
    return raw[:, 0] if raw.shape[1] == 1 else raw


def as_json(booster: "CatBoost") -> dict[str, Any]:
    """The booster as CatBoost writes it in JSON, the one form in which it tells all of its trees, in a file alone."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.json"
        booster.save_model(str(file), format="json")
        model: dict[str, Any] = json.loads(file.read_bytes())
    return model


def splits(tree: dict[str, Any]) -> list[dict[str, Any]]:
    """The splits of a tree, from the leaves up. CatBoost writes null for those of a tree that has none."""
    return tree["splits"] or []


def made_up_rows(model: dict[str, Any], rows: int) -> "NDArray[np.float32]":
    """Rows (rows, columns) whose values lie on the borders of a booster's JSON, just beyond, and far, or are null.

    The first is of nulls alone.
    """
    chance = np.random.default_rng(0)
    columns = []
    for feature in model["features_info"]["float_features"]:
        borders = np.array(feature.get("borders") or [0.0], dtype=np.float32)
        beyond = np.nextafter(borders, np.finfo(np.float32).max)
        possible = np.concatenate([[np.nan], borders, beyond, [borders[-1] + 1]], dtype=np.float32)
        columns.append(np.append(possible[:1], chance.choice(possible, rows - 1)))
    return np.array(columns, dtype=np.float32).T
