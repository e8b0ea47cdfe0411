"""The naive forecast that a model is measured against: what a single feature, or no feature at all, would say.

It is fitted once, on the training rows, and kept as plain numbers, so that it can be applied to later rows as well.
"""

import math
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from ml.metrics import Kind

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sklearn.tree import DecisionTreeClassifier

    from ml.encoding import Encoder

MOST_ROWS_OF_A_TREE = 20_000
SURE = 0.99  # of a naive forecast; the rest is what is so without any feature
LEAST_GAIN = 0.001  # of log loss: what is less is chance


class Naive(msgspec.Struct, frozen=True, kw_only=True):
    """A naive forecast, fitted: `told` says it in words, `feature` is the number that it reads (None: none at all).

    `base` is what it says without a feature: the rate, the mean amount, or the share of each class. Of a probability
    `says` is the rate at each of `values`, straight between them; of a category the shares of the classes up to each of
    `values`, and beyond the last. An amount is the feature itself. `of_null` is what it says where that is null.
    """

    kind: Kind
    told: str
    base: tuple[float, ...]
    feature: str | None = None
    values: tuple[float, ...] = ()
    says: tuple[tuple[float, ...], ...] = ()
    of_null: tuple[float, ...] = ()


def fit_naive(kind: Kind, encoder: "Encoder", matrix: "NDArray[np.float32]", label: "NDArray[np.float64]") -> Naive:
    """The naive forecast of training rows: `matrix` are encoded rows, `label` is theirs. Only numbers take part."""
    numbers = [place for place, column in enumerate(encoder.columns) if column.type == "number"]
    fit = {"probability": _probability, "amount": _amount, "category": _category}[kind]
    return fit(numbers, encoder.names, matrix, label)


def feature_values(encoder: "Encoder", matrix: "NDArray[np.float32]", naive: Naive) -> "NDArray[np.float32]":
    """Of encoded rows the column that a naive forecast reads; of one that reads none any column."""
    return matrix[:, encoder.names.index(naive.feature) if naive.feature else 0]


def naive_forecast(naive: Naive, values: "NDArray[np.float32]") -> "NDArray[np.float64]":
    """What it says of rows by their values of its feature, NaN for null: as `evaluate` reads it, (rows,), of a category
    (rows, classes). Without a feature only the number of rows counts."""
    base = np.asarray(naive.base, dtype=np.float64)
    if naive.feature is None:
        forecast = np.tile(base, (len(values), 1))
        return forecast if naive.kind == "category" else forecast.ravel()
    # As the encoder has them, then in float64: differences of the largest float32 numbers overflow.
    numbers = np.asarray(values, dtype=np.float32).astype(np.float64)
    known, says, of_null = ~np.isnan(numbers), np.asarray(naive.says), np.asarray(naive.of_null, dtype=np.float64)
    if naive.kind == "amount":
        return np.where(known, numbers, of_null[0])
    if naive.kind == "probability":
        found = np.full(len(numbers), of_null[0])
        found[known] = np.interp(numbers[known], naive.values, says[:, 0])  # beyond the ends as at them
        return SURE * found + (1 - SURE) * base
    shares = np.tile(of_null, (len(numbers), 1))
    shares[known] = says[np.searchsorted(naive.values, numbers[known], side="left")]
    return SURE * shares + (1 - SURE) * base


def _probability(
    numbers: list[int], names: tuple[str, ...], matrix: "NDArray[np.float32]", label: "NDArray[np.float64]"
) -> Naive:
    """The number that ranks the outcomes best (AUC), made a probability by isotonic regression; else the base rate.

    A hundredth of it is the base rate, so that nothing is certain: a few outcomes that a curve said to be impossible
    would make its log loss worse than the base rate's, and a gate that asks for less than it easy.
    """
    from sklearn.isotonic import IsotonicRegression

    base = float(label.mean())
    best = max(
        ((*_ranking(matrix[:, place], label), place) for place in numbers), default=None, key=lambda found: found[0]
    )
    if best is None or best[0] <= 0.5:
        return Naive(kind="probability", told="base rate", base=(base,))
    _, increasing, null_is_high, place = best
    # In float64, as the regression takes float32 values nearer than 1e-6 for one, and overflows between the largest.
    values = matrix[:, place].astype(np.float64)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    # Beyond all values, on the side where nulls rank best.
    of_null = high + 1 + abs(high) if null_is_high else low - 1 - abs(low)
    curve = IsotonicRegression(y_min=0, y_max=1, increasing=increasing)
    curve.fit(np.nan_to_num(values, nan=of_null), label)
    bends = curve.X_thresholds_
    points = np.unique([low, *bends[(bends >= low) & (bends <= high)], high])
    return Naive(
        kind="probability",
        told=f"{names[place]} alone",
        base=(base,),
        feature=names[place],
        values=tuple(points.tolist()),
        says=tuple((float(rate),) for rate in curve.predict(points)),
        of_null=(float(curve.predict([of_null])[0]) if np.isnan(values).any() else base,),
    )


def _ranking(values: "NDArray[np.float32]", label: "NDArray[np.float64]") -> tuple[float, bool, bool]:
    """How well the values rank the outcomes: the AUC, whether more means likelier, whether null counts as the highest.

    The best of the four ways to use the column: either direction, nulls at either end.
    """
    from scipy.stats import rankdata

    known = ~np.isnan(values)
    truth, of_null = label[known], label[~known]
    positives, negatives = truth.sum(), len(truth) - truth.sum()
    null_positives, null_negatives = of_null.sum(), len(of_null) - of_null.sum()
    if not len(truth) or not 0 < label.sum() < len(label):
        return 0.5, True, True
    won = rankdata(values[known])[truth == 1].sum() - positives * (positives + 1) / 2  # Mann-Whitney's U
    tied = null_positives * null_negatives / 2
    pairs = (positives + null_positives) * (negatives + null_negatives)
    ways = []
    for null_is_high in (False, True):
        won_by_null = null_positives * negatives if null_is_high else positives * null_negatives
        auc = float((won + tied + won_by_null) / pairs)
        ways += [(auc, True, null_is_high), (1 - auc, False, null_is_high)]
    return max(ways)


def _amount(
    numbers: list[int], names: tuple[str, ...], matrix: "NDArray[np.float32]", label: "NDArray[np.float64]"
) -> Naive:
    """The number that is the best forecast as it is (RMSE), nulls as the mean label; that mean if none is better."""
    mean = float(label.mean())
    errors = {place: _rmse(np.nan_to_num(matrix[:, place].astype(np.float64), nan=mean), label) for place in numbers}
    best = min(errors, key=lambda place: errors[place], default=None)
    if best is None or errors[best] >= _rmse(np.full(len(label), mean), label):
        return Naive(kind="amount", told="the mean as the forecast", base=(mean,))
    told = f"{names[best]} as the forecast"
    return Naive(kind="amount", told=told, base=(mean,), feature=names[best], of_null=(mean,))


def _rmse(forecast: "NDArray[np.float64]", label: "NDArray[np.float64]") -> float:
    return math.sqrt(float(np.mean((forecast - label) ** 2)))


def _category(
    numbers: list[int], names: tuple[str, ...], matrix: "NDArray[np.float32]", label: "NDArray[np.float64]"
) -> Naive:
    """The number whose ranges tell the classes best, by a tree three splits deep; else their shares.

    Each is learned from half of the rows, drawn with a seed, and judged by the log loss of the other half: on its own
    rows a tree beats the shares by chance alone, and what is worse than them makes a gate easier.
    """
    from sklearn.metrics import log_loss
    from sklearn.tree import DecisionTreeClassifier

    classes = np.arange(int(label.max()) + 1)
    shares = np.bincount(label.astype(np.int64), minlength=len(classes)) / len(label)
    base = tuple(map(float, shares))
    drawn = np.random.default_rng(0).permutation(len(label))[:MOST_ROWS_OF_A_TREE]
    learned, judged = np.array_split(drawn, 2)
    truth = label[judged]
    best = Naive(kind="category", told="the shares of the classes", base=base)
    best_loss = log_loss(truth, np.tile(shares, (len(truth), 1)), labels=classes) - LEAST_GAIN
    for place in numbers:
        tree = DecisionTreeClassifier(max_depth=3, min_samples_leaf=20, criterion="log_loss", random_state=0)
        tree.fit(matrix[learned, place][:, None], label[learned])
        found = _of_tree(tree, names[place], base)
        loss = log_loss(truth, naive_forecast(found, matrix[judged, place]), labels=classes)
        if loss < best_loss:
            best, best_loss = found, loss
    return best


def _of_tree(tree: "DecisionTreeClassifier", feature: str, base: tuple[float, ...]) -> Naive:
    """A tree of one feature as its ranges, from the lowest to the highest, with the shares of the classes in each."""
    inner, nodes = [], tree.tree_

    def walk(node: int) -> None:
        if nodes.children_left[node] != nodes.children_right[node]:
            walk(nodes.children_left[node])
            inner.append(float(nodes.threshold[node]))
            walk(nodes.children_right[node])

    walk(0)
    # Where a split parts the nulls from all else it is infinite, and beyond it there is no value.
    values = [threshold for threshold in inner if math.isfinite(threshold)]
    ends = np.array([*values, np.finfo(np.float32).max, np.nan])[:, None]
    # The highest float32 number of each range, as a tree compares float32 numbers.
    rounded = ends.astype(np.float32)
    rounded[rounded > ends] = np.nextafter(rounded[rounded > ends], np.float32(-np.inf))
    says = np.zeros((len(ends), len(base)))
    says[:, tree.classes_.astype(np.int64)] = tree.predict_proba(rounded)
    *ranges, of_null = (tuple(map(float, row)) for row in says)
    return Naive(
        kind="category",
        told=f"{feature} alone",
        base=base,
        feature=feature,
        values=tuple(values),
        says=tuple(ranges),
        of_null=of_null,
    )
