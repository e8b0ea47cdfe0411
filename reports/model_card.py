"""A model card: one page that says what a version is, how good, by whose word it scores customers, and what it was
made from (Mitchell et al., "Model cards for model reporting", 2019)."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ml.declarations import Score
from ml.evaluation import Evaluation
from ml.gate import GateResult
from ml.metrics import HIGHER_IS_BETTER, METRICS
from ml.registry import Card
from ml.slices import Slice
from ml.standing import Standing

TEMPLATES = Path(__file__).parent / "templates"
TEMPLATE = "model_card.html"
IMPORTANT = 20  # features with a bar
TRIALS = 20  # of a search that are listed, the best ones
COMMON_BASE = 0.5  # where the bars of a metric begin that is so for a guess
SHORT = 12  # characters of a checksum that are shown
# Parameters that only the engine needs; which features are monotone is told by their names.
OF_THE_ENGINE = {"thread_count", "allow_writing_files", "logging_level", "classes_count", "monotone_constraints"}

CHAMPIONS = {
    "now": "It is the champion: customers are scored by it.",
    "before": "It was champion once, and is no more.",
    "never": "It has never scored customers.",
}


class MetricLine(msgspec.Struct, frozen=True, kw_only=True):
    """A metric of the version with its interval, beside the naive forecast's and the champion's of that time."""

    name: str
    meaning: str
    better: str
    value: float | None
    interval: tuple[float, float] | None
    baseline: float | None
    champion: float | None


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """A line with a bar: its width, and the place of a mark on it, in percent."""

    name: str
    value: float | None
    width: float
    mark: float | None = None
    rows: int = 0


def edition() -> str:
    """A hash of what makes the page: where it differs, pages are made anew."""
    found = hashlib.sha256()
    for file in (TEMPLATES / TEMPLATE, Path(__file__), Path(__file__).with_name("pictures.py")):
        found.update(file.read_bytes())
    return found.hexdigest()[:8]


def model_card(card: Card, standing: Standing, score: Score, *, known_until: str = "") -> str:
    """The page of a version: complete in itself, without scripts, for a screen, a phone or paper, light or dark.

    `score` is the declaration of today, for its title, description and owner; `known_until` the day up to which
    outcomes were known when the training set was frozen.
    """
    from markupsafe import Markup

    from reports import pictures
    from reports.templating import template

    def breakable(name: str) -> Markup:
        return Markup("_<wbr>").join(name.split("_"))

    evaluation = card.evaluation
    unit = {"probability": "log-odds", "category": "log-odds of the likeliest class", "amount": ""}[card.kind]
    drawn = {
        "calibration": pictures.calibration_picture(card.kind, evaluation) if evaluation else "",
        "gains": pictures.gains_picture(card.kind, evaluation) if evaluation else "",
        "moves": pictures.moves_picture(evaluation.moves, unit) if evaluation else "",
    }
    parts = _parts(card, evaluation)
    described = {feature.name: feature.description for feature in card.features}
    return template(TEMPLATE, measure=measure, condition=_condition, breakable=breakable).render(
        card=card,
        standing=standing,
        score=score,
        reign=_reign(standing),
        metrics=metric_lines(card),
        headline=metric_lines(card)[0],
        pictures={name: Markup(svg) for name, svg in drawn.items()},
        importance=_importance_bars(card.importance),
        described=described,
        parts={column: bars for column, bars in parts.items() if len(bars) > 1},
        alone=[column for column, bars in parts.items() if len(bars) == 1],
        rates=_rates(card),
        known_until=known_until,
        learning=_learning(card),
        params={name: _tidy(value) for name, value in card.params.items() if name not in OF_THE_ENGINE},
        trials=_trials(card),
        short=SHORT,
    )


def metric_lines(card: Card) -> list[MetricLine]:
    """The metrics of a card in the order of their kind."""
    ways = {True: "more is better", False: "less is better", None: "nearer to zero is better"}
    return [
        MetricLine(
            name=name,
            meaning=meaning,
            better=ways[HIGHER_IS_BETTER[name]],
            value=card.metrics.get(name),
            interval=card.intervals.get(name),
            baseline=card.baseline.get(name),
            champion=card.champion.get(name),
        )
        for name, meaning in METRICS[card.kind].items()
        if name in card.metrics
    ]


def _reign(standing: Standing) -> str:
    """Whether it is champion; of one that is so no more, until when, by whose word, and why."""
    ended = standing.ended
    if ended is None:
        return CHAMPIONS[standing.champion]
    until = f"It was champion until {ended.promoted_at:%Y-%m-%d %H:%M} UTC, when "
    if ended.how == "gate":
        return f"{until}version {ended.version} passed its gate."
    why = f": {ended.reason}" if ended.reason else "."
    return f"{until}{ended.by or 'somebody'} put version {ended.version} in its place by {ended.how}{why}"


def _importance_bars(importance: Mapping[str, float]) -> list[Bar]:
    most = max(importance.values(), default=0) or 1
    return [
        Bar(name=name, value=share, width=100 * share / most) for name, share in list(importance.items())[:IMPORTANT]
    ]


def _parts(card: Card, evaluation: Evaluation | None) -> dict[str, list[Bar]]:
    """By column the slices with the first metric of the kind, as a bar with a mark where that of all rows is."""
    if evaluation is None:
        return {}
    metric = next(iter(METRICS[card.kind]))
    base = COMMON_BASE if metric == "roc_auc" else 0.0

    def width(value: float | None) -> float:
        return 0.0 if value is None or value != value else 100 * min(1.0, max(0.0, (value - base) / (1 - base)))

    def bar(part: Slice) -> Bar:
        value = part.metrics.get(metric)
        return Bar(name=part.value, value=value, width=width(value), mark=width(card.metrics[metric]), rows=part.rows)

    parts: dict[str, list[Bar]] = {}
    for part in evaluation.slices:
        parts.setdefault(part.column, []).append(bar(part))
    return parts


def _rates(card: Card) -> dict[str, str]:
    """The base rates as they are read: in percent, of an amount as its mean."""
    told = measure if card.kind == "amount" else _percent
    names = {"train": "training", "holdout": "held out"}
    return {names.get(name, name): told(value) for name, value in card.rates.items()}


def _learning(card: Card) -> dict[str, str]:
    """What the owner declared of the training, where anything was."""
    declared = card.learning
    none = "" if card.search else ": none, as the training rows have no newest dates to judge them on"
    told = {
        "fixed parameters": ", ".join(f"{name} {value:g}" for name, value in declared.params.items()),
        "trials of the search": f"{declared.trials}{none}" if declared.trials else "",
        "trained on": f"the last {declared.train_on_days:g} days" if declared.train_on_days else "",
        "monotone": ", ".join(f"{name} {direction}" for name, direction in declared.monotone.items()),
    }
    return {name: value for name, value in told.items() if value}


def _trials(card: Card) -> list[dict[str, Any]]:
    """The trials of the search with the least loss, the best first."""
    ordered = sorted(card.search, key=lambda trial: trial.get("loss", float("inf")))
    return [{"number": number, **trial} for number, trial in enumerate(ordered[:TRIALS], 1)]


def _condition(result: GateResult) -> str:
    """The figures that a condition was judged by."""
    return ", ".join(f"{name} {measure(value)}" for name, value in result.values.items())


def _tidy(value: Any) -> Any:
    """A parameter as it is read; the card's JSON has all its digits."""
    return f"{value:.4g}" if isinstance(value, float) else value


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def measure(number: float | None) -> str:
    """A number with what is worth reading of it: 0.8812, 12.35, 1,234; a dash for none."""
    if number is None or number != number:
        return "–"
    if number == int(number) and abs(number) < 1e15:
        return f"{number:,.0f}"
    return f"{number:,.4f}" if abs(number) < 1 else f"{number:,.2f}" if abs(number) < 1000 else f"{number:,.0f}"
