"""Pulls generations from where a publisher pushes them: `python -m serving` runs it beside its workers.

Every SCOREHOUSE_PULL_EVERY seconds it looks at SCOREHOUSE_PULL_FROM, a folder or any URL that fsspec reads. What
CURRENT names there and is not here is copied beside what is served, checked, and only then made current: the workers
see a publication like any other. Whatever is wrong with it, the old generation serves on, and the next look tries
again.
"""

import logging
import os
import shutil
import signal
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from serving.durable import sync
from serving.generations.addresses import without_login
from serving.generations.generation import NAME, CorruptGeneration, PublicationError, parsed_manifest
from serving.generations.remote import MANIFEST, Remote, RemoteFault, Unreachable, remote
from serving.generations.store import current, flip, kept_generations, open_store, prune, replace_file, verify
from serving.generations.withdrawing import told, withdrawals

log = logging.getLogger("serving")

STATUS = ".pull.json"
LONGEST_PAUSE = 300.0  # seconds between looks at a store that cannot be reached
FAILS_LONG = 300.0  # seconds after which it is no passing trouble, or after which a look is long due


class PullStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the last look brought, as <root>/.pull.json tells the workers."""

    pulled_from: str
    looked_at: datetime
    fault: str | None
    failing_since: datetime | None
    next_in: float  # seconds to the next look


class Puller:
    """Keeps a folder of generations as they are at a URL."""

    def __init__(self, root: Path, url: str, every: float) -> None:
        self.root = root
        self.told = without_login(url)
        self._url = url
        self._every = every
        self._pause = every
        self._remote: Remote | None = None
        self._faults: dict[str, str] = {}  # score ("" of the store itself) -> what was told last
        self._failing_since: datetime | None = None
        self._sound: set[tuple[str, str]] = set()  # generations here that this process has verified

    def look(self) -> float:
        """Pull what is new of each score, and give the seconds to the next look: ever more while the store is down.

        A fault is told once, by the log.
        """
        faults: dict[str, str] = {}
        try:
            self._remote = self._remote or remote(self._url)
            for score in self._remote.scores():
                try:
                    self._pull(self._remote, score)
                except (RemoteFault, CorruptGeneration, PublicationError, OSError) as error:
                    faults[score] = str(error)
        except Unreachable as error:
            faults[""] = str(error)
        for score, fault in faults.items():
            if self._faults.get(score) != fault:
                log.error("not pulled: %s; what is here serves on, the next look tries again", fault)
        for score in self._faults.keys() - faults.keys():
            log.info("pulling %s from %s works again", score or "scores", self.told)
        self._faults = faults
        self._pause = min(2 * self._pause, max(LONGEST_PAUSE, self._every)) if "" in faults else self._every
        self._tell(faults)
        return self._pause

    def _pull(self, there: Remote, score: str) -> None:
        pointer = there.read(f"{score}/CURRENT")
        if pointer is None:
            return
        name = pointer.decode(errors="replace").removesuffix("\n")
        if not NAME.fullmatch(name) or name == "CURRENT":
            raise RemoteFault(f"{there.told}/{score}/CURRENT: {name[:100]!r} is no name of a generation")
        served = _current(self.root, score)
        if name == served and (score, name) in self._sound:
            return
        withdrawal = withdrawals(self.root, score).get(name)
        if withdrawal is not None:
            if name != served:
                raise RemoteFault(f"{there.told}/{score}/CURRENT: {told(name, withdrawal)}, here")
            return
        folder = self.root / score / name
        if not _is_sound(folder):
            _copy(there, score, name, folder)
            verify(folder)
        if name != served:
            flip(self.root, score, name)
            log.info("%s: %s was pulled from %s", score, name, there.told)
        self._sound.add((score, name))
        prune(self.root, score, keep=kept_generations())

    def _tell(self, faults: dict[str, str]) -> None:
        now = datetime.now(UTC)
        self._failing_since = (self._failing_since or now) if faults else None
        status = PullStatus(
            pulled_from=self.told,
            looked_at=now,
            fault="; ".join(faults.values()) or None,
            failing_since=self._failing_since,
            next_in=self._pause,
        )
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            replace_file(self.root / STATUS, msgspec.json.encode(status))
        except OSError as error:
            log.error("%s could not be written: %s", self.root / STATUS, error.strerror)


def _copy(there: Remote, score: str, name: str, folder: Path) -> None:
    """Copy a generation to its folder, each file checked on the way; whole or not at all."""
    manifest, checksum = (there.read(f"{score}/{name}/{file}") for file in MANIFEST)
    for file, content in zip(MANIFEST, (manifest, checksum), strict=True):
        if content is None:
            raise RemoteFault(f"{there.told}/{score}/{name}/{file}: is missing")
    assert manifest is not None and checksum is not None
    try:
        generation = parsed_manifest(manifest, checksum.decode(errors="replace"), score, name)
    except CorruptGeneration as error:
        raise RemoteFault(f"{there.told}/{error}") from None
    home = folder.parent
    home.mkdir(parents=True, exist_ok=True)
    staging = home / f".staging-{name}-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)  # of a process of old with this number
    try:
        staging.mkdir()
        for file, sha256 in generation.files.items():
            there.copy(f"{score}/{name}/{file}", staging / file, sha256)
        for file, content in zip(MANIFEST, (manifest, checksum), strict=True):
            (staging / file).write_bytes(content)
        for path in staging.iterdir():
            sync(path)
        sync(staging)
        if folder.exists():  # damaged here: workers that have it open go on with it
            os.rename(folder, home / f".removed-{name}-{os.getpid()}")
        os.rename(staging, folder)
        sync(home)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _is_sound(folder: Path) -> bool:
    try:
        open_store(folder).close()
    except CorruptGeneration:
        return False
    return True


def _current(root: Path, score: str) -> str | None:
    """The generation served here; None where there is none or CURRENT is damaged, which the next flip mends."""
    try:
        return current(root, score)
    except CorruptGeneration:
        return None


def nothing_pulled(root: Path) -> str | None:
    """What to say where a folder that is pulled into has nothing yet; None if nothing is pulled."""
    try:
        status = msgspec.json.decode((root / STATUS).read_bytes(), type=PullStatus)
    except (OSError, msgspec.MsgspecError):
        return None
    why = f" ({status.fault})" if status.fault else ""
    return f"Nothing was pulled from {status.pulled_from} yet{why}: make push there; it is picked up without a restart."


def pull_fault(root: Path) -> str | None:
    """Why nothing new has come for long; None if all is well, or nothing is pulled."""
    try:
        status = msgspec.json.decode((root / STATUS).read_bytes(), type=PullStatus)
    except (OSError, msgspec.MsgspecError):
        return None
    now = datetime.now(UTC)
    if status.failing_since and (now - status.failing_since).total_seconds() > FAILS_LONG:
        return f"Nothing new was pulled since {status.failing_since:%Y-%m-%d %H:%M} UTC: {status.fault}"
    if (now - status.looked_at).total_seconds() > status.next_in + FAILS_LONG:
        return f"Nobody has looked at {status.pulled_from} since {status.looked_at:%Y-%m-%d %H:%M} UTC"
    return None


def pull_every() -> float:
    """SCOREHOUSE_PULL_EVERY, seconds. Exits with one line if it is no such number."""
    given = os.environ.get("SCOREHOUSE_PULL_EVERY") or "10"
    try:
        every = float(given)
    except ValueError:
        every = 0.0
    if not 0.05 <= every <= 86_400:
        sys.exit(f"SCOREHOUSE_PULL_EVERY is '{given}', no number of seconds from 0.05 to 86400.")
    return every


def main() -> None:
    """Pulls for ever: ends with the process that has started it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    root = Path(os.environ.get("SCOREHOUSE_DATA") or "data").absolute() / "generations"
    puller = Puller(root, os.environ["SCOREHOUSE_PULL_FROM"], pull_every())
    while True:
        time.sleep(puller.look())


def _end_with(server: int) -> None:
    while os.getppid() == server:
        time.sleep(0.5)
    os._exit(0)  # in the middle of whatever it is: the next look removes what it leaves


if __name__ == "__main__":
    main()
