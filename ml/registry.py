"""A trained model on disk: a folder with the booster in CatBoost's own format and a card that says what it is.

Both carry checksums, a save appears whole or not at all, and nothing is ever pickled.
"""

import hashlib
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from ml.baseline import Naive
from ml.calibration import Calibration
from ml.encoding import Encoder
from ml.evaluation import Evaluation
from ml.leaf_table import LeafTable, leaf_table
from ml.learning import Learning
from ml.metrics import Kind
from ml.scores import Feature
from ml.trees import Trees, trees_of

if TYPE_CHECKING:
    from catboost import CatBoost

BOOSTER = "model.cbm"
CARD = "card.json"
CARD_CHECKSUM = re.compile(rb'"card_sha256":\s*"([0-9a-f]{64})"')
NO_CHECKSUM = "0" * 64
T = TypeVar("T")


class Card(msgspec.Struct, kw_only=True, frozen=True):
    """What a trained version is: of which score, from which rows, how good, and by which libraries.

    `metrics` and `baseline` are of the held-out rows, `importance` is each feature's share in percent, `training_set`
    the checksum of the rows. `lowest` is 0 where no label was negative, so that no score is either; else None.
    `classes` are a category's, in the order of the booster's. `intervals` are 95 % bootstrap intervals of the metrics,
    `champion` the metrics of the version that was champion then, on the same rows; `rates` the mean label of train and
    holdout, of a category the share of each class as "train <class>" and "holdout <class>". `evaluation` is what the
    held-out rows show, `matures_in_days` how long their labels took at the least and at the most; cards of old have
    neither. `search` has each trial with its parameters and loss. `validation_overlaps` is as a candidate has it.
    `trigger` says what started the training, `trained_on` on which day of the project's clock (cards of old: None),
    `commit` the git commit of the dbt project then, with "-dirty" if its files were changed, None outside of git.
    `naive` is what `baseline` is measured of, to be applied to later rows (cards of old: None).
    """

    score: str
    version: int
    kind: Kind
    entity: tuple[str, ...]
    as_of: str
    features: tuple[Feature, ...]
    encoder: Encoder
    lowest: float | None
    metrics: dict[str, float]
    baseline: dict[str, float]
    baseline_name: str
    importance: dict[str, float]
    dates: dict[str, date]
    rows: dict[str, int]
    params: dict[str, Any]
    trees: int
    training_set: str
    libraries: dict[str, str]
    trained_at: datetime
    classes: tuple[str, ...] = ()
    calibration: Calibration = Calibration()
    intervals: dict[str, tuple[float, float]] = {}
    champion_version: int | None = None
    champion: dict[str, float] = {}
    rates: dict[str, float] = {}
    evaluation: Evaluation | None = None
    matures_in_days: tuple[int, int] | None = None
    learning: Learning = Learning()
    search: tuple[dict[str, float], ...] = ()
    validation_overlaps: bool = False
    trigger: str = ""
    trained_on: date | None = None
    commit: str | None = None
    naive: Naive | None = None
    booster_sha256: str = NO_CHECKSUM
    card_sha256: str = NO_CHECKSUM

    @property
    def contract(self) -> str:
        """The hash of what it needs of its feature model."""
        return contract_of(self.features)


def contract_of(features: Sequence[Feature]) -> str:
    """A hash of the names and declared types of these columns, in any order."""
    told = sorted((feature.name, feature.data_type.lower()) for feature in features)
    return hashlib.sha256(msgspec.json.encode(told)).hexdigest()[:16]


class Model(msgspec.Struct, dict=True):
    """A booster with its card, ready to score; what else is made of it is made when it is first asked for."""

    booster: "CatBoost"
    card: Card

    @property
    def leaf_table(self) -> LeafTable:
        """What explains it."""
        return self._made("table", lambda: leaf_table(self.booster))

    @property
    def trees(self) -> Trees | None:
        """What scores a few rows sooner than the booster, if anything does."""
        return self._made("trees", lambda: trees_of(self.booster))

    def _made(self, name: str, make: Callable[[], T]) -> T:
        """Made once: who asks while it is being made, as several batches at a time do, waits for it."""
        kept = vars(self)
        with kept.setdefault("lock", Lock()):
            if name not in kept:
                kept[name] = make()
            made: T = kept[name]
        return made


class UnsavedModel(RuntimeError):
    """A model that the disk did not take; the message names the folder and what the system said."""


class CorruptModel(ValueError):
    """A model on disk that is not what was saved."""


def save(folder: Path, booster: "CatBoost", card: Card) -> Card:
    """Write the model into `folder`, which must not exist yet, and give back the card with its checksums.

    It is written beside as `<folder>.tmp`, forced to disk and renamed, so a killed save leaves no `folder`.
    Raises `FileExistsError` if the folder exists: a version never changes; `UnsavedModel` if the disk does not take it,
    and then nothing is left of it.
    """
    from catboost import CatBoostError

    if folder.exists():
        raise FileExistsError(f"{folder} exists already, and a saved model never changes")
    beside = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        booster.save_model(str(beside / BOOSTER), format="cbm")
        booster_sha256 = hashlib.sha256((beside / BOOSTER).read_bytes()).hexdigest()
        unsigned = msgspec.structs.replace(card, booster_sha256=booster_sha256, card_sha256=NO_CHECKSUM)
        signed = msgspec.structs.replace(unsigned, card_sha256=hashlib.sha256(_text(unsigned)).hexdigest())
        (beside / CARD).write_bytes(_text(signed))
        for path in (beside / BOOSTER, beside / CARD, beside):
            _force_to_disk(path)
        os.rename(beside, folder)
        _force_to_disk(folder.parent)
    except (OSError, CatBoostError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise UnsavedModel(
            f"{folder}: the model can't be saved ({str(error).splitlines()[0]}); make room there, and run again"
        ) from None
    return signed


def _text(card: Card) -> bytes:
    """The card as JSON, a line for each field: to be read, yet a third of what it is with a line for each number."""
    fields = (
        msgspec.json.encode(name) + b": " + msgspec.json.encode(getattr(card, name)) for name in card.__struct_fields__
    )
    return b"{\n" + b",\n".join(fields) + b"\n}\n"


def load(folder: Path) -> Model:
    """The model of a folder that `save` wrote (or a copy of its two files), once both checksums are verified.

    Raises `CorruptModel` naming the file and what is wrong with it.
    """
    from catboost import CatBoost, CatBoostError

    card = load_card(folder)
    path = folder / BOOSTER
    content = _verified(path, card.booster_sha256)
    booster = CatBoost()
    try:
        booster.load_model(blob=content)
    except CatBoostError as error:
        raise CorruptModel(f"{path}: CatBoost can't read it: {str(error).splitlines()[0]}") from None
    if tuple(booster.feature_names_) != card.encoder.names:
        raise CorruptModel(f"{path}: its features are not those of {folder / CARD}")
    return Model(booster, card)


def verify(folder: Path) -> str:
    """The checksum of the booster in a folder whose two files are as `save` wrote them. Raises `CorruptModel`."""
    card = load_card(folder)
    _verified(folder / BOOSTER, card.booster_sha256)
    return card.booster_sha256


def load_card(folder: Path) -> Card:
    """The card alone, its checksum verified. Raises `CorruptModel` as `load` does."""
    path = folder / CARD
    content = _read(path)
    stated = CARD_CHECKSUM.findall(content)
    if len(stated) != 1:
        raise CorruptModel(f"{path}: states {len(stated)} checksums of itself instead of one")
    unsigned = content.replace(stated[0], NO_CHECKSUM.encode())
    _check(path, unsigned, stated[0].decode())
    try:
        fields = msgspec.json.decode(content)
        for name in ("metrics", "baseline", "champion"):  # JSON has no NaN
            fields[name] = _with_nan(fields.get(name, {}))
        return msgspec.convert(fields, Card)
    except (msgspec.DecodeError, msgspec.ValidationError, KeyError) as error:
        raise CorruptModel(f"{path}: is no card of a model: {error}") from None


def _with_nan(metrics: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in metrics.items()}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CorruptModel(f"{path}: is missing") from None
    except OSError as error:
        raise CorruptModel(f"{path}: can't be read ({error.strerror})") from None


def _verified(path: Path, expected: str) -> bytes:
    content = _read(path)
    _check(path, content, expected)
    return content


def _check(path: Path, content: bytes, expected: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise CorruptModel(f"{path}: has the checksum {found}, but {expected} was saved")


def _force_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
