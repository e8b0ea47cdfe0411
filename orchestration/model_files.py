"""The files of a score's versions: where they lie, and what is read of them once they are as they were saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml.declarations import Score
from orchestration.project import Paths
from orchestration.training_sets import ScoringError

if TYPE_CHECKING:
    from ml.registry import Card, Model


class DamagedModel(ScoringError):
    """A version whose files are gone or changed; the message says where there may be copies."""


def model_folder(folder: Path, score: Score, version: int) -> Path:
    return folder / score.name / str(version)


def load_card(where: Paths, score: Score, version: int) -> "Card":
    """A version's card. Raises `DamagedModel` if its file is not as it was saved."""
    from ml import registry

    with _told(where, score, version):
        return registry.load_card(model_folder(where.models, score, version))


def card_of(where: Paths, score: Score, version: int) -> "Card | None":
    """A version's card; None if it is damaged, which other steps tell."""
    try:
        return load_card(where, score, version)
    except DamagedModel:
        return None


def load_model(where: Paths, score: Score, version: int) -> "Model":
    """A version's model, ready to score. Raises `DamagedModel` if its files are not as they were saved."""
    from ml import registry

    with _told(where, score, version):
        return registry.load(model_folder(where.models, score, version))


@contextmanager
def _told(where: Paths, score: Score, version: int) -> Iterator[None]:
    from ml.registry import CorruptModel

    try:
        yield
    except CorruptModel as error:
        copies = where.generations / score.name / f"*-v{version}-*"
        raise DamagedModel(
            f"score '{score.name}': version {version} can't be read: {error}; bring model.cbm and card.json back,"
            f" of which each generation has a copy ({copies})"
        ) from None


def is_whole(where: Paths, score: Score, version: dict[str, Any]) -> bool:
    """Whether the files of a version are as they were saved."""
    from ml import registry

    try:
        return registry.verify(model_folder(where.models, score, version["version"])) == str(version["booster_sha256"])
    except registry.CorruptModel:
        return False
