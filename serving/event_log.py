"""The durable log of a source's events: a folder of segments, files of one JSON object per line."""

import os
import secrets
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from serving.durable import sync

SEGMENT_BYTES = 64 << 20  # a segment that has reached this size is followed by another


class Log:
    """The part of a source's log that this process writes: a segment at a time, which no other process appends to.

    A segment to which a write failed is cut back to what it held before, and never written again: a load may have read
    beyond the cut, and would not see what came to stand there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        self._path = folder
        self._file: int | None = None
        self._size = 0

    def append(self, lines: bytes) -> None:
        """Writes whole lines; on return they are on the disk. Raises `OSError`; nothing is acknowledged then."""
        with self._lock:
            if self._file is None or self._size >= SEGMENT_BYTES or not self._is_in_place(self._file):
                self.close()
                self._file = self._begin()
            try:
                left = memoryview(lines)
                while left:  # a write to a file is short only where the next one fails and says why
                    left = left[os.write(self._file, left) :]
                os.fsync(self._file)
                if not self._size:
                    sync(self.folder)
            except OSError:
                self._give_up(self._file)
                raise
            self._size += len(lines)

    def _begin(self) -> int:
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{os.getpid()}-{secrets.token_hex(3)}.jsonl"
        self._path, self._size = self.folder / name, 0
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o666)

    def _is_in_place(self, file: int) -> bool:
        """Whether the segment can still be found: who writes to a removed file keeps nothing."""
        with suppress(OSError):
            return os.path.samestat(os.stat(self._path), os.fstat(file))
        return False

    def _give_up(self, file: int) -> None:
        with suppress(OSError):
            os.ftruncate(file, self._size)
            if not self._size:
                self._path.unlink()
        self.close()

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                file, self._file = self._file, None
                with suppress(OSError):
                    os.close(file)
