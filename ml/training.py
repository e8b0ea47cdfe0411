"""Training on time-ordered rows: hold out the newest as-of dates, learn what had matured before them, measure once."""

import hashlib
from collections.abc import Callable, Mapping
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ml.baseline import naive_forecast
from ml.calibration import Calibration
from ml.declarations import Kind, Score
from ml.encoding import Encoder, column_type, encode, learn_encoder
from ml.metrics import METRICS, evaluate
from ml.prediction import outcomes, raw_scores, score_rows
from ml.registry import Card, Model

if TYPE_CHECKING:
    from catboost import CatBoost
    from numpy.typing import NDArray

Progress = Callable[[int, int], None]

LABEL, MATURES_ON = "label", "matures_on"
MOST_HELD_OUT = 4  # as-of dates
SHARE_HELD_OUT = 4  # one date in four, where there are fewer than four times MOST_HELD_OUT
LEAST_ROWS = 20  # to train on
MOST_TREES = 1000
PATIENCE = 50  # trees without a better loss on the newest training dates
TREES_WITHOUT_VALIDATION = 100
# Plain boosting and shallow trees are as good as the defaults here and many times faster. The number of threads is
# fixed because it changes the last digits of the trees: the same rows and seed give the same model on every machine.
PARAMS: dict[str, Any] = {
    "boosting_type": "Plain",
    "depth": 5,
    "learning_rate": 0.08,
    "border_count": 64,
    "thread_count": 2,
    "allow_writing_files": False,
    "logging_level": "Silent",
}
LOSSES: dict[Kind, str] = {"probability": "Logloss", "amount": "RMSE"}


def recipe() -> str:
    """A hash of what is fixed here, and of the metrics: two trainings of different recipes can differ."""
    fixed = [PARAMS, LOSSES, MOST_HELD_OUT, SHARE_HELD_OUT, MOST_TREES, PATIENCE, TREES_WITHOUT_VALIDATION, METRICS]
    return hashlib.sha256(msgspec.json.encode(fixed)).hexdigest()[:8]


class TrainingError(ValueError):
    """Rows that no sound model can be trained on; the message has the counts."""


class TooFewDates(TrainingError):
    """Not enough as-of dates with matured labels to hold some out and train on the others."""


class TooFewRows(TrainingError):
    """Not enough rows to train on."""


class OneClass(TrainingError):
    """Training rows that all have the same outcome or amount."""


class NoFeature(TrainingError):
    """No feature differs between the training rows."""


class BadLabel(TrainingError):
    """Labels that are null, not finite, or not 0 and 1 for a probability."""


class Candidate(msgspec.Struct, kw_only=True):
    """A model just trained, with how well it does on the held-out rows and what a naive forecast does on the same.

    `holdout` are those rows, for the champion to be measured on. `dates` has train_from, train_to, holdout_from and
    holdout_to, `rows` train and holdout.
    """

    booster: "CatBoost"
    encoder: Encoder
    kind: Kind
    lowest: float | None
    metrics: dict[str, float]
    baseline: dict[str, float]
    baseline_name: str
    importance: dict[str, float]
    params: dict[str, Any]
    trees: int
    dates: dict[str, date]
    rows: dict[str, int]
    holdout: pa.Table


def train(
    rows: pa.Table,
    score: Score,
    seed: int = 0,
    progress: Progress | None = None,
    known_until: date | None = None,
) -> Candidate:
    """A candidate for this score from its training set: keys, features, `label` and `matures_on`, matured rows only.

    The number of trees is found by early stopping on the newest training dates; then all training rows are used. The
    held-out dates are only measured on. The order of `rows` makes no difference, and the same rows and seed give the
    same model, to the byte. `progress` is called with the trees done and the most there can be, which falls once the
    number is found. `known_until` is the day up to which outcomes were known. Raises a `TrainingError` or
    `EncodingError` that says what is wrong with the rows.
    """
    rows = _checked(rows, score, known_until)
    training, holdout = holdout_split(rows, score.as_of, held_out_dates(_date_count(rows, score.as_of)))
    if training.num_rows < LEAST_ROWS:
        raise TooFewRows(
            f"{training.num_rows} training rows (of {rows.num_rows}; the others are held out or matured too late):"
            f" {LEAST_ROWS} are needed"
        )
    label = _label(training)
    if len(np.unique(label)) < 2:
        needed = "both outcomes" if score.kind == "probability" else "two amounts at least"
        raise OneClass(f"all {len(label)} training rows have the label {label[0]:g}: {needed} are needed")
    encoder = learn_encoder(training, [feature.name for feature in score.columns])
    matrix = encode(encoder, training)
    if not _varies(matrix).any():
        raise NoFeature(f"none of the {matrix.shape[1]} features differs between the {len(matrix)} training rows")
    params = {**PARAMS, "loss_function": LOSSES[score.kind], "random_seed": seed}
    report = _Progress(progress)
    trees = _number_of_trees(training, encoder, matrix, score, params, report)
    report.next_fit(trees)
    booster = _fit(params | {"iterations": trees}, encoder, matrix, label, report)
    lowest = 0.0 if score.kind == "amount" and label.min() >= 0 else None
    held_out, truth = encode(encoder, holdout), _label(holdout)
    naive, baseline_name = naive_forecast(score.kind, encoder, matrix, label, held_out)
    return Candidate(
        booster=booster,
        encoder=encoder,
        kind=score.kind,
        lowest=lowest,
        metrics=evaluate(score.kind, truth, outcomes(score.kind, raw_scores(booster, held_out), lowest, Calibration())),
        baseline=evaluate(score.kind, truth, naive),
        baseline_name=baseline_name,
        importance=_importance(booster),
        params=params,
        trees=int(booster.tree_count_),
        dates=_span(training, score.as_of, "train") | _span(holdout, score.as_of, "holdout"),
        rows={"train": training.num_rows, "holdout": holdout.num_rows},
        holdout=holdout,
    )


def champion_metrics(model: Model, holdout: pa.Table) -> dict[str, float]:
    """The metrics of another model on a candidate's held-out rows. Raises `EncodingError` if they lack a feature."""
    return evaluate(model.card.kind, _label(holdout), score_rows(model, holdout))


def make_card(candidate: Candidate, score: Score, *, version: int, training_set: str, trained_at: datetime) -> Card:
    """The card of a candidate that becomes a version, yet unsigned; `training_set` is the checksum of its rows."""
    return Card(
        score=score.name,
        version=version,
        kind=candidate.kind,
        entity=score.entity,
        as_of=score.as_of,
        features=score.columns,
        encoder=candidate.encoder,
        lowest=candidate.lowest,
        metrics=candidate.metrics,
        baseline=candidate.baseline,
        baseline_name=candidate.baseline_name,
        importance=candidate.importance,
        dates=candidate.dates,
        rows=candidate.rows,
        params=candidate.params,
        trees=candidate.trees,
        training_set=training_set,
        libraries=_libraries(),
        trained_at=trained_at,
    )


def held_out_dates(dates: int) -> int:
    """How many of so many as-of dates are held out: 4, or a quarter where there are fewer than 16, 1 at least."""
    return max(1, min(MOST_HELD_OUT, dates // SHARE_HELD_OUT))


def holdout_split(rows: pa.Table, as_of: str, newest: int) -> tuple[pa.Table, pa.Table]:
    """Split by time into training and held-out rows: the `newest` as-of dates are held out.

    Training rows are those whose label had matured on or before the first held-out date, so that nothing was learnt
    which was not known then. A random split would let the model see other days of the same customer (leakage).
    Raises `TooFewDates` if that leaves no training row.
    """
    dates = sorted(pc.unique(rows.column(as_of)).to_pylist())
    if len(dates) <= newest:
        raise TooFewDates(
            f"{len(dates)} as-of dates with matured labels: {newest} to hold out and one before them are needed"
        )
    first = dates[-newest]
    held_out = pc.greater_equal(rows.column(as_of), pa.scalar(first, rows.schema.field(as_of).type))
    day = pa.scalar(first, rows.schema.field(as_of).type).cast(pa.date32())
    matured = pc.less_equal(rows.column(MATURES_ON).cast(pa.date32(), safe=False), day)
    training = rows.filter(pc.and_(matured, pc.invert(held_out)))
    if not training.num_rows:
        raise TooFewDates(
            f"{len(dates)} as-of dates with matured labels, of which {newest} are held out, from {day} on: no label of"
            f" the {len(dates) - newest} before had matured by then"
            f" (the first matures on {pc.min(rows.column(MATURES_ON))})"
        )
    return training, rows.filter(held_out)


def _checked(rows: pa.Table, score: Score, known_until: date | None) -> pa.Table:
    """The rows sorted by as-of date and entity, once keys and labels are all there, and the labels have matured."""
    keys = [score.as_of, *score.entity]
    missing = [name for name in (*keys, LABEL, MATURES_ON) if name not in rows.column_names]
    if missing:
        raise TrainingError(f"the training set lacks {', '.join(missing)}")
    if not rows.num_rows:
        raise TooFewRows(f"the training set is empty: {LEAST_ROWS} rows are needed to train on")
    nulls = {name: rows.column(name).null_count for name in (*keys, LABEL, MATURES_ON)}
    if any(nulls.values()):
        counts = ", ".join(f"{name} in {count} rows" for name, count in nulls.items() if count)
        raise BadLabel(f"keys, label and matures_on are never null, but of {rows.num_rows} rows: {counts}")
    matures, as_of = (rows.column(name).cast(pa.date32()) for name in (MATURES_ON, score.as_of))
    early = pc.sum(pc.less_equal(matures, as_of)).as_py()
    if early:
        raise BadLabel(
            f"{early} of {rows.num_rows} labels mature on their {score.as_of} or before, which no outcome does"
        )
    immature = pc.sum(pc.greater(matures, pa.scalar(known_until, pa.date32()))).as_py() if known_until else 0
    if immature:
        raise BadLabel(f"{immature} of {rows.num_rows} labels mature only after {known_until}, the last day known")
    if column_type(rows.schema.field(LABEL).type) not in ("number", "boolean"):
        raise BadLabel(f"the label is a number or boolean, but has type {rows.schema.field(LABEL).type}")
    label = _label(rows)
    if not np.isfinite(label).all():
        raise BadLabel(f"{int((~np.isfinite(label)).sum())} of {len(label)} labels are NaN or infinite")
    if score.kind == "probability" and not np.isin(label, (0.0, 1.0)).all():
        wrong = np.unique(label[~np.isin(label, (0.0, 1.0))])[:5]
        raise BadLabel(f"the label of a probability is 0 or 1, but there are others: {', '.join(map(str, wrong))}")
    order = pa.table({name: _sortable(rows.column(name)) for name in keys})
    return rows.take(pc.sort_indices(order, sort_keys=[(name, "ascending") for name in keys]))


def _sortable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column as Arrow can sort it: of a UUID its bytes."""
    if isinstance(column.type, pa.BaseExtensionType):
        return pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    return column


def _label(rows: pa.Table) -> "NDArray[np.float64]":
    return np.asarray(rows.column(LABEL).cast(pa.float64()).to_numpy(), dtype=np.float64)


def _date_count(rows: pa.Table, as_of: str) -> int:
    return len(pc.unique(rows.column(as_of)))


def _span(rows: pa.Table, as_of: str, name: str) -> dict[str, date]:
    ends = pc.min_max(rows.column(as_of)).as_py()
    days = {end: value.date() if isinstance(value, datetime) else value for end, value in ends.items()}
    return {f"{name}_from": days["min"], f"{name}_to": days["max"]}


def _varies(matrix: "NDArray[np.float32]") -> "NDArray[np.bool_]":
    """For each column whether it holds two different values, null being one."""
    first = matrix[:1]
    same = (matrix == first) | (np.isnan(matrix) & np.isnan(first))
    return np.asarray(~same.all(axis=0))


def _number_of_trees(
    training: pa.Table,
    encoder: Encoder,
    matrix: "NDArray[np.float32]",
    score: Score,
    params: Mapping[str, Any],
    report: "_Progress",
) -> int:
    """Found by early stopping on the newest training dates, with a maturity gap before them where the dates allow one.

    A fixed number where there is one date only, or one outcome or amount, or hardly a row before the newest.
    """
    # The keys alone, and with them each row's place in the matrix.
    place = training.select([score.as_of, MATURES_ON]).append_column("place of row", pa.array(range(training.num_rows)))
    dates = _date_count(training, score.as_of)
    if dates < 2:
        return TREES_WITHOUT_VALIDATION
    newest = held_out_dates(dates)
    try:
        earlier, later = holdout_split(place, score.as_of, newest)
    except TooFewDates:
        no_gap = place.schema.get_field_index(MATURES_ON)
        earlier, later = holdout_split(
            place.set_column(no_gap, MATURES_ON, place.column(score.as_of)), score.as_of, newest
        )
    before, after = (part.column("place of row").to_numpy() for part in (earlier, later))
    label = _label(training)
    one_outcome = len(np.unique(label[before])) < 2
    if len(before) < LEAST_ROWS or one_outcome or not _varies(matrix[before]).any():
        return TREES_WITHOUT_VALIDATION
    stopping = {"iterations": MOST_TREES, "early_stopping_rounds": PATIENCE, "use_best_model": True}
    booster = _fit(
        {**params, **stopping}, encoder, matrix[before], label[before], report, (matrix[after], label[after])
    )
    return max(1, int(booster.tree_count_))


def _fit(
    params: Mapping[str, Any],
    encoder: Encoder,
    matrix: "NDArray[np.float32]",
    label: "NDArray[np.float64]",
    report: "_Progress",
    validation: "tuple[NDArray[np.float32], NDArray[np.float64]] | None" = None,
) -> "CatBoost":
    """A booster without the time and random id that CatBoost writes into each: equal models are equal bytes."""
    from catboost import CatBoost, Pool

    names = list(encoder.names)
    pools = [Pool(x, y, feature_names=names) for x, y in ((matrix, label), *([validation] if validation else []))]
    booster = CatBoost(dict(params))
    booster.fit(pools[0], eval_set=pools[1] if validation else None, callbacks=[report])
    metadata = booster.get_metadata()
    for name in ("train_finish_time", "model_guid"):
        del metadata[name]
    return booster


class _Progress:
    """CatBoost's callback: tells the trees done over both fits."""

    def __init__(self, tell: Progress | None) -> None:
        self.tell, self.before, self.now, self.most = tell, 0, 0, 2 * MOST_TREES

    def next_fit(self, trees: int) -> None:
        self.before += self.now
        self.now, self.most = 0, self.before + trees

    def after_iteration(self, info: Any) -> bool:
        self.now = int(info.iteration)
        if self.tell:
            self.tell(self.before + self.now, self.most)
        return True


def _importance(booster: "CatBoost") -> dict[str, float]:
    """Each feature's share in the predictions in percent, the greatest first (CatBoost's PredictionValuesChange)."""
    shares = zip(booster.feature_names_, booster.get_feature_importance(type="PredictionValuesChange"), strict=True)
    return {name: round(float(share), 4) for name, share in sorted(shares, key=lambda pair: (-pair[1], pair[0]))}


def _libraries() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    names = ("catboost", "numpy", "pyarrow", "scikit-learn")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
