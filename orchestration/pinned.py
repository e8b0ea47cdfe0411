"""What a champion needs of its feature model: a column that goes or changes is told before anything is overwritten.

The feature model's contract is pinned by what is served: the card in each score's current generation names the columns
that its model reads, with their types. A new column is free. One that is to go is left out of the score first
(`exclude`), so that a champion without it can be trained while it is still there.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import duckdb

from ml.declarations import DeclarationError, Project, Score
from orchestration import warehouse
from orchestration.project import Paths

if TYPE_CHECKING:
    from ml.registry import Card


class BrokenContract(DeclarationError):
    """A feature model lacks what a champion needs: score, version, column of each, and what to do."""


def refuse_broken_contracts(project: Project, where: Paths) -> None:
    """Raises `BrokenContract` if a feature model of the project lacks a column that a served champion reads.

    A column has changed if the model would read it as another kind: a number that is a text now, not an integer that
    is a bigint. A data folder of another project tells nothing.
    """
    from ml.registry import CorruptModel, load_card
    from serving.generations import store

    if where.owner.is_file() and where.owner.read_text().strip() != project.name:
        return
    faults = []
    with duckdb.connect() as connection:
        for score in project.scores:
            try:
                served = store.current(where.generations, score.name)
                if served is None:
                    continue
                card = load_card(where.generations / score.name / served)
            except (store.CorruptGeneration, CorruptModel):  # published anew by a run; /health/ready tells meanwhile
                continue
            if card.kind == score.kind:
                faults += _broken(connection, score, card)
    if faults:
        raise BrokenContract("\n".join(faults))


def _broken(connection: warehouse.Connection, score: Score, card: "Card") -> list[str]:
    """What the champion with this card misses in the score's feature model as it is declared now."""
    needs = f"but version {card.version} of score '{score.name}', the champion, needs it"
    return [
        f"{score.features_file}: model '{score.features}': column '{name}' is {now}, {needs}{wanted};"
        f" bring it back, or have a champion trained without it first: exclude: [{name}] in the exposure"
        f" '{score.name}', make run, and then change the model"
        for name, now, wanted in missing_columns(connection, score, card)
    ]


def missing_columns(connection: warehouse.Connection, score: Score, card: "Card") -> Iterator[tuple[str, str, str]]:
    """The columns that the version with this card reads and can't in the feature model as it is declared now.

    Each with what it is now, and as what it is needed: `("segment", "gone", "")`.
    """
    declared = {feature.name: feature.data_type for feature in score.model_columns}
    kinds = {column.name: column.type for column in card.encoder.columns}
    for feature in card.features:
        if feature.name not in kinds:
            continue
        if feature.name not in declared:
            yield feature.name, "gone", ""
            continue
        now = _kind(connection, declared[feature.name])
        if now != kinds[feature.name]:
            read = f"declared as {declared[feature.name]}, which is read as {now or 'nothing known'}"
            yield feature.name, read, f" as a {kinds[feature.name]} ({feature.data_type})"


def _kind(connection: warehouse.Connection, data_type: str) -> str | None:
    """How a model reads a column of a declared type; None if it can't."""
    from ml.encoding import column_type
    from ml.values import UnknownType, arrow_type, read_as

    try:
        return column_type(arrow_type(read_as(warehouse.canonical_type(connection, data_type))))
    except (duckdb.Error, UnknownType):
        return None
