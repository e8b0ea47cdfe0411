"""What it is worth to contact the customers of the highest scores: the share of all outcomes that they hold, and its
value in money where the score's owner declares one."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from ml.strictness import LARGEST, Faults, sound_part

if TYPE_CHECKING:
    from numpy.typing import NDArray

GAINS = 20  # points of a curve: each twentieth of the customers
CONTACT_KEYS: dict[str, type] = {"value": float, "cost": float}
CONTACT_EXAMPLES = {"value": "12.5", "cost": "0.8"}


class Contact(msgspec.Struct, frozen=True, kw_only=True):
    """What contacting a customer is worth, in one unit of money: `value` of an outcome (of an amount, of one unit of
    it), and `cost` of a contact."""

    value: float
    cost: float


class Gain(msgspec.Struct, frozen=True, kw_only=True):
    """What a share of the customers, those of the highest scores, held of all outcomes or of the total amount."""

    share: Annotated[float, Meta(description="Of the customers: 0.05, 0.1, ... 1.")]
    customers: int
    held: Annotated[float, Meta(description="Share of all outcomes, or of the total amount, that they hold.")]
    lift: Annotated[float, Meta(description="Their rate over that of all: 1 is guessing.")]
    rate: Annotated[float, Meta(description="The rate of the outcome, or the mean amount, among them.")]
    value_per_contact: Annotated[
        float | None, Meta(description="Rate times the declared value, less the cost; null if none is declared.")
    ] = None
    value_total: Annotated[float | None, Meta(description="Of all of them.")] = None


def held_by_highest(label: "NDArray[Any]", score: "NDArray[Any]") -> tuple[float, ...]:
    """The share of the label's total within the highest 5 %, 10 %, ... 100 % of the scores, (rows,) each; rows of equal
    score share theirs. Empty where there is nothing to hold."""
    total = label.sum()
    if total <= 0:
        return ()
    _, place, counts = np.unique(-score, return_inverse=True, return_counts=True)
    rows = np.concatenate([[0], np.cumsum(counts)])
    held = np.concatenate([[0], np.cumsum(np.bincount(place, weights=label))])
    shares = np.interp(np.arange(1, GAINS + 1) / GAINS * len(label), rows, held / total)
    return tuple(round(float(share), 5) for share in shares)


def gains(label: "NDArray[Any]", score: "NDArray[Any]", customers: int) -> list[Gain]:
    """The curve of a date with so many customers, of whom `label` and `score` are all or a sample, without its value in
    money. Empty where nothing came true."""
    mean = float(label.mean())
    return [
        Gain(
            share=place / GAINS,
            customers=round(place * customers / GAINS),
            held=held,
            lift=held * GAINS / place,
            rate=held * GAINS / place * mean,
        )
        for place, held in enumerate(held_by_highest(label, score), 1)
    ]


def best_depth(curve: Sequence[Gain]) -> Gain | None:
    """The share whose customers are worth the most in all, the smallest of several; None where no value is declared or
    no share is worth its cost."""
    valued = [(gain.value_total, -gain.share, gain) for gain in curve if gain.value_total is not None]
    total, _, best = max(valued, default=(0.0, 0.0, None), key=lambda one: one[:2])
    return best if total > 0 else None


def read_contact(declared: Any, kind: str | None, where: str, faults: Faults) -> Contact | None:
    """What a score declares of a contact's worth; None if nothing, or only where there is a fault."""
    if declared is None:
        return None
    where = f"{where}: contact"
    if kind == "category":
        faults.append(f"{where}: is for a probability or an amount: a category has no outcome that is worth the most")
    sound: Mapping[str, Any] = sound_part(declared, CONTACT_KEYS, list(CONTACT_KEYS), where, faults, CONTACT_EXAMPLES)
    if not 0 <= sound.get("value", 0) <= LARGEST:
        faults.append(f"{where}: value is {sound['value']}, not an amount of money from 0 on")
    if not 0 < sound.get("cost", 1) <= LARGEST:
        faults.append(f"{where}: cost is {sound['cost']}, not an amount of money above 0")
    if set(sound) != set(CONTACT_KEYS) or kind == "category":
        return None
    return Contact(value=float(sound["value"]), cost=float(sound["cost"]))
