"""What the lookups of the API share: which score is asked for, which customer, and what an answer may be instead."""

from typing import Annotated, Any, NoReturn
from urllib.parse import unquote

from litestar import Request
from litestar.exceptions import HTTPException, NotFoundException, ServiceUnavailableException
from litestar.openapi import ResponseSpec
from litestar.params import Parameter

from serving.answers import PROBLEM, Problem
from serving.catalogue import Catalogue, Served
from serving.generations.generation import StoreUnavailable
from serving.guarding.callers import Caller
from serving.problems import short, unknown_score
from serving.watching.counting import looked_up

ScoreName = Annotated[str, Parameter(description="Name of a score, as GET /scores lists it.")]
CustomerId = Annotated[
    str,
    Parameter(
        description='The customer\'s id, percent-encoded. A composite key is joined by ",", in the order'
        " of `entity`; inside a part '~' is written '~0' and ',' '~1'."
    ),
]


class Conflict(HTTPException):
    """What is published can't do this."""

    status_code = 409


def problem_spec(description: str) -> ResponseSpec:
    return ResponseSpec(Problem, generate_examples=False, description=description, media_type=PROBLEM)


UNKNOWN_SCORE = problem_spec("The score is not known.")
UNKNOWN = problem_spec("The score or the customer is not known; `detail` says which.")
NOT_SERVED = problem_spec(
    "What is published of the score is damaged, or too old for its owner; `detail` says which file and how, or since"
    " when."
)
STORE_DOWN = problem_spec("The store of scores can't be asked just now.")


def served_score(catalogue: Catalogue, score: str, caller: Caller) -> Served:
    """What is served of a score to who asks. Raises the problem to answer with if nothing is."""
    known = list(catalogue.scores)
    if not caller.may_see(score):
        raise unknown_score(score, known)
    served = catalogue.scores.get(score)
    if served is not None:
        return served
    if catalogue.down:
        raise StoreUnavailable(catalogue.down)
    if fault := catalogue.faults.get(score):
        detail = f"Score '{score}' cannot be served: {fault}. Publish anew or roll back."
        raise ServiceUnavailableException(detail=detail, extra={"known_scores": known})
    raise unknown_score(score, known)


def score_to_look_up(catalogue: Catalogue, score: str, caller: Caller) -> Served:
    """What is served of a score, for an answer about its customers. Raises also where it is stale and refused then."""
    served = served_score(catalogue, score, caller)
    if (refusal := served.refusal()) is not None:
        raise ServiceUnavailableException(detail=refusal)
    return served


def unknown_customer(served: Served, customer_id: str) -> NoReturn:
    """Raises the problem that a score has no such customer."""
    summary = served.summary()
    looked_up(summary.name, 0, 1)
    detail = (
        f"Unknown customer '{short(customer_id)}' of score '{summary.name}', which has {summary.customers} customers "
        f"as of {summary.as_of_date}. An id is {','.join(summary.entity)}."
    )
    raise NotFoundException(detail=detail)


def id_as_sent(request: Request[Any, Any, Any], behind: int, before: bytes = b"") -> str:
    """The id between the first `behind` parts of the path and its end, which is `before`.

    As it was sent: of a path parameter the router has stripped and merged slashes. Raises a 404 where the parts before
    it are not written plainly (//, %2F): it could not be told then where the id begins.
    """
    raw: bytes = request.scope["raw_path"].partition(b"?")[0]
    parts = raw.removesuffix(before).split(b"/", behind)
    if len(parts) <= behind or parts[behind - 1] not in (b"customers", b"versions"):
        raise NotFoundException(detail=f"Nothing is at {short(raw.decode('latin-1'))}.")
    return unquote(parts[behind].decode("latin-1"))
