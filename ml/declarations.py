"""What a dbt project declares to the engine: its sources, its scores and its clock, read strictly from dbt's manifest.

All mistakes are one `DeclarationError`, which names file, thing and fault of each and says what is possible, before
anything runs.
"""

from collections.abc import Mapping
from datetime import date
from typing import Any

import msgspec

from ml.metrics import Kind
from ml.scores import Feature, Score, WhenStale, named, read_score
from ml.sources import Api, Rule, Source, read_sources
from ml.strictness import DeclarationError, Faults, Node, find_alike

__all__ = [
    "Api",
    "DeclarationError",
    "Feature",
    "Kind",
    "Project",
    "Rule",
    "Score",
    "Source",
    "WhenStale",
    "read_project",
]


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """A dbt project as the engine sees it. `today` is the project's fixed clock, None where it runs on the real one."""

    name: str
    today: date | None
    sources: tuple[Source, ...]
    scores: tuple[Score, ...]


def read_project(manifest: Mapping[str, Any], variables: Mapping[str, Any], folder: str) -> Project:
    """The project of a dbt manifest (its JSON, parsed) and of the `vars` in its dbt_project.yml.

    `folder` is the name of the dbt project's folder, to name files in errors as their author knows them.
    Raises `DeclarationError` with every mistake found, a line each.
    """
    faults: Faults = []
    name = manifest["metadata"]["project_name"]
    today = _today(variables, name, folder, faults)
    sources = read_sources(_in_order(manifest["sources"]), folder, faults)
    exposures = [
        node for node in _in_order(manifest["exposures"]) if node["type"] == "ml" or "score" in node["config"]["meta"]
    ]
    scores = [read_score(node, manifest, folder, faults) for node in exposures]
    find_alike({named(node, folder): node["name"] for node in exposures}, faults)
    if faults:
        raise DeclarationError("\n".join(dict.fromkeys(faults)))
    return Project(
        name=name, today=today, sources=sources, scores=tuple(score for score in scores if score is not None)
    )


def _in_order(nodes: Mapping[str, Node]) -> list[Node]:
    return sorted(nodes.values(), key=lambda node: str(node["unique_id"]))


def _today(variables: Mapping[str, Any], project: str, folder: str, faults: Faults) -> date | None:
    value = {**variables, **(variables.get(project) or {})}.get("today")
    if value is None:
        return None
    try:
        return date.fromisoformat(str(value))
    except ValueError:
        faults.append(f"{folder}/dbt_project.yml: vars: today is {value!r}, which is no date (write YYYY-MM-DD)")
        return None
