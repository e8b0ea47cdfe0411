"""GET /customers/{customer_id}: what all scores say of a customer; /features: what one of them was made from."""

from typing import Any

import msgspec
from litestar import MediaType, Request, get
from litestar.exceptions import NotFoundException, ValidationException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import ResponseSpec
from litestar.openapi.spec import Example
from litestar.response.base import ASGIResponse

from serving.answers import CustomerScores, FeaturesAnswer
from serving.catalogue import Catalogue
from serving.guarding.callers import caller_of
from serving.lookups import (
    NOT_SERVED,
    UNKNOWN,
    CustomerId,
    ScoreName,
    id_as_sent,
    problem_spec,
    score_to_look_up,
    unknown_customer,
)
from serving.scores import all_scores_of

ENDING = b"/features"

_EXAMPLE = Example(
    summary="A customer",
    value=msgspec.json.decode(
        b"""{"score": "churn", "customer_id": "4711", "generation": "20240305T060000Z-v3", "model_version": 3,
        "as_of_date": "2024-03-04", "fresh_until": "2024-03-12", "stale": false, "features": {
        "days_since_last_visit": 41, "spend_84d_eur": 102.4, "balance_eur": "12.50", "is_member": true,
        "favourite_colour": null, "joined_on": "2021-11-30", "last_seen_at": "2024-01-23T17:30:00Z"}}"""
    ),
)


def customers_handlers(catalogue: Catalogue) -> list[HTTPRouteHandler]:
    """The handlers of customers over a catalogue."""

    def answer(request: Request[Any, Any, Any], score: str | None) -> ASGIResponse:
        if not score:
            known = list(catalogue.scores)
            raise ValidationException(detail="Of which score? Ask with ?score=<name>.", extra={"known_scores": known})
        served = score_to_look_up(catalogue, score, caller_of(request.scope))
        if not served.generation.features:
            detail = (
                f"Generation {served.name} of score '{score}' was published without features; the next one that is"
                " published has them."
            )
            raise NotFoundException(detail=detail)
        customer_id = id_as_sent(request, 2, ENDING)
        body = served.features(customer_id)
        if body is None:
            unknown_customer(served, customer_id)
        return ASGIResponse(body=body, media_type=MediaType.JSON)

    @get(
        "/customers/{customer_id:str}/features",
        sync_to_thread=catalogue.shelf.waits,
        tags=["customers"],
        summary="The features of one customer",
        responses={
            200: ResponseSpec(
                FeaturesAnswer,
                generate_examples=False,
                description="The values that the customer's score was made from.",
                examples=[_EXAMPLE],
            ),
            400: problem_spec("No score is asked for; `known_scores` lists them."),
            404: UNKNOWN,
            503: NOT_SERVED,
        },
    )
    def customer_features(request: Request[Any, Any, Any], customer_id: CustomerId, score: ScoreName) -> ASGIResponse:
        return answer(request, score)

    @get(
        "/customers/{customer_id:str}",
        sync_to_thread=catalogue.shelf.waits,
        tags=["customers"],
        summary="All scores of one customer",
        responses={
            200: ResponseSpec(CustomerScores, generate_examples=False, description="What each score says, by name."),
            404: problem_spec("No score knows the customer; `known_scores` lists those that were asked."),
            503: problem_spec("A score that might know the customer can't be looked up; `detail` says which."),
        },
    )
    def all_scores(request: Request[Any, Any, Any], customer_id: CustomerId) -> ASGIResponse:
        return all_scores_of(catalogue, request, id_as_sent(request, 2))

    # An id may have slashes, and a path parameter that takes them is always the last. Where there is one the router
    # sends it all ids, so that the handlers above are what describes the endpoints, and this is what answers.
    @get("/customers/{rest:path}", sync_to_thread=catalogue.shelf.waits, include_in_schema=False)
    def customer_with_slashes(request: Request[Any, Any, Any], rest: str, score: str | None = None) -> ASGIResponse:
        if request.scope["raw_path"].partition(b"?")[0].endswith(ENDING):
            request.scope["path_template"] = "/customers/{customer_id}/features"  # which metrics and audit tell
            return answer(request, score)
        request.scope["path_template"] = "/customers/{customer_id}"
        return all_scores_of(catalogue, request, id_as_sent(request, 2))

    return [customer_features, all_scores, customer_with_slashes]
