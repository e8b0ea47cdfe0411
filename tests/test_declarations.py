"""Each mistake in a declaration is one error that names file, thing and fault, before anything runs."""

import copy
import re
from collections.abc import Callable
from datetime import date
from typing import Any

import pytest

from ml.declarations import DeclarationError, read_project

Manifest = dict[str, Any]


def model(name: str, columns: list[str], **meta: Any) -> dict[str, Any]:
    return {
        "resource_type": "model",
        "unique_id": f"model.shop.{name}",
        "name": name,
        "alias": name,
        "schema": "features",
        "original_file_path": f"models/{name}.yml",
        "columns": {
            column: {"name": column, "data_type": "integer", "description": f"{column}."} for column in columns
        },
        "config": {"contract": {"enforced": True}, "meta": meta},
    }


def manifest() -> Manifest:
    keys = {"entity": "visitor_id", "as_of": "day"}
    models = [
        model("visitor_features", ["visitor_id", "day", "visits", "device"], **keys),
        model("visitor_left", ["visitor_id", "day", "label", "matures_on"], **keys),
    ]
    source = {
        "unique_id": "source.shop.raw.visits",
        "source_name": "raw",
        "name": "visits",
        "schema": "raw",
        "identifier": "visits",
        "description": "A row per visit.",
        "original_file_path": "models/sources.yml",
        "columns": {"visitor_id": {"name": "visitor_id", "description": ""}},
        "config": {"meta": {"load": {"from": "data/visits.csv", "key": ["visitor_id"]}}},
    }
    exposure = {
        "unique_id": "exposure.shop.leaving",
        "name": "leaving",
        "label": "Leaving",
        "type": "ml",
        "description": "Leaves.",
        "owner": {"name": "Web", "email": "web@example.com"},
        "original_file_path": "models/scores.yml",
        "depends_on": {"nodes": [found["unique_id"] for found in models]},
        "config": {
            "meta": {
                "score": {
                    "features": "visitor_features",
                    "label": "visitor_left",
                    "kind": "probability",
                    "gate": ["roc_auc >= 0.7", "roc_auc >= champion_roc_auc - 0.01"],
                    "bands": {"low": 0.0, "high": 0.5},
                    "fresh_for": "8 days",
                }
            }
        },
    }
    return {
        "metadata": {"project_name": "shop"},
        "nodes": {found["unique_id"]: found for found in models},
        "sources": {"source.shop.raw.visits": source},
        "exposures": {"exposure.shop.leaving": exposure},
    }


def test_a_right_project_is_read_whole() -> None:
    project = read_project(manifest(), {"today": "2020-05-01"}, "dbt_project")
    score = project.scores[0]
    assert project.today == date(2020, 5, 1)
    assert [column.name for column in score.columns] == ["visits", "device"]
    assert (score.entity, score.as_of, score.fresh_for_days) == (("visitor_id",), "day", 8.0)
    assert list(score.bands) == ["high", "low"]
    assert project.sources[0].uri == "data/visits.csv"


@pytest.mark.parametrize(("materialized", "is_incremental"), [("incremental", True), ("table", False)])
def test_a_score_knows_whether_its_label_is_incremental(materialized: str, is_incremental: bool) -> None:
    found = manifest()
    label_of(found)["config"]["materialized"] = materialized
    assert read_project(found, {}, "dbt_project").scores[0].label_is_incremental is is_incremental


def test_a_project_without_a_fixed_clock_runs_on_the_real_one() -> None:
    assert read_project(manifest(), {}, "dbt_project").today is None


def test_the_clock_may_be_declared_under_the_projects_name() -> None:
    assert read_project(manifest(), {"shop": {"today": "2020-05-01"}}, "dbt_project").today == date(2020, 5, 1)


def test_exposures_of_other_types_and_sources_without_load_are_not_the_engines() -> None:
    changed = manifest()
    changed["exposures"]["exposure.shop.leaving"].update(type="dashboard", config={"meta": {}})
    changed["sources"]["source.shop.raw.visits"]["config"]["meta"] = {}
    project = read_project(changed, {}, "dbt_project")
    assert project.scores == ()
    assert project.sources == ()


def score_of(found: Manifest) -> dict[str, Any]:
    return found["exposures"]["exposure.shop.leaving"]["config"]["meta"]["score"]  # type: ignore[no-any-return]


def features_of(found: Manifest) -> dict[str, Any]:
    return found["nodes"]["model.shop.visitor_features"]  # type: ignore[no-any-return]


def label_of(found: Manifest) -> dict[str, Any]:
    return found["nodes"]["model.shop.visitor_left"]  # type: ignore[no-any-return]


def column_of(found: Manifest) -> dict[str, Any]:
    return found["sources"]["source.shop.raw.visits"]["columns"]["visitor_id"]  # type: ignore[no-any-return]


def load_of(found: Manifest) -> dict[str, Any]:
    return found["sources"]["source.shop.raw.visits"]["config"]["meta"]["load"]  # type: ignore[no-any-return]


KEYS = (
    "keys: features, label, kind, gate, bands, fresh_for, when_stale, exclude, params, search, train_on, monotone,"
    " shadow, reasons, retrain, alerts, contact"
)
EXPOSURE = "dbt_project/models/scores.yml: exposure 'leaving'"
SOURCE = "dbt_project/models/sources.yml: source 'raw.visits': load"
MISTAKES: dict[str, tuple[Callable[[Manifest], Any], str]] = {
    "no score": (
        lambda m: m["exposures"]["exposure.shop.leaving"]["config"]["meta"].clear(),
        f"{EXPOSURE}: is of type ml but has no config.meta.score ({KEYS})",
    ),
    "unknown key": (
        lambda m: score_of(m).update(gates=[]),
        f"{EXPOSURE}: score: unknown key 'gates' ({KEYS.replace('keys', 'known')})",
    ),
    "slices of nothing": (
        lambda m: score_of(m).update(gate=["min_by('devise', roc_auc) > 0.6"]),
        f"{EXPOSURE}: gate: slices by 'devise', which is no column of its feature model (columns: device",
    ),
    "stale": (
        lambda m: score_of(m).update(when_stale="hide"),
        f"{EXPOSURE}: when_stale is 'hide' (possible: serve, refuse)",
    ),
    "stale of another type": (
        lambda m: score_of(m).update(when_stale=False),
        f"{EXPOSURE}: score: when_stale is False, not text (write e.g. when_stale: refuse)",
    ),
    "no bands": (
        lambda m: score_of(m).pop("bands"),
        f"{EXPOSURE}: score: lacks bands",
    ),
    "bands of a category": (
        lambda m: score_of(m).update(kind="category", gate=["accuracy > 0.5"]),
        f"{EXPOSURE}: bands are for a probability or an amount: a category has its classes as bands",
    ),
    "missing key": (
        lambda m: score_of(m).pop("fresh_for"),
        f"{EXPOSURE}: score: lacks fresh_for ({KEYS})",
    ),
    "wrong type": (
        lambda m: score_of(m).update(gate="roc_auc > 0.5"),
        f"{EXPOSURE}: score: gate is 'roc_auc > 0.5', not a list",
    ),
    "unknown kind": (
        lambda m: score_of(m).update(kind="chance"),
        f"{EXPOSURE}: kind is 'chance' (possible: probability, amount, category)",
    ),
    "missing model": (
        lambda m: score_of(m).update(features="visitors"),
        f"{EXPOSURE}: features names 'visitors', which is no model of the project",
    ),
    "no ref": (
        lambda m: m["exposures"]["exposure.shop.leaving"]["depends_on"]["nodes"].pop(),
        f"{EXPOSURE}: label is 'visitor_left', so depends_on must list ref('visitor_left')",
    ),
    "no contract": (
        lambda m: features_of(m)["config"].update(contract={"enforced": False}),
        "dbt_project/models/visitor_features.yml: model 'visitor_features': is the features of 'leaving', so its"
        " contract must be enforced",
    ),
    "no keys": (
        lambda m: features_of(m)["config"]["meta"].pop("as_of"),
        "dbt_project/models/visitor_features.yml: model 'visitor_features': config.meta lacks as_of",
    ),
    "key is no column": (
        lambda m: features_of(m)["config"]["meta"].update(entity="visitor"),
        "model 'visitor_features': config.meta names key 'visitor', which is no column of it"
        " (columns: visitor_id, visits, and 2 more)",
    ),
    "key is a number": (
        lambda m: features_of(m)["config"]["meta"].update(entity=5),
        "model 'visitor_features': config.meta: entity is 5, not a column or a list of columns",
    ),
    "no entity": (
        lambda m: features_of(m)["config"]["meta"].update(entity=[]),
        "model 'visitor_features': config.meta: entity is [], not a column or a list of columns",
    ),
    "as-of date is a list": (
        lambda m: features_of(m)["config"]["meta"].update(as_of=["day"]),
        "model 'visitor_features': config.meta: as_of is ['day'], not a column",
    ),
    "entity is also the as-of date": (
        lambda m: features_of(m)["config"]["meta"].update(entity=["visitor_id", "day"]),
        "model 'visitor_features': config.meta: entity visitor_id, day and as_of day must differ",
    ),
    "a feature is the label": (
        lambda m: features_of(m)["columns"].update(label={"name": "label", "data_type": "integer", "description": ""}),
        "dbt_project/models/visitor_features.yml: model 'visitor_features' has the columns label, which are the label",
    ),
    "a score of another type": (
        lambda m: m["exposures"]["exposure.shop.leaving"].update(type="dashboard"),
        f"{EXPOSURE}: has config.meta.score but is of type dashboard (write type: ml)",
    ),
    "other keys of the label": (
        lambda m: label_of(m)["config"]["meta"].update(as_of="matures_on"),
        "'visitor_left' is keyed by visitor_id, matures_on but 'visitor_features' by visitor_id, day",
    ),
    "no maturity": (
        lambda m: label_of(m)["columns"].pop("matures_on"),
        "dbt_project/models/visitor_left.yml: model 'visitor_left' is the label of 'leaving' and lacks the column"
        " 'matures_on'",
    ),
    "no feature": (
        lambda m: [features_of(m)["columns"].pop(column) for column in ("visits", "device")],
        f"{EXPOSURE}: model 'visitor_features' has no column besides its keys, so no feature",
    ),
    "features that reports could not tell from their own columns": (
        lambda m: features_of(m)["columns"].update(
            {name: {"name": name, "description": ""} for name in ("the score", "The Band", "as_of_date")}
        ),
        "model 'visitor_features' has the features the score, The Band, as_of_date, which is what reports call other"
        " columns; call them otherwise",
    ),
    "gate of another kind": (
        lambda m: score_of(m).update(gate=["auc >= 0.8"]),
        f"{EXPOSURE}: gate 'auc >= 0.8' names no metric of kind 'probability': auc\n  (known: roc_auc,",
    ),
    "gate names nothing": (
        lambda m: score_of(m).update(gate=["1 = 1"]),
        f"{EXPOSURE}: gate '1 = 1' names no metric of kind 'probability'\n  (known: roc_auc,",
    ),
    "gate is no condition": (lambda m: score_of(m).update(gate=["roc_auc >="]), f"{EXPOSURE}: gate 'roc_auc >='"),
    "gate reads a table": (
        lambda m: score_of(m).update(gate=["(select 1) = 1"]),
        f"{EXPOSURE}: gate '(select 1) = 1'",
    ),
    "gate is empty": (lambda m: score_of(m).update(gate=[]), f"{EXPOSURE}: gate has no condition"),
    "band is no number": (
        lambda m: score_of(m).update(bands={"high": "much"}),
        f"{EXPOSURE}: bands: 'high' starts at 'much', which is no number",
    ),
    "band is no probability": (
        lambda m: score_of(m).update(bands={"high": 60}),
        f"{EXPOSURE}: bands: 'high' starts at 60, but a probability lies between 0 and 1",
    ),
    "band beyond all numbers": (
        lambda m: score_of(m).update(kind="amount", gate=["r2 >= 0"], bands={"high": float("inf")}),
        f"{EXPOSURE}: bands: 'high' starts at inf, which is no number",
    ),
    "band with hundreds of digits": (
        lambda m: score_of(m).update(kind="amount", gate=["r2 >= 0"], bands={"high": 10**400}),
        f"{EXPOSURE}: bands: 'high' starts at {10**400}, which is no number",
    ),
    "band that is not a number": (
        lambda m: score_of(m).update(kind="amount", gate=["r2 >= 0"], bands={"high": float("nan")}),
        f"{EXPOSURE}: bands: 'high' starts at nan, which is no number",
    ),
    "two bands of a name": (
        lambda m: score_of(m).update(bands={1: 0.5, "1": 0.0}),
        f"{EXPOSURE}: bands: two have the same name",
    ),
    "two bands at once": (
        lambda m: score_of(m).update(bands={"high": 0.5, "low": 0.5}),
        f"{EXPOSURE}: bands: two bands start at the same score",
    ),
    "length of time": (
        lambda m: score_of(m).update(fresh_for="soon"),
        f"{EXPOSURE}: fresh_for: 'soon' is no length of time (write e.g. '8 days'; units: minutes, hours, days, weeks;"
        " at most 36500 days)",
    ),
    "length beyond all time": (
        lambda m: score_of(m).update(fresh_for="99999999 weeks"),
        f"{EXPOSURE}: fresh_for: '99999999 weeks' is no length of time",
    ),
    "search that is a number": (
        lambda m: score_of(m).update(search=20),
        f"{EXPOSURE}: score: search is 20, not a mapping (write e.g. search: {{trials: 20}})",
    ),
    "load without from": (lambda m: load_of(m).pop("from"), f"{SOURCE}: lacks from (keys: from, cursor, key, "),
    "unknown key of load": (
        lambda m: load_of(m).update(form="x"),
        f"{SOURCE}: unknown key 'form' (known: from, cursor, key, overlap, sweep, known_at, max_rejected, api)",
    ),
    "load names no column": (
        lambda m: load_of(m).update(cursor="at"),
        f"{SOURCE}: names column 'at', which the table does not list (it lists: visitor_id)",
    ),
    "unknown kind of source": (
        lambda m: load_of(m).update({"from": "ftp://example.com/visits.csv"}),
        f"{SOURCE}: from 'ftp://example.com/visits.csv': 'ftp://' is not a kind of source (known: a path or glob, ",
    ),
    "key of another kind of source": (
        lambda m: load_of(m).update(sweep=True),
        f"{SOURCE}: sweep is for postgresql://, not for 'data/visits.csv'",
    ),
    "stream without a key": (
        lambda m: (load_of(m).pop("key"), load_of(m).update({"from": "nats://127.0.0.1/VISITS/visits"})),
        f"{SOURCE}: from 'nats://127.0.0.1/VISITS/visits': lacks key, by which a row that comes again is known",
    ),
    "overlap of nothing": (
        lambda m: load_of(m).update({"from": "postgresql:///shop?table=visits", "overlap": "1 day"}),
        f"{SOURCE}: overlap is how far behind the newest cursor to read again, but lacks cursor",
    ),
    "share that is none": (
        lambda m: load_of(m).update(max_rejected=5),
        f"{SOURCE}: max_rejected is 5, not a share from 0 to 1 (0.01 is 1 %)",
    ),
    "share in words": (
        lambda m: load_of(m).update(max_rejected="1 %"),
        f"{SOURCE}: max_rejected is '1 %', not a number",
    ),
    "constraint that no row can meet": (
        lambda m: column_of(m).update(constraints=[{"type": "unique", "expression": None}]),
        f"{SOURCE}: column 'visitor_id' has the constraint unique, which can't be asked of a row"
        " (possible: not_null, and check with an expression; what must be unique is the key of load)",
    ),
    "unknown key of an API": (
        lambda m: load_of(m).update({"from": "api+https://example.com/visits", "api": {"page": 1}}),
        f"{SOURCE}: api: unknown key 'page' (known: rows, pages, params, headers, cursor_param, per_second)",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_file_thing_and_fault(mistake: str) -> None:
    make, message = MISTAKES[mistake]
    mistaken = copy.deepcopy(manifest())
    make(mistaken)
    with pytest.raises(DeclarationError) as raised:
        read_project(mistaken, {}, "dbt_project")
    assert message in str(raised.value)
    told = [line for line in str(raised.value).splitlines() if not line.startswith(" ")]
    assert len(told) == 1, "what follows from a mistake is told as another"


def test_a_clock_that_is_no_date_is_named() -> None:
    with pytest.raises(DeclarationError, match=r"dbt_project/dbt_project\.yml: vars: today is 'now', which is no date"):
        read_project(manifest(), {"today": "now"}, "dbt_project")


def test_all_mistakes_are_told_at_once() -> None:
    mistaken = manifest()
    load_of(mistaken).update(form="x")
    score_of(mistaken).update(kind="chance")
    with pytest.raises(DeclarationError) as raised:
        read_project(mistaken, {}, "dbt_project")
    assert len(str(raised.value).splitlines()) == 2


def told(mistaken: Manifest) -> list[str]:
    """What is told of each mistake, without where it is and what is possible."""
    with pytest.raises(DeclarationError) as raised:
        read_project(mistaken, {}, "dbt_project")
    lines = [line for line in str(raised.value).splitlines() if not line.startswith(" ")]
    return [re.sub(r"^\S+: \w+ '[^']+':? ", "", line).partition(" (")[0] for line in lines]


def test_all_mistakes_of_one_exposure_are_told_at_once() -> None:
    mistaken = manifest()
    score_of(mistaken).update(
        gates=[],
        gate=["auc >= 0.8", "1 = 1"],
        bands={"high": 60, "middle": "much", "low": 0.1, "lowest": 0.1},
        fresh_for="soon",
    )
    features_of(mistaken)["config"].update(contract={"enforced": False})
    label_of(mistaken)["columns"].clear()
    assert told(mistaken) == [
        "score: unknown key 'gates'",
        "gate 'auc >= 0.8' names no metric of kind 'probability': auc",
        "gate '1 = 1' names no metric of kind 'probability'",
        "bands: 'high' starts at 60, but a probability lies between 0 and 1",
        "bands: 'middle' starts at 'much', which is no number",
        "bands: two bands start at the same score",
        "fresh_for: 'soon' is no length of time",
        "is the features of 'leaving', so its contract must be enforced",
        "config.meta names key 'visitor_id', which is no column of it",
        "config.meta names key 'day', which is no column of it",
        "is the label of 'leaving' and lacks the column 'label'",
        "is the label of 'leaving' and lacks the column 'matures_on'",
    ]


def test_an_unknown_kind_hides_no_other_mistake() -> None:
    mistaken = manifest()
    score_of(mistaken).update(kind="chance", label="visitors_left", gate=[], bands={"high": None}, fresh_for=8)
    assert told(mistaken) == [
        "score: fresh_for is 8, not text",
        "kind is 'chance'",
        "gate has no condition, so anything would pass",
        "bands: 'high' starts at None, which is no number",
        "label names 'visitors_left', which is no model of the project",
    ]


def test_all_mistakes_of_one_source_are_told_at_once() -> None:
    mistaken = manifest()
    column_of(mistaken).update(constraints=[{"type": "unique", "expression": None}])
    load_of(mistaken).update(form="x", cursor="at", key=["visitor"], overlap="1 day", max_rejected=5, sweep="often")
    assert told(mistaken) == [
        "load: unknown key 'form'",
        "load: sweep is 'often', not true or false",
        "load: names column 'at', which the table does not list",
        "load: names column 'visitor', which the table does not list",
        "load: column 'visitor_id' has the constraint unique, which can't be asked of a row",
        "load: max_rejected is 5, not a share from 0 to 1",
        "load: overlap is for postgresql://, not for 'data/visits.csv'",
        "load: sweep is for postgresql://, not for 'data/visits.csv'",
    ]


@pytest.mark.parametrize("name", ["Expected-Orders", "expected orders", "größe", "-"])
def test_a_name_that_can_not_be_an_assets_is_refused(name: str) -> None:
    mistaken = manifest()
    mistaken["exposures"]["exposure.shop.leaving"].update(name=name)
    assert told(mistaken) == [
        "its name is also that of assets, tables and folders, so it has letters, digits and _ only"
    ]


def meta_of(found: Manifest) -> dict[str, Any]:
    return found["sources"]["source.shop.raw.visits"]["config"]["meta"]  # type: ignore[no-any-return]


def test_names_that_differ_in_case_only_are_one_to_the_warehouse_and_refused() -> None:
    changed = manifest()
    for things, unique_id, name in (
        ("exposures", "exposure.shop.leaving", {"name": "Leaving"}),
        ("sources", "source.shop.raw.visits", {"name": "all_visits", "identifier": "Visits"}),
    ):
        twin = copy.deepcopy(changed[things][unique_id])
        changed[things][f"{unique_id}_twin"] = {**twin, **name, "unique_id": f"{unique_id}_twin"}
    with pytest.raises(DeclarationError) as raised:
        read_project(changed, {}, "dbt_project")
    assert str(raised.value).splitlines() == [
        "dbt_project/models/sources.yml: source 'raw.all_visits': 'raw.Visits' can't be told from 'raw.visits'"
        " (dbt_project/models/sources.yml: source 'raw.visits') by the warehouse, which ignores case: call one of them"
        " otherwise",
        "dbt_project/models/scores.yml: exposure 'Leaving': 'Leaving' can't be told from 'leaving'"
        " (dbt_project/models/scores.yml: exposure 'leaving') by the warehouse, which ignores case: call one of them"
        " otherwise",
    ]


@pytest.mark.parametrize("key", ["lod", "laod", "loads", "Load"])
def test_a_source_whose_load_is_misspelt_is_not_left_alone(key: str) -> None:
    mistaken = manifest()
    meta_of(mistaken)[key] = meta_of(mistaken).pop("load")
    with pytest.raises(DeclarationError) as raised:
        read_project(mistaken, {}, "dbt_project")
    assert str(raised.value).startswith(
        "dbt_project/models/sources.yml: source 'raw.visits': config.meta has the key"
        f" '{key}', which looks like a misspelt 'load' (write load: {{from: ...}}"
    )


def test_other_meta_of_a_source_is_its_owners() -> None:
    found = manifest()
    meta_of(found).clear()
    meta_of(found).update(loader="fivetran", owner="web", dagster={"group": "raw"}, local=True)
    assert read_project(found, {}, "dbt_project").sources == ()
