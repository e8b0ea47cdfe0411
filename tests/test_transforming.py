"""What the engine takes over from dagster-dbt, and column lineage."""

import json
import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest
import yaml
from dagster_dbt import DbtCliResource

from ml.declarations import Score
from orchestration import transforming
from orchestration.built import as_defined, definitions, redefined
from orchestration.figures import create_tables
from orchestration.lineage import column_lineage
from orchestration.project import DBT, ProjectError, load_project, paths, prepare_manifest, read_manifest
from orchestration.publishing import published_key
from orchestration.transforming import Dbt, dbt_resource, transformed_assets
from orchestration.warehouse import exists, one, open_warehouse
from serving.generations.store import customer_key
from tests.conftest import LOANS, REPOSITORY, SAMPLE

pytestmark = pytest.mark.slow

TABLES = {
    "raw.orders": {"customer_id": "BIGINT", "amount": "DOUBLE", "placed_at": "TIMESTAMP"},
    "raw.customers": {"customer_id": "BIGINT", "name": "VARCHAR"},
    "features.itself": {"at": "TIMESTAMP"},
    "raw.visits": {"Days Away": "INTEGER", "a.b": "INTEGER", "select": "VARCHAR", "Plain": "VARCHAR"},
}


def test_a_dbt_invocation_neither_asks_for_its_version_nor_loads_an_adapter_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are private to dagster-dbt: another version may call them otherwise, which would lock the warehouse."""
    assert {"_cli_version", "_initialize_dbt_core_adapter"} <= set(dir(DbtCliResource))
    monkeypatch.setenv("SCOREHOUSE_DATA", str(tmp_path))
    monkeypatch.setenv("SCOREHOUSE_PROJECT", str(LOANS))
    monkeypatch.setenv("DAGSTER_HOME", "")
    invocation = dbt_resource(paths()).cli(["parse", "--quiet"], target_path=tmp_path / "target")
    invocation.wait()
    assert invocation.is_successful()
    assert invocation.adapter is None


@pytest.mark.parametrize(
    ("sql", "made_from"),
    [
        (
            "select orders.customer_id, amount * 2 as twice, 1 as one from warehouse.raw.orders as orders",
            {"customer_id": {("raw.orders", "customer_id")}, "twice": {("raw.orders", "amount")}, "one": set()},
        ),
        (
            "with paid as (select * from raw.orders) select name, sum(amount) as spend from paid"
            " inner join raw.customers using (customer_id) group by 1",
            {"name": {("raw.customers", "name")}, "spend": {("raw.orders", "amount")}},
        ),
        (
            "select customer_id, row_number() over (partition by name order by customer_id) as n from raw.customers",
            {
                "customer_id": {("raw.customers", "customer_id")},
                "n": {("raw.customers", "name"), ("raw.customers", "customer_id")},
            },
        ),
        (
            "select placed_at as at from raw.orders where placed_at > (select max(at) from features.itself)",
            {"at": {("raw.orders", "placed_at")}},
        ),
        (
            'select visits."Days Away" as away, "a.b" + 1 as more, "select", plain as "Is Plain" from raw.visits',
            {
                "away": {("raw.visits", "Days Away")},
                "more": {("raw.visits", "a.b")},
                "select": {("raw.visits", "select")},
                "is plain": {("raw.visits", "Plain")},
            },
        ),
    ],
    ids=["renamed and computed", "through a cte and a join", "a window", "an incremental model's own table", "quoted"],
)
def test_each_column_leads_to_the_columns_it_is_made_from(sql: str, made_from: dict[str, set[tuple[str, str]]]) -> None:
    assert column_lineage(sql, "duckdb", TABLES) == made_from


@pytest.mark.parametrize("entity", [("a",), ("a", "b")])
def test_the_key_in_sql_is_the_key_in_python(entity: tuple[str, ...]) -> None:
    values = ["plain", "with,comma", "with~tilde", "~0", "~1", "Zürich/8001", "", " ", "100%", "'quoted'"]
    score = Score(
        name="s", title="", description="", owner="", email="", kind="probability", features="", features_schema="",
        features_id="", label="", label_schema="", label_id="", entity=entity, as_of="day", columns=(), gate=(),
        model_columns=(), features_file="", bands={}, fresh_for_days=1,
    )  # fmt: skip
    with duckdb.connect() as connection:
        for a in values:
            for b in values:
                row = (a, b)[: len(entity)]
                made = connection.execute(
                    f"select {published_key(score)} from (select ? as a{', ? as b' if len(entity) == 2 else ''})",
                    list(row),
                ).fetchone()
                assert made == (customer_key(list(row)),)


def a_manifest() -> dict[str, Any]:
    """Two incremental models, of which one reads a view, and a macro that calls another."""

    def model(name: str, materialized: str, parents: list[str], macros: list[str]) -> dict[str, Any]:
        return {
            "resource_type": "model",
            "name": name,
            "package_name": "shop",
            "checksum": {"checksum": f"sql of {name}"},
            "raw_code": f"select '{{{{ var(\"today\") }}}}', {{{{ var('zone') }}}} as {name}" if name == "view" else "",
            "config": {"materialized": materialized},
            "depends_on": {"nodes": parents, "macros": macros},
        }

    def macro(calls: list[str]) -> dict[str, Any]:
        return {"package_name": "shop", "macro_sql": "{{ var( 'unit', 'chf') }}", "depends_on": {"macros": calls}}

    return {
        "metadata": {"project_name": "shop", "vars": {"today": "2024-05-01", "unit": "usd", "shop": {"zone": "UTC"}}},
        "macros": {"macro.outer": macro(["macro.inner"]), "macro.inner": macro([])},
        "nodes": {
            "view": model("view", "view", ["source"], []),
            "features": model("features", "incremental", ["view"], []),
            "labels": model("labels", "incremental", ["source"], ["macro.outer", "macro.of_dbt"]),
        },
    }


@pytest.mark.parametrize(
    ("path", "value", "built_anew"),
    [
        (("nodes", "features", "checksum", "checksum"), "another", ["features"]),
        (("nodes", "view", "checksum", "checksum"), "another", ["features"]),
        (("nodes", "labels", "config", "materialized"), "table", []),
        (("macros", "macro.outer", "macro_sql"), "another", ["labels"]),
        (("macros", "macro.inner", "macro_sql"), "another", ["labels"]),
        (("metadata", "vars", "unit"), "eur", ["labels"]),
        (("metadata", "vars", "shop", "zone"), "CET", ["features"]),
        (("metadata", "vars", "today"), "2024-05-02", []),
        (("nodes", "features", "name"), "features", []),
    ],
    ids=[
        "its own SQL",
        "a view it reads",
        "incremental no more",
        "a macro",
        "a macro's macro",
        "a macro's var",
        "the var of a view",
        "the clock",
        "nothing",
    ],
)
def test_rows_of_another_definition_are_noticed(path: tuple[str, ...], value: str, built_anew: list[str]) -> None:
    built, manifest = definitions(a_manifest()), a_manifest()
    place = manifest
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert redefined(manifest, built) == built_anew


def test_of_a_model_that_nothing_is_known_of_the_rows_may_be_anyones() -> None:
    assert redefined(a_manifest(), {}) == ["features", "labels"]


@pytest.mark.parametrize(
    ("made", "known"),
    [
        ([], ["labels"]),
        (["view"], ["labels", "view"]),
        (["view", "features"], ["features", "labels", "view"]),
        (["features"], ["labels"]),
    ],
    ids=["nothing was built", "the reader was not", "both were", "the reader alone, from the old view"],
)
def test_after_a_build_only_what_it_made_of_what_is_sound_counts_as_built(made: list[str], known: list[str]) -> None:
    built, manifest = definitions(a_manifest()), a_manifest()
    manifest["nodes"]["view"]["checksum"]["checksum"] = "another"
    before = as_defined(manifest, built)
    assert list(before) == ["labels"]  # what a build that is killed leaves
    assert sorted(as_defined(manifest, before, made)) == known


def test_an_ephemeral_model_counts_as_built_with_what_reads_it() -> None:
    manifest = a_manifest()
    manifest["nodes"]["view"]["config"]["materialized"] = "ephemeral"
    built = as_defined(manifest, {}, ["features", "labels"])
    assert sorted(built) == ["features", "labels", "view"]
    manifest["nodes"]["view"]["checksum"]["checksum"] = "another"
    assert redefined(manifest, built) == ["features"]


def test_where_a_source_has_lost_rows_what_comes_from_it_is_built_from_scratch_once() -> None:
    manifest, lost = a_manifest(), {"source": "2024-05-01"}
    built = as_defined(manifest, {}, ["view", "features", "labels"])
    assert redefined(manifest, built, lost) == ["features", "labels"]
    before = as_defined(manifest, built, shrunk=lost)
    assert before == {}  # what a build that is killed leaves
    assert as_defined(manifest, before, ["view", "features"], lost) == {}  # one of a part does not count
    after = as_defined(manifest, before, ["view", "features", "labels", "source"], lost)
    assert redefined(manifest, after, lost) == []
    assert redefined(manifest, after, {"source": "2024-05-02"}) == ["features", "labels"]


def test_a_source_that_a_sweep_has_taken_rows_from_is_known_by_the_last_time(tmp_path: Path) -> None:
    manifest = {
        "sources": {
            "a": {"unique_id": "a", "schema": "raw", "identifier": "orders"},
            "b": {"unique_id": "b", "schema": "raw", "identifier": "visits"},
        }
    }
    with open_warehouse(tmp_path / "warehouse.duckdb") as connection:
        create_tables(connection)
        assert transforming._shrunk(connection, manifest) == {}
        for day, deleted in ((1, 3), (2, 5), (3, 0)):
            row = {
                "schema_name": "raw",
                "table_name": "orders",
                "deleted": deleted,
                "loaded_at": datetime(2024, 5, day, tzinfo=UTC),
            }
            connection.execute("insert into quality.source_metrics by name select unnest(?)", [row])
        assert list(transforming._shrunk(connection, manifest)) == ["a"]
        assert transforming._shrunk(connection, manifest)["a"].startswith("2024-05-02")


SMALL = {
    "dbt_project.yml": "{name: small, version: 0.1.0, profile: small, vars: {today: 2024-01-01}}",
    "profiles.yml": """
        small:
          target: local
          outputs: {local: {type: duckdb, path: "{{ env_var('SCOREHOUSE_DATA') }}/warehouse.duckdb"}}
    """,
    "models/one.sql": "select 1 as one",
    "models/exposures.yml": "exposures: [{name: first, type: notebook, owner: {email: a@b.example}}]",
}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The smallest dbt project."""
    for name, text in SMALL.items():
        file = tmp_path / "small" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for name in ("DBT_TARGET_PATH", "DBT_LOG_PATH", "DBT_PROFILES_DIR", "DAGSTER_HOME"):
        monkeypatch.setenv(name, "")  # so that what is set is put back
    monkeypatch.setenv("SCOREHOUSE_PROJECT", str(tmp_path / "small"))
    monkeypatch.setenv("SCOREHOUSE_DATA", str(tmp_path / "data"))
    return tmp_path / "small"


def test_the_manifest_is_of_the_project_as_it_is_whoever_parsed_it(small: Path) -> None:
    where = paths()
    first = prepare_manifest(where).read_bytes()
    made = where.dbt_target / "manifest.json"
    (small / "models" / "two.sql").write_text("select 2 as two")
    subprocess.run([str(DBT), "--quiet", "parse", "--project-dir", str(small)], check=True)
    (small / "models" / "two.sql").unlink()
    assert json.loads(prepare_manifest(where).read_bytes())["nodes"].keys() == json.loads(first)["nodes"].keys()
    made.write_text("{")
    assert json.loads(prepare_manifest(where).read_bytes())["nodes"].keys() == json.loads(first)["nodes"].keys()


def test_a_name_given_twice_is_told_until_it_is_mended(small: Path) -> None:
    where, file = paths(), small / "models" / "exposures.yml"
    load_project(where)
    again = SMALL["models/exposures.yml"]
    (small / "models" / "more.yml").write_text(again)
    with pytest.raises(ProjectError, match='two exposures with the name "first"'):
        load_project(where)
    (small / "models" / "more.yml").unlink()
    assert file.read_text() == again
    load_project(where)


def test_a_project_without_a_profile_is_told_how_to_write_one(small: Path) -> None:
    (small / "profiles.yml").unlink()
    with pytest.raises(ProjectError, match=r"(?s)no profiles\.yml.*type: duckdb"):
        load_project(paths())


@pytest.mark.parametrize("text", ["", "a: [b"], ids=["empty", "no YAML"])
def test_a_broken_dbt_project_yml_is_told_by_name(small: Path, text: str) -> None:
    (small / "dbt_project.yml").write_text(text)
    with pytest.raises(ProjectError, match=r"dbt_project\.yml"):
        load_project(paths())


def test_a_data_folder_that_is_a_file_is_told(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SCOREHOUSE_DATA", str(tmp_path / "file"))
    with pytest.raises(ProjectError, match=r"file: can't be written to .*; set SCOREHOUSE_DATA"):
        paths()


KEPT = """
{{ config(materialized='incremental') }}
select 1 as id, '%s' as label {%% if is_incremental() %%} where false {%% endif %%}
"""


OURS = ("project_dir", "dbt_executable", "global_config_flags")


class Killed(BaseException):
    """What a process that is killed comes to, for those that go on."""


class KilledBefore(Dbt):
    def cli(self, *args: Any, **kwargs: Any) -> Any:
        raise Killed


class KilledAtTheEnd(Dbt):
    """The dbt command line in a process that does not outlive it."""

    def cli(self, *args: Any, **kwargs: Any) -> Any:
        super().cli(*args, **kwargs).wait()
        raise Killed


class KilledAtOnce(Dbt):
    def cli(self, *args: Any, **kwargs: Any) -> Any:
        invocation = super().cli(*args, **kwargs)
        invocation.process.kill()
        return invocation


def test_a_dbt_that_was_killed_is_told_as_that(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforming, "IMPORTED_LATER", ())
    where = paths()
    assets = transformed_assets(read_manifest(prepare_manifest(where)), load_project(where), where)
    dbt = KilledAtOnce(**{name: getattr(dbt_resource(where), name) for name in OURS})
    failed = dg.materialize([assets], resources={"dbt": dbt}, raise_on_error=False)
    (failure,) = failed.get_step_failure_events()
    error = failure.step_failure_data.error
    assert error is not None and error.cause is not None
    assert error.cause.message.startswith(
        "orchestration.transforming.DbtEnded: dbt ended without results (killed by SIGKILL): the system does so when"
    )


def test_rows_of_an_sql_that_a_failed_or_killed_build_left_are_built_anew_and_no_others(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transforming, "IMPORTED_LATER", ())
    model, failing = small / "models" / "kept.sql", small / "tests" / "fails.sql"
    failing.parent.mkdir()
    (small / "models" / "other.sql").write_text(KEPT % "as built first")

    def build(label: str, dbt: type[Dbt] = Dbt) -> tuple[bool, str | None]:
        """Whether it succeeded, and what the table has then, if it is there."""
        model.write_text(KEPT % label)
        where = paths()
        assets = transformed_assets(read_manifest(prepare_manifest(where)), load_project(where), where)
        resource = dbt_resource(where)
        resource = dbt(**{name: getattr(resource, name) for name in OURS})
        try:
            succeeded = dg.materialize([assets], resources={"dbt": resource}, raise_on_error=False).success
        except Killed:
            succeeded = False
        with open_warehouse(where.warehouse) as connection:
            is_there = exists(connection, "main", "kept")
            return succeeded, one(connection, "select label from main.kept")[0] if is_there else None

    assert build("right") == (True, "right")
    with open_warehouse(paths().warehouse) as connection:
        connection.execute("update main.other set label = 'of old'")
    failing.write_text("select * from {{ ref('one') }}")
    assert build("wrong") == (False, "wrong")
    failing.unlink()
    assert build("' || no_such_column || '") == (False, "wrong"), "what there was stays"
    assert build("right", KilledBefore) == (False, None), "the table is put aside"
    assert build("right") == (True, "right")
    assert build("wrong", KilledAtTheEnd) == (False, "wrong")
    assert build("right") == (True, "right")
    with open_warehouse(paths().warehouse) as connection:
        tables = connection.execute("select table_name from duckdb_tables() where schema_name = 'main'").fetchall()
        assert sorted(tables) == [("kept",), ("other",)]
        assert connection.execute("select label from main.other").fetchall() == [("of old",)]


PARENT = """
from orchestration.project import paths
from orchestration.transforming import dbt_resource
dbt_resource(paths()).cli(["run"]).wait()
"""
NEXT = """
from orchestration.project import paths
from orchestration.warehouse import exists, one, open_warehouse
with open_warehouse(paths().warehouse) as connection:
    print(connection.execute("select 1").fetchall())
"""


@pytest.mark.parametrize("project", [SAMPLE, LOANS], ids=lambda project: project.name)
def test_a_dbt_build_that_needs_more_memory_than_it_may_take_goes_on_from_disk(project: Path, tmp_path: Path) -> None:
    """dbt opens a connection per model: those after the first that used the disk must find it as it is."""
    shutil.copy(project / "profiles.yml", tmp_path)
    profile = yaml.safe_load((project / "dbt_project.yml").read_text())["profile"]
    (tmp_path / "dbt_project.yml").write_text(
        f"{{name: spilling, profile: {profile}, models: {{+materialized: table}}, flags: {{log_level_file: none}}}}"
    )
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "sorted.sql").write_text(
        "select number, hash(number) as key from range(3000000) as n (number) order by key"
    )
    (tmp_path / "models" / "counted.sql").write_text("select count(*) as numbers from {{ ref('sorted') }}")
    settings = {
        "SCOREHOUSE_DATA": str(tmp_path),
        "SCOREHOUSE_MEMORY_LIMIT": "50MB",
        "DBT_PROFILES_DIR": str(tmp_path),
        "DBT_TARGET_PATH": str(tmp_path / "target"),
        "DO_NOT_TRACK": "1",
    }
    built = subprocess.run([DBT, "build"], cwd=tmp_path, env={**os.environ, **settings}, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    with duckdb.connect(str(tmp_path / "warehouse.duckdb"), read_only=True) as warehouse:
        assert warehouse.execute("select numbers from main.counted").fetchall() == [(3_000_000,)]


def test_dbt_ends_with_the_process_that_started_it_and_holds_the_warehouse_until_then(small: Path) -> None:
    (small / "models" / "one.sql").write_text(
        "{{ config(materialized='table') }} select sum(a.range * b.range) as one"
        " from range(1000000) as a, range(1000000) as b"
    )
    where = paths()
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    while not where.warehouse.exists():
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    opened = subprocess.run([sys.executable, "-c", NEXT], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert opened.stdout == "[(1,)]\n", opened.stderr
