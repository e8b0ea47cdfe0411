"""Training on time-ordered rows: hold out the newest as-of dates, learn what had matured before them, measure once."""

import hashlib
from collections.abc import Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ml import calibration as calibrating
from ml import fitting, splitting
from ml.baseline import Naive, feature_values, fit_naive, naive_forecast
from ml.calibration import Calibration, learn_calibration
from ml.encoding import Encoder, encode, learn_encoder
from ml.fitting import Progress, Sample, Tell, fit, parameters, search
from ml.labels import LEAST_ROWS, MATURES_ON, TooFewRows, TrainingError, checked, classes_of, label_numbers
from ml.learning import Learning
from ml.metrics import METRICS, Kind, evaluate
from ml.prediction import outcomes, raw_scores, score_rows
from ml.registry import Model
from ml.scores import Score
from ml.slices import Slice, sliced
from ml.splitting import TooFewDates, date_count, held_out_dates, holdout_split, longer_window, split, window

if TYPE_CHECKING:
    from catboost import CatBoost
    from numpy.typing import NDArray


def recipe() -> str:
    """A hash of what is fixed here, and of the metrics: two trainings of different recipes can differ."""
    fixed = [fitting.PARAMS, fitting.LOSSES, fitting.SPACE, fitting.MOST_TREES, fitting.PATIENCE]
    fixed += [fitting.WITHOUT_SEARCH, calibrating.LEAST_ROWS, calibrating.LEAST_OUTCOMES]
    fixed += [fitting.TREES_WITHOUT_VALIDATION, splitting.MOST_HELD_OUT, splitting.SHARE_HELD_OUT]
    fixed += [splitting.SHARE_MATURED, splitting.EARLY, METRICS]
    return hashlib.sha256(msgspec.json.encode(fixed)).hexdigest()[:8]


class OneClass(TrainingError):
    """Training rows that all have the same outcome, amount or class."""


class NoFeature(TrainingError):
    """No feature differs between the training rows."""


class Candidate(msgspec.Struct, kw_only=True):
    """A model just trained, with how well it does on the held-out rows and what a naive forecast does on the same.

    `holdout` are those rows, for the champion to be measured on, `scores` the model's scores of them. `dates` has
    train_from, train_to, holdout_from and holdout_to, `rows` train and holdout, `rates` their mean labels as a card has
    them, `search` each trial of one. `validation_overlaps` says that the newest training dates, on which trees,
    parameters and calibration are chosen, begin before all outcomes of the earlier ones were known. `naive` is the
    forecast that `baseline` is measured of.
    """

    booster: "CatBoost"
    encoder: Encoder
    kind: Kind
    classes: tuple[str, ...]
    lowest: float | None
    calibration: Calibration
    metrics: dict[str, float]
    baseline: dict[str, float]
    baseline_name: str
    naive: Naive
    importance: dict[str, float]
    params: dict[str, Any]
    learning: Learning
    search: tuple[dict[str, float], ...]
    validation_overlaps: bool
    trees: int
    dates: dict[str, date]
    rows: dict[str, int]
    rates: dict[str, float]
    holdout: pa.Table
    scores: "NDArray[np.float64]"


def train(
    rows: pa.Table,
    score: Score,
    seed: int = 0,
    progress: Tell | None = None,
    known_until: date | None = None,
) -> Candidate:
    """A candidate for this score from its training set: keys, features, `label` and `matures_on`, matured rows only.

    On the newest training dates the number of trees is found, by early stopping, and what turns log-odds into
    probabilities; then all training rows are used. The held-out dates are only measured on. The order of `rows` makes
    no difference, and the same rows and seed give the same model, to the byte. `progress` is called with the trees done
    and the most there can be, which falls once a number is found. `known_until` is the day up to which outcomes were
    known. Raises a `TrainingError` or `EncodingError` that says what is wrong with the rows.
    """
    all_training, holdout = split(checked(rows, score, known_until), score)
    training = window(all_training, holdout, score)
    if training.num_rows < LEAST_ROWS:
        raise TooFewRows(
            f"{training.num_rows} training rows (of {rows.num_rows}; the others are held out or matured too late"
            f"{' or lie before the window of train_on' if score.learning.train_on_days else ''}):"
            f" {LEAST_ROWS} are needed{longer_window(all_training, holdout, score)}"
        )
    if holdout.num_rows < LEAST_ROWS:
        dates = _span(holdout, score.as_of, "holdout")
        raise TooFewRows(
            f"{holdout.num_rows} held-out rows (of {rows.num_rows}; as-of dates {dates['holdout_from']} to"
            f" {dates['holdout_to']}): {LEAST_ROWS} are needed to measure on"
        )
    classes = classes_of(training) if score.kind == "category" else ()
    label = label_numbers(training, score.kind, classes)
    if len(np.unique(label.astype(np.float32))) < 2:  # as a booster sees them
        needed = {"probability": "both outcomes", "amount": "two amounts at least", "category": "two classes at least"}
        only = classes[0] if classes else f"{label[0]:g}"
        raise OneClass(f"all {len(label)} training rows have the label {only}: {needed[score.kind]} are needed")
    encoder = learn_encoder(training, [feature.name for feature in score.columns])
    sample = Sample(encode(encoder, training), label, encoder.names)
    if not _varies(sample.matrix).any():
        raise NoFeature(f"none of the {sample.matrix.shape[1]} features differs between the {len(label)} training rows")
    params = parameters(score.kind, score.learning, encoder.names, classes, seed)
    validation = _validation(training, sample, score)
    report = Progress(progress, fits=1 if validation is None else 2 + score.learning.trials)
    calibration, weighted = Calibration(), score.learning.params.get("positive_weight", 1) != 1
    trials: list[dict[str, float]] = []
    if validation is not None:
        earlier, later = sample.at(validation.before), sample.at(validation.after)
        if score.learning.trials:
            params, trials = search(params, score.learning, earlier, later, report)
        stopped = fit(params, earlier, report, later)
        params.setdefault("iterations", max(1, int(stopped.tree_count_)))
        if score.kind == "probability":
            moment = _days(training, score.as_of)[validation.after]
            calibration = learn_calibration(raw_scores(stopped, later.matrix), later.label, moment, weighted)
    if weighted and calibration == Calibration():
        raise TooFewRows(
            "positive_weight moves the scores away from probabilities, and the newest training dates have too little"
            f" to calibrate them by ({calibrating.LEAST_OUTCOMES} rows of either outcome are needed): leave it out"
        )
    booster = fit(params, sample, report)
    lowest = 0.0 if score.kind == "amount" and label.min() >= 0 else None
    held_out, truth = encode(encoder, holdout), label_numbers(holdout, score.kind, classes)
    scores = outcomes(score.kind, raw_scores(booster, held_out), lowest, calibration)
    naive = fit_naive(score.kind, encoder, sample.matrix, label)
    return Candidate(
        booster=booster,
        encoder=encoder,
        kind=score.kind,
        classes=classes,
        lowest=lowest,
        calibration=calibration,
        metrics=evaluate(score.kind, truth, scores),
        baseline=evaluate(score.kind, truth, naive_forecast(naive, feature_values(encoder, held_out, naive))),
        baseline_name=naive.told,
        naive=naive,
        importance=_importance(booster),
        params=params,
        learning=score.learning,
        search=tuple(trials),
        validation_overlaps=validation is not None and validation.overlaps,
        trees=int(booster.tree_count_),
        dates=_span(training, score.as_of, "train") | _span(holdout, score.as_of, "holdout"),
        rows={"train": training.num_rows, "holdout": holdout.num_rows},
        rates=label_rates(classes, train=label, holdout=truth),
        holdout=holdout,
        scores=scores,
    )


def champion_metrics(model: Model, holdout: pa.Table) -> dict[str, float]:
    """The metrics of another model on a candidate's held-out rows. Raises `EncodingError` if they lack a feature."""
    truth = label_numbers(holdout, model.card.kind, model.card.classes)
    return evaluate(model.card.kind, truth, score_rows(model, holdout))


def held_out(rows: pa.Table, score: Score) -> pa.Table:
    """The rows of a training set that a candidate trained on it holds out, in the order that it does."""
    return split(checked(rows, score, None), score)[1]


def metrics_in_slices(model: Model, holdout: pa.Table, columns: Sequence[str]) -> list[Slice]:
    """The metrics of a model in the slices that these columns make of held-out rows."""
    truth = label_numbers(holdout, model.card.kind, model.card.classes)
    return sliced(model.card.kind, holdout, truth, score_rows(model, holdout), columns)


def label_rates(classes: Sequence[str], **parts: "NDArray[np.float64]") -> dict[str, float]:
    """The mean label of each part by its name; where there are classes the share of each, as "<part> <class>"."""
    if not classes:
        return {part: float(label.mean()) for part, label in parts.items()}
    return {
        f"{part} {name}": float((label == place).mean())
        for part, label in parts.items()
        for place, name in enumerate(classes)
    }


def _span(rows: pa.Table, as_of: str, name: str) -> dict[str, date]:
    ends = pc.min_max(rows.column(as_of)).as_py()
    days = {end: value.date() if isinstance(value, datetime) else value for end, value in ends.items()}
    return {f"{name}_from": days["min"], f"{name}_to": days["max"]}


def _varies(matrix: "NDArray[np.float32]") -> "NDArray[np.bool_]":
    """For each column whether it holds two different values, null being one."""
    first = matrix[:1]
    same = (matrix == first) | (np.isnan(matrix) & np.isnan(first))
    return np.asarray(~same.all(axis=0))


def _days(rows: pa.Table, as_of: str) -> "NDArray[np.int64]":
    """The as-of date of each row, as a number that orders them."""
    return np.asarray(rows.column(as_of).cast(pa.timestamp("us"), safe=False).cast(pa.int64()).to_numpy())


class Validation(msgspec.Struct, frozen=True):
    """The places of the rows to fit on and of those on the newest training dates, and whether outcomes of the former
    were not known yet on the first of the latter."""

    before: "NDArray[np.int64]"
    after: "NDArray[np.int64]"
    overlaps: bool


def _validation(training: pa.Table, sample: Sample, score: Score) -> Validation | None:
    """What the training is validated on, with a maturity gap where the dates allow one.

    None where there is one date only, or one outcome, amount or class, or hardly a row before the newest.
    """
    # The keys alone, and with them each row's place in the matrix.
    place = training.select([score.as_of, MATURES_ON]).append_column("place of row", pa.array(range(training.num_rows)))
    dates = date_count(training, score.as_of)
    if dates < 2:
        return None
    newest, overlaps = held_out_dates(dates), False
    try:
        earlier, later = holdout_split(place, score.as_of, newest)
    except TooFewDates:
        overlaps = True
        no_gap = place.schema.get_field_index(MATURES_ON)
        earlier, later = holdout_split(
            place.set_column(no_gap, MATURES_ON, place.column(score.as_of)), score.as_of, newest
        )
    before, after = (part.column("place of row").to_numpy() for part in (earlier, later))
    one_outcome = len(np.unique(sample.label[before].astype(np.float32))) < 2
    if len(before) < LEAST_ROWS or one_outcome or not _varies(sample.matrix[before]).any():
        return None
    return Validation(before, after, overlaps)


def _importance(booster: "CatBoost") -> dict[str, float]:
    """Each feature's share in the predictions in percent, the greatest first (CatBoost's PredictionValuesChange)."""
    shares = zip(booster.feature_names_, booster.get_feature_importance(type="PredictionValuesChange"), strict=True)
    return {name: round(float(share), 4) for name, share in sorted(shares, key=lambda pair: (-pair[1], pair[0]))}
