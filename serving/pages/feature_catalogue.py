"""The features as the page /features shows them: what each is, holds, is made from and does. The pipeline writes it."""

from datetime import date, datetime
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

FILE = "features.json"


class FeatureUse(msgspec.Struct, frozen=True, kw_only=True):
    """What a feature does in a score: of its champion the share of importance, and whether it has drifted."""

    score: str
    title: str
    version: int | None  # None before the first champion
    importance: Annotated[float | None, Meta(description="Percent of the champion's importance; None: not read.")]
    verdict: str | None  # of the newest drift report; None where it does not look at the feature
    report: str | None  # where that report is, below /reports


class Bin(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a distribution: what is in it, in words, and its share of the known values."""

    told: str
    share: float


class FeatureFigures(msgspec.Struct, frozen=True, kw_only=True):
    """A feature on the newest as-of date. `made_from` are columns of raw tables and seeds, as `raw.orders.amount`."""

    name: str
    data_type: str
    unit: str | None
    description: str
    made_from: list[str]
    uses: list[FeatureUse]
    null_share: float
    distinct: int
    minimum: str | None
    maximum: str | None
    bins: list[Bin]


class FeatureModel(msgspec.Struct, frozen=True, kw_only=True):
    """A feature model with its features, in the order of its owner, as of its newest as-of date."""

    name: str
    description: str
    owner: str
    entity: tuple[str, ...]
    as_of: str
    newest: date | None
    rows: int
    of: str  # what the figures were counted on: if it is the same, they are
    features: list[FeatureFigures]


class FeatureReport(msgspec.Struct, frozen=True, kw_only=True):
    """All feature models, as of a moment."""

    written_at: datetime
    models: list[FeatureModel]


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """A bin as a column of a small chart: places and height in percent."""

    x: float
    width: float
    height: float
    told: str


class FeatureView(msgspec.Struct, frozen=True, kw_only=True):
    """A feature as a row of the page: the columns of its chart, and its uses, the weightiest first."""

    feature: FeatureFigures
    columns: list[Column]
    uses: list[FeatureUse]


def read_features(reports: Path) -> FeatureReport | None:
    """What the pipeline wrote last; None before the first run. Reads the disk."""
    try:
        return msgspec.json.decode((reports / FILE).read_bytes(), type=FeatureReport)
    except (FileNotFoundError, msgspec.DecodeError, msgspec.ValidationError):
        return None


def feature_views(model: FeatureModel) -> list[FeatureView]:
    """The features of a model, those that scores lean on most first."""
    views = [
        FeatureView(
            feature=feature,
            columns=_columns(feature.bins),
            uses=sorted(feature.uses, key=lambda use: -(use.importance or 0)),
        )
        for feature in model.features
    ]
    return sorted(views, key=lambda view: -max((use.importance or 0 for use in view.uses), default=0))


def _columns(bins: list[Bin]) -> list[Column]:
    highest = max((piece.share for piece in bins), default=0.0) or 1.0
    step = 100 / max(len(bins), 1)
    return [
        Column(
            x=round(place * step, 3),
            width=round(step * 0.86, 3),
            # what is there is seen, however rare
            height=round(max(100 * piece.share / highest, 3.0 if piece.share else 0.0), 2),
            told=f"{piece.told}: {100 * piece.share:.1f} %",
        )
        for place, piece in enumerate(bins)
    ]
