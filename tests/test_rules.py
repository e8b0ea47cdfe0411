"""Rules of the whole repository that nothing else would notice being broken."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from ml.declarations import Kind
from ml.metrics import METRICS
from serving.app import create_app
from tests.conftest import REPOSITORY, SAMPLE

ROOMS = ("orchestration", "ml", "serving", "reports")


def sources_of(room: str) -> list[Path]:
    return sorted(
        path for path in (REPOSITORY / room).rglob("*") if path.suffix in {".py", ".html", ".css", ".js", ".j2"}
    )


ENGINES_OWN = {"as_of_date", "known_at", "_known_at", "matures_on", "_loaded_at", "batch_id", "_batch_id", "_source"}
ENGINES_OWN |= {"schema_name", "table_name", "loaded_at", "source_name", "volume_ratio"}  # of quality.source_metrics
ENGINES_OWN |= {"null_count", "null_share"}  # of a column of any table
ENGINES_OWN |= {"promotion"}  # of a version to champion: ml.promotions
# Sources that the engine writes itself.
ENGINES_SCHEMAS = {"quality"}
# What the sample company deals in.
NOUNS = ["household", "basket", "coupon", "campaign", "lapse", "spend", "journey", "grocer", "promotion", "demographic"]


def names_of_the_sample() -> set[str]:
    """Compound names of the sample's models, columns, sources and scores, and the nouns they are made of."""
    names = {path.stem for path in (SAMPLE / "models").rglob("*.sql")}
    for file in (SAMPLE / "models").rglob("*.yml"):
        parsed = yaml.safe_load(file.read_text()) or {}
        for model in parsed.get("models", []):
            names |= {column["name"] for column in model.get("columns", [])}
        names |= {exposure["name"] for exposure in parsed.get("exposures", [])}
        for source in parsed.get("sources", []):
            if source["name"] not in ENGINES_SCHEMAS:
                names |= {table["name"] for table in source["tables"]}
    return {name for name in names if "_" in name} | set(NOUNS)


@pytest.mark.parametrize("room", ROOMS)
def test_the_engine_does_not_know_the_sample_company(room: str) -> None:
    particular = names_of_the_sample() - ENGINES_OWN
    assert len(particular) > 50, "the sample's names were not found, so this would check nothing"
    pattern = re.compile("|".join(rf"\b{re.escape(name)}s?\b" for name in sorted(particular)), re.IGNORECASE)
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}: {match.group()}"
        for path in sources_of(room)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for match in pattern.finditer(line)
    ]
    assert found == [], "\n".join(found)


def test_every_make_target_is_in_the_readme_and_the_other_way_round() -> None:
    targets = set(re.findall(r"^([a-z]+):.*##", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    told = set(re.findall(r"(?m)(?:`|^)make ([a-z]+)", (REPOSITORY / "README.md").read_text()))
    assert told == targets


def test_every_setting_is_in_the_readme_and_the_other_way_round() -> None:
    setting = re.compile(r"SCOREHOUSE_[A-Z_]+[A-Z]")
    files = [REPOSITORY / "Makefile", *(path for room in ROOMS for path in sources_of(room)), SAMPLE / "profiles.yml"]
    read = {name for path in files for name in setting.findall(path.read_text())}
    told = set(setting.findall((REPOSITORY / "README.md").read_text()))
    assert told == read


def test_every_endpoint_is_in_the_readme_and_the_other_way_round(tmp_path: Path) -> None:
    paths = create_app(tmp_path).openapi_schema.paths or {}
    table = (REPOSITORY / "README.md").read_text().partition("## The API\n")[2].partition("\n## ")[0]
    told = {path.partition("?")[0] for path in re.findall(r"`(?:GET|POST) (/[^`]+)`", table)}
    assert told == set(paths)


@pytest.mark.parametrize("kind", METRICS)
def test_every_metric_is_in_the_readme(kind: Kind) -> None:
    readme = (REPOSITORY / "README.md").read_text()
    told = readme.partition(f"Metrics of a{'n' if kind == 'amount' else ''} {kind}: ")[2].partition(".")[0]
    assert re.findall(r"`(\w+)`", told) == list(METRICS[kind])


def test_packages_hold_a_docstring_only() -> None:
    for room in ROOMS:
        lines = (REPOSITORY / room / "__init__.py").read_text().strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith('"""')


def test_the_lock_file_has_hashes_and_no_addresses() -> None:
    lock = (REPOSITORY / "requirements.lock").read_text()
    assert "://" not in lock
    assert "index" not in lock
    requirements = re.split(r"\n(?=\S)", lock.strip())
    assert all("==" in requirement and "--hash=sha256:" in requirement for requirement in requirements)


def test_no_file_of_the_repository_names_a_place_on_a_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    places = re.compile(r"/(?:home|root|work|Users)/[a-z]")
    found = []
    for name in listed.splitlines():
        path = REPOSITORY / name
        if path.suffix in {".parquet", ".png", ".gz"} or not path.is_file() or path == Path(__file__):
            continue
        found += [f"{name}: {match.group()}" for match in places.finditer(path.read_text())]
    assert found == []


def test_nothing_is_unpickled() -> None:
    code = "\n".join(path.read_text() for room in ROOMS for path in sources_of(room))
    assert not re.search(r"^\s*(?:import|from) (?:pickle|cloudpickle|joblib|dill)", code, re.MULTILINE)
