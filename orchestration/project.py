"""Where everything is, and the dbt project as the engine reads it: the manifest is prepared here, once per change."""

import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import yaml

from ml.declarations import DeclarationError, Project, read_project

REPOSITORY = Path(__file__).resolve().parent.parent
DBT = Path(sys.executable).parent / "dbt"
# What can change the manifest. A CSV may be a seed, or much data: of those the size and the time tell.
PARSED = {".sql", ".yml", ".yaml", ".md", ".csv", ".py"}


NO_PROFILE = """
It has no profiles.yml, which says where its warehouse is (with its own profile's name for 'shop'):
  shop: {target: local, outputs: {local: {type: duckdb, path: "{{ env_var('SCOREHOUSE_DATA') }}/warehouse.duckdb"}}}"""


PAGES = "SCOREHOUSE_PAGES_URL"

# Bytes: what a small run writes, several times over. With less, no run begins.
LEAST_FREE = 64 << 20


class ProjectError(RuntimeError):
    """The dbt project can't be read: which folder, why, and what to do."""


class Paths(msgspec.Struct, frozen=True):
    """The dbt project's folder and the data folder, the only one that is written to."""

    project: Path
    data: Path

    @property
    def owner(self) -> Path:
        """Has the name of the dbt project that the data folder belongs to."""
        return self.data / "PROJECT"

    @property
    def warehouse(self) -> Path:
        return self.data / "warehouse.duckdb"

    @property
    def training_sets(self) -> Path:
        return self.data / "training_sets"

    @property
    def models(self) -> Path:
        return self.data / "models"

    @property
    def generations(self) -> Path:
        return self.data / "generations"

    @property
    def reports(self) -> Path:
        return self.data / "reports"

    @property
    def evidently(self) -> Path:
        """A workspace of Evidently's own."""
        return self.data / "evidently"

    @property
    def logs(self) -> Path:
        return self.data / "logs"

    @property
    def dagster_home(self) -> Path:
        return self.data / "dagster"

    @property
    def dbt_target(self) -> Path:
        return self.data / "dbt" / "target"


def paths() -> Paths:
    """The folders of `SCOREHOUSE_PROJECT` and `SCOREHOUSE_DATA`, by default `dbt_project` and `data` of the repository.

    The environment of this process and its children is set to match, so that dbt and Dagster write nowhere else.
    Raises `ProjectError` if the project's folder has no dbt_project.yml, or the data folder can't be written to or is
    on a full disk.
    """
    project = Path(os.environ.get("SCOREHOUSE_PROJECT") or REPOSITORY / "dbt_project").resolve()
    data = Path(os.environ.get("SCOREHOUSE_DATA") or REPOSITORY / "data").resolve()
    found = Paths(project=project, data=data)
    if not (project / "dbt_project.yml").is_file():
        raise ProjectError(
            f"{project}: no dbt_project.yml there; set SCOREHOUSE_PROJECT to the folder of a dbt project"
        )
    try:
        data.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=data):
            pass
    except OSError as error:
        raise ProjectError(
            f"{data}: can't be written to ({error.strerror}); set SCOREHOUSE_DATA to a folder that can"
        ) from None
    free = shutil.disk_usage(data).free
    if free < LEAST_FREE:
        raise ProjectError(
            f"{data}: only {free >> 20} MB are free there, and a run needs {LEAST_FREE >> 20} MB at the least;"
            " make room, or set SCOREHOUSE_DATA to a folder that has it"
        )
    os.environ |= environment(found)
    return found


def environment(where: Paths) -> dict[str, str]:
    """What dbt and Dagster are to find in their environment, so that they read and write here and nowhere else."""
    return {
        "SCOREHOUSE_PROJECT": str(where.project),
        "SCOREHOUSE_DATA": str(where.data),
        "DBT_TARGET_PATH": str(where.dbt_target),
        "DBT_LOG_PATH": str(where.data / "dbt" / "logs"),
        "DBT_PROFILES_DIR": str(where.project),
        "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
        "DO_NOT_TRACK": "1",
        "DAGSTER_HOME": str(where.dagster_home),
    }


def page_url(path: str) -> str:
    """The address of a page of the API, as people reach it: of `reports/leaving`, say."""
    return f"{os.environ.get(PAGES, 'http://127.0.0.1:8000').rstrip('/')}/{path}"


def no_room(where: Paths, said: str) -> ProjectError:
    """That the disk of the data folder is full, as somebody `said`, and what to do."""
    free = shutil.disk_usage(where.data).free
    return ProjectError(
        f"{where.data}: can't be written to ({said}; {free >> 20} MB are free there); make room, and run again"
    )


@contextmanager
def exclusively(lock: Path) -> Iterator[None]:
    """Waits for and holds a lock that the kernel frees when its process ends, however it ends."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `file` once its content is on the disk: whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    staged = file.with_name(f".{file.name}.new")
    yield staged
    for written in (staged, file.parent):
        handle = os.open(written, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        if written == staged:
            staged.replace(file)


def read_json(file: Path) -> dict[str, Any]:
    """What a file of derived figures says; nothing if it is missing or damaged: it is derived again."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def prepare_manifest(where: Paths) -> Path:
    """The path of the project's manifest.json, parsed by dbt if any file it is made of has changed since.

    Raises `ProjectError` with dbt's own words if dbt can't parse the project.
    """
    manifest, mark = where.dbt_target / "manifest.json", where.dbt_target / "manifest.of"
    with exclusively(where.data / "dbt" / "manifest.lock"):
        read = _fingerprint(where)
        if mark.is_file() and manifest.is_file() and mark.read_text() == _mark(read, manifest):
            return manifest
        arguments = [
            str(DBT),
            "--quiet",
            "--no-use-colors",
            # Parsing what has changed alone misses names given twice, and remembers them when they are gone.
            "--no-partial-parse",
            "parse",
            "--project-dir",
            str(where.project),
            "--profiles-dir",
            str(where.project),
        ]
        parsed = subprocess.run(
            arguments,
            cwd=where.project,
            env={**os.environ, **environment(where)},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        if parsed.returncode != 0 and os.strerror(errno.ENOSPC) in parsed.stdout + parsed.stderr:
            raise no_room(where, f"dbt: {os.strerror(errno.ENOSPC)}")
        if parsed.returncode != 0:
            raise ProjectError(
                f"{where.project}: dbt can't parse the project:\n{(parsed.stdout + parsed.stderr).strip()}"
                + ("" if (where.project / "profiles.yml").is_file() else NO_PROFILE)
            )
        mark.write_text(_mark(read, manifest))
        return manifest


def _mark(read: str, manifest: Path) -> str:
    """Of what was read and what came of it: the dbt command line writes its manifest to the same place."""
    return f"{read} {hashlib.sha256(manifest.read_bytes()).hexdigest()}"


def _fingerprint(where: Paths) -> str:
    """Of all that a manifest is made of: the files, where they are, and the dbt that reads them."""
    found = hashlib.sha256(f"{where} {importlib.metadata.version('dbt-core')}".encode())
    for folder, below, files in os.walk(where.project):
        below[:] = sorted(
            name for name in below if Path(folder) != where.project or name not in ("target", "logs", ".git")
        )
        for file in (Path(folder) / name for name in sorted(files) if Path(name).suffix in PARSED):
            stat = file.stat()
            content = f"{stat.st_size} {stat.st_mtime_ns}".encode() if file.suffix == ".csv" else file.read_bytes()
            found.update(str(file).encode() + b"\0" + content + b"\0")
    return found.hexdigest()


def read_manifest(manifest: Path) -> dict[str, Any]:
    return json.loads(manifest.read_bytes())  # type: ignore[no-any-return]


def load_manifest(where: Paths) -> dict[str, Any]:
    """The up-to-date manifest, with the vars of dbt_project.yml as `vars` of its metadata, where dbt has none.

    Raises `ProjectError` if dbt can't parse the project.
    """
    file = where.project / "dbt_project.yml"
    try:
        settings = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ProjectError(f"{file}: is no YAML: {error}") from None
    if not isinstance(settings, dict):
        raise ProjectError(f"{file}: is {settings!r}, not the settings of a dbt project")
    manifest = read_manifest(prepare_manifest(where))
    manifest["metadata"]["vars"] = settings.get("vars") or {}
    return manifest


def load_project(where: Paths) -> Project:
    """The project's declarations, from an up-to-date manifest.

    Raises `ProjectError` if dbt can't parse the project, `DeclarationError` if a declaration is wrong.
    """
    manifest = load_manifest(where)
    return read_project(manifest, manifest["metadata"]["vars"], where.project.name)


def claim_data(where: Paths, project: Project) -> None:
    """Makes the data folder this project's, or finds it so: two companies in one would mix.

    A folder that says nothing yet is taken, unless what is published in it is all another project's.
    Raises `ProjectError` if the folder is another project's.
    """
    from serving.generations.store import published_scores

    with exclusively(where.data / "dbt" / "owner.lock"):
        if where.owner.is_file():
            owner = where.owner.read_text().strip()
            if owner == project.name:
                return
            whose = f"belongs to the dbt project '{owner}', and this one is '{project.name}'"
            renamed = f"; if it was only renamed, remove {where.owner}"
        else:
            published = published_scores(where.generations)
            if not published or {score.name for score in project.scores}.intersection(published):
                with replaced(where.owner) as staged:
                    staged.write_text(f"{project.name}\n")
                return
            whose = f"serves {', '.join(published)}, no score of the dbt project '{project.name}'"
            renamed = ""
    raise ProjectError(f"{where.data}: {whose} ({where.project}); set SCOREHOUSE_DATA to a folder of its own{renamed}")


def refuse_unrun(where: Paths, project: Project) -> None:
    """For who reads what runs have made. Raises `ProjectError` if none has yet, or the folder is another project's."""
    if not where.warehouse.exists():  # opening it would make one
        raise ProjectError(f"{where.data}: nothing has been run there yet; make run does it")
    claim_data(where, project)


def main() -> None:
    """Checks the declarations, for `make check`: what they declare, or every mistake and exit code 1."""
    try:
        project = load_project(paths())
        if project.sources:
            from orchestration.loading import check_sources

            check_sources(project)
        if project.scores:
            from orchestration.pinned import refuse_broken_contracts

            refuse_broken_contracts(project, paths())
    except (ProjectError, DeclarationError) as error:
        sys.exit(str(error))
    print(
        f"{project.name}: {len(project.sources)} source{'' if len(project.sources) == 1 else 's'} to load,"
        f" scores: {', '.join(score.name for score in project.scores) or 'none'}"
    )


if __name__ == "__main__":
    main()
