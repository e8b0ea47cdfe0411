"""Rolling back what is served, at once and on any host: no warehouse is needed, only the folder of generations.

A generation's name is a hash of its content, and a pipeline that runs again makes the same content. So what was rolled
back is remembered in <root>/<score>/withdrawn.json, and is published again only if it is asked for by name.
"""

from datetime import UTC, datetime
from pathlib import Path

import msgspec

from serving.generations.generation import CorruptGeneration, Generation, PublicationError, read_manifest
from serving.generations.store import current, flip, generations_of, replace_file, verify

FILE = "withdrawn.json"


class Withdrawal(msgspec.Struct, frozen=True, kw_only=True):
    """That a generation is not to be served any more: since when, on whose word, and why."""

    at: datetime
    by: str
    reason: str


class Shelved(msgspec.Struct, frozen=True, kw_only=True):
    """One generation on the disk: what it says of itself, whether it is served, sound, and withdrawn."""

    name: str
    generation: Generation | None  # None: its manifest cannot be read
    bytes: int
    is_current: bool
    fault: str | None
    withdrawal: Withdrawal | None


class RolledBack(msgspec.Struct, frozen=True, kw_only=True):
    """What a rollback did: from which generation (None: CURRENT was missing or damaged) to which."""

    to: Generation
    left: str | None
    withdrawn: bool  # whether the one left behind was withdrawn: not if this went forward to a newer one
    skipped: list[str]  # faults of the generations that are between


def withdrawals(root: Path, score: str) -> dict[str, Withdrawal]:
    """The withdrawn generations of a score, by name. Raises `CorruptGeneration` if the file cannot be read."""
    try:
        return msgspec.json.decode((root / score / FILE).read_bytes(), type=dict[str, Withdrawal])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as error:
        raise CorruptGeneration(f"{score}/{FILE}: cannot be read: {error}; mend it, or remove it") from None


def told(name: str, withdrawal: Withdrawal) -> str:
    """A withdrawal as a person is told it."""
    return f"{name} was withdrawn on {withdrawal.at:%Y-%m-%d %H:%M} UTC by {withdrawal.by}: {withdrawal.reason}"


def shelved(root: Path, score: str) -> list[Shelved]:
    """The generations of a score, the newest first, each verified, which reads all of it."""
    gone, served = withdrawals(root, score), _current(root, score)
    found = []
    for name in reversed(generations_of(root / score)):
        folder, generation, fault = root / score / name, None, None
        try:
            generation = read_manifest(folder)
            verify(folder)
        except CorruptGeneration as error:
            fault = str(error)
        size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        found.append(
            Shelved(
                name=name,
                generation=generation,
                bytes=size,
                is_current=name == served,
                fault=fault,
                withdrawal=gone.get(name),
            )
        )
    return found


def roll_back(root: Path, score: str, target: str, reason: str, by: str) -> RolledBack:
    """Serve another generation: `previous`, the newest sound one published before the one that is served, or a name.

    The one left behind is withdrawn, unless the target is newer: that is no rollback, and takes back what withdrew the
    target. The target is verified first. Raises `PublicationError` if there is none such, or it is not sound.
    """
    home = root / score
    names = generations_of(home)  # the oldest first
    if not names:
        known = ", ".join(sorted(path.parent.name for path in root.glob("*/CURRENT"))) or "none"
        raise PublicationError(f"score '{score}' has no generations in {root} (scores: {known})")
    left, gone = _current(root, score), withdrawals(root, score)
    skipped: list[str] = []
    if target == "previous":
        before = names[: names.index(left)] if left in names else names
        generation = _newest_sound([name for name in reversed(before) if name not in gone], home, skipped)
        if generation is None:
            raise PublicationError(
                f"score '{score}': nothing sound was published before {left or 'CURRENT, which is missing'}"
                + (f" ({'; '.join(skipped)})" if skipped else "")
                + f"; there are: {', '.join(reversed(names))}"
            )
    elif target not in names:
        raise PublicationError(f"score '{score}' has no generation '{target}'; there are: {', '.join(reversed(names))}")
    elif target == left and target not in gone:
        raise PublicationError(f"score '{score}': {target} is served already")
    else:
        try:
            generation = verify(home / target)
        except CorruptGeneration as error:
            raise PublicationError(f"{error}; {left or 'nothing'} is served on") from None
    to = generation.generation
    is_newer = left in names and names.index(to) >= names.index(left)
    kept = {name: one for name, one in gone.items() if name != to}
    if left and not is_newer:
        kept[left] = Withdrawal(at=datetime.now(UTC), by=by, reason=reason)
    # First of all remembered: killed between the two, what is served is as before, and it can be asked for again.
    if kept != gone:
        try:
            replace_file(home / FILE, msgspec.json.format(msgspec.json.encode(kept)))
        except OSError as error:
            raise PublicationError(f"{score}/{FILE} could not be written: {error}") from error
    flip(root, score, to)
    return RolledBack(to=generation, left=left, withdrawn=bool(left) and not is_newer, skipped=skipped)


def _newest_sound(names: list[str], home: Path, skipped: list[str]) -> Generation | None:
    for name in names:
        try:
            return verify(home / name)
        except CorruptGeneration as error:
            skipped.append(str(error))
    return None


def _current(root: Path, score: str) -> str | None:
    """The generation served; None where CURRENT is missing or damaged, which a rollback mends."""
    try:
        return current(root, score)
    except CorruptGeneration:
        return None
