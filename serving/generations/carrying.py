"""Carries what is served on the disk to where other hosts serve or pull it from: a Redis, a folder, an object store."""

import os
from pathlib import Path

from serving.generations.addresses import without_login
from serving.generations.generation import PublicationError
from serving.generations.remote import Unreachable, remote
from serving.generations.store import published_scores


def push(root: Path, url: str, score: str = "") -> dict[str, bool]:
    """Bring what is served of a score, or of all, to a URL: score -> whether anything was to be done.

    `redis://`, `rediss://` and `unix://` are a Redis or Valkey, all else a file system as fsspec knows it.
    Raises `PublicationError` and `CorruptGeneration`.
    """
    from serving.generations.redis_publishing import publish_to_redis
    from serving.generations.redis_store import SCHEMES

    scores = [score] if score else published_scores(root)
    if url.startswith(SCHEMES):
        return {one: publish_to_redis(root, url, one) for one in scores}
    try:
        there = remote(url)
    except Unreachable as error:
        raise PublicationError(f"nothing was pushed: {error}") from None
    return {one: there.push(root, one) for one in scores}


def carry(root: Path, score: str) -> list[str]:
    """Bring what is served of a score to SCOREHOUSE_STORE and SCOREHOUSE_PUSH_TO, as far as they are set.

    Gives where something was to be done. Raises as `push`.
    """
    targets = [os.environ.get(name, "") for name in ("SCOREHOUSE_STORE", "SCOREHOUSE_PUSH_TO")]
    return [without_login(url) for url in targets if url and push(root, url, score)[score]]
