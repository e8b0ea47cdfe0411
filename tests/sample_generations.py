"""Small generations for the tests of serving, published the way a real publisher does.

Run as a program it is a publisher that stops at a chosen point, says so, and waits to be killed:
`python tests/sample_generations.py <root> <generation> <point>`, a point of `POINTS`.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec

from ml.declarations import Feature
from serving.generations.store import CustomerScore, Generation, Reason, customer_key, flip, payload, write

PUBLISHED = datetime(2024, 3, 5, 6, 0, tzinfo=UTC)
POINTS = ("mid_write", "mid_features", "mid_ranking", "before_rename", "before_flip", "mid_flip")
One = TypeVar("One")
ROWS = 50_000  # of a publisher that is killed
BANDS = {"high": 0.6, "medium": 0.3, "low": 0.0}

FEATURES = (
    Feature(name="days_since_last_visit", data_type="INTEGER", description="Days from the last visit to the date."),
    Feature(name="visits_28d_count", data_type="HUGEINT", description="Visits in the last 28 days."),
    Feature(name="favourite_colour", data_type="VARCHAR", description="The colour bought most. Null if none."),
    Feature(name="balance_eur", data_type="DECIMAL(12,2)", description="Balance of the account, euros."),
    Feature(name='spend "84d"', data_type="DOUBLE", description="Spent in the last 84 days, euros."),
    Feature(name="last_seen_at", data_type="TIMESTAMP WITH TIME ZONE", description="When last seen, UTC."),
)


def a_generation(name: str = "g1", **changes: Any) -> Generation:
    facts: dict[str, Any] = {
        "generation": name,
        "score": "churn",
        "title": "Churn",
        "description": "Probability that a customer leaves in the next 28 days.",
        "owner": "CRM analytics",
        "email": "crm@example.com",
        "kind": "probability",
        "entity": ("customer_id",),
        "as_of_date": date(2024, 3, 4),
        "fresh_for_days": 8,
        "today": date(2024, 3, 6),
        "model_version": 1,
        "bands": BANDS,
        "band_counts": {"high": 40, "medium": 30, "low": 30},
        "quantiles": {"": tuple(max(0, percent - 1) // 10 / 10 for percent in range(101))},
        "reasons": 3,
        "metrics": {"roc_auc": 0.8812, "log_loss": 0.3104},
        "baseline": {"roc_auc": 0.8107, "log_loss": 0.4479},
        "published_at": PUBLISHED,
    }
    return Generation(**facts | changes)


def band_of(generation: Generation, value: float) -> str | None:
    return next((band for band, lowest in generation.bands.items() if value >= lowest), None)


def a_customer(generation: Generation, customer_id: str, value: float = 0.5) -> bytes:
    reasons = [
        Reason(feature="days_since_last_visit", value="41", contribution=0.8125),
        Reason(feature="visits_28d_count", value="3", contribution=-0.25),
        Reason(feature="favourite_colour", value=None, contribution=0.0625),
    ]
    return payload(
        CustomerScore(
            score=generation.score,
            customer_id=customer_id,
            value=value,
            band=band_of(generation, value),
            percentile=10 * (10 * value + 1),
            reasons=reasons,
            as_of_date=generation.as_of_date,
            model_version=generation.model_version,
            generation=generation.generation,
            scored_at=PUBLISHED,
        )
    )


def customers(generation: Generation, ids: list[str] | None = None, rows: int = 100) -> Iterator[tuple[str, bytes]]:
    for customer_id, value in values(ids, rows).items():
        yield customer_id, a_customer(generation, customer_id, value)


def values(ids: list[str] | None = None, rows: int = 100) -> dict[str, float]:
    """Customer id -> score, sorted by id: a tenth of the customers each has 0.0, 0.1 … 0.9."""
    known = ids if ids is not None else [customer_key([number]) for number in range(rows)]
    return {customer_id: (place % 10) / 10 for place, customer_id in enumerate(sorted(known, key=str.encode))}


def ranking(ids: list[str] | None = None, rows: int = 100) -> list[str]:
    """The same customers, the best first; bands of a score are in the order of its values."""
    scored = values(ids, rows)
    return sorted(scored, key=lambda customer_id: (-scored[customer_id], customer_id.encode()))


def features_of(generation: Generation, ids: list[str] | None = None, rows: int = 100) -> Iterator[tuple[str, bytes]]:
    """The features of the same customers, as JSON that the warehouse could have written."""
    for place, (customer_id, _) in enumerate(customers(generation, ids, rows)):
        colour = '"gr\\u00fcn, \\"hell\\""' if place % 2 else "null"
        values = f'{place},9007199254740993,{colour},"12.50",0.1,"2024-01-23T17:30:00.25Z"'
        yield customer_id, f"[{values}]".encode()


def publish(
    root: Path,
    name: str = "g1",
    ids: list[str] | None = None,
    rows: int = 100,
    ranked: bool = True,
    attachments: Mapping[str, Path] = MappingProxyType({}),
    **changes: Any,
) -> Path:
    """Write a generation and make it current, and give its folder."""
    generation = a_generation(name, **{"features": FEATURES} | changes)
    bands = [band_of(generation, value) for value in values(ids, rows).values()]
    counts = {band: bands.count(band) for band in generation.bands}
    generation = msgspec.structs.replace(generation, **{"band_counts": counts} | changes)
    card = root.parent / "card.json"
    card.parent.mkdir(parents=True, exist_ok=True)
    card.write_text("{}")
    features = features_of(generation, ids, rows) if generation.features else ()
    ranks = ranking(ids, rows) if ranked else None
    attached = {"card.json": card, **attachments}
    folder = write(root, generation, customers(generation, ids, rows), attached, features, ranks)
    flip(root, generation.score, name)
    return folder


def _stop(point: str) -> None:
    print(point, flush=True)
    time.sleep(60)


def _publish_until(root: Path, name: str, point: str) -> None:
    counts = {"high": 20_000, "medium": 15_000, "low": 15_000}
    generation = a_generation(name, features=FEATURES, band_counts=counts)

    def until(stop: str, pairs: Iterable[One]) -> Iterator[One]:
        for number, pair in enumerate(pairs):
            if number == 30_000 and point == stop:  # the first transaction is committed by then
                _stop(point)
            yield pair

    if point == "before_rename":
        os.rename = lambda *_: _stop(point)  # type: ignore[assignment]
    if point == "mid_flip":
        os.replace = lambda *_: _stop(point)  # type: ignore[assignment]
    scores, features, ranks = customers(generation, rows=ROWS), features_of(generation, rows=ROWS), ranking(rows=ROWS)
    write(
        root,
        generation,
        until("mid_write", scores),
        {},
        until("mid_features", features),
        until("mid_ranking", ranks),
    )
    if point == "before_flip":
        _stop(point)
    flip(root, generation.score, name)


if __name__ == "__main__":
    _publish_until(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
