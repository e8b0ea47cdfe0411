"""Where a source is, as the environment completes it, and how that is told without a secret."""

import base64
import json
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
        if not found.isprintable():  # as of a file's last line; told by others it would be written another way
            raise LoadError(
                f"{told(source)}: load: from '{without_secrets(source.uri)}': {match[1]} of the environment has a line"
                " break or another sign that can't be written in an address; take it out"
            )
        return found

    return NAMED.sub(value, text)


def expanded_url(source: Source) -> str:
    """A source's URI with `${NAME}` taken from the environment, in its user and password as a URL writes their signs.

    Raises `LoadError`.
    """
    scheme, separator, rest = source.uri.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    login, at, _ = authority.rpartition("@")
    if not (separator and at):
        return expanded(source, source.uri)
    safe = NAMED.sub(lambda match: quote(expanded(source, match[0]), safe=""), login)
    return f"{scheme}{separator}{safe}{expanded(source, rest[len(login) :])}"


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
    login = re.split(r"[/?#]", source.uri.partition("://")[2], maxsplit=1)[0].rpartition("@")[0]
    if NAMED.search(login):  # as HTTP sends it
        sent = NAMED.sub(lambda match: os.environ.get(match[1], ""), login)
        text = text.replace(base64.b64encode(sent.encode()).decode(), login)
    for name in NAMED.findall(declared):
        secret = os.environ.get(name, "")
        escaped = (json.dumps(secret)[1:-1], repr(secret)[1:-1], base64.b64encode(secret.encode()).decode())
        for written in (secret, quote(secret), quote(secret, safe=""), *escaped):
            if len(secret) >= SHORTEST_SECRET:
                text = text.replace(written, f"${{{name}}}")
    return " ".join(URL.sub(lambda match: without_secrets(match[0]), text).split())
