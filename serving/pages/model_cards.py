"""The versions of a score with their model cards, as the API and the pages read them. The pipeline writes the files.

`<reports>/<score>/versions/versions.json` lists them, `<version>/card.html` and `<version>/card.json` are the cards.
"""

import re
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ml.baseline import Naive
from ml.calibration import Calibration
from ml.evaluation import Evaluation
from ml.learning import Learning
from ml.scores import Feature
from ml.standing import Reign, Standing, Verdict
from serving.generations.generation import NAME

INDEX, PAGE, DATA = "versions.json", "card.html", "card.json"
VERSION = re.compile(r"[1-9][0-9]{0,8}")  # not of any length, as it is a folder's name


class VersionLine(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a score in short: its verdict and the metric that its kind is judged by."""

    version: int
    trained_at: datetime
    verdict: Annotated[Verdict, Meta(description="What its gate said last.")]
    champion: Annotated[Reign, Meta(description="Whether it scores customers now, did before, or never has.")]
    failed: Annotated[tuple[str, ...], Meta(description="The conditions of the gate that it fails.")]
    metric: Annotated[str, Meta(description="The metric that its kind is judged by.")]
    value: float | None
    interval: Annotated[tuple[float, float] | None, Meta(description="95 %, where it can be told.")]
    baseline: Annotated[float | None, Meta(description="The same metric of the naive forecast.")]
    promoted_at: Annotated[datetime | None, Meta(description="When it became champion last.")]
    made_from: Annotated[str, Meta(description="A hash of all that its card says: the same hash, the same card.")]


class Versions(msgspec.Struct, frozen=True, kw_only=True):
    """The versions of a score, the newest first."""

    score: str
    title: str
    versions: list[VersionLine]


class VersionCard(msgspec.Struct, frozen=True, kw_only=True):
    """The model card of a version: what it is, how good, from what it was made, and by whose word it is champion."""

    score: str
    title: str
    description: str
    owner: str
    version: int
    kind: str
    verdict: Annotated[Verdict, Meta(description="What its gate said last.")]
    standing: Annotated[
        Standing, Meta(description="Its gate's conditions with figures, its promotions, and the one that ended it.")
    ]
    trained_at: datetime
    metrics: Annotated[dict[str, float | None], Meta(description="On the held-out dates; null if not measurable.")]
    intervals: Annotated[dict[str, tuple[float, float]], Meta(description="Of each metric, 95 %, by the bootstrap.")]
    baseline: Annotated[dict[str, float | None], Meta(description="The same metrics of the naive forecast.")]
    baseline_name: Annotated[str, Meta(description="What the naive forecast is.")]
    naive: Annotated[Naive | None, Meta(description="The same in numbers; null for a version of before.")] = None
    champion_version: Annotated[int | None, Meta(description="The champion when it was trained.")]
    champion: Annotated[dict[str, float | None], Meta(description="The metrics of that one on the same rows.")]
    evaluation: Annotated[
        Evaluation | None, Meta(description="What the held-out rows show: the figures behind the card's pictures.")
    ]
    importance: Annotated[dict[str, float], Meta(description="Feature -> its share in percent, the greatest first.")]
    entity: tuple[str, ...]
    as_of: str
    features: tuple[Feature, ...]
    classes: tuple[str, ...]
    dates: Annotated[dict[str, date], Meta(description="train_from, train_to, holdout_from, holdout_to.")]
    rows: Annotated[dict[str, int], Meta(description="train, holdout.")]
    rates: Annotated[dict[str, float], Meta(description="The mean label of train and holdout, or shares of classes.")]
    matures_in_days: Annotated[
        tuple[int, int] | None, Meta(description="Days from an as-of date until its label is known: least, most.")
    ]
    known_until: Annotated[date | None, Meta(description="The day up to which outcomes were known.")]
    lowest: Annotated[float | None, Meta(description="What no score is below; null if there is no such bound.")]
    calibration: Calibration
    params: dict[str, Any]
    learning: Annotated[Learning, Meta(description="What the score's owner declares of its training.")]
    search: tuple[dict[str, float], ...]
    validation_overlaps: Annotated[
        bool, Meta(description="The dates it was chosen on begin before all earlier outcomes were known.")
    ] = False
    trees: int
    trigger: Annotated[str, Meta(description="What started the training.")]
    trained_on: Annotated[date | None, Meta(description="The day of the project's clock on which it was trained.")]
    training_set: Annotated[str, Meta(description="The checksum of the rows.")]
    contract: Annotated[str, Meta(description="A hash of the names and types of its features.")]
    commit: Annotated[str | None, Meta(description="The git commit of the project, with -dirty if files were changed.")]
    libraries: dict[str, str]
    booster_sha256: str


def versions_folder(reports: Path, score: str) -> Path:
    """Where the cards of a score are."""
    return reports / score / "versions"


def read_versions(reports: Path, score: str) -> Versions | None:
    """The versions of a score, None if the pipeline has told of none. Reads the disk."""
    if not NAME.fullmatch(score):
        return None
    try:
        return msgspec.json.decode((versions_folder(reports, score) / INDEX).read_bytes(), type=Versions)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError):
        return None


def all_versions(reports: Path) -> list[Versions]:
    """The versions of every score that has any, by the name of the score. Reads the disk."""
    names = sorted(path.parts[-3] for path in reports.glob(f"*/versions/{INDEX}"))
    return [found for name in names if (found := read_versions(reports, name))]


def card_file(reports: Path, score: str, version: str, name: str) -> Path | None:
    """The page or the data of a version's card, None if there is none: 01 is no version, so a card has one address."""
    if not NAME.fullmatch(score) or not VERSION.fullmatch(version):
        return None
    file = versions_folder(reports, score) / version / name
    return file if file.is_file() else None
