"""What the API tells of a score's versions: the model card of each, whatever its gate said, and what was realised."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

from litestar import MediaType, Request, Response, get
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import ResponseSpec
from litestar.params import Parameter

from ml.realised import Performance
from serving.catalogue import Catalogue
from serving.guarding.callers import caller_of
from serving.lookups import NOT_SERVED, ScoreName, id_as_sent, problem_spec, served_score
from serving.pages.model_cards import DATA, VersionCard, Versions, all_versions, card_file, read_versions
from serving.pages.performance import read_performance
from serving.problems import short, unknown_score

UNTOLD = problem_spec("The score is not known, or nothing has been told of its performance yet; `detail` says which.")
Version = Annotated[int, Parameter(description="A version, as GET /scores/{score}/versions lists it.")]


def versions_handlers(catalogue: Catalogue, reports: Path) -> list[HTTPRouteHandler]:
    """The handlers of versions over a folder of reports. A score may have versions before any of it is served."""

    def versions_of(score: str) -> Versions:
        found = read_versions(reports, score)
        if found is not None:
            return found
        if score in catalogue.scores:
            raise NotFoundException(
                detail=f"Score '{score}' has no model cards yet; the next run of the pipeline writes them."
            )
        known = sorted({*catalogue.scores, *(versions.score for versions in all_versions(reports))})
        raise unknown_score(score, known)

    @get(
        "/scores/{score:str}/versions",
        tags=["models"],
        summary="The versions of a score",
        responses={404: problem_spec("The score is not known, or has no version yet.")},
    )
    async def list_versions(score: ScoreName) -> Versions:
        return await asyncio.to_thread(versions_of, score)

    @get(
        "/scores/{score:str}/versions/{version:int}",
        tags=["models"],
        summary="The model card of a version",
        responses={
            200: ResponseSpec(VersionCard, generate_examples=False, description="The model card."),
            404: problem_spec("The score or the version is not known; `known_versions` lists those that are."),
        },
    )
    async def one_version(request: Request[Any, Any, Any], score: ScoreName, version: Version) -> Response[bytes]:
        sent = id_as_sent(request, 4).removesuffix("/")  # of what int() reads, only 1 is version 1: not 01, +1 or ١

        def read() -> bytes:
            file = card_file(reports, score, sent, DATA)
            if file is None:
                known = [line.version for line in versions_of(score).versions]
                listed = ", ".join(map(str, known)) or "none yet"
                detail = f"Score '{score}' has no version {short(sent)}. Known versions: {listed}."
                raise NotFoundException(detail=detail, extra={"known_versions": known})
            return file.read_bytes()

        return Response(await asyncio.to_thread(read), media_type=MediaType.JSON)

    return [list_versions, one_version]


def performance_handler(catalogue: Catalogue, reports: Path) -> HTTPRouteHandler:
    """The handler of a score's performance over a folder of reports."""

    @get(
        "/scores/{score:str}/performance",
        tags=["scores"],
        summary="What was promised of a score, and what was realised",
        responses={404: UNTOLD, 503: NOT_SERVED},
    )
    async def performance(request: Request[Any, Any, Any], score: ScoreName) -> Performance:
        served_score(catalogue, score, caller_of(request.scope))
        found = await asyncio.to_thread(read_performance, reports, score)
        if found is None:
            raise NotFoundException(detail=f"Nothing is told of the performance of '{score}' yet: the next run does.")
        return found

    return performance
