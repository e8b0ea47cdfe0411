"""What a generation says of itself and of each customer: the structs behind generation.json and the stored JSON."""

import hashlib
import math
import re
from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from ml.declarations import Feature, WhenStale

FORMAT = 1
RANKING = "ranking.mdb"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # of scores, generations and files


class CorruptGeneration(Exception):
    """A published generation that must not be served. The message names the file and the fault."""


class PublicationError(Exception):
    """A generation could not be published. The message says which and why; nothing of it is visible to a server."""


class StoreUnavailable(Exception):
    """The store of generations cannot be asked just now. The message names it, without secrets, and says why."""


class BadCustomerId(PublicationError, ValueError):
    """A customer id that cannot be a key, or stands out of order. The message names it."""


class Reason(msgspec.Struct, frozen=True):
    """One feature that moved a customer's score."""

    feature: str
    value: Annotated[str | None, Meta(description="The customer's value of the feature; null if it is unknown.")]
    contribution: Annotated[
        float,
        Meta(
            description="How far it moved the score, above zero upwards: in log-odds of a probability, in the unit of"
            " an amount; of a category above zero speaks for the customer's class."
        ),
    ]
    text: Annotated[
        str,
        Meta(
            description="The reason as a sentence for people.",
            examples=["Days since the last order: 34, which raises the score."],
        ),
    ] = ""  # of generations of before


Value = Annotated[
    float, Meta(description="The score: a probability, an amount, or the probability of the likeliest class.")
]
Band = Annotated[
    str | None, Meta(description="The band of the value; null if it has none. Of a category the likeliest class.")
]


class CustomerScore(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a score says of one customer, as it was published."""

    score: Annotated[str, Meta(description="Name of the score.")]
    customer_id: Annotated[str, Meta(description="The id; parts of a composite key are joined by commas.")]
    value: Value
    band: Band
    percentile: Annotated[
        float | None,
        Meta(
            description="Percent of the customers that score no higher, with two decimals: 100 is the highest. Of a"
            " category among the customers of the same class. Not there in generations of before."
        ),
    ] = None
    probabilities: Annotated[
        dict[str, float] | None, Meta(description="Class -> probability. Of a category alone.")
    ] = None
    reasons: Annotated[
        list[Reason],
        Meta(
            description="The features that moved the value most, the strongest first; none where the score's owner"
            " does not have this customer explained."
        ),
    ]
    as_of_date: Annotated[date, Meta(description="The score uses only what was known before this day.")]
    model_version: int
    generation: Annotated[str, Meta(description="The published bundle that this answer comes from.")]
    scored_at: datetime


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """What generation.json says. `write` fills in `files`, and checks or fills in `rows`.

    `bands` are from the highest value to the lowest. `band_counts` has them in the same order, of a category its
    classes. `quantiles` are 101 values each, for 0 to 100 percent: the lowest value that at least so many percent of
    the customers do not exceed. Of a category each class has its own, else all are under "".
    """

    format: int = FORMAT
    generation: str
    score: str
    title: str
    description: str
    owner: str
    email: str
    kind: str
    entity: tuple[str, ...]
    as_of_date: date
    fresh_for_days: float
    when_stale: WhenStale = "serve"  # what lookups do beyond `fresh_for_days`
    today: date | None  # the project's fixed clock; None = the real one
    model_version: int
    bands: dict[str, float]  # name -> lowest value of the band
    band_counts: dict[str, int]
    quantiles: dict[str, tuple[float, ...]] = {}  # none of old
    reasons: int = 0  # how many a customer is given at most; 0 of old
    metrics: dict[str, float | None]  # None: can't be measured on the held-out rows
    baseline: dict[str, float | None]
    features: tuple[Feature, ...] = ()  # in the order of their values in features.mdb; none of old: it has no such file
    rows: int = 0
    published_at: datetime
    files: dict[str, str] = {}  # name -> sha256


_encoder = msgspec.json.Encoder()


def payload(customer: CustomerScore) -> bytes:
    """The JSON of a customer, as it is stored and sent. Raises `PublicationError` if a number in it is not finite."""
    numbers = [customer.value, *(reason.contribution for reason in customer.reasons)]
    if not all(map(math.isfinite, [*numbers, *(customer.probabilities or {}).values()])):
        raise PublicationError(f"{customer.score}: customer '{customer.customer_id}' has a score that is not a number")
    return _encoder.encode(customer)


def customer_key(values: Sequence[object]) -> str:
    """The id of a customer in URLs and stores: one value as it is, several joined by ",".

    In several, "~" is written "~0" and "," is written "~1", much as in a JSON pointer (RFC 6901): an escape
    with "%" would have to be encoded twice in a URL, and many clients don't.

    Raises `BadCustomerId` if a part is missing.
    """
    if not values or any(value is None for value in values):
        raise BadCustomerId(f"customer id {tuple(values)!r} lacks a part")
    if len(values) == 1:
        return str(values[0])
    return ",".join(str(value).replace("~", "~0").replace(",", "~1") for value in values)


def read_manifest(folder: Path) -> Generation:
    """generation.json of a folder. Raises `CorruptGeneration` if it is not whole, or does not speak of this folder."""
    where = f"{folder.parent.name}/{folder.name}"
    try:
        manifest = (folder / "generation.json").read_bytes()
        checksum = (folder / "generation.json.sha256").read_text()
    except FileNotFoundError as error:
        name = Path(error.filename).name if folder.is_dir() else ""
        raise CorruptGeneration(f"{where}/{name}: is missing") from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error  # without the path, as callers are told it
        raise CorruptGeneration(f"{where}/generation.json: cannot be read: {why}") from error
    return parsed_manifest(manifest, checksum, folder.parent.name, folder.name)


def parsed_manifest(manifest: bytes, checksum: str, score: str, name: str) -> Generation:
    """The content of a generation.json, given that of generation.json.sha256 and where they lay.

    Raises `CorruptGeneration` if it is not whole, or does not speak of this generation.
    """
    where = f"{score}/{name}"
    if hashlib.sha256(manifest).hexdigest() != checksum.partition(" ")[0]:
        raise CorruptGeneration(f"{where}/generation.json: its checksum is wrong: changed or incomplete")
    try:
        generation = msgspec.json.decode(manifest, type=Generation)
    except msgspec.MsgspecError as error:
        raise CorruptGeneration(f"{where}/generation.json: {error}") from error
    for fact, found, expected in (
        ("format", generation.format, FORMAT),
        ("score", generation.score, score),
        ("generation", generation.generation, name),
    ):
        if found != expected:
            raise CorruptGeneration(f"{where}/generation.json: {fact} is {found!r}, expected {expected!r}")
    for file in ("store.mdb", *(("features.mdb",) if generation.features else ())):
        if file not in generation.files:
            raise CorruptGeneration(f"{where}/generation.json: names no {file}")
    for file in generation.files:
        if not NAME.fullmatch(file):
            raise CorruptGeneration(f"{where}/generation.json: {file!r} is no name of a file")
    return generation


def sha256_of(file: Path) -> str:
    """The checksum of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
