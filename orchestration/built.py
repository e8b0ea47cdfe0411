"""By which definition the rows of each dbt model were built: rows of two definitions never stand in one table.

An incremental model adds new rows to the old ones. If its SQL or a var that it reads has changed since, or those of a
model it reads, or a source that it comes from has lost rows, it is to be built from scratch. What is known of this must
not run ahead of the tables, nor behind, however a build ends: before it, all that it may change is struck out, and what
it has built is entered after it.
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestration.project import Paths, read_json, replaced

Definitions = Mapping[str, str]  # unique_id of a model -> checksum
VARIABLE = re.compile(r"""\bvar\(\s*['"](\w+)['"]""")
CLOCK = "today"


def _file(where: Paths) -> Path:
    return where.data / "dbt" / "built.json"


def read_built(where: Paths) -> Definitions:
    """By which definition each model was built, as far as that is known."""
    return read_json(_file(where))


def last_built(where: Paths) -> datetime | None:
    """When that was last entered, UTC: a build of dbt ended then."""
    try:
        return datetime.fromtimestamp(_file(where).stat().st_mtime, UTC)
    except FileNotFoundError:
        return None


def write_built(where: Paths, built: Definitions) -> None:
    with replaced(_file(where)) as staged:
        staged.write_text(json.dumps(built))


def definitions(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Model -> checksum of its SQL, its materialization, and the project's own macros and vars that it uses.

    The clock is no part of it: what a model holds is of each day, not of another definition every day.
    """
    own, variables = manifest["metadata"]["project_name"], manifest["metadata"].get("vars") or {}
    variables = {**variables, **(variables.get(own) or {})}
    macros = {unique_id: macro for unique_id, macro in manifest["macros"].items() if macro["package_name"] == own}

    def called(caller: Mapping[str, Any]) -> set[str]:
        direct = [macros[unique_id] for unique_id in caller["depends_on"]["macros"] if unique_id in macros]
        return {macro["macro_sql"] for macro in direct}.union(*map(called, direct))

    def checksum(node: Mapping[str, Any]) -> str:
        macros_used = sorted(called(node))
        names = {name for sql in (node.get("raw_code") or "", *macros_used) for name in VARIABLE.findall(sql)}
        used = [f"{name}: {variables[name]}" for name in sorted(names & variables.keys() - {CLOCK})]
        made_of = [node["checksum"]["checksum"], node["config"]["materialized"], *macros_used, *used]
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()

    return {
        unique_id: checksum(node) for unique_id, node in manifest["nodes"].items() if node["resource_type"] == "model"
    }


def as_defined(
    manifest: Mapping[str, Any], built: Definitions, made: Iterable[str] = (), shrunk: Definitions | None = None
) -> dict[str, str]:
    """The models that are built as they are now defined, and so is every model they read.

    `made` are those that have just been built. One whose parents are not as defined was made from other rows, so it is
    none of them. An ephemeral model has no rows: it goes with those that read it. `shrunk` has the sources that have
    lost rows, each with a mark of the last time; they are as defined once all that reads them has been made since.
    """
    defined, just_made = {**definitions(manifest), **(shrunk or {})}, set(made)
    if just_made:
        just_made |= {one for one in definitions(manifest) if _materialized(manifest, one) == "ephemeral"}

    @functools.cache
    def holds(unique_id: str) -> bool:
        if unique_id not in defined:  # a seed, or a source that has lost nothing
            return True
        is_built = unique_id in just_made or built.get(unique_id) == defined[unique_id]
        parents = [] if unique_id in (shrunk or {}) else manifest["nodes"][unique_id]["depends_on"]["nodes"]
        return is_built and all(map(holds, parents))

    return {unique_id: checksum for unique_id, checksum in defined.items() if holds(unique_id)}


def redefined(manifest: Mapping[str, Any], built: Definitions, shrunk: Definitions | None = None) -> list[str]:
    """The incremental models that are not `as_defined`: what is in their tables is of another definition."""
    holding = as_defined(manifest, built, shrunk=shrunk)
    return [
        unique_id
        for unique_id in definitions(manifest)
        if _materialized(manifest, unique_id) == "incremental" and unique_id not in holding
    ]


def _materialized(manifest: Mapping[str, Any], unique_id: str) -> str:
    return str(manifest["nodes"][unique_id]["config"]["materialized"])
