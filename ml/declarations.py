"""What a dbt project declares to the engine: its sources, its scores and its clock, read strictly from dbt's manifest.

Every mistake is a `DeclarationError` that names file, thing and fault and says what is possible, before anything runs.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from typing import Any, Literal, TypeVar, get_args

import msgspec

from ml import evaluation

Kind = Literal["probability", "amount"]
Node = Mapping[str, Any]

SCORE_KEYS: dict[str, type] = {
    "features": str,
    "label": str,
    "kind": str,
    "gate": list,
    "bands": dict,
    "fresh_for": str,
}
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
LABEL_COLUMNS = ("label", "matures_on")
# Columns of the tables of predictions, which an entity's own stand beside.
PREDICTION_COLUMNS = ("as_of_date", "score", "band", "reasons", "model_version", "scored_at")
MOST_DAYS = 36_500
DAYS = {"minute": 1 / 1440, "hour": 1 / 24, "day": 1.0, "week": 7.0}
YAML_WORDS: dict[type, str] = {
    str: "text",
    list: "a list",
    dict: "a mapping",
    bool: "true or false",
    float: "a number",
}


class DeclarationError(ValueError):
    """A declaration in the dbt project that the engine can't act on: file, thing, fault, what is possible."""


class Feature(msgspec.Struct, frozen=True, kw_only=True):
    """A column of a feature model: its name, its type in the warehouse and what its owner says of it."""

    name: str
    data_type: str
    description: str


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """A dbt exposure of type `ml`, checked: what is scored, from which tables, and what a model must reach.

    `features` and `label` are tables of `features_schema` and `label_schema`; `_id` is dbt's unique_id of their model.
    """

    name: str
    title: str
    description: str
    owner: str
    email: str
    kind: Kind
    features: str
    features_schema: str
    features_id: str
    label: str
    label_schema: str
    label_id: str
    entity: tuple[str, ...]
    as_of: str
    columns: tuple[Feature, ...]
    gate: tuple[str, ...]
    bands: dict[str, float]
    fresh_for_days: float


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


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """A dbt project as the engine sees it. `today` is the project's fixed clock, None where it runs on the real one."""

    name: str
    today: date | None
    sources: tuple[Source, ...]
    scores: tuple[Score, ...]


Read = TypeVar("Read")


def read_project(manifest: Mapping[str, Any], variables: Mapping[str, Any], folder: str) -> Project:
    """The project of a dbt manifest (its JSON, parsed) and of the `vars` in its dbt_project.yml.

    `folder` is the name of the dbt project's folder, to name files in errors as their author knows them.
    Raises `DeclarationError` with every mistake found, a line each.
    """
    faults: list[str] = []

    def each(nodes: Sequence[Node], read: Callable[[Node], Read]) -> tuple[Read, ...]:
        found = []
        for node in sorted(nodes, key=lambda node: str(node["unique_id"])):
            try:
                found.append(read(node))
            except DeclarationError as error:
                faults.append(str(error))
        return tuple(found)

    name = manifest["metadata"]["project_name"]
    clock = [{"unique_id": "", "vars": variables}]
    today = each(clock, lambda node: _today(node["vars"], name, folder))
    loaded = [node for node in manifest["sources"].values() if "load" in node["config"]["meta"]]
    sources = each(loaded, lambda node: _source(node, folder))
    for source in sources:
        shared = [other.id for other in sources if other.uri == source.uri and source.scheme == "events"]
        if len(shared) > 1:
            faults.append(f"{source.file}: from '{source.uri}': {' and '.join(shared)} can't share the same events")
    exposures = [
        node for node in manifest["exposures"].values() if node["type"] == "ml" or "score" in node["config"]["meta"]
    ]
    scores = each(exposures, lambda node: _score(node, manifest, folder))
    if faults:
        raise DeclarationError("\n".join(dict.fromkeys(faults)))
    return Project(name=name, today=today[0], sources=sources, scores=scores)


def _today(variables: Mapping[str, Any], project: str, folder: str) -> date | None:
    value = {**variables, **(variables.get(project) or {})}.get("today")
    if value is None:
        return None
    try:
        return date.fromisoformat(str(value))
    except ValueError:
        raise DeclarationError(
            f"{folder}/dbt_project.yml: vars: today is {value!r}, which is no date (write YYYY-MM-DD)"
        ) from None


def _source(node: Node, folder: str) -> Source:
    file = f"{folder}/{node['original_file_path']}"
    where = f"{file}: source '{node['source_name']}.{node['name']}': load"
    load = _strict(node["config"]["meta"]["load"], LOAD_KEYS, required=("from",), where=where)
    columns = {column["name"]: column["description"] for column in node["columns"].values()}
    cursor, key = load.get("cursor"), tuple(load.get("key") or ())
    known_at = load.get("known_at")
    for named in (*([cursor] if cursor else []), *key, *([known_at] if known_at else [])):
        if columns and named not in columns:
            raise DeclarationError(
                f"{where}: names column '{named}', which the table does not list (it lists: {_some(columns, named)})"
            )
    api = _strict(load.get("api", {}), API_KEYS, required=(), where=f"{where}: api")
    freshness = node["config"].get("freshness") or node.get("freshness") or {}
    source = Source(
        id=node["unique_id"],
        schema=node["schema"],
        table=node["identifier"],
        description=node["description"],
        uri=load["from"],
        cursor=cursor,
        key=key,
        overlap_days=_days(load["overlap"], f"{where}: overlap") if "overlap" in load else 0.0,
        sweep=load.get("sweep", False),
        known_at=known_at,
        max_rejected=load.get("max_rejected", MOST_REJECTED),
        api=Api(**api),
        columns=columns,
        types={column["name"]: column["data_type"] for column in node["columns"].values() if column.get("data_type")},
        rules=tuple(rule for column in node["columns"].values() for rule in _rules(column, where)),
        owner=node["config"]["meta"].get("owner", ""),
        loaded_at=node["config"].get("loaded_at_field") or node.get("loaded_at_field") or "_loaded_at",
        warn_after_days=_after(freshness.get("warn_after")),
        error_after_days=_after(freshness.get("error_after")),
        file=file,
    )
    _check_kind(source, load, where)
    return source


def _check_kind(source: Source, load: Mapping[str, Any], where: str) -> None:
    """Whether a kind of source is known and has the keys that it needs, and none of another kind's."""
    scheme = source.scheme
    if scheme not in LOAD_SCHEMES:
        known = ", ".join(f"{name}://" for name in LOAD_SCHEMES if name)
        raise DeclarationError(
            f"{where}: from '{source.uri}': '{scheme}://' is not a kind of source (known: a path or glob, {known})"
        )
    foreign = [key for keys in LOAD_SCHEMES.values() for key in keys if key in load and key not in LOAD_SCHEMES[scheme]]
    if foreign:
        kinds = [f"{name}://" for name, keys in LOAD_SCHEMES.items() if foreign[0] in keys]
        raise DeclarationError(f"{where}: {foreign[0]} is for {' and '.join(kinds)}, not for '{source.uri}'")
    asks_again = scheme in REDELIVERED or ((source.cursor or source.sweep) and LOAD_SCHEMES[scheme])
    if asks_again and not source.key:
        raise DeclarationError(
            f"{where}: from '{source.uri}': lacks key, by which a row that comes again is known"
            " (write key: [<columns that tell rows apart>])"
        )
    if scheme == "events":
        _check_events(source, where)
    if "overlap" in load and not source.cursor:
        raise DeclarationError(f"{where}: overlap is how far behind the newest cursor to read again, but lacks cursor")
    if not 0 <= source.max_rejected <= 1:
        raise DeclarationError(f"{where}: max_rejected is {source.max_rejected}, not a share from 0 to 1 (0.01 is 1 %)")


def _check_events(source: Source, where: str) -> None:
    """Whether pushed events have a name, and columns by which they can be judged when they come."""
    name = source.uri.partition("://")[2]
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name):
        raise DeclarationError(
            f"{where}: from '{source.uri}': '{name}' is no name of events"
            f" (letters, digits, _ and -; e.g. events://{source.table})"
        )
    untyped = [column for column in source.columns if column not in source.types and not column.startswith("_")]
    if untyped or not source.types:
        raise DeclarationError(
            f"{where}: from '{source.uri}': pushed events are judged by the table's columns, so each must be listed"
            f" with its data_type (without: {', '.join(untyped) or 'all'})"
        )


def _rules(column: Mapping[str, Any], where: str) -> list[Rule]:
    """What a column's constraints ask of each row."""
    name, quoted = column["name"], '"' + column["name"].replace('"', '""') + '"'
    rules = []
    for constraint in column.get("constraints") or []:
        if constraint["type"] == "not_null":
            rules.append(Rule(f"{name} is null", f"{quoted} is not null"))
        elif constraint["type"] == "check" and constraint.get("expression"):
            rules.append(Rule(f"{name} fails {constraint['expression']}", constraint["expression"]))
        else:
            raise DeclarationError(
                f"{where}: column '{name}' has the constraint {constraint['type']}, which can't be asked of a row"
                " (possible: not_null, and check with an expression; what must be unique is the key of load)"
            )
    return rules


def _after(declared: Mapping[str, Any] | None) -> float | None:
    """dbt's `{count: 8, period: day}` in days; None where it is not set."""
    if not declared or not declared.get("count"):
        return None
    return float(declared["count"]) * DAYS[declared["period"]]


def _score(node: Node, manifest: Mapping[str, Any], folder: str) -> Score:
    where = f"{folder}/{node['original_file_path']}: exposure '{node['name']}'"
    if node["type"] != "ml":
        raise DeclarationError(f"{where}: has config.meta.score but is of type {node['type']} (write type: ml)")
    if "score" not in node["config"]["meta"]:
        raise DeclarationError(f"{where}: is of type ml but has no config.meta.score (keys: {', '.join(SCORE_KEYS)})")
    declared = _strict(node["config"]["meta"]["score"], SCORE_KEYS, required=tuple(SCORE_KEYS), where=f"{where}: score")
    kind = declared["kind"]
    if kind not in get_args(Kind):
        raise DeclarationError(f"{where}: kind is '{kind}' (possible: {', '.join(get_args(Kind))})")
    features, entity, as_of = _keyed_model(declared["features"], node, manifest, where, key="features", folder=folder)
    label, label_entity, label_as_of = _keyed_model(
        declared["label"], node, manifest, where, key="label", folder=folder
    )
    if (label_entity, label_as_of) != (entity, as_of):
        raise DeclarationError(
            f"{where}: '{label['name']}' is keyed by {', '.join((*label_entity, label_as_of))}"
            f" but '{features['name']}' by {', '.join((*entity, as_of))}:"
            " features and label must have the same entity and as_of"
        )
    for column in LABEL_COLUMNS:
        if column not in label["columns"]:
            raise DeclarationError(
                f"{_file(label, folder)}: model '{label['name']}' is the label of '{node['name']}'"
                f" and lacks the column '{column}'"
                f" (a label model has {', '.join((*label_entity, label_as_of, *LABEL_COLUMNS))})"
            )
    columns = tuple(
        Feature(name=column["name"], data_type=column.get("data_type") or "", description=column["description"])
        for column in features["columns"].values()
        if column["name"] not in (*entity, as_of)
    )
    taken = [column.name for column in columns if column.name in LABEL_COLUMNS]
    if taken:
        raise DeclarationError(
            f"{_file(features, folder)}: model '{features['name']}' has the columns {', '.join(taken)}, which are the"
            " label model's; call them otherwise, and be sure that they are known before the as-of date"
        )
    if not columns:
        raise DeclarationError(f"{where}: model '{features['name']}' has no column besides its keys, so no feature")
    return Score(
        name=node["name"],
        title=node["label"] or node["name"],
        description=node["description"],
        owner=node["owner"]["name"] or node["owner"]["email"],
        email=node["owner"]["email"] or "",
        kind=kind,
        features=features["alias"],
        features_schema=features["schema"],
        features_id=features["unique_id"],
        label=label["alias"],
        label_schema=label["schema"],
        label_id=label["unique_id"],
        entity=entity,
        as_of=as_of,
        columns=columns,
        gate=_gate(declared["gate"], kind, where),
        bands=_bands(declared["bands"], kind, where),
        fresh_for_days=_days(declared["fresh_for"], f"{where}: fresh_for"),
    )


def _some(names: Iterable[str], like: str) -> str:
    """The names that a mistyped one may have meant, or the first ones."""
    known = list(names)
    shown = difflib.get_close_matches(like, known) or known[:10]
    return ", ".join(shown) + (f", and {len(known) - len(shown)} more" if len(shown) < len(known) else "")


def _file(model: Node, folder: str) -> str:
    """The YAML file that describes a model, where its keys and columns are declared; its SQL if there is none."""
    return f"{folder}/{(model.get('patch_path') or '').partition('://')[2] or model['original_file_path']}"


def _strict(declared: Any, keys: Mapping[str, type], required: Sequence[str], where: str) -> dict[str, Any]:
    """The mapping as declared, once it has only known keys, all required ones, and values of the right YAML type."""
    if not isinstance(declared, dict):
        raise DeclarationError(f"{where}: is {declared!r}, not a mapping (keys: {', '.join(keys)})")
    for key, value in declared.items():
        if key not in keys:
            raise DeclarationError(f"{where}: unknown key '{key}' (known: {', '.join(keys)})")
        expected = (int, float) if keys[key] is float else keys[key]
        if not isinstance(value, expected) or (isinstance(value, bool) and keys[key] is not bool):
            raise DeclarationError(f"{where}: {key} is {value!r}, not {YAML_WORDS[keys[key]]}")
    missing = [key for key in required if key not in declared]
    if missing:
        raise DeclarationError(f"{where}: lacks {', '.join(missing)} (keys: {', '.join(keys)})")
    return declared


def _keyed_model(
    name: str, exposure: Node, manifest: Mapping[str, Any], where: str, key: str, folder: str
) -> tuple[Node, tuple[str, ...], str]:
    """The node of a feature or label model with its entity and as-of columns, which it names in its own config.meta."""
    models = {node["name"]: node for node in manifest["nodes"].values() if node["resource_type"] == "model"}
    if name not in models:
        raise DeclarationError(f"{where}: {key} names '{name}', which is no model of the project")
    model = models[name]
    if model["unique_id"] not in exposure["depends_on"]["nodes"]:
        raise DeclarationError(f"{where}: {key} is '{name}', so depends_on must list ref('{name}')")
    of_model = f"{_file(model, folder)}: model '{name}'"
    if not model["config"].get("contract", {}).get("enforced"):
        raise DeclarationError(
            f"{of_model}: is the {key} of '{exposure['name']}', so its contract must be enforced"
            " (config: {contract: {enforced: true}})"
        )
    meta = model["config"]["meta"]
    for needed in ("entity", "as_of"):
        if needed not in meta:
            raise DeclarationError(
                f"{of_model}: config.meta lacks {needed}"
                " (write meta: {entity: <column or list of columns>, as_of: <column>})"
            )
    entity = (meta["entity"],) if isinstance(meta["entity"], str) else meta["entity"]
    for needed, value in (("entity", entity), ("as_of", [meta["as_of"]])):
        if not isinstance(value, list | tuple) or not value or not all(isinstance(column, str) for column in value):
            raise DeclarationError(
                f"{of_model}: config.meta: {needed} is {meta[needed]!r}, not"
                f" {'a column or a list of columns' if needed == 'entity' else 'a column'}"
            )
    for column in (*entity, meta["as_of"]):
        if column not in model["columns"]:
            raise DeclarationError(
                f"{of_model}: config.meta names key '{column}', which is no column of it"
                f" (columns: {_some(model['columns'], like=column)})"
            )
    taken = [column for column in entity if column in PREDICTION_COLUMNS]
    if taken or len({*entity, meta["as_of"]}) <= len(entity):
        raise DeclarationError(
            f"{of_model}: config.meta: entity {', '.join(entity)} and as_of {meta['as_of']} must differ,"
            f" and an entity column can't be called {', '.join(PREDICTION_COLUMNS)}, as predictions have such columns"
        )
    return model, tuple(entity), meta["as_of"]


def _gate(conditions: Sequence[Any], kind: Kind, where: str) -> tuple[str, ...]:
    known = evaluation.known_gate_names(kind)
    for condition in conditions:
        try:
            named = evaluation.gate_names(str(condition))
        except evaluation.GateError as error:
            raise DeclarationError(f"{where}: gate '{condition}' {error}") from None
        unknown = sorted(named - set(known))
        if unknown or not named:
            metrics = ", ".join(evaluation.METRICS[kind])
            which = f": {', '.join(unknown)}" if unknown else ""
            raise DeclarationError(
                f"{where}: gate '{condition}' names no metric of kind '{kind}'{which}"
                f"\n  (known: {metrics}; each also as champion_<metric> and baseline_<metric>)"
            )
    if not conditions:
        raise DeclarationError(
            f"{where}: gate has no condition, so anything would pass"
            f" (write one, e.g. '{next(iter(evaluation.METRICS[kind]))} >= ...')"
        )
    return tuple(str(condition) for condition in conditions)


def _bands(bands: Mapping[Any, Any], kind: Kind, where: str) -> dict[str, float]:
    """Name of the band -> lowest score in it, highest first."""
    if len({str(name) for name in bands}) < len(bands):
        raise DeclarationError(f"{where}: bands: two have the same name")
    for name, lowest in bands.items():
        if isinstance(lowest, bool) or not isinstance(lowest, int | float):
            raise DeclarationError(f"{where}: bands: '{name}' starts at {lowest!r}, which is no number")
        if kind == "probability" and not 0 <= lowest < 1:
            raise DeclarationError(
                f"{where}: bands: '{name}' starts at {lowest}, but a probability lies between 0 and 1"
            )
    if len(set(bands.values())) < len(bands):
        raise DeclarationError(f"{where}: bands: two bands start at the same score")
    return {str(name): float(lowest) for name, lowest in sorted(bands.items(), key=lambda band: -band[1])}


def _days(text: str, where: str) -> float:
    """'8 days' -> 8.0."""
    number, _, unit = text.strip().partition(" ")
    try:
        days = float(number) * DAYS[unit.strip().removesuffix("s")]
    except (ValueError, KeyError):
        days = 0.0
    if not 0 < days <= MOST_DAYS:
        raise DeclarationError(
            f"{where}: '{text}' is no length of time"
            f" (write e.g. '8 days'; units: minutes, hours, days, weeks; at most {MOST_DAYS} days)"
        )
    return days
