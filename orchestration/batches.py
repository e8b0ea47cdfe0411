"""What a source gives: batches of rows, on their way to a raw table."""

import hashlib
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from ml.declarations import Source
from orchestration import warehouse
from orchestration.warehouse import Connection

# How a kind of source knows types: `typed` ones are true (Parquet, a database); of `text` (CSV) a value that doesn't
# fit its column is a bad row, not another type; and in `json` a key that no row has is absent besides.
Form = Literal["typed", "text", "json"]

OWN = {"_loaded_at": "TIMESTAMP WITH TIME ZONE", "_batch_id": "VARCHAR", "_source": "VARCHAR"}
KNOWN_AT = "_known_at"
MEANING_OF_OWN = {
    "_loaded_at": "When the row was loaded, UTC",
    "_batch_id": "The batch it came with: a row of quality.source_metrics",
    "_source": "Where it came from: a file, table, subject or URL",
    KNOWN_AT: "When the business knew it, UTC: its own clock in the first full load, when it came later on",
}
MARKS = "_content, _cursor, _place, _nth, _is_same, _is_older"
# What the engine calls columns while rows are judged: the first sign of a name of its own, so that no source's is one.
TAKEN = {*OWN, KNOWN_AT, "_row", "_rule", "_came", *MARKS.split(", ")}
BROKEN = "_broken_"  # and a number: the mark of a row that breaks a rule


class LoadError(RuntimeError):
    """A source can't be loaded: file of the declaration, table, fault, what to do."""


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Rows that a source gives at once. `relation` is SQL that can be selected from, as often as needed.

    `source` is what `_source` says; `fingerprint` tells this content from another of the same source. `replaces` are
    earlier batches that this is a newer version of. `unreadable` selects (rule, row) of what is no row at all. A
    `streamed` relation can be read on another connection (files can, a temporary table can't). `sniffed` is the type
    that the values of a text column seem to have. `keys` selects the keys of all rows that the source has now: rows of
    the table with another key are deleted. `then` is SQL to execute in the same transaction.
    """

    id: str
    source: str
    relation: str
    form: Form = "typed"
    fingerprint: str = ""
    bytes: int = 0
    replaces: tuple[str, ...] = ()
    unreadable: str | None = None
    streamed: bool = False
    sniffed: dict[str, str] = {}
    keys: str | None = None
    then: str | None = None


class Loading(msgspec.Struct, kw_only=True):
    """A load under way: what a kind of source needs to know, and where it says what a person should know."""

    connection: Connection
    source: Source
    project: Path
    data: Path
    uri: str  # with what the environment keeps secret
    clock: datetime
    notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    @property
    def declaration(self) -> str:
        """A hash of what is declared: where it changes, files are read again."""
        source = self.source
        made_of = (source.uri, sorted(source.columns), sorted(source.types.items()), source.rules, source.key)
        return hashlib.sha256(repr(made_of).encode()).hexdigest()

    def wanted(self) -> dict[str, str]:
        """Column -> type that is declared or held already."""
        return {**warehouse.columns(self.connection, self.source.schema, self.source.table), **self.source.types}

    def known_files(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """What has landed and is in the table: `_source` -> fingerprint of the last batch, the ids of its batches."""
        if not warehouse.exists(self.connection, self.source.schema, self.source.table):
            return {}
        found = self.connection.execute(
            """
            select
                source, arg_max(fingerprint, loaded_at) filter (fingerprint <> '') as newest, list(distinct batch_id)
            from quality.source_metrics
            where schema_name = ? and table_name = ? and status <> 'failed'
            group by 1
            having newest is not null
            """,
            [self.source.schema, self.source.table],
        ).fetchall()
        return {source: (fingerprint, tuple(batches)) for source, fingerprint, batches in found}


def is_taken(column: str) -> bool:
    """Whether a column can't be a source's, as the engine has one of that name; to the warehouse case is no matter."""
    return column.lower() in TAKEN or column.lower().startswith(BROKEN)


def new_batch_id() -> str:
    """The id of a batch that nothing else identifies: the moment, and enough chance to be alone."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def table_of(source: Source) -> str:
    return warehouse.name(source.schema, source.table)


def quarantine_of(source: Source) -> str:
    return warehouse.name("quarantine", source.table)


def told(source: Source) -> str:
    """How messages name a source."""
    return f"{source.file}: source '{source.schema}.{source.table}'"


def is_own(column: str) -> bool:
    return column in OWN or column == KNOWN_AT
