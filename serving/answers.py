"""What the API answers: the structs of its JSON, from which its OpenAPI document is derived."""

from datetime import date, datetime, timedelta
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ml.declarations import WhenStale
from serving.generations.generation import CustomerScore, Generation

PROBLEM = "application/problem+json"

Freshness = Literal["fresh", "stale"]
MOST_IDS = 1000  # that one lookup may ask for, and customers of one page


class CustomerAnswer(CustomerScore, frozen=True, kw_only=True):
    """What a score says of one customer. The published JSON with what only the day of the request can tell."""

    stale: Annotated[bool, Meta(description="True once the as-of date is older than the score's owner allows.")]


class CustomerScores(msgspec.Struct, frozen=True, kw_only=True):
    """What all scores say of one customer."""

    customer_id: Annotated[str, Meta(description="The id; parts of a composite key are joined by commas.")]
    scores: Annotated[list[CustomerAnswer], Meta(description="Of each score that knows the customer, by name.")]
    refused: Annotated[
        list[str],
        Meta(description="Scores that know the customer, but are stale and refused then by their owners."),
    ]


class Lookup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The customers to look up in one call."""

    ids: Annotated[
        list[str | int],
        Meta(min_length=1, max_length=MOST_IDS),
    ]


class LookupAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The scores of the customers that were asked for, all of one generation."""

    score: str
    generation: Annotated[str, Meta(description="The published bundle that this answer comes from.")]
    scores: Annotated[list[CustomerAnswer], Meta(description="In the order of the ids, without those not known.")]
    missing: Annotated[list[str], Meta(description="The ids that the score does not know, in their order.")]


class RankedCustomer(CustomerScore, frozen=True, kw_only=True):
    """A customer of the call list."""

    rank: Annotated[int, Meta(description="The place in the list, the best first, from 1.")]
    stale: Annotated[bool, Meta(description="True once the as-of date is older than the score's owner allows.")]


class CallList(msgspec.Struct, frozen=True, kw_only=True):
    """A page of a score's customers, the best first."""

    score: str
    generation: Annotated[str, Meta(description="The published bundle that this page comes from.")]
    band: Annotated[str | None, Meta(description="The band that was asked for; null: all customers.")]
    total: Annotated[int, Meta(description="Customers in the list, over all its pages.")]
    customers: list[RankedCustomer]
    next: Annotated[
        str | None,
        Meta(description="The cursor of the next page, null on the last. It holds while the generation is served."),
    ]


class FeaturesAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The values of a customer's features that a score was made from."""

    score: Annotated[str, Meta(description="Name of the score.")]
    customer_id: Annotated[str, Meta(description="The id; parts of a composite key are joined by commas.")]
    generation: Annotated[str, Meta(description="The published bundle that this answer comes from.")]
    model_version: Annotated[int, Meta(description="The version of the model that scored these values.")]
    as_of_date: Annotated[date, Meta(description="The features tell what was known before this day.")]
    fresh_until: Annotated[date, Meta(description="The last day on which they count as fresh.")]
    stale: Annotated[bool, Meta(description="True once that day is over.")]
    features: Annotated[
        dict[str, bool | int | float | str | None],
        Meta(
            description='Feature -> value: true or false; a number; a decimal as text, "12.50"; a date as'
            ' "2024-03-04"; a timestamp as "2024-03-04T05:06:07.25Z", without Z if its column has no time zone;'
            ' text; null. What is no finite number is "NaN", "Infinity" or "-Infinity".'
        ),
    ]


class ScoreSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A score and the generation of it that is served."""

    name: Annotated[str, Meta(description="The name in URLs.")]
    title: str
    description: str
    owner: str
    email: str
    kind: Annotated[str, Meta(description="What a value is, for example a probability or an amount.")]
    entity: Annotated[tuple[str, ...], Meta(description="The columns that make a customer id, joined by commas.")]
    as_of_date: Annotated[date, Meta(description="The score uses only what was known before this day.")]
    fresh_until: Annotated[date, Meta(description="The last day on which it counts as fresh.")]
    freshness: Freshness
    when_stale: Annotated[
        WhenStale, Meta(description="What becomes of lookups once it is stale: served as they were, or refused (503).")
    ]
    generation: Annotated[str, Meta(description="The published bundle that is served.")]
    published_at: Annotated[
        datetime, Meta(description="When it was made; a rollback brings back an older one as it is.")
    ]
    model_version: int
    customers: int
    bands: Annotated[dict[str, float], Meta(description="Band -> the lowest value in it.")]
    band_counts: Annotated[dict[str, int], Meta(description="Band -> customers in it.")]
    metrics: Annotated[
        dict[str, float | None],
        Meta(description="Of the model, on dates it has not seen in training; null if not measurable on them."),
    ]
    baseline: Annotated[
        dict[str, float | None], Meta(description="The same metrics of a naive forecast, to compare with.")
    ]


class Scores(msgspec.Struct, frozen=True):
    """All scores that are served, by name."""

    scores: list[ScoreSummary]


class Alive(msgspec.Struct, frozen=True):
    """The process answers."""

    status: Literal["alive"] = "alive"


class ScoreReadiness(msgspec.Struct, frozen=True, kw_only=True):
    """Whether one score can be looked up, and what is wrong if something is."""

    score: str
    generation: Annotated[
        str | None, Meta(description="The verified generation that is served; null if there is none.")
    ]
    as_of_date: date | None
    freshness: Freshness | None
    fault: Annotated[str | None, Meta(description="Why a newer generation is not served; null if all is well.")]


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """Whether lookups can be answered. `degraded`: they can, from older generations, and `scores` says why."""

    status: Literal["ready", "degraded", "unavailable"]
    detail: str
    scores: list[ScoreReadiness]


class Accepted(msgspec.Struct, frozen=True):
    """How many events of a request were kept: all of them."""

    accepted: int


class EventFault(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with one event, or one row to predict."""

    row: Annotated[int, Meta(description="Its place in the request, from 1.")]
    column: Annotated[
        str | None, Meta(description="Column of the event, or feature of the row; null where it is wrong as a whole.")
    ]
    fault: str


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error, as RFC 9457 (application/problem+json) has it."""

    title: Annotated[str, Meta(examples=["Not Found"])]
    status: Annotated[int, Meta(examples=[404])]
    detail: Annotated[str, Meta(description="What is wrong, and what is possible.")]
    known_scores: Annotated[list[str] | None, Meta(description="Where a score or a customer is not known.")] = None
    known_bands: Annotated[list[str] | None, Meta(description="Where a band of a score is not known.")] = None
    known_sources: Annotated[list[str] | None, Meta(description="Where a source of events is not known.")] = None
    known_versions: Annotated[list[int] | None, Meta(description="Where a version of a score is not known.")] = None
    errors: Annotated[list[EventFault] | None, Meta(description="Of events or rows: the first faults.")] = None


def last_fresh_day(generation: Generation) -> date:
    """The last day on which a generation is fresh: stale when as-of date + `fresh_for_days` < clock."""
    return generation.as_of_date + timedelta(days=int(generation.fresh_for_days))


def summarise(generation: Generation, today: date) -> ScoreSummary:
    """A generation as the API shows it on a day."""
    fresh_until = last_fresh_day(generation)
    return ScoreSummary(
        name=generation.score,
        title=generation.title,
        description=generation.description,
        owner=generation.owner,
        email=generation.email,
        kind=generation.kind,
        entity=generation.entity,
        as_of_date=generation.as_of_date,
        fresh_until=fresh_until,
        freshness="stale" if fresh_until < today else "fresh",
        when_stale=generation.when_stale,
        generation=generation.generation,
        published_at=generation.published_at,
        model_version=generation.model_version,
        customers=generation.rows,
        bands=generation.bands,
        band_counts=generation.band_counts,
        metrics=generation.metrics,
        baseline=generation.baseline,
    )
