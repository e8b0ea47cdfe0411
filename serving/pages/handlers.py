"""The pages for people: scores, each with a customer's lookup, model cards, features, sources, reports. No scripts."""

import asyncio
import base64
import gzip
import hashlib
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from litestar import MediaType, Request, Response, Router, get
from litestar.params import Parameter
from markupsafe import Markup

from serving.catalogue import Catalogue, Served
from serving.generations.generation import NAME as NAMED
from serving.generations.generation import CustomerScore
from serving.guarding.callers import ANYBODY, caller_of, readiness_for
from serving.pages.feature_catalogue import feature_views, read_features
from serving.pages.model_cards import PAGE, all_versions, card_file, read_versions
from serving.pages.monitoring import all_summaries, newest_page
from serving.pages.performance import performance_view, read_performance
from serving.pages.sources import read_sources, source_view
from serving.pages.views import (
    FILTERS,
    band_places,
    class_bars,
    find_reports,
    limits,
    reason_bars,
    report_file,
    scale,
    score_view,
)

TEMPLATES = Path(__file__).parent / "templates"
LISTED = 60  # reports of single dates, the newest
EXAMPLES = 4  # customers that a score's page offers to look up
LISTED_VERSIONS = 8  # on a score's page, the newest
FAILED_CONDITIONS = 2  # of a refused version that are listed there; its card has all

_style = " ".join((TEMPLATES / "style.css").read_text().split())
_style_hash = base64.b64encode(hashlib.sha256(_style.encode()).digest()).decode()
_SAFE = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin", "X-Frame-Options": "DENY"}
PAGE_HEADERS = _SAFE | {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_style_hash}'; img-src data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
}
# A report brings its own scripts: they run, shut off from this origin and from every other.
REPORT_HEADERS = _SAFE | {
    "Content-Security-Policy": "sandbox allow-scripts allow-downloads; default-src 'none'; "
    "script-src 'unsafe-inline' 'unsafe-eval' data: blob:; style-src 'unsafe-inline' data:; img-src data: blob:; "
    "font-src data:; worker-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}

# A model card brings its own style, and no script.
CARD_HEADERS = _SAFE | {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
}

_templates = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,
)
_templates.filters.update(FILTERS)
_templates.globals.update(style=Markup(_style), version=version("scorehouse"))


def _render(template: str, status_code: int = 200, **context: Any) -> Response[str]:
    html = _templates.get_template(template).render(**context)
    return Response(html, status_code=status_code, media_type=MediaType.HTML)


def page(template: str, here: str, **context: Any) -> Response[str]:
    """A page at an address that answers programs with JSON; `here` is its entry in the navigation."""
    found = _render(template, here=here, **context)
    found.headers.update(PAGE_HEADERS | {"Vary": "Accept"})
    return found


def pages(catalogue: Catalogue, reports: Path) -> list[Router]:
    """The routes of the pages over a catalogue and a folder of reports."""

    @get("/")
    async def overview(request: Request[Any, Any, Any]) -> Response[str]:
        caller = caller_of(request.scope)
        found = await asyncio.to_thread(find_reports, reports)
        readiness = readiness_for(caller, catalogue.readiness())
        return _render(
            "overview.html",
            here="scores",
            scores=[
                score_view(one.summary(), found) for score, one in catalogue.scores.items() if caller.may_see(score)
            ],
            readiness=readiness,
            faults=[one.fault for one in readiness.scores if one.fault],
        )

    @get("/pages/{score:str}")
    async def score_page(
        request: Request[Any, Any, Any],
        score: str,
        customer_id: Annotated[str | None, Parameter(query="customer_id")] = None,
    ) -> Response[str]:
        found = await asyncio.to_thread(find_reports, reports)
        told = await asyncio.to_thread(read_versions, reports, score)
        performance = await asyncio.to_thread(read_performance, reports, score) if score in catalogue.scores else None
        served = catalogue.scores.get(score)  # read only after the last await: from here on nothing replaces the store
        if served is None:
            known = ", ".join(filter(caller_of(request.scope).may_see, catalogue.scores)) or "none yet"
            return _render("not_found.html", 404, here="", detail=f"There is no score '{score[:100]}'. Known: {known}.")
        asked = customer_id.strip() if customer_id else None
        refusal = served.refusal()
        # What waits for a network is asked in a thread: it stays when it is replaced, and so is found there.
        examples: list[CustomerScore] = []
        customer: CustomerScore | None = None
        if refusal is None:
            examples, customer = await catalogue.read(_looked_up, served, asked)
        summary = served.summary()
        return _render(
            "score.html",
            status_code=200 if customer or not asked else 503 if refusal else 404,
            here="scores",
            view=score_view(summary, found),
            places=band_places(summary),
            fault=catalogue.faults.get(score),
            clock=served.generation.today,
            asked=asked,
            refusal=refusal,
            keyed=caller_of(request.scope) is not ANYBODY,
            has_list=served.store.has_ranking and not refusal,
            customer=customer,
            reasons=reason_bars(customer.reasons) if customer else [],
            classes=class_bars(customer.probabilities, band_places(summary)) if customer else [],
            scale=scale(summary),
            limits=limits(scale(summary)),
            examples=[example.customer_id for example in examples],
            curl_id=quote(customer.customer_id, safe=",") if customer else None,
            base_url=str(request.base_url).rstrip("/"),
            reports=[report for report in found if report.score == score][:5],
            versions=told.versions if told else [],
            listed=LISTED_VERSIONS,
            conditions=FAILED_CONDITIONS,
            performance=performance_view(performance) if performance else None,
        )

    @get("/reports")
    async def report_index(request: Request[Any, Any, Any]) -> Response[str]:
        may_see = caller_of(request.scope).may_see
        titles = {name: served.generation.title for name, served in catalogue.scores.items()}
        found = [one for one in await asyncio.to_thread(find_reports, reports) if may_see(one.score)]
        told = [one for one in await asyncio.to_thread(all_versions, reports) if may_see(one.score)]
        summaries = [one for one in await asyncio.to_thread(all_summaries, reports) if may_see(one.score)]
        return _render(
            "reports.html", here="reports", summaries=summaries, reports=found, titles=titles, told=told, listed=LISTED
        )

    @get("/features")
    async def features() -> Response[str]:
        found = await asyncio.to_thread(read_features, reports)
        models = [(model, feature_views(model)) for model in found.models] if found else []
        return _render("features.html", here="features", models=models, written_at=found.written_at if found else None)

    @get("/sources")
    async def sources() -> Response[str]:
        found = await asyncio.to_thread(read_sources, reports)
        views = [source_view(source) for source in found.sources] if found else []
        return _render("sources.html", here="sources", views=views, written_at=found.written_at if found else None)

    async def way_back(score: str) -> str:
        told = await asyncio.to_thread(read_versions, reports, score)
        served = catalogue.scores.get(score)
        title = served.generation.title if served else None
        has_versions = told is not None and bool(told.versions)
        return _templates.get_template("way_back.html").render(score=score, title=title, has_versions=has_versions)

    @get("/reports/{score:str}")
    async def score_report(request: Request[Any, Any, Any], score: str) -> Response[Any]:
        path = await asyncio.to_thread(newest_page, reports, score) if NAMED.fullmatch(score) else None
        if path is not None:
            return await _file(request, path, CARD_HEADERS, await way_back(score))
        return _missing(f"Score '{score[:100]}' has no report. See /reports.")

    @get("/reports/{score:str}/{as_of_date:str}/{name:str}")
    async def report(request: Request[Any, Any, Any], score: str, as_of_date: str, name: str) -> Response[Any]:
        path = reports / score / as_of_date / name
        if report_file(path, score, as_of_date, name) is None:
            return _missing(
                "There is no such report: pages are made of the newest as-of date of each run, and the newest 52 stay."
                " See /reports."
            )
        return await _file(request, path, REPORT_HEADERS, await way_back(score))

    @get("/models/{score:str}/{version:str}")
    async def model_card(request: Request[Any, Any, Any], score: str, version: str) -> Response[Any]:
        path = await asyncio.to_thread(card_file, reports, score, version, PAGE)
        if path is not None:
            return await _file(request, path, CARD_HEADERS, await way_back(score))
        told = await asyncio.to_thread(read_versions, reports, score)
        known = ", ".join(str(line.version) for line in told.versions) if told else "none yet"
        detail = f"Score '{score[:100]}' has no version '{version[:100]}'. Known versions: {known}."
        return _missing(detail)

    return [
        Router(
            "/",
            route_handlers=[overview, score_page, report_index, features, sources],
            include_in_schema=False,
            response_headers=PAGE_HEADERS,
        ),
        Router("/", route_handlers=[report, score_report], include_in_schema=False),
        Router("/", route_handlers=[model_card], include_in_schema=False),
    ]


def _missing(detail: str) -> Response[str]:
    missing = _render("not_found.html", 404, here="", detail=detail)
    missing.headers.update(PAGE_HEADERS)
    return missing


async def _file(request: Request[Any, Any, Any], path: Path, headers: dict[str, str], way_back: str) -> Response[bytes]:
    """A page that the pipeline has written, with a way back to those of the server, gzipped for who takes it so."""
    content, gzipped = await asyncio.to_thread(_read_report, path, path.stat().st_mtime_ns, way_back)
    headers = headers | {"Vary": "Accept-Encoding", "Cache-Control": "no-cache"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        content, headers = gzipped, headers | {"Content-Encoding": "gzip"}
    return Response(content, media_type=MediaType.HTML, headers=headers)


def _looked_up(served: Served, asked: str | None) -> tuple[list[CustomerScore], CustomerScore | None]:
    """A few customers to look up, and who is asked for, or else the first of them; None if there is nobody."""
    examples = _examples(served)
    shown = asked or (examples[0].customer_id if examples else None)
    stored = served.store.get(shown) if shown else None
    return examples, msgspec.json.decode(stored, type=CustomerScore) if stored else None


def _examples(served: Served) -> list[CustomerScore]:
    """A few customers to look up, from the highest score down over the whole range."""
    sample = [msgspec.json.decode(stored, type=CustomerScore) for _, stored in served.store.sample(24)]
    sample.sort(key=lambda customer: (-customer.value, customer.customer_id))
    return sample[:: max(1, len(sample) // EXAMPLES)][:EXAMPLES]


@lru_cache(maxsize=8)
def _read_report(path: Path, modified_ns: int, way_back: str) -> tuple[bytes, bytes]:
    """A report with the way back at the top of its body, as it is and gzipped; kept while the file is unchanged."""
    content = path.read_bytes().replace(b"<body>", b"<body>" + way_back.encode(), 1)
    return content, gzip.compress(content, 6)
