"""The OpenAPI document: Litestar's, mended where other readers stumble, so that a generator makes a working client."""

from typing import Any

from litestar.handlers import HTTPRouteHandler
from litestar.openapi.spec import SecurityScheme

from serving.answers import PROBLEM

_PROBLEM = {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}

SECURITY = {"key": SecurityScheme(type="http", scheme="bearer", description="A key of this server: make key.")}
_REFUSALS = {
    "401": "The request has no key, or none that is good. Where the server has no keys, none is needed.",
    "403": "The key may not do this; `detail` names the permission that it needs.",
    "414": "Path and query are too long.",
    "429": "The key's requests of a second are used up; Retry-After says when there are more.",
    "431": "The headers are too long.",
}
_REFUSALS_OF_BODIES = {"408": "The body did not come in time.", "413": "The body is too long."}


def operation_id(handler: HTTPRouteHandler, *_: object) -> str:
    """The name of an operation, which generated clients call it by: that of its handler."""
    return handler.handler_name


def mended(document: dict[str, Any]) -> dict[str, Any]:
    """The document, in which every error is a problem, and all schemas are such as most generators read."""
    for operations in document["paths"].values():
        for operation in operations.values():
            answer = operation.get("responses", {}).get("400")
            if answer is not None and PROBLEM not in answer["content"]:
                answer.update(description="A parameter can't be read; `detail` says which.", content=_PROBLEM)
            for content in operation.get("requestBody", {}).get("content", {}).values():
                if "title" in content.get("schema", {}):  # by its name a client can make it
                    name = content["schema"]["title"]
                    document["components"]["schemas"][name] = content["schema"]
                    content["schema"] = {"$ref": f"#/components/schemas/{name}"}
    _mend(document)
    return document


def with_guard(document: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document with what the guard does: each operation needs a key, /health apart, and may be refused."""
    for path, item in document["paths"].items():
        for operation in item.values():
            if not isinstance(operation, dict) or path.startswith("/health/"):
                continue
            operation["security"] = [{name: []} for name in SECURITY]
            told = _REFUSALS | (_REFUSALS_OF_BODIES if "requestBody" in operation else {})
            for status, description in told.items():
                operation["responses"].setdefault(status, {"description": description, "content": _PROBLEM})
    return document


def _mend(node: Any) -> None:
    if isinstance(node, list):
        for one in node:
            _mend(one)
    if not isinstance(node, dict):
        return
    kinds = node.get("type")
    if isinstance(kinds, list) and "null" in kinds:  # an enum or null, which generators read as three types
        node.pop("type")
        values = [value for value in node.pop("enum", []) if value is not None]
        (kind,) = (kind for kind in kinds if kind != "null")
        node["oneOf"] = [{"type": kind, **({"enum": values} if values else {})}, {"type": "null"}]
    choices = node.get("oneOf", [])
    if {"type": "integer"} in choices and {"type": "number"} in choices:  # an integer would be one of both
        choices.remove({"type": "integer"})
    if "prefixItems" in node:  # a pair of alike: older readers know `items` alone
        pair = node.pop("prefixItems")
        node.update(items=pair[0], minItems=len(pair), maxItems=len(pair))
    for value in node.values():
        _mend(value)
