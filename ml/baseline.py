"""The naive forecast that a model is measured against: what a single feature, or no feature at all, would say."""

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sklearn.tree import DecisionTreeClassifier

    from ml.encoding import Encoder
    from ml.metrics import Kind

MOST_ROWS_OF_A_TREE = 20_000
SURE = 0.99  # of a naive forecast; the rest is what is so without any feature
LEAST_GAIN = 0.001  # of log loss: what is less is chance


def naive_forecast(
    kind: "Kind",
    encoder: "Encoder",
    matrix: "NDArray[np.float32]",
    label: "NDArray[np.float64]",
    held_out: "NDArray[np.float32]",
) -> "tuple[NDArray[np.float64], str]":
    """The naive forecast for the held-out rows and what it is in words, chosen and fitted on the training rows alone.

    Only features that are numbers take part. `matrix` and `held_out` are encoded rows, `label` is that of `matrix`. The
    forecast is as `evaluate` reads it: (rows,), of a category (rows, classes).
    """
    numbers = [place for place, column in enumerate(encoder.columns) if column.type == "number"]
    forecast = {"probability": _probability, "amount": _amount, "category": _category}[kind]
    return forecast(numbers, encoder.names, matrix, label, held_out)


def _probability(
    numbers: list[int],
    names: tuple[str, ...],
    matrix: "NDArray[np.float32]",
    label: "NDArray[np.float64]",
    held_out: "NDArray[np.float32]",
) -> "tuple[NDArray[np.float64], str]":
    """The number that ranks the outcomes best (AUC), made a probability by isotonic regression; else the base rate.

    A hundredth of it is the base rate, so that nothing is certain: a few outcomes that a curve said to be impossible
    would make its log loss worse than the base rate's, and a gate that asks for less than it easy.
    """
    from sklearn.isotonic import IsotonicRegression

    best = max(
        ((*_ranking(matrix[:, place], label), place) for place in numbers), default=None, key=lambda found: found[0]
    )
    if best is None or best[0] <= 0.5:
        return np.full(len(held_out), label.mean()), "base rate"
    _, increasing, null_is_high, place = best
    # In float64, as the regression takes float32 values nearer than 1e-6 for one, and overflows between the largest.
    values, later = matrix[:, place].astype(np.float64), held_out[:, place].astype(np.float64)
    low, high = np.nanmin(values), np.nanmax(values)
    # Beyond all values, on the side where nulls rank best.
    of_null = high + 1 + abs(high) if null_is_high else low - 1 - abs(low)
    curve = IsotonicRegression(y_min=0, y_max=1, increasing=increasing)
    curve.fit(np.nan_to_num(values, nan=of_null), label)
    forecast = curve.predict(np.nan_to_num(np.clip(later, low, high), nan=of_null))
    return SURE * np.asarray(forecast, dtype=np.float64) + (1 - SURE) * label.mean(), f"{names[place]} alone"


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
    numbers: list[int],
    names: tuple[str, ...],
    matrix: "NDArray[np.float32]",
    label: "NDArray[np.float64]",
    held_out: "NDArray[np.float32]",
) -> "tuple[NDArray[np.float64], str]":
    """The number that is the best forecast as it is (RMSE), nulls as the mean label; that mean if none is better."""
    mean = float(label.mean())

    def forecast(rows: "NDArray[np.float32]", place: int) -> "NDArray[np.float64]":
        return np.nan_to_num(rows[:, place].astype(np.float64), nan=mean)

    errors = {place: _rmse(forecast(matrix, place), label) for place in numbers}
    best = min(errors, key=lambda place: errors[place], default=None)
    if best is None or errors[best] >= _rmse(np.full(len(label), mean), label):
        return np.full(len(held_out), mean), "the mean as the forecast"
    return forecast(held_out, best), f"{names[best]} as the forecast"


def _rmse(forecast: "NDArray[np.float64]", label: "NDArray[np.float64]") -> float:
    return math.sqrt(float(np.mean((forecast - label) ** 2)))


def _category(
    numbers: list[int],
    names: tuple[str, ...],
    matrix: "NDArray[np.float32]",
    label: "NDArray[np.float64]",
    held_out: "NDArray[np.float32]",
) -> "tuple[NDArray[np.float64], str]":
    """The number whose ranges tell the classes best, by a tree three splits deep; else their shares.

    Each is learned from half of the rows, drawn with a seed, and judged by the log loss of the other half: on its own
    rows a tree beats the shares by chance alone, and what is worse than them makes a gate easier.
    """
    from sklearn.metrics import log_loss
    from sklearn.tree import DecisionTreeClassifier

    classes = np.arange(int(label.max()) + 1)
    shares = np.bincount(label.astype(np.int64), minlength=len(classes)) / len(label)
    drawn = np.random.default_rng(0).permutation(len(label))[:MOST_ROWS_OF_A_TREE]
    learned, judged = np.array_split(drawn, 2)
    truth = label[judged]
    best, best_loss = None, log_loss(truth, np.tile(shares, (len(truth), 1)), labels=classes) - LEAST_GAIN
    for place in numbers:
        tree = DecisionTreeClassifier(max_depth=3, min_samples_leaf=20, criterion="log_loss", random_state=0)
        tree.fit(matrix[learned, place][:, None], label[learned])
        loss = log_loss(truth, _of_all_classes(tree, matrix[judged, place][:, None], shares), labels=classes)
        if loss < best_loss:
            best, best_loss = (place, tree), loss
    if best is None:
        return np.tile(shares, (len(held_out), 1)), "the shares of the classes"
    place, tree = best
    return _of_all_classes(tree, held_out[:, [place]], shares), f"{names[place]} alone"


def _of_all_classes(
    tree: "DecisionTreeClassifier", rows: "NDArray[np.float32]", shares: "NDArray[np.float64]"
) -> "NDArray[np.float64]":
    """What a tree gives (rows, classes), with no certainty: a hundredth of it are the shares of the classes."""
    forecast = np.zeros((len(rows), len(shares)))
    forecast[:, tree.classes_.astype(np.int64)] = tree.predict_proba(rows)
    return SURE * forecast + (1 - SURE) * shares
