"""The sources of a dbt project: raw tables that the engine loads, from where, and what their rows must meet."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ml.strictness import DAYS, Faults, Node, days, find_alike, some, sound_part

LOAD_KEYS: dict[str, type] = {
    "from": str,
    "cursor": str,
    "key": list,
    "overlap": str,
    "sweep": bool,
    "known_at": str,
    "max_rejected": float,
    "api": dict,
}
API_KEYS: dict[str, type] = {
    "rows": str,
    "pages": dict,
    "params": dict,
    "headers": dict,
    "cursor_param": str,
    "per_second": float,
}
# Scheme of `from` -> the keys that only some kinds of source have. A URI without a scheme is a path or glob.
LOAD_SCHEMES: dict[str, tuple[str, ...]] = {
    "": (),
    "package": (),
    "http": (),
    "https": (),
    "s3": (),
    "postgresql": ("overlap", "sweep"),
    "nats": (),
    "events": (),
    "api+http": ("api",),
    "api+https": ("api",),
}
# What comes more than once by its nature: a row is known again by its key.
REDELIVERED = ("nats", "events")
MOST_REJECTED = 0.01
LIKE_LOAD = 0.7  # how alike a word must be, from 0 to 1, to be taken for a misspelt `load`


class Rule(msgspec.Struct, frozen=True):
    """What a row of a source must meet: a dbt constraint of a column. `holds` is SQL, true or null for a good row."""

    name: str
    holds: str


class Api(msgspec.Struct, frozen=True, kw_only=True):
    """How an HTTP API gives its rows: where in an answer they are, how its pages follow, what is asked."""

    rows: str | None = None
    pages: dict[str, Any] = {}
    params: dict[str, str] = {}
    headers: dict[str, str] = {}
    cursor_param: str | None = None
    per_second: float | None = None


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A raw table that the engine loads: where its rows come from (`uri`) and where they go (`schema.table`).

    `columns` has the description of each listed column, `types` the type of those that declare one, `rules` what their
    constraints say. `overlap_days` is how far behind the newest cursor rows are read again; `max_rejected` the share of
    a batch that may break the rules; `warn_after_days` and `error_after_days` are dbt's source freshness.
    """

    id: str
    schema: str
    table: str
    description: str
    uri: str
    cursor: str | None = None
    key: tuple[str, ...] = ()
    overlap_days: float = 0.0
    sweep: bool = False
    known_at: str | None = None
    max_rejected: float = MOST_REJECTED
    api: Api = Api()
    columns: dict[str, str] = {}
    types: dict[str, str] = {}
    rules: tuple[Rule, ...] = ()
    owner: str = ""
    loaded_at: str = "_loaded_at"
    warn_after_days: float | None = None
    error_after_days: float | None = None
    file: str

    @property
    def scheme(self) -> str:
        """The kind of source: `postgresql`, `package`, ...; empty for a path."""
        scheme, separator, _ = self.uri.partition("://")
        return scheme if separator else ""


def read_sources(nodes: Sequence[Node], folder: str, faults: Faults) -> tuple[Source, ...]:
    """The sources that the engine loads, of dbt's nodes of all sources."""
    for node in nodes:
        if "load" not in node["config"]["meta"]:
            _find_misspelt_load(node, folder, faults)
    loaded = [node for node in nodes if "load" in node["config"]["meta"]]
    sources = [_source(node, folder, faults) for node in loaded]
    find_alike({_named(node, folder): f"{node['schema']}.{node['identifier']}" for node in loaded}, faults)
    for source in sources:
        place = (source.schema.lower(), source.table.lower())
        others = [other for other in sources if other.table.lower() == place[1] and other.schema.lower() < place[0]]
        if others:
            faults.append(
                f"{source.file}: source '{source.schema}.{source.table}': its bad rows would go to quarantine"
                f".{source.table}, as those of '{others[0].schema}.{others[0].table}': call one of the tables otherwise"
            )
    for source in sources:
        shared = [other.id for other in sources if other.uri == source.uri and source.scheme == "events"]
        if len(shared) > 1:
            faults.append(f"{source.file}: from '{source.uri}': {' and '.join(shared)} can't share the same events")
    return tuple(sources)


def _named(node: Node, folder: str) -> str:
    return f"{folder}/{node['original_file_path']}: source '{node['source_name']}.{node['name']}'"


def _find_misspelt_load(node: Node, folder: str, faults: Faults) -> None:
    """A table without `load` is not the engine's, and one with `lod` would be left unloaded without a word."""
    for key, value in node["config"]["meta"].items():
        if isinstance(value, dict) and difflib.get_close_matches(str(key).lower(), ["load"], cutoff=LIKE_LOAD):
            faults.append(
                f"{_named(node, folder)}: config.meta has the key '{key}', which looks like a misspelt 'load'"
                " (write load: {from: ...}, or a name less like it if it is something else)"
            )


def _source(node: Node, folder: str, faults: Faults) -> Source:
    where = f"{_named(node, folder)}: load"
    declared = node["config"]["meta"]["load"]
    load = sound_part(declared, LOAD_KEYS, required=("from",), where=where, faults=faults)
    columns = {column["name"]: column["description"] for column in node["columns"].values()}
    cursor, key, known_at = load.get("cursor"), tuple(load.get("key") or ()), load.get("known_at")
    for named in (cursor, *key, known_at):
        if columns and named is not None and named not in columns:
            known = some(columns, like=str(named))
            faults.append(f"{where}: names column '{named}', which the table does not list (it lists: {known})")
    api = sound_part(load.get("api", {}), API_KEYS, required=(), where=f"{where}: api", faults=faults)
    freshness = node["config"].get("freshness") or node.get("freshness") or {}
    source = Source(
        id=node["unique_id"],
        schema=node["schema"],
        table=node["identifier"],
        description=node["description"],
        uri=load.get("from", ""),
        cursor=cursor,
        key=key,
        overlap_days=days(load["overlap"], f"{where}: overlap", faults) if "overlap" in load else 0.0,
        sweep=load.get("sweep", False),
        known_at=known_at,
        max_rejected=load.get("max_rejected", MOST_REJECTED),
        api=Api(**api),
        columns=columns,
        types={column["name"]: column["data_type"] for column in node["columns"].values() if column.get("data_type")},
        rules=tuple(rule for column in node["columns"].values() for rule in _rules(column, where, faults)),
        owner=node["config"]["meta"].get("owner", ""),
        loaded_at=node["config"].get("loaded_at_field") or node.get("loaded_at_field") or "_loaded_at",
        warn_after_days=_after(freshness.get("warn_after")),
        error_after_days=_after(freshness.get("error_after")),
        file=f"{folder}/{node['original_file_path']}",
    )
    if not 0 <= source.max_rejected <= 1:
        faults.append(f"{where}: max_rejected is {source.max_rejected}, not a share from 0 to 1 (0.01 is 1 %)")
    if "from" in load:
        _check_kind(source, declared, where, faults)
    return source


def _check_kind(source: Source, declared: Mapping[str, Any], where: str, faults: Faults) -> None:
    """Whether a kind of source is known and has the keys that it needs, and none of another kind's."""
    scheme = source.scheme
    if scheme not in LOAD_SCHEMES:
        known = ", ".join(f"{name}://" for name in LOAD_SCHEMES if name)
        faults.append(
            f"{where}: from '{source.uri}': '{scheme}://' is not a kind of source (known: a path or glob, {known})"
        )
        return
    own = LOAD_SCHEMES[scheme]
    foreign = dict.fromkeys(key for keys in LOAD_SCHEMES.values() for key in keys if key in declared and key not in own)
    for key in foreign:
        kinds = [f"{name}://" for name, keys in LOAD_SCHEMES.items() if key in keys]
        faults.append(f"{where}: {key} is for {' and '.join(kinds)}, not for '{source.uri}'")
    asks_again = scheme in REDELIVERED or ((source.cursor or source.sweep) and own)
    if asks_again and not declared.get("key"):
        faults.append(
            f"{where}: from '{source.uri}': lacks key, by which a row that comes again is known"
            " (write key: [<columns that tell rows apart>])"
        )
    if "overlap" in declared and "overlap" in own and "cursor" not in declared:
        faults.append(f"{where}: overlap is how far behind the newest cursor to read again, but lacks cursor")
    if scheme == "events":
        _check_events(source, where, faults)


def _check_events(source: Source, where: str, faults: Faults) -> None:
    """Whether pushed events have a name, and columns by which they can be judged when they come."""
    name = source.uri.partition("://")[2]
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name):
        faults.append(
            f"{where}: from '{source.uri}': '{name}' is no name of events"
            f" (letters, digits, _ and -; e.g. events://{source.table})"
        )
    untyped = [column for column in source.columns if column not in source.types and not column.startswith("_")]
    if untyped or not source.types:
        faults.append(
            f"{where}: from '{source.uri}': pushed events are judged by the table's columns, so each must be listed"
            f" with its data_type (without: {', '.join(untyped) or 'all'})"
        )


def _rules(column: Mapping[str, Any], where: str, faults: Faults) -> list[Rule]:
    """What a column's constraints ask of each row."""
    name, quoted = column["name"], '"' + column["name"].replace('"', '""') + '"'
    rules = []
    for constraint in column.get("constraints") or []:
        if constraint["type"] == "not_null":
            rules.append(Rule(f"{name} is null", f"{quoted} is not null"))
        elif constraint["type"] == "check" and constraint.get("expression"):
            rules.append(Rule(f"{name} fails {constraint['expression']}", constraint["expression"]))
        else:
            faults.append(
                f"{where}: column '{name}' has the constraint {constraint['type']}, which can't be asked of a row"
                " (possible: not_null, and check with an expression; what must be unique is the key of load)"
            )
    return rules


def _after(declared: Mapping[str, Any] | None) -> float | None:
    """dbt's `{count: 8, period: day}` in days; None where it is not set."""
    if not declared or not declared.get("count"):
        return None
    return float(declared["count"]) * DAYS[declared["period"]]
