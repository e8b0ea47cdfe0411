"""How far a metric may be off by chance of who was held out: 95 % intervals by the bootstrap.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993: the standard error over resamples (chapter 6), and the
normal interval around the estimate (chapter 12).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ml.encoding import sortable
from ml.metrics import METRICS, RANGES, Kind, evaluate_resamples

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESAMPLES = 100
MOST_ROWS = 20_000  # of a resample
# Of an error that is told, and by which nothing is decided.
ROUGH_RESAMPLES = 25
ROUGH_ROWS = 5000
WEIGHTS_AT_ONCE = 100_000  # what is computed of so many fits a processor's cache
NORMAL_95 = 1.959964  # standard errors to either side


def intervals(
    kind: Kind,
    label: "NDArray[Any]",
    score: "NDArray[Any]",
    entity: "NDArray[np.int64]",
    estimate: Mapping[str, float],
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """The 95 % interval of each metric of `estimate`, which are those of all rows: within the metric's range.

    Labels and scores are as in `evaluate`, `entity` as `entity_numbers` gives it. A metric that is NaN, or that most
    resamples can't measure, has no interval.
    """
    errors = standard_errors(kind, label, score, entity, seed)
    found = {}
    for name, value in estimate.items():
        if name in errors and np.isfinite(value):
            least, most = RANGES[name]
            half = NORMAL_95 * errors[name]
            found[name] = (max(least, value - half), min(most, value + half))
    return found


def standard_errors(
    kind: Kind,
    label: "NDArray[Any]",
    score: "NDArray[Any]",
    entity: "NDArray[np.int64]",
    seed: int = 0,
    is_rough: bool = False,
) -> dict[str, float]:
    """The standard error of each metric, over 100 resamples of entities, whose rows go together; rows in any order.

    With more than 20,000 rows a resample has so many entities that it has about as many rows, and the error is scaled
    by the root of the share (m out of n: Bickel, Götze and van Zwet, 1997). A rough error is of 25 resamples of 5,000
    rows at most. Empty where there is one entity only. As many resamples are measured together as have 100,000 weights,
    so that the memory it takes does not grow with them.
    """
    truth, scores = np.asarray(label, dtype=np.float64), np.asarray(score, dtype=np.float64)
    # One order of the rows, whatever theirs was: by score, as metrics rank them, then by what else is measured.
    order = np.lexsort([entity, truth, *np.atleast_2d(scores.T)])
    truth, scores = truth[order], scores[order]
    known, number = np.unique(entity[order], return_inverse=True)
    entities, rows = len(known), len(truth)
    if entities < 2:
        return {}
    drawn = min(entities, max(2, entities * (ROUGH_ROWS if is_rough else MOST_ROWS) // rows))
    random = np.random.default_rng(seed)
    resamples = min(ROUGH_RESAMPLES, RESAMPLES) if is_rough else RESAMPLES
    at_once = max(1, WEIGHTS_AT_ONCE // rows)
    parts = []
    for first in range(0, resamples, at_once):
        draws = [random.integers(0, entities, drawn) for _ in range(first, min(first + at_once, resamples))]
        # How often a row stands in a resample is how often its entity was drawn.
        weights = np.stack([np.bincount(draw, minlength=entities).astype(np.float64)[number] for draw in draws])
        rows_in = np.flatnonzero((weights > 0).any(axis=0))
        parts.append(evaluate_resamples(kind, truth[rows_in], scores[rows_in], weights[:, rows_in]))
    errors = {}
    for name in METRICS[kind]:
        values = np.concatenate([part[name] for part in parts])
        finite = values[np.isfinite(values)]
        if len(finite) > resamples / 2:
            errors[name] = float(np.std(finite, ddof=1) * np.sqrt(drawn / entities))
    return errors


def entity_numbers(rows: pa.Table, entity: Sequence[str]) -> "NDArray[np.int64]":
    """The place of each row's entity among all of `rows` in the order of their keys, so not of the rows."""
    keys = pa.table({name: sortable(rows.column(name)) for name in entity})
    order = pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in entity]).to_numpy()
    differs = np.zeros(max(0, rows.num_rows - 1), dtype=bool)
    for name in entity:
        values = keys.column(name).take(pa.array(order)).combine_chunks()
        unequal = pc.not_equal(values.slice(1), values.slice(0, max(0, rows.num_rows - 1)))
        differs |= np.asarray(pc.fill_null(unequal, True).to_numpy(zero_copy_only=False), dtype=bool)
    numbers = np.empty(rows.num_rows, dtype=np.int64)
    numbers[order] = np.concatenate([[0], np.cumsum(differs)])[: rows.num_rows]
    return numbers
