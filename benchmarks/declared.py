"""What benchmarks declare: the score of a made-up company, and the card of its champion."""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ml.declarations import Feature, Score
    from ml.encoding import Encoder
    from ml.registry import Card
    from orchestration.project import Paths

LEARNT = date(2024, 1, 1)


def places(folder: Path) -> "Paths":
    from orchestration.project import Paths

    return Paths(project=folder, data=folder)


def a_score(columns: "Sequence[Feature]", **told: Any) -> "Score":
    """A probability of these features, as they are told of each customer in features.customer_features."""
    from ml.declarations import Score

    told = {"label": "", "label_schema": "", **told}
    return Score(
        name="benchmark",
        title="Benchmark",
        description="",
        owner="",
        email="",
        kind="probability",
        features="customer_features",
        features_schema="features",
        features_id="",
        label_id="",
        entity=("customer_id",),
        as_of="as_of_date",
        columns=tuple(columns),
        model_columns=tuple(columns),
        features_file="",
        gate=("true",),
        fresh_for_days=8.0,
        **told,
    )


def a_card(score: str, features: "Sequence[Feature]", encoder: "Encoder", rows: int, trees: int) -> "Card":
    """The card of the first version of a probability, which has learned from so many rows."""
    from ml.registry import Card

    return Card(
        score=score,
        version=1,
        kind="probability",
        entity=("customer_id",),
        as_of="as_of_date",
        features=tuple(features),
        encoder=encoder,
        lowest=None,
        metrics={},
        baseline={},
        baseline_name="",
        importance={},
        dates=dict.fromkeys(("train_from", "train_to", "holdout_from", "holdout_to"), LEARNT),
        rows={"train": rows, "holdout": 0},
        params={},
        trees=trees,
        training_set="",
        libraries={},
        trained_at=datetime(2024, 5, 1, tzinfo=UTC),
    )
