"""The history of Evidently's reports in its own workspace format, data/evidently, which `evidently ui` shows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml.declarations import Score
from orchestration.project import read_json


def keep_snapshot(folder: Path, score: Score, snapshot: Any) -> dict[str, str]:
    """Adds a snapshot to a score's project of the workspace; gives the ids of both: project, run.

    Evidently writes its files in place, and reads all of them: those that are torn, as of a run that was killed, go.
    """
    try:
        return _add(folder, score, snapshot)
    except ValueError:
        torn = [file for file in folder.rglob("*.json") if not read_json(file)]
        if not torn:
            raise
    for file in torn:
        file.unlink()
    return _add(folder, score, snapshot)


def _add(folder: Path, score: Score, snapshot: Any) -> dict[str, str]:
    from evidently.ui.workspace import Workspace

    folder.mkdir(parents=True, exist_ok=True)
    workspace = Workspace.create(str(folder))
    # A score keeps its name for good, its title may be changed.
    named = f" ({score.name})"
    # None is a folder without a project's file.
    projects = [one for one in workspace.list_projects() if one is not None]
    project = next((one for one in projects if one.name.endswith(named)), None)
    if project is None:
        project = workspace.create_project(score.title + named, score.description)
    elif (project.name, project.description) != (score.title + named, score.description):
        project.name, project.description = score.title + named, score.description
        project.save()
    return {"project": str(project.id), "run": str(workspace.add_run(project.id, snapshot).id)}


def forget_snapshot(folder: Path, ids: Mapping[str, str] | None) -> None:
    """Removes a snapshot by its ids, if it has any; one that is gone already is no matter."""
    if ids:
        (folder / ids["project"] / "snapshots" / f"{ids['run']}.json").unlink(missing_ok=True)
