"""`make generations`, `make rollback … GENERATION=…` and `make push`: what is published, without the warehouse.

A rollback reaches SCOREHOUSE_STORE and SCOREHOUSE_PUSH_TO too, where they are set. They work on any host that has the
folder of generations: `python -m serving.generations list | rollback | push`.
"""

import argparse
import getpass
import os
import sys
from pathlib import Path

from serving.generations.carrying import carry, push
from serving.generations.generation import CorruptGeneration, PublicationError
from serving.generations.store import generations_of
from serving.generations.withdrawing import Shelved, roll_back, shelved, told

USAGE = {
    "rollback": 'make rollback SCORE=<score> GENERATION=previous|<name> REASON="…"',
    "push": "make push TO=s3://bucket/prefix, or redis://host:port/db, or a folder",
}


def main() -> int:
    """Does what the command line asks for; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m serving.generations", description=__doc__)
    parser.add_argument("command", choices=["list", *USAGE])
    parser.add_argument("to", nargs="?", default="", help="push: where to, a URL or a folder")
    for name, what in (
        ("score", "which; list and push: all without it"),
        ("generation", "rollback: previous, or a name"),
        ("reason", "rollback: why, for those who come after"),
    ):
        parser.add_argument(f"--{name}", default="", help=what)
    asked = parser.parse_args()
    score, reason = asked.score.strip(), " ".join(asked.reason.split())
    root = Path(os.environ.get("SCOREHOUSE_DATA") or "data").absolute() / "generations"
    needs = {"rollback": (score, asked.generation, reason), "push": (asked.to,)}
    if not all(needs.get(asked.command, ())):
        print(f"say {USAGE[asked.command]}", file=sys.stderr)
        return 2
    try:
        if asked.command == "list":
            return _list(root, score)
        if asked.command == "rollback":
            return _roll_back(root, score, asked.generation.strip(), reason)
        return _push(root, asked.to, score)
    except (PublicationError, CorruptGeneration) as error:
        print(error, file=sys.stderr)
        return 1


def _list(root: Path, score: str) -> int:
    """Prints the generations of a score, or of all."""
    scores = sorted(path.name for path in root.glob("*/") if generations_of(path))
    if score and score not in scores:
        raise PublicationError(f"score '{score}' has no generations in {root} (scores: {', '.join(scores) or 'none'})")
    if not scores:
        print(f"No score is published in {root} yet: make run")
    is_sound = True
    for name in [score] if score else scores:
        print(name)
        for one in shelved(root, name):
            print(_line(one))
            is_sound &= one.fault is None
    return 0 if is_sound else 1


def _line(one: Shelved) -> str:
    about = one.generation
    facts = [f"{'→' if one.is_current else ' '} {one.name}"]
    if about:
        facts += [f"as of {about.as_of_date}", f"version {about.model_version}", f"{about.rows:,} customers"]
    facts.append(f"{one.bytes / 1e6:,.1f} MB")
    if about:
        facts.append(f"published {about.published_at:%Y-%m-%d %H:%M} UTC")
    facts.append("sound" if one.fault is None else f"NOT SOUND: {one.fault}")
    if one.withdrawal:
        facts.append(told("it", one.withdrawal))
    return "  " + " · ".join(facts)


def _roll_back(root: Path, score: str, target: str, reason: str) -> int:
    done = roll_back(root, score, target, reason, _user())
    for fault in done.skipped:
        print(f"· passed over: {fault}")
    about = f"as of {done.to.as_of_date}, version {done.to.model_version}, {done.to.rows:,} customers"
    print(f"{score}: {done.to.generation} is served now ({about})")
    if done.withdrawn:
        print(f"  {done.left} is withdrawn: no run publishes it again. To take that back:")
        print(f'  make rollback SCORE={score} GENERATION={done.left} REASON="…"')
    for where in carry(root, score):
        print(f"  pushed to {where}")
    return 0


def _push(root: Path, to: str, score: str) -> int:
    pushed = push(root, to, score)
    for name, is_new in pushed.items():
        print(f"{name}: {'pushed' if is_new else 'is there already'}")
    if not pushed:
        print(f"No score is published in {root} yet: make run")
    return 0


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may be in no list
        return str(os.getuid())


if __name__ == "__main__":
    sys.exit(main())
