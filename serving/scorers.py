"""What predicts on demand of a generation: its model, loaded beside lookups, and never in their way."""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import msgspec

from serving.generations.generation import StoreUnavailable
from serving.generations.opening import Lookups

if TYPE_CHECKING:
    from ml.on_demand import Scorer

log = logging.getLogger("serving")


class NoScorer(msgspec.Struct, frozen=True):
    """Why a generation predicts nothing; `broken` where that is a fault, and not how it was published."""

    detail: str
    broken: bool


def load_scorer(store: Lookups) -> "Scorer | NoScorer":
    """The scorer of a verified generation, with its trees and the table of its reasons. It takes a second at first, for
    the imports, then tenths of one, and as much memory as the model and its table: see `ml.leaf_table`.

    Raises `StoreUnavailable` where the store can't be asked just now: that says nothing of the model."""
    generation = store.generation
    name = f"Generation {generation.generation} of score '{generation.score}'"
    absent = [
        what
        for what, there in (("a model", "model.cbm" in generation.files), ("features", bool(generation.features)))
        if not there
    ]
    if absent:
        detail = f"{name} was published without {' and '.join(absent)}; the next one that is published has them."
        return NoScorer(detail, broken=False)
    try:
        from ml.on_demand import make_scorer
        from ml.registry import BOOSTER, CARD, load

        with TemporaryDirectory() as folder:
            for file in (BOOSTER, CARD):
                (Path(folder) / file).write_bytes(store.attachment(file))
            model = load(Path(folder))
        model.trees  # noqa: B018 (they are made now, and not at the first request)
        if generation.reasons:
            model.leaf_table  # noqa: B018 (so is this)
        return make_scorer(model, generation.features, generation.bands, generation.quantiles, generation.reasons)
    except StoreUnavailable:
        raise
    except Exception as error:  # whatever it is, lookups go on
        log.exception(
            "%s/%s: its model can't be loaded, so nothing is predicted", generation.score, generation.generation
        )
        detail = f"{name} can't predict: its model can't be loaded ({type(error).__name__}; the server's log has more)."
        return NoScorer(detail, broken=True)


def broken_scorer(scorer: "Scorer | NoScorer | None") -> str | None:
    """The fault of a scorer, None if it has none."""
    return scorer.detail if isinstance(scorer, NoScorer) and scorer.broken else None
