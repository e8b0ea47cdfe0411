"""Predictions on demand: from a request's body to the answer's, beside lookups and never in their way."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec
from litestar.exceptions import NotFoundException, ServiceUnavailableException
from msgspec import UNSET, UnsetType

from serving.answers import EventFault
from serving.catalogue import Catalogue, Served
from serving.contracts import MOST_FAULTS
from serving.generations.generation import Reason
from serving.guarding.callers import Caller
from serving.lookups import Conflict, score_to_look_up, served_score
from serving.predicting.answers import Prediction, PredictionsAnswer, Row, Values
from serving.predicting.requests import read_request, wrong_values
from serving.problems import short
from serving.scorers import NoScorer
from serving.watching.counting import predicted

if TYPE_CHECKING:
    from ml.on_demand import Scorer

AT_ONCE = 100  # customers read from the store before others have their turn
FEW_BYTES = 32_000  # of a body that the event loop decodes
THREADS = 2  # more would only take turns

T = TypeVar("T")

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


class Predictor:
    """Predicts what requests ask of the scores of a catalogue.

    A few rows without reasons are predicted on the event loop, which takes tenths of a millisecond; all else by threads
    of its own, so that neither lookups nor the search for new generations wait for it.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="predict")

    async def answer(self, score: str, body: bytes, caller: Caller) -> tuple[bytes, int]:
        """The JSON of a `PredictionsAnswer`, and how many rows it has. Raises the problem to answer with instead."""
        asked = read_request(body) if len(body) <= FEW_BYTES else await self._apart(read_request, body)
        while (found := await _looked_up(self._catalogue, caller, score, asked.rows)) is None:
            pass  # another generation is served by now
        from ml.on_demand import most_at_once  # it is loaded, as the scorer is

        served, scorer, rows = found
        if not asked.reasons and len(rows) <= most_at_once(scorer):
            told = _answer(served, scorer, rows, few=True)
        else:
            told = await self._apart(partial(_answer, served, scorer, rows, reasons=asked.reasons))
        predicted(score, len(rows))
        return told, len(rows)

    async def _apart(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


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
    catalogue: Catalogue, caller: Caller, score: str, rows: Sequence[Row]
) -> "tuple[Served, Scorer, list[_Asked]] | None":
    """What is served, its scorer, and the rows with what is published of their customers; None if it was replaced while
    others had their turn, as its store may be closed then. Raises the problem that some customers are not known."""
    served = served_score(catalogue, score, caller)
    if any(isinstance(row.customer_id, str) for row in rows):
        score_to_look_up(catalogue, score, caller)  # what is published of customers may be too old for its owner
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


def _answer(
    served: Served, scorer: "Scorer", asked: Sequence[_Asked], *, few: bool = False, reasons: bool = False
) -> bytes:
    """The JSON of the predictions. Raises `WrongRows` with all that is wrong with the features."""
    from ml import on_demand
    from ml.values import WrongValues, read_rows

    names = [feature.name for feature in scorer.features]
    rows = [_features_of(one, names) for one in asked]
    try:
        if few:
            found = on_demand.predict_few(scorer, rows)
        else:
            found = on_demand.predict(scorer, read_rows(rows, scorer.features), reasons).to_pylist()
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
        customer_id=cast("str | UnsetType", asked.row.customer_id),
        id=asked.row.id,
        value=found["value"],
        band=found["band"],
        percentile=found["percentile"],
        probabilities=UNSET if probabilities is UNSET else dict(probabilities),
        reasons=UNSET if reasons is UNSET else [Reason(**reason) for reason in reasons],
        published_value=UNSET if asked.published is None else asked.published,
    )
