"""The scores that a dbt project declares: exposures of type `ml`, read strictly from dbt's manifest."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import msgspec

from ml import gate as gates
from ml.alerts import Alerts, read_alerts
from ml.gains import Contact, read_contact
from ml.learning import (
    LEARNING_EXAMPLES,
    LEARNING_KEYS,
    Explained,
    Learning,
    Retrain,
    read_explained,
    read_learning,
    read_retrain,
)
from ml.metrics import METRICS, Kind
from ml.strictness import LARGEST, Faults, Node, days, some, sound_part

SCORE_KEYS: dict[str, type] = {
    "features": str,
    "label": str,
    "kind": str,
    "gate": list,
    "bands": dict,
    "fresh_for": str,
    "when_stale": str,
    "exclude": list,
    **LEARNING_KEYS,
    "reasons": dict,
    "retrain": dict,
    "alerts": dict,
    "contact": dict,
}
# What may be written of each, as YAML.
SCORE_EXAMPLES = {
    "features": "customer_features",
    "label": "customer_leaves_28d",
    "kind": "probability",
    "gate": "[roc_auc >= 0.80]",
    "bands": "{high: 0.6, low: 0.0}",
    "fresh_for": "8 days",
    "when_stale": "refuse",
    "exclude": "[postcode]",
    **LEARNING_EXAMPLES,
    "reasons": "{top: 3, bands: [high]}",
    "retrain": "{every: 4 weeks, cooldown: 7 days}",
    "alerts": "{effect: 0.05, dates: 2}",
    "contact": "{value: 12.5, cost: 0.8}",
}
OPTIONAL_KEYS = (
    "bands", "when_stale", "exclude", *LEARNING_KEYS, "reasons", "retrain", "alerts", "contact",
)  # fmt: skip
WhenStale = Literal["serve", "refuse"]
TEXTS = ("varchar", "text", "char", "string", "bpchar", "enum")
LABEL_COLUMNS = ("label", "matures_on")
REPORTED = ("the score", "the band", "the label", "as_of_date")  # what reports call the columns beside the features
# Columns of the tables of predictions, which an entity's own stand beside.
PREDICTION_COLUMNS = ("as_of_date", "score", "band", "reasons", "probabilities", "model_version", "scored_at")


class Feature(msgspec.Struct, frozen=True, kw_only=True):
    """A column of a feature model: its name, its type in the warehouse and what its owner says of it."""

    name: str
    data_type: str
    description: str


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """A dbt exposure of type `ml`, checked: what is scored, from which tables, and what a model must reach.

    `features` and `label` are tables of `features_schema` and `label_schema`; `_id` is dbt's unique_id of their model.
    Rows of a label that `is_incremental` stay as they were first built. `columns` are the features: those of the model
    (`model_columns`, keys apart) without what the exposure excludes. `features_file` is the YAML that describes it.
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
    label_is_incremental: bool = False
    entity: tuple[str, ...]
    as_of: str
    columns: tuple[Feature, ...]
    model_columns: tuple[Feature, ...]
    features_file: str
    gate: tuple[str, ...]
    bands: dict[str, float]
    fresh_for_days: float
    when_stale: WhenStale = "serve"
    learning: Learning = Learning()
    explained: Explained = Explained()
    retrain: Retrain | None = None
    contact: Contact | None = None
    shadow: bool = False
    alerts: Alerts = Alerts()


class Keys(msgspec.Struct, frozen=True):
    """The columns that tell the rows of a feature or label model apart."""

    entity: tuple[str, ...]
    as_of: str

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.entity, self.as_of)


def named(node: Node, folder: str) -> str:
    return f"{folder}/{node['original_file_path']}: exposure '{node['name']}'"


def read_score(node: Node, manifest: Mapping[str, Any], folder: str, faults: Faults) -> Score | None:
    """The score of an exposure; None only where there is a fault."""
    where = named(node, folder)
    if not re.fullmatch("[A-Za-z0-9_]+", node["name"]):
        faults.append(
            f"{where}: its name is also that of assets, tables and folders, so it has letters, digits and _ only"
            f" (write e.g. {re.sub('[^A-Za-z0-9_]+', '_', node['name']).lower()})"
        )
    if node["type"] != "ml":
        faults.append(f"{where}: has config.meta.score but is of type {node['type']} (write type: ml)")
    if "score" not in node["config"]["meta"]:
        faults.append(f"{where}: is of type ml but has no config.meta.score (keys: {', '.join(SCORE_KEYS)})")
        return None
    required = [key for key in SCORE_KEYS if key not in OPTIONAL_KEYS]
    score = node["config"]["meta"]["score"]
    declared = sound_part(score, SCORE_KEYS, required, f"{where}: score", faults, SCORE_EXAMPLES)
    kind = declared.get("kind")
    if kind is not None and kind not in get_args(Kind):
        faults.append(f"{where}: kind is '{kind}' (possible: {', '.join(get_args(Kind))})")
        kind = None
    gate = _gate(declared["gate"], kind, where, faults) if "gate" in declared else ()
    bands = _bands(declared.get("bands"), kind, where, faults)
    fresh_for_days = days(declared["fresh_for"], f"{where}: fresh_for", faults) if "fresh_for" in declared else 0.0
    when_stale = declared.get("when_stale", "serve")
    if when_stale not in get_args(WhenStale):
        faults.append(f"{where}: when_stale is '{when_stale}' (possible: {', '.join(get_args(WhenStale))})")
    features = _model("features", declared, node, manifest, where, folder, faults)
    label = _model("label", declared, node, manifest, where, folder, faults)
    keys = _keys(features, folder, faults) if features else None
    label_keys = _keys(label, folder, faults) if label else None
    if features and label and keys and label_keys and keys != label_keys:
        faults.append(
            f"{where}: '{label['name']}' is keyed by {', '.join(label_keys.columns)}"
            f" but '{features['name']}' by {', '.join(keys.columns)}:"
            " features and label must have the same entity and as_of"
        )
    if label:
        _check_label(label, label_keys, node["name"], folder, faults)
    model_columns = _features(features, keys, where, folder, faults) if features and keys else ()
    _check_slices(gate, model_columns, where, faults)
    columns = _without(declared.get("exclude", ()), model_columns, where, faults)
    names = [column.name for column in columns]
    ordered = [column.name for column in columns if not column.data_type.lower().startswith(TEXTS)]
    learning = read_learning(declared, kind, ordered, names, where, faults)
    explained = read_explained(declared.get("reasons"), list(bands), kind, where, faults)
    retrain = read_retrain(declared.get("retrain"), where, faults)
    alerts = read_alerts(declared.get("alerts"), [column.name for column in model_columns], where, faults)
    contact = read_contact(declared.get("contact"), kind, where, faults)
    if not (features and label and keys and kind):
        return None
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
        label_is_incremental=label["config"].get("materialized") == "incremental",
        entity=keys.entity,
        as_of=keys.as_of,
        columns=columns,
        model_columns=model_columns,
        features_file=_file(features, folder),
        gate=gate,
        bands=bands,
        fresh_for_days=fresh_for_days,
        when_stale=when_stale,
        learning=learning,
        explained=explained,
        retrain=retrain,
        contact=contact,
        shadow=declared.get("shadow", False),
        alerts=alerts,
    )


def _file(model: Node, folder: str) -> str:
    """The YAML file that describes a model, where its keys and columns are declared; its SQL if there is none."""
    return f"{folder}/{(model.get('patch_path') or '').partition('://')[2] or model['original_file_path']}"


def _model(
    key: str,
    declared: Mapping[str, Any],
    exposure: Node,
    manifest: Mapping[str, Any],
    where: str,
    folder: str,
    faults: Faults,
) -> Node | None:
    """The node of the feature or label model that a score names under `key`."""
    if key not in declared:
        return None
    name = declared[key]
    models = {node["name"]: node for node in manifest["nodes"].values() if node["resource_type"] == "model"}
    if name not in models:
        faults.append(f"{where}: {key} names '{name}', which is no model of the project")
        return None
    model: Node = models[name]
    if model["unique_id"] not in exposure["depends_on"]["nodes"]:
        faults.append(f"{where}: {key} is '{name}', so depends_on must list ref('{name}')")
    if not model["config"].get("contract", {}).get("enforced"):
        faults.append(
            f"{_file(model, folder)}: model '{name}': is the {key} of '{exposure['name']}', so its contract must be"
            " enforced (config: {contract: {enforced: true}})"
        )
    return model


def _keys(model: Node, folder: str, faults: Faults) -> Keys | None:
    """The entity and as-of columns of a feature or label model, which it names in its own config.meta."""
    where = f"{_file(model, folder)}: model '{model['name']}'"
    meta = model["config"]["meta"]
    before = len(faults)
    entity = [meta["entity"]] if isinstance(meta.get("entity"), str) else meta.get("entity")
    for key, value in (("entity", entity), ("as_of", [meta.get("as_of")])):
        if key not in meta:
            faults.append(
                f"{where}: config.meta lacks {key}"
                " (write meta: {entity: <column or list of columns>, as_of: <column>})"
            )
        elif not isinstance(value, list) or not value or not all(isinstance(column, str) for column in value):
            wanted = "a column or a list of columns" if key == "entity" else "a column"
            faults.append(f"{where}: config.meta: {key} is {meta[key]!r}, not {wanted}")
        else:
            faults += [
                f"{where}: config.meta names key '{column}', which is no column of it"
                f" (columns: {some(model['columns'], like=column)})"
                for column in value
                if column not in model["columns"]
            ]
    if len(faults) > before:
        return None
    keys = Keys(tuple(entity), meta["as_of"])
    if set(entity) & set(PREDICTION_COLUMNS) or len(set(keys.columns)) < len(keys.columns):
        faults.append(
            f"{where}: config.meta: entity {', '.join(entity)} and as_of {keys.as_of} must differ,"
            f" and an entity column can't be called {', '.join(PREDICTION_COLUMNS)}, as predictions have such columns"
        )
        return None
    return keys


def _check_label(label: Node, keys: Keys | None, score: str, folder: str, faults: Faults) -> None:
    """Whether a label model has the columns that make it one."""
    for column in LABEL_COLUMNS:
        if column not in label["columns"]:
            faults.append(
                f"{_file(label, folder)}: model '{label['name']}' is the label of '{score}'"
                f" and lacks the column '{column}'"
                f" (a label model has {', '.join((*(keys.columns if keys else ()), *LABEL_COLUMNS))})"
            )


def _features(model: Node, keys: Keys, where: str, folder: str, faults: Faults) -> tuple[Feature, ...]:
    """Every column of a feature model that is no key."""
    columns = tuple(
        Feature(name=column["name"], data_type=column.get("data_type") or "", description=column["description"])
        for column in model["columns"].values()
        if column["name"] not in keys.columns
    )
    taken = [column.name for column in columns if column.name in LABEL_COLUMNS]
    if taken:
        faults.append(
            f"{_file(model, folder)}: model '{model['name']}' has the columns {', '.join(taken)}, which are the"
            " label model's; call them otherwise, and be sure that they are known before the as-of date"
        )
    reported = [column.name for column in columns if column.name.lower() in REPORTED]
    if reported:
        faults.append(
            f"{_file(model, folder)}: model '{model['name']}' has the features {', '.join(reported)}, which is what"
            " reports call other columns; call them otherwise"
        )
    if not columns:
        faults.append(f"{where}: model '{model['name']}' has no column besides its keys, so no feature")
    return columns


def _without(excluded: Sequence[Any], columns: tuple[Feature, ...], where: str, faults: Faults) -> tuple[Feature, ...]:
    """The features of a score: the columns of its feature model without those that it excludes."""
    names = [column.name for column in columns]
    for name in excluded:
        if columns and name not in names:
            faults.append(
                f"{where}: exclude names {name!r}, which is no feature of its model"
                f" (features: {some(names, str(name))})"
            )
    left = tuple(column for column in columns if column.name not in excluded)
    if columns and not left:
        faults.append(f"{where}: exclude leaves no feature to learn from")
    return left


def _check_slices(gate: Sequence[str], columns: Sequence[Feature], where: str, faults: Faults) -> None:
    names = [column.name for column in columns]
    faults += [
        f"{where}: gate: slices by '{column}', which is no column of its feature model"
        f" (columns: {some(names, like=column)})"
        for column in gates.sliced_columns(gate)
        if names and column not in names
    ]


def _gate(conditions: Sequence[Any], kind: Kind | None, where: str, faults: Faults) -> tuple[str, ...]:
    """The conditions of a gate. Without a (known) kind it can't be told whether they name its metrics."""
    for condition in conditions:
        try:
            named = gates.gate_names(str(condition))
        except gates.GateError as error:
            faults.append(f"{where}: gate '{condition}' {error}")
            continue
        if kind is None:
            continue
        unknown = sorted(named - set(gates.known_gate_names(kind)))
        if unknown or not named:
            metrics = ", ".join(METRICS[kind])
            which = f": {', '.join(unknown)}" if unknown else ""
            faults.append(
                f"{where}: gate '{condition}' names no metric of kind '{kind}'{which}"
                f"\n  (known: {metrics}; each also as champion_<metric> and baseline_<metric>)"
            )
    if not conditions:
        example = next(iter(METRICS[kind or "probability"]))
        faults.append(f"{where}: gate has no condition, so anything would pass (write one, e.g. '{example} >= ...')")
    return tuple(str(condition) for condition in conditions)


def _bands(bands: Mapping[Any, Any] | None, kind: Kind | None, where: str, faults: Faults) -> dict[str, float]:
    """Name of the band -> lowest score in it, highest first. Those of a category are its classes."""
    if kind == "category" and bands is not None:
        faults.append(f"{where}: bands are for a probability or an amount: a category has its classes as bands")
    if bands is None and kind != "category":
        faults.append(f"{where}: score: lacks bands (keys: {', '.join(SCORE_KEYS)})")
    bands = bands or {}
    if len({str(name) for name in bands}) < len(bands):
        faults.append(f"{where}: bands: two have the same name")
    numbers: dict[str, float] = {}
    for name, lowest in bands.items():
        is_number = isinstance(lowest, int | float) and not isinstance(lowest, bool)
        if not is_number or not -LARGEST <= lowest <= LARGEST:
            faults.append(f"{where}: bands: '{name}' starts at {lowest!r}, which is no number")
            continue
        if kind == "probability" and not 0 <= lowest < 1:
            faults.append(f"{where}: bands: '{name}' starts at {lowest}, but a probability lies between 0 and 1")
        numbers[str(name)] = float(lowest)
    if len(set(numbers.values())) < len(numbers):
        faults.append(f"{where}: bands: two bands start at the same score")
    return dict(sorted(numbers.items(), key=lambda band: -band[1]))
