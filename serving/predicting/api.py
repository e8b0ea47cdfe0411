"""POST /scores/{score}/predict and GET /scores/{score}/contract, as Litestar has them: see `predictor` for the work."""

from typing import Any, cast

from litestar import MediaType, Request, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import ResponseSpec
from litestar.openapi.spec import Example, Schema
from litestar.response.base import ASGIResponse

from serving.bodies import operation_with_body
from serving.catalogue import Catalogue, Served
from serving.guarding.audit import audited_customers
from serving.guarding.callers import caller_of
from serving.lookups import NOT_SERVED, UNKNOWN, UNKNOWN_SCORE, Conflict, ScoreName, problem_spec, served_score
from serving.predicting.answers import MOST_ROWS, ContractAnswer, PredictionsAnswer
from serving.predicting.predictor import Predictor
from serving.predicting.schemas import features_schema, request_schema


def _feature_contract(served: Served) -> ContractAnswer:
    generation = served.generation
    if not generation.features:
        raise Conflict(detail=f"Generation {served.name} of score '{generation.score}' was published without features.")
    return ContractAnswer(
        score=generation.score,
        generation=served.name,
        model_version=generation.model_version,
        features=features_schema(generation.features),
    )


_EXAMPLES = {
    "features": Example(
        summary="Somebody new",
        value={"rows": [{"id": "a", "features": {"days_since_last_visit": 41, "spend_84d_eur": 102.4}}]},
    ),
    "what if": Example(
        summary="A customer, had they visited yesterday",
        value={"rows": [{"customer_id": "4711", "overrides": {"days_since_last_visit": 1}}], "reasons": True},
    ),
}


_REQUEST = cast(Schema, request_schema())  # it is what a Schema becomes

_ABOUT = """Scores rows with the model that scores the customers, to the same bits, without keeping anything of them.

A row has all features (`GET /scores/{score}/contract` lists them), or the id of a customer and what would be different
(`overrides`), from the features that are published. Overrides are taken as they are: what is derived from the same
facts stays as it is published, unless it is overridden too. All rows are predicted, or none. Each score has this
operation under a path of its own as well, with its features by type.

    curl -H "Content-Type: application/json" -d '{"rows": [{"customer_id": "4711", "overrides": {"visits": 3}}]}' \\
         http://127.0.0.1:8000/scores/churn/predict
"""


def predict_handlers(catalogue: Catalogue, predictor: Predictor) -> list[HTTPRouteHandler]:
    """The handlers of predictions and feature contracts over a catalogue."""

    @post(
        "/scores/{score:str}/predict",
        status_code=200,
        tags=["scores"],
        summary="Predict on demand",
        description=_ABOUT,
        operation_class=operation_with_body(_REQUEST, **_EXAMPLES),
        responses={
            200: ResponseSpec(PredictionsAnswer, generate_examples=False, description="The predictions of all rows."),
            400: problem_spec("The body is no JSON, or nested too deeply."),
            404: UNKNOWN,
            409: problem_spec("What is published of the score has no model or no features to predict with."),
            422: problem_spec(
                f"Rows are wrong, as `errors` tells of the first, or more than {MOST_ROWS:,}. Nothing is predicted."
            ),
            503: problem_spec("The model is being loaded, or can't be; `detail` says which."),
        },
    )
    async def predict(request: Request[Any, Any, Any], score: ScoreName) -> ASGIResponse:
        body, rows = await predictor.answer(score, await request.body(), caller_of(request.scope))
        audited_customers(request.scope, rows)
        return ASGIResponse(body=body, media_type=MediaType.JSON)

    @get(
        "/scores/{score:str}/contract",
        sync_to_thread=False,
        tags=["scores"],
        summary="The features of a score",
        responses={
            404: UNKNOWN_SCORE,
            409: problem_spec("The score was published without its features."),
            503: NOT_SERVED,
        },
    )
    def contract(request: Request[Any, Any, Any], score: ScoreName) -> ContractAnswer:
        return _feature_contract(served_score(catalogue, score, caller_of(request.scope)))

    return [predict, contract]
