"""/docs and /openapi.json: the API's documentation, with every script and style served from here."""

import asyncio
import gzip
from functools import cache
from typing import Any

from litestar import MediaType, Request, Router, get
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.plugins import OpenAPIRenderPlugin
from litestar.response.base import ASGIResponse
from litestar.serialization import encode_json
from swagger_ui_bundle import swagger_ui_path

from serving.catalogue import Catalogue
from serving.guarding.callers import caller_of
from serving.openapi import mended, with_guard
from serving.predicting.schemas import with_contracts
from serving.scorers import NoScorer

MOST_DOCUMENTS = 8  # in memory, some hundred kilobytes each
FILES = {  # what /docs/files/ serves of the package
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}
PAGE = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Scorehouse API</title>
<link rel="icon" type="image/png" href="/docs/files/favicon-32x32.png">
<link rel="stylesheet" href="/docs/files/swagger-ui.css">
</head>
<body style="margin: 0">
<p style="font: 15px system-ui, sans-serif; margin: 0 auto; max-width: 1420px; padding: 16px 20px 0">
<a href="/" style="color: #0f6b63">Scorehouse: scores and reports</a>
</p>
<div id="docs"></div>
<script src="/docs/files/swagger-ui-bundle.js"></script>
<script src="/docs/files/start.js"></script>
</body>
</html>
"""
# The bundled Swagger UI reads OpenAPI 3.0 and the document is 3.1: where they differ, it is told the older words.
START = b"""
const older = (node) => {
  if (Array.isArray(node)) return node.map(older);
  if (node === null || typeof node !== "object") return node;
  const copy = Object.fromEntries(Object.entries(node).map(([key, value]) => [key, older(value)]));
  for (const key of ["oneOf", "anyOf"]) {
    const kinds = copy[key];
    if (!Array.isArray(kinds) || !kinds.some((kind) => kind.type === "null")) continue;
    const left = kinds.filter((kind) => kind.type !== "null");
    delete copy[key];
    Object.assign(copy, left.length === 1 ? left[0] : {[key]: left}, {nullable: true});
  }
  if ("const" in copy) { copy.enum = [copy.const]; delete copy.const; }
  return copy;
};
fetch("/openapi.json").then((response) => response.json()).then((spec) => SwaggerUIBundle({
  spec: {...older(spec), openapi: "3.0.3"},
  dom_id: "#docs",
  validatorUrl: null,
  deepLinking: true,
  defaultModelsExpandDepth: 0,
}));
"""


class LocalSwagger(OpenAPIRenderPlugin):
    """Swagger UI from the installed package: the page refers to nothing outside this server."""

    def __init__(self) -> None:
        super().__init__(path="/", favicon="", style="")

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        return PAGE


@cache
def _file(name: str) -> tuple[bytes, bytes, str]:
    """A file of the docs: as it is, gzipped, and its media type."""
    content = START if name == "start.js" else (swagger_ui_path / name).read_bytes()
    return content, gzip.compress(content, 6), FILES.get(name, "text/javascript")


@get("/files/{name:str}", sync_to_thread=False)
def docs_file(request: Request[Any, Any, Any], name: str) -> ASGIResponse:
    """A script or style of the docs."""
    if name not in FILES and name != "start.js":
        raise NotFoundException(detail=f"No file '{name[:100]}'.")
    content, gzipped, media_type = _file(name)
    headers = {"Vary": "Accept-Encoding", "Cache-Control": "max-age=3600"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        content, headers = gzipped, headers | {"Content-Encoding": "gzip"}
    return ASGIResponse(body=content, media_type=media_type, headers=headers)


def document_handler(catalogue: Catalogue) -> HTTPRouteHandler:
    """The handler of the OpenAPI document, which has the scores that are served at this moment."""

    made: dict[tuple[str, ...], bytes] = {}  # what is served to a caller -> the document, which takes long to make

    @get("/openapi.json", include_in_schema=False)
    async def openapi_document(request: Request[Any, Any, Any]) -> ASGIResponse:
        """The OpenAPI document."""
        caller = caller_of(request.scope)
        seen = {
            score: served.generation
            for score, served in catalogue.scores.items()
            if caller.may_see(score) and not isinstance(served.scorer, NoScorer | None)
        }

        def make() -> bytes:
            return encode_json(with_contracts(with_guard(mended(request.app.openapi_schema.to_schema())), seen))

        key = tuple(f"{score}/{generation.generation}" for score, generation in seen.items())
        document = made.get(key)
        if document is None:
            document = await asyncio.to_thread(make)
            if len(made) >= MOST_DOCUMENTS:
                made.clear()
            made[key] = document
        return ASGIResponse(body=document, media_type=MediaType.JSON)

    return openapi_document


def docs_router() -> Router:
    """Where /docs lives."""
    return Router("/docs", route_handlers=[docs_file], include_in_schema=False, response_headers=HEADERS)
