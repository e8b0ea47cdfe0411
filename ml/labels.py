"""The labels of a training set: whether they can be learned from, and as the numbers that a booster learns."""

from datetime import date
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ml.encoding import column_type, sortable
from ml.metrics import Kind
from ml.scores import Score

if TYPE_CHECKING:
    from numpy.typing import NDArray

LABEL, MATURES_ON = "label", "matures_on"
LEAST_ROWS = 20  # to train on, and to measure on
LARGEST = float(np.finfo(np.float32).max)  # as a booster keeps labels
MOST_CLASSES = 50  # of a category: each has trees of its own


class TrainingError(ValueError):
    """Rows that no sound model can be trained on; the message has the counts."""


class TooFewRows(TrainingError):
    """Not enough rows to train on, or to measure on."""


class BadLabel(TrainingError):
    """Labels that are null, not finite, not 0 and 1 for a probability, or no classes for a category."""


def checked(rows: pa.Table, score: Score, known_until: date | None) -> pa.Table:
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
    _check_values(rows, score.kind)
    order = pa.table({name: sortable(rows.column(name)) for name in keys})
    return rows.take(pc.sort_indices(order, sort_keys=[(name, "ascending") for name in keys]))


def _check_values(rows: pa.Table, kind: Kind) -> None:
    stored = rows.schema.field(LABEL).type
    if kind == "category":
        if column_type(stored) not in ("category", "boolean") and not pa.types.is_integer(stored):
            raise BadLabel(f"the label of a category is text, a boolean or a whole number, but has type {stored}")
        names = classes_of(rows)
        if len(names) > MOST_CLASSES:
            raise BadLabel(f"the label has {len(names)} classes ({', '.join(names[:5])}, ...): {MOST_CLASSES} at most")
        return
    if column_type(stored) not in ("number", "boolean"):
        raise BadLabel(f"the label is a number or boolean, but has type {stored}")
    label = label_numbers(rows, kind)
    if not np.isfinite(label).all():
        raise BadLabel(f"{int((~np.isfinite(label)).sum())} of {len(label)} labels are NaN or infinite")
    if (np.abs(label) > LARGEST).any():
        raise BadLabel(
            f"{int((np.abs(label) > LARGEST).sum())} of {len(label)} labels are beyond {LARGEST:.1e}, the largest that"
            f" can be learned (they go from {label.min():g} to {label.max():g})"
        )
    if kind == "probability" and not np.isin(label, (0.0, 1.0)).all():
        wrong = np.unique(label[~np.isin(label, (0.0, 1.0))])[:5]
        raise BadLabel(f"the label of a probability is 0 or 1, but there are others: {', '.join(map(str, wrong))}")


def classes_of(rows: pa.Table) -> tuple[str, ...]:
    """The classes of a category that occur in its labels, as texts, in order."""
    return tuple(sorted(pc.unique(_texts(rows)).to_pylist()))


def label_numbers(rows: pa.Table, kind: Kind, classes: tuple[str, ...] = ()) -> "NDArray[np.float64]":
    """The labels (rows,): 0 and 1, amounts, or the places of their classes, -1 for a class that is not there."""
    if kind != "category":
        return np.asarray(rows.column(LABEL).cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)
    places = pc.fill_null(pc.index_in(_texts(rows), value_set=pa.array(classes, pa.string())), -1)
    return np.asarray(places.to_numpy(), dtype=np.float64)


def _texts(rows: pa.Table) -> pa.ChunkedArray:
    """The labels as texts."""
    label = rows.column(LABEL)
    if pa.types.is_dictionary(label.type):
        label = label.cast(label.type.value_type)
    return label.cast(pa.string())
