"""Sources that are HTTP APIs: JSON answers, page by page, are one batch. dlt's REST client turns the pages and tries
again; its pipelines, state and telemetry are not used."""

import hashlib
import inspect
import itertools
import json
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any
from urllib.parse import urljoin, urlsplit

import msgspec

from ml.declarations import Source
from orchestration import batches, warehouse
from orchestration.addresses import NAMED, expanded, scrubbed, without_secrets
from orchestration.batches import Batch, LoadError, Loading, told
from orchestration.json_lines import json_rows
from orchestration.tables import FUTURE

ATTEMPTS = 5  # of one page
BACK_OFF_SECONDS = 1.0  # before the second attempt, doubled before each further one, if no Retry-After says more
LONGEST_WAIT_SECONDS = 300.0  # also where Retry-After says more
TIMEOUT_SECONDS = 60.0  # in which a server must go on with its answer
SECRET_HEADERS = {"authorization", "cookie", "x-api-key", "api-key", "x-auth-token"}
SHOWN = 200  # characters of an answer that an error shows
ENCODER = msgspec.json.Encoder(decimal_format="number")
# dlt's others: "auto" guesses, and a wrong guess ends after the first page without a word.
UNUSED_TYPES = ("auto", "json_response")


def batches_of_pages(loading: Loading) -> Iterator[Batch]:
    """All pages that an API gives for what is new since the newest cursor, as one batch; none if they have no rows.

    Without `key` no row is known again: then the answer is a whole, which replaces the one before if it differs.
    Raises `LoadError` if a page can't be had, or is not as declared: nothing of the others has landed then, and the
    next load asks from the same cursor.
    """
    connection, source = loading.connection, loading.source
    check_api(source)
    name = without_secrets(source.uri.removeprefix("api+"))
    connection.execute("create or replace temp table lines (line varchar)")
    content, size, count = hashlib.sha256(loading.declaration.encode()), 0, 0
    for page_size, lines in _pages(loading):
        connection.execute("insert into temp.lines select unnest(?::varchar[])", [lines])
        content.update("\n".join([*lines, ""]).encode())
        size, count = size + page_size, count + len(lines)
    fingerprint, earlier = content.hexdigest(), loading.known_files().get(name) if not source.key else None
    if not count:
        loading.note(f"{name} has no new rows" if source.key else f"{name} has no rows; the table stays as it was")
        return
    if earlier and earlier[0] == fingerprint:
        return
    rows = json_rows(connection, "temp.lines", loading.wanted())
    yield Batch(
        id=batches.new_batch_id(),
        source=name,
        relation=rows.relation,
        form="json",
        sniffed=rows.sniffed,
        unreadable=rows.unreadable,
        fingerprint=fingerprint,
        bytes=size,
        replaces=earlier[1] if earlier else (),
    )


def check_api(source: Source) -> None:
    """Raises `LoadError` if the declaration of an API asks for what can't be, or a secret is written in it."""
    _paginator(source)
    _selector(source)
    if source.api.cursor_param and not source.cursor:
        raise LoadError(
            f"{told(source)}: load: api: cursor_param is how the API is told the newest cursor, but load lacks cursor"
        )
    for name, value in source.api.headers.items():
        if name.lower() in SECRET_HEADERS and not NAMED.search(str(value)):
            raise LoadError(
                f"{told(source)}: load: api: headers: a secret is written in {name}; put it into the environment, and"
                " ${ITS_NAME} here"
            )


def _pages(loading: Loading) -> Iterator[tuple[int, list[str]]]:
    """Each page's size in bytes and its rows as lines of JSON."""
    source, url = loading.source, loading.uri.removeprefix("api+")
    interval = 1 / source.api.per_second if source.api.per_second else 0.0
    client = _client(source, url, interval)
    with client.session:
        pages = client.paginate(
            params=_params(loading),
            paginator=_paginator(source),
            data_selector=_selector(source),
            hooks={"response": [partial(_as_it_came, source)]},
        )
        seen: set[str] = set()
        for number in itertools.count(1):
            where = f"{told(source)}: load: from '{without_secrets(source.uri)}': page {number}"
            asked = time.monotonic()
            page = _next(pages, source, where)
            if page is None:
                return
            lines = [ENCODER.encode(row).decode() for row in page]
            if len(lines) <= 1:  # a place that isn't there gives none, and an object that is no list is given as one
                _check_rows(source, page.response.json(), where)
            digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
            if lines and digest in seen:
                raise LoadError(
                    f"{where} has the same rows as one before, so there would be no end: does the API know the"
                    f" parameters of api: pages: {source.api.pages}?"
                )
            seen.add(digest)
            yield len(page.response.content), lines
            if page.paginator.has_next_page:
                _check_next(source, url, page.request.url, where)
                time.sleep(max(0.0, asked + interval - time.monotonic()))


def _client(source: Source, url: str, interval: float) -> Any:
    """dlt's REST client, which tries a page again if the server is busy or fails, or the connection does."""
    from dlt.common.configuration.specs import RuntimeConfiguration
    from dlt.sources.helpers.requests.retry import Client
    from dlt.sources.helpers.rest_client import RESTClient

    session = Client(
        raise_for_status=False,
        request_timeout=TIMEOUT_SECONDS,
        request_max_attempts=ATTEMPTS,
        request_backoff_factor=max(BACK_OFF_SECONDS, interval),
        request_max_retry_delay=max(LONGEST_WAIT_SECONDS, interval),
    ).session
    # A configuration of its own: dlt would look for one in the home directory and in the working one.
    return RESTClient(url, _texts(source, source.api.headers), session=session, config=RuntimeConfiguration())


def _as_it_came(source: Source, response: Any, **_: Any) -> None:
    """Keeps the digits of numbers, and the headers, maybe secrets, from another server. Raises for an error."""
    response.json = partial(type(response).json, response, parse_float=Decimal)
    if response.is_redirect:
        where = f"{told(source)}: load: from '{without_secrets(source.uri)}'"
        _check_next(source, response.url, urljoin(response.url, response.headers["location"]), where)
    response.raise_for_status()


def _next(pages: Iterator[Any], source: Source, where: str) -> Any:
    """The next page, None after the last. Raises `LoadError` for what a server may answer or not."""
    import requests

    try:
        return next(pages, None)
    except requests.JSONDecodeError:
        raise LoadError(
            f"{where} is no JSON; does the address lead to the API, and not to a page for people?"
        ) from None
    except requests.HTTPError as error:
        raise LoadError(f"{where}: {_refusal(source, error.response)}") from None
    except requests.RequestException as error:
        raise LoadError(
            f"{where} can't be had, {ATTEMPTS} times over: {scrubbed(source, _cause(error))}; is the server there?"
            " Nothing of this run has landed, the next one asks for the same again"
        ) from None
    except (ValueError, TypeError, AttributeError) as error:  # of a paginator that misses in the answer what it needs
        fault = scrubbed(source, str(error).partition(" got `")[0])
        raise LoadError(
            f"{where} does not have what api: pages: {source.api.pages} needs: {fault[:SHOWN]}"
            " (offset and page_number stop at an empty page where total_path: null)"
        ) from None


def _texts(source: Source, declared: Mapping[str, Any]) -> dict[str, str]:
    """Headers or parameters as they are sent."""
    return {
        name: expanded(source, value if isinstance(value, str) else json.dumps(value))
        for name, value in declared.items()
    }


def _params(loading: Loading) -> dict[str, str]:
    """What to ask for: as declared, and since the newest cursor that the table holds."""
    connection, source = loading.connection, loading.source
    params = _texts(source, source.api.params)
    if not source.api.cursor_param:
        return params
    if not source.cursor or source.cursor not in warehouse.columns(connection, source.schema, source.table):
        return params
    name, held = warehouse.name(source.cursor), warehouse.columns(connection, source.schema, source.table)
    is_time = held[source.cursor].startswith(("DATE", "TIMESTAMP"))
    # What is of the future would hide all that comes until then.
    past = f"where {name}::timestamp <= {FUTURE}" if is_time else ""
    newest = f"select max({name}) from {batches.table_of(source)} {past}"
    (value,) = warehouse.one(connection, newest)
    return params if value is None else {**params, source.api.cursor_param: _written(value)}


def _written(cursor: Any) -> str:
    """A cursor as APIs take it: a moment as ISO 8601, in UTC where it has a zone."""
    if isinstance(cursor, datetime):
        return cursor.isoformat().replace("+00:00", "Z")
    return str(cursor)


def _selector(source: Source) -> Any:
    """Where in an answer the rows are: a JSONPath, compiled once."""
    from dlt.common import jsonpath

    try:
        return jsonpath.compile_path(source.api.rows or "$")
    except Exception as error:  # the parser has several, of no common kind
        raise LoadError(f"{told(source)}: load: api: rows: '{source.api.rows}' is no JSONPath: {error}") from None


def _paginator(source: Source) -> Any:
    """What turns the pages, as dlt's REST source declares it. Raises `LoadError` for what dlt doesn't know."""
    from dlt.sources.rest_api.config_setup import PAGINATOR_MAP, create_paginator

    declared = source.api.pages or {"type": "single_page"}
    known = sorted(PAGINATOR_MAP.keys() - set(UNUSED_TYPES))
    where = f"{told(source)}: load: api: pages: {declared}"
    if declared.get("type") not in known:
        raise LoadError(f"{where}: its type is not known (known: {', '.join(known)})")
    try:
        return create_paginator(declared)
    except Exception as error:  # TypeError, ValueError, or of the parser of JSONPath
        takes = list(inspect.signature(PAGINATOR_MAP[declared["type"]].__init__).parameters)[1:]
        fault = str(error).rpartition("__init__() ")[2]
        raise LoadError(f"{where}: {fault} ({declared['type']} takes: {', '.join(takes)})") from None


def _check_rows(source: Source, answer: Any, where: str) -> None:
    """Whether an answer has the place where its rows should be: an empty list is there, a name misspelt is not."""
    from dlt.common import jsonpath

    shown = f"it has: {', '.join(answer)}" if isinstance(answer, dict) else f"it is a {type(answer).__name__}"
    if source.api.rows is None and isinstance(answer, dict):
        raise LoadError(
            f"{where} is an object, not a list of rows; write where they are as api: rows ({shown[:SHOWN]})"
        )
    place = (source.api.rows or "$").removesuffix("[*]")
    if "[" not in place and not jsonpath.find_values(place, answer):
        raise LoadError(f"{where} has nothing at api: rows: '{source.api.rows}' ({shown[:SHOWN]})")


def _check_next(source: Source, url: str, following: str, where: str) -> None:
    """Whether the next page is on the same server: a link must not take the headers, maybe secrets, elsewhere."""
    here, there = (f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" for parts in map(urlsplit, (url, following)))
    if source.api.headers and here != there:
        raise LoadError(
            f"{where} names a next page on {there}, another server than {here}, and it would be sent the headers;"
            " declare the address that the API gives in its links"
        )


def _refusal(source: Source, response: Any) -> str:
    """An answer that is an error, and what to do."""
    told_by_server = scrubbed(source, response.text[: 10 * SHOWN])[:SHOWN]
    status = f"HTTP {response.status_code} {response.reason}"
    if response.status_code in (401, 403):
        return f"{status}: it does not let us in; are api: headers right, and what they take from the environment?"
    if response.status_code == 404:
        return f"{status}: there is nothing at this address; is its path right?"
    if response.status_code == 429 or response.status_code >= 500:
        return (
            f"{status}, {ATTEMPTS} times over; nothing of this run has landed, the next one asks for the same again"
            + (" (api: per_second asks less often)" if response.status_code == 429 else "")
        )
    return f"{status}: {told_by_server or 'without a reason'}"


def _cause(error: BaseException) -> str:
    """What is at the bottom of an error of the network, where no URL is told any more."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return f"{type(error).__name__}: {error}"
