"""What `POST /scores/{score}/predict` is asked and answers: the structs of its JSON."""

from datetime import date
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from serving.generations.generation import Band, Reason, Value

MOST_ROWS = 1000  # of one request

# Whatever JSON has: `ml.values` tells all that is wrong with it.
Values = dict[str, Any]


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row: somebody of whom all features are given, perhaps with an id of the caller's; or a customer of the score,
    with the published features except for those that are overridden."""

    features: Values | UnsetType = UNSET
    id: str | UnsetType = UNSET
    customer_id: str | int | UnsetType = UNSET
    overrides: Values | UnsetType = UNSET

    def __post_init__(self) -> None:
        if isinstance(self.customer_id, int):  # as a lookup takes it
            msgspec.structs.force_setattr(self, "customer_id", str(self.customer_id))


class PredictRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be predicted, and whether with reasons."""

    rows: list[Row]
    reasons: bool = False


class Prediction(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the score says of one row."""

    row: Annotated[int, Meta(description="The row's place in the request, from 1.")]
    customer_id: Annotated[str | UnsetType, Meta(description="Of a row that gave one.")] = UNSET
    id: Annotated[str | UnsetType, Meta(description="Of a row that gave one.")] = UNSET
    value: Value
    band: Band
    percentile: Annotated[
        float | None,
        Meta(
            description="Percent of the published customers that score no higher, interpolated, with two decimals; of a"
            " category among those of the same class. Null where the generation does not tell it."
        ),
    ]
    probabilities: Annotated[
        dict[str, float] | UnsetType, Meta(description="Class -> probability. Of a category alone.")
    ] = UNSET
    reasons: Annotated[
        list[Reason] | UnsetType,
        Meta(
            description="The features that moved the value most, the strongest first; where they were asked for, as"
            " many as the score's owner has told."
        ),
    ] = UNSET
    published_value: Annotated[
        float | UnsetType,
        Meta(description="What GET /scores/{score}/customers/{customer_id} says, of a row that gave a customer."),
    ] = UNSET


class PredictionsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The predictions of all rows, in their order."""

    score: Annotated[str, Meta(description="Name of the score.")]
    generation: Annotated[str, Meta(description="The published bundle whose model and features these come from.")]
    model_version: int
    as_of_date: Annotated[date, Meta(description="Published features tell what was known before this day.")]
    stale: Annotated[bool, Meta(description="True once the as-of date is older than the score's owner allows.")]
    predictions: list[Prediction]


class ContractAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What the `features` of a row have to be."""

    score: Annotated[str, Meta(description="Name of the score.")]
    generation: Annotated[str, Meta(description="The published bundle that is served.")]
    model_version: int
    features: Annotated[
        dict[str, Any],
        Meta(description="JSON Schema (2020-12) of a row's `features`: all are required, and each may be null."),
    ]
