"""What the card of a model shows of the held-out rows besides its metrics: curves, parts, and what moves the score."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa

from ml.baseline import feature_values, naive_forecast
from ml.calibration import Calibration
from ml.encoding import ColumnType, encode
from ml.gains import held_by_highest
from ml.leaf_table import added_by_features
from ml.metrics import Bin, Kind, equal_bins
from ml.prediction import outcomes, raw_scores
from ml.slices import Slice, sliced, slicing_columns

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ml.registry import Model

EXPLAINED_FEATURES = 20
EXPLAINED_ROWS = 500
DIGITS = 3  # significant ones of a contribution: more make no difference to the eye


class Moves(msgspec.Struct, frozen=True, kw_only=True):
    """What a feature added to the raw score of each drawn row, and its value there: of a category its code (0: one that
    is not among `categories`, 1: the first of them), else its rank from 0, the lowest, to 1; None where it is null."""

    feature: str
    type: ColumnType
    categories: tuple[str, ...] = ()
    contributions: tuple[float, ...]
    values: tuple[float | None, ...]


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The held-out rows as people look at them.

    `bins` are ten of equal count by score, with what was forecast and what came: of "score", of "uncalibrated" where
    the score is calibrated, or of each class. `gains` are the shares of all outcomes, or of the total amount, that the
    highest 5 %, 10 %, … 100 % of the scores hold, by the same names; none where there is nothing to hold. `confusion`
    has a row for each class that happened, with the count of each that was likeliest; in the last row those of classes
    that the model does not know, if there are any. `moves` are of the most important features, those that move the
    score most first.
    """

    bins: dict[str, tuple[Bin, ...]]
    gains: dict[str, tuple[float, ...]]
    slices: tuple[Slice, ...]
    confusion: tuple[tuple[int, ...], ...] = ()
    moves: tuple[Moves, ...] = ()


def evaluate_holdout(
    model: "Model", rows: pa.Table, label: "NDArray[Any]", seed: int = 0, slice_by: Sequence[str] = ()
) -> Evaluation:
    """What the held-out rows show of a model; `label` as in `metrics.evaluate`, of the same rows.

    Slices are those of its texts and booleans, of the columns of `slice_by` that there are, and of the as-of dates.
    """
    card = model.card
    matrix = encode(card.encoder, rows)
    raw = raw_scores(model.booster, matrix)
    score = outcomes(card.kind, raw, card.lowest, card.calibration)
    sides = _sides(card.kind, card.classes, label, score)
    bins = {name: tuple(equal_bins(truth, values)) for name, (truth, values) in sides.items()}
    if card.calibration.method != "none":
        bins["uncalibrated"] = tuple(equal_bins(label, outcomes(card.kind, raw, card.lowest, Calibration())))
    also = [name for name in slice_by if name in rows.column_names]
    columns = list(dict.fromkeys([*slicing_columns(rows, card.encoder.names), *also, card.as_of]))
    naive = naive_forecast(card.naive, feature_values(card.encoder, matrix, card.naive)) if card.naive else None
    return Evaluation(
        bins=bins,
        gains={name: gains for name, (truth, values) in sides.items() if (gains := held_by_highest(truth, values))},
        slices=tuple(_measurable(part) for part in sliced(card.kind, rows, label, score, columns, naive)),
        confusion=confusion(label, score) if card.kind == "category" else (),
        moves=_moves(model, matrix, score, seed),
    )


def _sides(
    kind: Kind, classes: Sequence[str], label: "NDArray[Any]", score: "NDArray[np.float64]"
) -> "dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]":
    """What happened and what was forecast, (rows,) each: one pair, or of a category one for each class."""
    truth = np.asarray(label, dtype=np.float64)
    if kind != "category":
        return {"score": (truth, score)}
    return {name: ((truth == place).astype(np.float64), score[:, place]) for place, name in enumerate(classes)}


def confusion(label: "NDArray[Any]", score: "NDArray[np.float64]") -> tuple[tuple[int, ...], ...]:
    """For each class that happened how often each was the likeliest; of unknown classes in a last row, if any."""
    known = score.shape[1]
    truth = np.where((label >= 0) & (label < known), label, known).astype(np.int64)
    counts = np.zeros((known + 1, known), dtype=np.int64)
    np.add.at(counts, (truth, score.argmax(axis=1)), 1)
    return tuple(tuple(map(int, row)) for row in (counts if counts[known].any() else counts[:known]))


def _measurable(part: Slice) -> Slice:
    """The slice with the metrics that can be measured on it: JSON has no NaN."""

    def finite(metrics: dict[str, float]) -> dict[str, float]:
        return {name: value for name, value in metrics.items() if np.isfinite(value)}

    return msgspec.structs.replace(part, metrics=finite(part.metrics), baseline=finite(part.baseline))


def _moves(model: "Model", matrix: "NDArray[np.float32]", score: "NDArray[np.float64]", seed: int) -> tuple[Moves, ...]:
    """The most important features with their contributions to rows drawn with a seed; of a category to the likeliest
    class of each row."""
    card = model.card
    drawn = np.random.default_rng(seed).permutation(len(matrix))[:EXPLAINED_ROWS]
    drawn.sort()
    likeliest = score[drawn].argmax(axis=1) if card.kind == "category" else None
    added = added_by_features(model.leaf_table, matrix[drawn], likeliest)
    places = {column.name: place for place, column in enumerate(card.encoder.columns)}
    important = [places[name] for name, share in card.importance.items() if share > 0][:EXPLAINED_FEATURES]
    moves = []
    for place in sorted(important, key=lambda place: (-np.abs(added[:, place]).mean(), place)):
        column, values = card.encoder.columns[place], matrix[drawn, place].astype(np.float64)
        told = values if column.type == "category" else _ranks(values)
        moves.append(
            Moves(
                feature=column.name,
                type=column.type,
                categories=column.categories,
                contributions=tuple(float(f"{number:.{DIGITS}g}") for number in added[:, place]),
                values=tuple(None if np.isnan(value) else round(float(value), 2) for value in told),
            )
        )
    return tuple(moves)


def _ranks(values: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """The rank of each value among the known ones, from 0 to 1; equal values share theirs, and a single one is 0.5."""
    from scipy.stats import rankdata

    ranks = np.full(len(values), np.nan)
    known = ~np.isnan(values)
    if known.any():
        found = rankdata(values[known])
        spread = np.ptp(found)
        ranks[known] = (found - found.min()) / spread if spread else 0.5
    return ranks
