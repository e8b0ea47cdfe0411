"""GET /scores, GET /scores/{score}, and what a score says of customers: one, many in one call, all that there are."""

from typing import Any

import msgspec
from litestar import MediaType, Request, get, post
from litestar.exceptions import NotFoundException, ServiceUnavailableException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import ResponseSpec
from litestar.openapi.spec import Example, Schema
from litestar.openapi.spec.enums import OpenAPIType
from litestar.response.base import ASGIResponse

from serving.answers import (
    MOST_IDS,
    CustomerAnswer,
    Lookup,
    LookupAnswer,
    Scores,
    ScoreSummary,
)
from serving.bodies import operation_with_body, read_body
from serving.catalogue import Catalogue, Served
from serving.generations.generation import StoreUnavailable
from serving.guarding.audit import audited_customers
from serving.guarding.callers import caller_of
from serving.lookups import (
    NOT_SERVED,
    STORE_DOWN,
    UNKNOWN,
    UNKNOWN_SCORE,
    CustomerId,
    ScoreName,
    id_as_sent,
    problem_spec,
    score_to_look_up,
    served_score,
    unknown_customer,
)
from serving.problems import short
from serving.revalidation import Published

_EXAMPLE = Example(
    summary="A customer",
    value=msgspec.json.decode(
        b"""{"score": "churn", "customer_id": "4711", "value": 0.8312, "band": "high", "percentile": 96.41, "reasons": [
        {"feature": "days_since_last_visit", "value": "41", "contribution": 0.914,
         "text": "Days since the last visit: 41, which raises the score."},
        {"feature": "visits_28d_count", "value": "3", "contribution": -0.127,
         "text": "Visits in the last 28 days: 3, which lowers the score."}],
        "as_of_date": "2024-03-04", "model_version": 3, "generation": "20240305T060000Z-v3",
        "scored_at": "2024-03-05T05:58:12Z", "stale": false}"""
    ),
)
_NOT_MODIFIED = ResponseSpec(
    None, generate_examples=False, description="The client has this answer: If-None-Match or If-Modified-Since say so."
)
_IDS = Schema(
    title="Lookup",
    type=OpenAPIType.OBJECT,
    required=["ids"],
    additional_properties=False,
    properties={
        "ids": Schema(
            type=OpenAPIType.ARRAY,
            items=Schema(one_of=[Schema(type=OpenAPIType.STRING), Schema(type=OpenAPIType.INTEGER)]),
            min_items=1,
            max_items=MOST_IDS,
            description="Ids of customers, as text or whole numbers; parts of a composite key are joined by commas.",
        )
    },
)
_BAD_LOOKUP = problem_spec("The body is no list of 1 to 1,000 ids; `detail` says where.")

encode = msgspec.json.encode
_lookup = msgspec.json.Decoder(Lookup)


def scores_handlers(catalogue: Catalogue) -> list[HTTPRouteHandler]:
    """The handlers of scores and of lookups over a catalogue."""

    def seen(request: Request[Any, Any, Any]) -> list[Served]:
        caller = caller_of(request.scope)
        return [served for name, served in catalogue.scores.items() if caller.may_see(name)]

    @get("/scores", sync_to_thread=False, tags=["scores"], summary="All scores", responses={503: STORE_DOWN})
    def list_scores(request: Request[Any, Any, Any]) -> Scores:
        if catalogue.down and not catalogue.scores:
            raise StoreUnavailable(catalogue.down)
        return Scores(scores=[served.summary() for served in seen(request)])

    @get(
        "/scores/{score:str}",
        sync_to_thread=False,
        tags=["scores"],
        summary="One score",
        responses={404: UNKNOWN_SCORE, 503: NOT_SERVED},
    )
    def one_score(request: Request[Any, Any, Any], score: ScoreName) -> ScoreSummary:
        return served_score(catalogue, score, caller_of(request.scope)).summary()

    @get(
        "/scores/{score:str}/customers/{customer_id:path}",
        sync_to_thread=catalogue.shelf.waits,
        tags=["customers"],
        summary="The score of one customer",
        responses={
            200: ResponseSpec(
                CustomerAnswer, generate_examples=False, description="The customer's score.", examples=[_EXAMPLE]
            ),
            304: _NOT_MODIFIED,
            404: UNKNOWN,
            503: NOT_SERVED,
        },
    )
    def one_customer(request: Request[Any, Any, Any], score: ScoreName, customer_id: CustomerId) -> Published:
        served = score_to_look_up(catalogue, score, caller_of(request.scope))
        customer_id = id_as_sent(request, 4)
        body = served.customer(customer_id)
        if body is None:
            unknown_customer(served, customer_id)
        return Published(body, served.validators, request.scope)

    @post(
        "/scores/{score:str}/lookup",
        status_code=200,
        tags=["customers"],
        summary="The scores of many customers",
        operation_class=operation_with_body(_IDS, example=Example(value={"ids": ["4711", "4712"]})),
        description="Of up to 1,000 ids, in their order and all of one generation; `missing` has those not known.",
        responses={
            200: ResponseSpec(LookupAnswer, generate_examples=False, description="The scores, and who is missing."),
            400: _BAD_LOOKUP,
            404: UNKNOWN_SCORE,
            503: NOT_SERVED,
        },
    )
    async def lookup(request: Request[Any, Any, Any], score: ScoreName) -> ASGIResponse:
        asked = read_body(await request.body(), _lookup)
        # After the last await: from here on nothing replaces it.
        served = score_to_look_up(catalogue, score, caller_of(request.scope))
        found, missing = await catalogue.read(served.customers, [str(one) for one in asked.ids])
        audited_customers(request.scope, len(asked.ids))
        named = b'{"score":%b,"generation":%b,"scores":[' % (encode(score), encode(served.name))
        body = b"".join([named, b",".join(found), b'],"missing":', encode(missing), b"}"])
        return ASGIResponse(body=body, media_type=MediaType.JSON)

    return [list_scores, one_score, one_customer, lookup]


def all_scores_of(catalogue: Catalogue, request: Request[Any, Any, Any], customer_id: str) -> ASGIResponse:
    """The JSON of `CustomerScores`: what each score that the caller may see says of a customer.

    Raises a 404 if none of them knows it, and a 503 if one that can't be asked might.
    """
    caller = caller_of(request.scope)
    known = [name for name in catalogue.scores if caller.may_see(name)]
    answers = {name: catalogue.scores[name].customer(customer_id) for name in known}
    told = {name: answer for name, answer in answers.items() if answer is not None}
    if not told:
        if catalogue.down:
            raise StoreUnavailable(catalogue.down)
        if lost := [name for name in catalogue.faults if name not in catalogue.scores and caller.may_see(name)]:
            detail = f"No score that can be looked up knows customer '{short(customer_id)}', but these can't be:"
            raise ServiceUnavailableException(
                detail=f"{detail} {', '.join(sorted(lost))}.", extra={"known_scores": known}
            )
        detail = f"Unknown customer '{short(customer_id)}': no score knows it."
        raise NotFoundException(detail=detail, extra={"known_scores": known})
    refused = [name for name in told if catalogue.scores[name].refusal() is not None]
    scores = b",".join(answer for name, answer in told.items() if name not in refused)
    body = b'{"customer_id":%b,"scores":[%b],"refused":%b}' % (encode(customer_id), scores, encode(refused))
    return ASGIResponse(body=body, media_type=MediaType.JSON)
