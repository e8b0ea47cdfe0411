"""From a candidate to its card: what it is, and what its held-out rows show."""

from collections.abc import Mapping, Sequence
from datetime import date, datetime

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from ml.evaluation import evaluate_holdout
from ml.intervals import entity_numbers, intervals
from ml.labels import MATURES_ON, label_numbers
from ml.registry import Card, Model
from ml.scores import Score
from ml.training import Candidate


def make_card(
    candidate: Candidate,
    score: Score,
    *,
    version: int,
    training_set: str,
    trained_at: datetime,
    champion: Mapping[str, float] | None = None,
    champion_version: int | None = None,
    commit: str | None = None,
    trigger: str = "",
    trained_on: date | None = None,
) -> Card:
    """The card of a candidate that becomes a version, yet unsigned; `training_set` is the checksum of its rows.

    `champion` are the metrics of the champion on the same held-out rows, `commit` the git commit of the project,
    `trigger` what started the training, `trained_on` the day that it was for the project.
    """
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
        classes=candidate.classes,
        calibration=candidate.calibration,
        learning=candidate.learning,
        search=candidate.search,
        validation_overlaps=candidate.validation_overlaps,
        rates=candidate.rates,
        champion=dict(champion or {}),
        champion_version=champion_version,
        commit=commit,
        trigger=trigger,
        trained_on=trained_on,
        naive=candidate.naive,
    )


def evaluated(candidate: Candidate, card: Card, slice_by: Sequence[str] = ()) -> Card:
    """The candidate's card with what its held-out rows show: intervals, curves, slices (by these columns too) and what
    moves the score."""
    holdout, model = candidate.holdout, Model(candidate.booster, card)
    label = label_numbers(holdout, card.kind, card.classes)
    days = pc.days_between(*(holdout.column(name).cast(pa.date32()) for name in (card.as_of, MATURES_ON)))
    return msgspec.structs.replace(
        card,
        intervals=intervals(card.kind, label, candidate.scores, entity_numbers(holdout, card.entity), card.metrics),
        evaluation=evaluate_holdout(model, holdout, label, slice_by=slice_by),
        matures_in_days=(pc.min(days).as_py(), pc.max(days).as_py()),
    )


def _libraries() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    names = ("catboost", "numpy", "pyarrow", "scikit-learn", "optuna")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
