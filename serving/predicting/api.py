"""POST /scores/{score}/predict: predictions on demand, of features that are sent, or of a customer and a "what if".

A few rows without reasons are predicted on the event loop, which takes tenths of a millisecond; all else by threads of
its own, so that neither lookups nor the search for new generations wait for it.
"""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import msgspec
from litestar import MediaType, Request, get, post
from litestar.exceptions import NotFoundException, ServiceUnavailableException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import ResponseSpec
from litestar.openapi.spec import Example, Schema
from litestar.response.base import ASGIResponse
from msgspec import UNSET

from serving.answers import EventFault
from serving.bodies import operation_with_body
from serving.catalogue import Catalogue, Served
from serving.contracts import MOST_FAULTS
from serving.generations.generation import Reason
from serving.guarding.audit import audited_customers
from serving.lookups import (
    NOT_SERVED,
    UNKNOWN,
    UNKNOWN_SCORE,
    Conflict,
    ScoreName,
    problem_spec,
    score_to_look_up,
    served_score,
    short,
)
from serving.predicting.answers import (
    MOST_ROWS,
    ContractAnswer,
    Prediction,
    PredictionsAnswer,
    Row,
    Values,
)
from serving.predicting.requests import read_request, wrong_values
from serving.predicting.schemas import features_schema, request_schema
from serving.predicting.scorers import NoScorer
from serving.watching.counting import predicted

if TYPE_CHECKING:
    from ml.on_demand import Scorer

AT_ONCE = 100  # customers read from the store before others have their turn
FEW_BYTES = 32_000  # of a body that the event loop decodes
THREADS = 2  # more would only take turns

_encoder = msgspec.json.Encoder()


class _Value(msgspec.Struct):
    """Of a stored score the value alone."""

    value: float


_value = msgspec.json.Decoder(_Value)


class _Asked(msgspec.Struct):
    """A row with what is published of its customer, if it names one: JSON of features, and the score."""

    row: Row
    stored: bytes | None = None
    published: float | None = None


async def _prediction(
    catalogue: Catalogue, threads: ThreadPoolExecutor, request: Request[Any, Any, Any], score: str
) -> tuple[bytes, int]:
    """The JSON of a `PredictionsAnswer`, and how many rows it has. Raises the problem to answer with instead."""
    body = await request.body()
    apart = asyncio.get_running_loop().run_in_executor
    asked = read_request(body) if len(body) <= FEW_BYTES else await apart(threads, read_request, body)
    while (found := await _looked_up(catalogue, request, score, asked.rows)) is None:
        pass  # another generation is served by now
    from ml.on_demand import FEW  # it is loaded, as the scorer is

    served, scorer, rows = found
    if asked.reasons or len(rows) > FEW:
        return await apart(threads, _answer, served, scorer, rows, asked.reasons), len(rows)
    return _answer(served, scorer, rows, False), len(rows)


def _scorer_of(served: Served) -> "Scorer":
    """Raises the problem to answer with if nothing can be predicted."""
    scorer = served.scorer
    if scorer is None:
        detail = f"The model of score '{served.generation.score}' is being loaded. Ask again in a second."
        raise ServiceUnavailableException(detail=detail, headers={"Retry-After": "1"})
    if isinstance(scorer, NoScorer):
        raise ServiceUnavailableException(detail=scorer.detail) if scorer.broken else Conflict(detail=scorer.detail)
    return scorer


async def _looked_up(
    catalogue: Catalogue, request: Request[Any, Any, Any], score: str, rows: Sequence[Row]
) -> "tuple[Served, Scorer, list[_Asked]] | None":
    """What is served, its scorer, and the rows with what is published of their customers; None if it was replaced while
    others had their turn, as its store may be closed then. Raises the problem that some customers are not known."""
    served = served_score(catalogue, score, request)
    if any(isinstance(row.customer_id, str) for row in rows):
        score_to_look_up(catalogue, score, request)  # what is published of customers may be too old for its owner
    scorer, asked, unknown = _scorer_of(served), [], []
    for number, row in enumerate(rows, 1):
        if number % AT_ONCE == 0:
            await asyncio.sleep(0)
            if catalogue.scores.get(score) is not served:
                return None
        if isinstance(row.customer_id, str):
            features = await catalogue.read(served.store.features, row.customer_id)
            stored = await catalogue.read(served.store.get, row.customer_id)
            if features is None or stored is None:
                unknown.append(
                    EventFault(row=number, column=None, fault=f"customer '{short(row.customer_id)}' is not known")
                )
                continue
            asked.append(_Asked(row, features, _value.decode(stored).value))
        else:
            asked.append(_Asked(row))
    if unknown:
        raise NotFoundException(
            detail=f"{len(unknown)} of the customers {'is' if len(unknown) == 1 else 'are'} not known to score"
            f" '{score}', the first in row {unknown[0].row}. An id is {','.join(served.generation.entity)}.",
            extra={"errors": unknown[:MOST_FAULTS]},
        )
    return served, scorer, asked


def _answer(served: Served, scorer: "Scorer", asked: Sequence[_Asked], reasons: bool) -> bytes:
    """The JSON of the predictions. Raises `WrongRows` with all that is wrong with the features."""
    from ml import on_demand
    from ml.values import WrongValues, read_rows

    names = [feature.name for feature in scorer.features]
    rows = [_features_of(one, names) for one in asked]
    try:
        if reasons or len(rows) > on_demand.FEW:
            found = on_demand.predict(scorer, read_rows(rows, scorer.features), reasons).to_pylist()
        else:
            found = on_demand.predict_few(scorer, rows)
    except WrongValues as wrong:
        raise wrong_values(wrong.faults, names, served.generation.score) from None
    told = served.summary()
    answer = PredictionsAnswer(
        score=told.name,
        generation=told.generation,
        model_version=told.model_version,
        as_of_date=told.as_of_date,
        stale=told.freshness == "stale",
        predictions=[_prediction_of(number, *pair) for number, pair in enumerate(zip(asked, found, strict=True), 1)],
    )
    return _encoder.encode(answer)


def _features_of(asked: _Asked, names: Sequence[str]) -> Values:
    if asked.stored is None:
        return asked.row.features or {}
    published = dict(zip(names, msgspec.json.decode(asked.stored), strict=True))
    return published | (asked.row.overrides or {})


def _prediction_of(number: int, asked: _Asked, found: Mapping[str, Any]) -> Prediction:
    reasons = found.get("reasons", UNSET)
    probabilities = found.get("probabilities", UNSET)
    return Prediction(
        row=number,
        customer_id=asked.row.customer_id,
        id=asked.row.id,
        value=found["value"],
        band=found["band"],
        percentile=found["percentile"],
        probabilities=UNSET if probabilities is UNSET else dict(probabilities),
        reasons=UNSET if reasons is UNSET else [Reason(**reason) for reason in reasons],
        published_value=UNSET if asked.published is None else asked.published,
    )


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
(`overrides`), from the features that are published. All rows are predicted, or none. Each score has this operation
under a path of its own as well, with its features by type.

    curl -H "Content-Type: application/json" -d '{"rows": [{"customer_id": "4711", "overrides": {"visits": 3}}]}' \\
         http://127.0.0.1:8000/scores/churn/predict
"""


def predict_handlers(catalogue: Catalogue) -> list[HTTPRouteHandler]:
    """The handlers of predictions and feature contracts over a catalogue."""
    threads = ThreadPoolExecutor(THREADS, thread_name_prefix="predict")

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
        body, rows = await _prediction(catalogue, threads, request, score)
        predicted(score, rows)
        audited_customers(request, rows)
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
        return _feature_contract(served_score(catalogue, score, request))

    return [predict, contract]
