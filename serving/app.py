"""The API: lookups of scores by customer id, over published generations. Errors are RFC 9457 problems.

`create_app` makes it for a data folder; `app_from_environment` for SCOREHOUSE_DATA, as a server loads it:
`granian --interface asgi --factory serving.app:app_from_environment`.
"""

import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from litestar import Litestar, Request, Response, get
from litestar.enums import ScopeType
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig, ResponseSpec
from litestar.openapi.spec import Components, Tag
from litestar.routes import HTTPRoute
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from serving.answers import PROBLEM, Alive, Problem, Readiness
from serving.call_list import call_list_handler
from serving.catalogue import Catalogue, Clock, shelf_at
from serving.customers import customers_handlers
from serving.docs import LocalSwagger, docs_router, document_handler
from serving.events import PushedEvents, push_handler
from serving.generations.generation import StoreUnavailable
from serving.guarding.audit import Audit
from serving.guarding.bounds import MOST_JOB_BYTES, Bound, Bounds
from serving.guarding.callers import caller_of, readiness_for
from serving.guarding.guard import Answered, guarded, guarding
from serving.guarding.keys import FILE as KEYS
from serving.guarding.known_keys import KnownKeys
from serving.jobs.api import job_handlers
from serving.openapi import SECURITY, operation_id
from serving.pages.handlers import pages
from serving.plain import answering_plainly
from serving.predicting.api import predict_handlers
from serving.predicting.predictor import Predictor
from serving.problems import problem_of, short
from serving.scores import scores_handlers
from serving.versions import performance_handler, versions_handlers
from serving.watching import counting
from serving.watching.metrics import Shared, folder_of, metrics_handler

log = logging.getLogger("serving")

ABOUT = """Scores of customers, looked up by customer id.

Answers come from published, verified generations: `generation` and `as_of_date` say from which.
`stale` says that a score is older than its owner allows. Events that applications push are kept for the next load."""


def health_handlers(catalogue: Catalogue) -> list[HTTPRouteHandler]:
    """The handlers that tell how the server is."""

    @get("/health/live", sync_to_thread=False, tags=["health"], summary="Does the process answer?")
    def live() -> Alive:
        return Alive()

    @get(
        "/health/ready",
        sync_to_thread=False,
        tags=["health"],
        summary="Can scores be looked up?",
        responses={
            503: ResponseSpec(Readiness, generate_examples=False, description="A score, or all, cannot be looked up.")
        },
    )
    def ready(request: Request[Any, Any, Any]) -> Response[Readiness]:
        readiness = readiness_for(caller_of(request.scope), catalogue.readiness())
        return Response(readiness, status_code=503 if readiness.status == "unavailable" else 200)

    return [live, ready]


def create_app(
    data: Path,
    *,
    store: str = "",
    clock: Clock = time.time,
    look_every: float = 0.25,
    workers: int = 1,
    audit_days: int = 0,
    bounds: Bounds = Bounds(),  # noqa: B008 (it is frozen)
    counts: Path | None = None,
    answered: Answered = counting.answered,
) -> Litestar:
    """The app over a data folder, whose generations, reports, events and keys may appear later.

    `store` is the URL of a Redis that has the generations in place of the folder. `clock`: seconds since 1970.
    `workers`: the processes that share a key's rate. `audit_days`: how long the audit log is kept, 0 for none.
    `counts`: the folder in which the workers of a server keep what they count, where there are several. Raises
    `KeyFault` if the file of keys can't be read, `StoreUnavailable` if `store` is none.
    """
    reports = data / "reports"
    shelf = shelf_at(data / "generations", store)
    catalogue = Catalogue(data / "generations", shelf=shelf, clock=clock, look_every=look_every)
    shared = Shared(counts, catalogue)
    predictor = Predictor(catalogue)
    pushed = PushedEvents(data / "events")
    keys = KnownKeys(data / KEYS, workers)
    audit = Audit(data / "logs" / "audit", audit_days) if audit_days else None

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        async with catalogue.serving(), shared.kept(), guarding(keys, audit, look_every):
            try:
                yield
            finally:
                pushed.close()

    app = Litestar(
        route_handlers=[
            *scores_handlers(catalogue),
            call_list_handler(catalogue),
            *customers_handlers(catalogue),
            performance_handler(catalogue, reports),
            *health_handlers(catalogue),
            *versions_handlers(catalogue, reports),
            *predict_handlers(catalogue, predictor),
            push_handler(pushed),
            *job_handlers(catalogue, data / "jobs"),
            metrics_handler(catalogue, shared),
            document_handler(catalogue),
            *pages(catalogue, reports),
        ],
        lifespan=[lifespan],
        exception_handlers={
            HTTPException: _http_problem,
            StoreUnavailable: _store_problem,
            Exception: _internal_problem,
        },
        logging_config=None,
        request_max_body_size=None,  # the guard has the bounds of all bodies
        openapi_config=OpenAPIConfig(
            title="Scorehouse",
            version=version("scorehouse"),
            description=ABOUT,
            operation_id_creator=operation_id,
            openapi_router=docs_router(),
            render_plugins=[LocalSwagger()],
            components=Components(security_schemes=dict(SECURITY)),
            tags=[
                Tag(name="scores", description="What is served"),
                Tag(name="customers", description="What scores say of customers"),
                Tag(name="models", description="The versions behind the scores, with their model cards"),
                Tag(name="jobs", description="Batches that callers have scored"),
                Tag(name="events", description="What applications tell"),
                Tag(name="health", description="How the server is"),
            ],
        ),
    )
    app.asgi_handler = guarded(
        _answering_head(_telling_all_methods(app, answering_plainly(app.asgi_handler, catalogue, predictor))),
        keys,
        known_scores=lambda: catalogue.scores,
        bounds=bounds,
        audit=audit,
        answered=answered,
    )
    return app


def _answering_head(app: ASGIApp) -> ASGIApp:
    """The app, which answers HEAD as it does GET, without the body: load balancers ask so, Litestar would refuse."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP or scope["method"] != "HEAD":
            await app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.body":
                message["body"] = b""
            await send(message)

        scope["method"] = "GET"
        await app(scope, receive, send_head)

    return answer


def _telling_all_methods(app: Litestar, inner: ASGIApp) -> ASGIApp:
    """The inner app of `app`, whose OPTIONS tells all methods of a path: Litestar tells those of one handler."""
    allow = {
        route.path_format: ", ".join(sorted(route.methods | ({"HEAD"} if "GET" in route.methods else set())))
        for route in app.routes
        if isinstance(route, HTTPRoute)
    }

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_all(message: Message) -> None:
            told = allow.get(scope.get("path_template", ""))
            if message["type"] == "http.response.start" and message["status"] == 204 and told:
                others = [header for header in message["headers"] if header[0].lower() != b"allow"]
                message["headers"] = [*others, (b"allow", told.encode())]
            await send(message)

        is_asked = scope["type"] == ScopeType.HTTP and scope["method"] == "OPTIONS"
        await inner(scope, receive, send_all if is_asked else send)

    return answer


def app_from_environment(server: int | None = None) -> Litestar:
    """The app over SCOREHOUSE_DATA (default ./data), with its log on stderr; as a worker of the process `server`."""
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
    environment = os.environ.get
    data = Path(environment("SCOREHOUSE_DATA") or "data")
    return create_app(
        data,
        store=environment("SCOREHOUSE_STORE") or "",
        workers=int(environment("SCOREHOUSE_WORKERS") or 1),
        audit_days=int(environment("SCOREHOUSE_AUDIT_DAYS") or 30),
        bounds=Bounds(jobs=Bound(int(environment("SCOREHOUSE_JOB_BYTES") or MOST_JOB_BYTES), by_piece=True)),
        counts=None if server is None else folder_of(data, server),
    )


def _problem(problem: Problem, headers: dict[str, str] | None = None) -> Response[Problem]:
    return Response(problem, status_code=problem.status, media_type=PROBLEM, headers=headers)


def _http_problem(request: Request[Any, Any, Any], error: HTTPException) -> Response[Problem]:
    extra = error.extra if isinstance(error.extra, dict) else {}
    detail = error.detail
    if isinstance(error.extra, list):  # Litestar's: what is wrong with the parameters or the body
        told = [f"{one.get('key', 'body')}: {one.get('message', 'is wrong')}" for one in error.extra]
        detail = f"{'; '.join(told)}."
    if error.status_code == 404 and not extra and detail == "Not Found":
        detail = f"Nothing is at {short(request.scope['path'])}. /docs describes the API, /scores lists the scores."
    headers = dict(error.headers or {})
    if error.status_code == 405:
        methods = {method.strip() for method in headers.pop("allow", "").split(",")} - {""}
        headers["Allow"] = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
        detail = f"{request.method} is not possible at {short(request.scope['path'])}. Possible: {headers['Allow']}."
    error.detail = detail
    return _problem(problem_of(error, caller_of(request.scope)), headers)


def _store_problem(_: Request[Any, Any, Any], error: StoreUnavailable) -> Response[Problem]:
    detail = f"The store of scores cannot be asked just now: {error}."
    return _problem(Problem(title="Service Unavailable", status=503, detail=detail), {"Retry-After": "5"})


def _internal_problem(request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _problem(Problem(title="Internal Server Error", status=500, detail="The fault is in the server's log."))
