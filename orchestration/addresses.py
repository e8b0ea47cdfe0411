"""Where a source is, as the environment completes it, and how that is told without a secret."""

import os
import re
from urllib.parse import quote

from ml.declarations import Source
from orchestration.batches import LoadError, told

NAMED = re.compile(r"\$\{(\w+)\}")
URL = re.compile(r"\b[\w+]+://[^\s'\"<>()]+")
SHORTEST_SECRET = 4  # characters: what is shorter hides nothing, and is part of other words


def expanded(source: Source, text: str) -> str:
    """A text of a source's declaration with `${NAME}` taken from the environment: so a secret is in no file, and in no
    manifest. Raises `LoadError` if the environment lacks the name."""

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if found is None:
            raise LoadError(
                f"{told(source)}: load: from '{without_secrets(source.uri)}': the environment has no {match[1]};"
                " set it, or take it out of the declaration"
            )
        return found

    return NAMED.sub(value, text)


def without_secrets(url: str) -> str:
    """A URL without its query, fragment, user and password, which may be secrets."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def scrubbed(source: Source, text: str) -> str:
    """What another program says of a source, in one line, without what the environment or a URL keeps secret."""
    declared = " ".join([source.uri, *map(str, source.api.params.values()), *map(str, source.api.headers.values())])
    for name in NAMED.findall(declared):
        secret = os.environ.get(name, "")
        for written in (secret, quote(secret), quote(secret, safe="")):
            if len(secret) >= SHORTEST_SECRET:
                text = text.replace(written, f"${{{name}}}")
    return " ".join(URL.sub(lambda match: without_secrets(match[0]), text).split())
