"""Tells people and programs of each version of a score: its model card, written anew when what it says has changed."""

import hashlib
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ml.declarations import Score
from ml.metrics import METRICS, without_nan
from ml.standing import Promotion, Standing, standing_of
from orchestration import versions
from orchestration.project import Paths, page_url, replaced
from orchestration.warehouse import Connection
from serving.pages.model_cards import (
    DATA,
    INDEX,
    PAGE,
    VersionCard,
    VersionLine,
    Versions,
    read_versions,
    versions_folder,
)

if TYPE_CHECKING:
    from ml.registry import Card

GIT_SECONDS = 20.0


def tell_versions(connection: Connection, score: Score, where: Paths) -> list[int]:
    """Brings the model cards of all versions of a score up to date; gives the versions whose card was written.

    A card is written where it is missing, or where the version, its verdict, its promotions, whether it is champion, or
    the page's form has changed. A version whose own files are damaged keeps the page that it has, and the list says
    where it stands. Each file is whole or not written at all, and the list of versions is written last.
    """
    from reports.model_card import edition

    before = read_versions(where.reports, score.name)
    known = {line.version: line for line in before.versions} if before else {}
    champion = versions.champion(connection, score)
    promotions, form = promotions_of(connection, score), edition()
    lines, written = [], []
    for row in versions.all_versions(connection, score):
        version, old = row["version"], known.get(row["version"])
        gate = versions.gate_of(connection, score, version)
        standing = standing_of(version, gate, promotions, champion["version"] if champion else None)
        frozen = versions.training_set(connection, score, row["training_set"]) or {}
        content = _content(where.models / score.name / str(version) / "card.json")
        told = [score.title, score.description, score.owner, score.email, frozen.get("known_until"), standing]
        of = hashlib.sha256(msgspec.json.encode([form, content, *told])).hexdigest()
        if old is not None and old.made_from == of and _is_there(where, score, version):
            lines.append(old)
        elif (card := _card(where, score, version)) is not None:
            _write(card, standing, score, where, frozen)
            lines.append(_line(card, standing, of))
            written.append(version)
        elif old is not None:
            lines.append(msgspec.structs.replace(old, **_stands(standing)))
    if before is None or written or before.versions != lines:
        file = versions_folder(where.reports, score.name) / INDEX
        with replaced(file) as staged:
            staged.write_bytes(msgspec.json.encode(Versions(score=score.name, title=score.title, versions=lines)))
    return written


def promotions_of(connection: Connection, score: Score) -> list[Promotion]:
    """Every promotion of a version of this score, the earliest first."""
    return [
        Promotion(
            version=row["version"],
            how=row["how"],
            reason=row["reason"] or "",
            by=row["promoted_by"] or "",
            replaced_version=row["replaced_version"],
            promoted_at=row["promoted_at"],
        )
        for row in versions.promotions(connection, score)
    ]


def git_commit(folder: Path) -> str | None:
    """The commit of the git repository that holds a folder, with "-dirty" if files in it differ; None without one."""
    command = ["git", "-C", str(folder), "status", "--porcelain=v2", "--branch"]
    try:
        # Without a lock, as somebody may commit meanwhile.
        environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=GIT_SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.splitlines()
    commit = next((line.removeprefix("# branch.oid ") for line in lines if line.startswith("# branch.oid ")), "")
    if done.returncode or not commit or commit == "(initial)":
        return None
    return commit + ("-dirty" if any(not line.startswith("#") for line in lines) else "")


def card_url(score: Score, version: int) -> str:
    """Where `make serve` shows a version's card."""
    return page_url(f"models/{score.name}/{version}")


def card_page(where: Paths, score: Score, version: int) -> Path:
    return versions_folder(where.reports, score.name) / str(version) / PAGE


def _content(file: Path) -> str | None:
    """The checksum of a version's own card, None if it is missing."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return None


def _is_there(where: Paths, score: Score, version: int) -> bool:
    page = card_page(where, score, version)
    return page.is_file() and page.with_name(DATA).is_file()


def _card(where: Paths, score: Score, version: int) -> "Card | None":
    """A version's own card; None of a damaged one, which its own step tells."""
    from ml.registry import CorruptModel, load_card

    try:
        return load_card(where.models / score.name / str(version))
    except CorruptModel:
        return None


def _write(card: "Card", standing: Standing, score: Score, where: Paths, frozen: Mapping[str, Any]) -> None:
    from reports.model_card import model_card

    known_until = frozen.get("known_until")
    page = model_card(card, standing, score, known_until=str(known_until or ""))
    shared = {name: getattr(card, name) for name in VersionCard.__struct_fields__ if hasattr(card, name)}
    of_today = {"title": score.title, "description": score.description, "owner": score.owner}
    measured = {name: without_nan(shared[name]) for name in ("metrics", "baseline", "champion")}
    data = VersionCard(
        **{**shared, **of_today, **measured}, verdict=standing.verdict, standing=standing, known_until=known_until
    )
    file = card_page(where, score, card.version)
    for target, text in ((file, page.encode()), (file.with_name(DATA), msgspec.json.encode(data))):
        with replaced(target) as staged:
            staged.write_bytes(text)


def _line(card: "Card", standing: Standing, of: str) -> VersionLine:
    metric = next(iter(METRICS[card.kind]))
    return VersionLine(
        version=card.version,
        trained_at=card.trained_at,
        **_stands(standing),
        metric=metric,
        value=without_nan(card.metrics).get(metric),
        interval=card.intervals.get(metric),
        baseline=without_nan(card.baseline).get(metric),
        made_from=of,
    )


def _stands(standing: Standing) -> dict[str, Any]:
    """What a line says of where a version stands, which is known also where its own files are damaged."""
    return {
        "verdict": standing.verdict,
        "champion": standing.champion,
        "failed": tuple(result.condition for result in standing.gate if not result.passed),
        "promoted_at": standing.promotions[0].promoted_at if standing.promotions else None,
    }
