"""Of the page on performance the parts on one date: slices of its customers, and what the highest scores held."""

from typing import Any

import msgspec

from ml.gains import GAINS, Gain, best_depth
from ml.metrics import HIGHER_IS_BETTER, METRICS
from ml.realised import Performance, RealisedMetric
from reports.pictures import INK, QUIET, SERIES, as_svg

DEPTHS = (0.05, 0.1, 0.2, 0.5)  # of the customers, that are told
MOST_SLICES = 30  # that are listed, the worst ones


class SliceRow(msgspec.Struct, frozen=True, kw_only=True):
    """A slice of a date by the first metric of its kind."""

    column: str
    value: str
    rows: int
    metric: RealisedMetric


class GainRow(msgspec.Struct, frozen=True, kw_only=True):
    """What a share of the customers held, beside what the held-out dates promised of it."""

    gain: Gain
    promised: float | None


def slice_rows(performance: Performance) -> list[SliceRow]:
    """The slices of the newest date in which the first metric of the kind can be measured, the worst first."""
    name = next(iter(METRICS[performance.kind]))
    found = [
        SliceRow(column=part.column, value=part.value, rows=part.rows, metric=metric)
        for part in performance.slices
        for metric in part.metrics
        if metric.metric == name and metric.realised is not None
    ]
    sign = 1 if HIGHER_IS_BETTER[name] else -1
    return sorted(found, key=lambda row: sign * (row.metric.realised or 0.0))[:MOST_SLICES]


def gain_rows(performance: Performance) -> list[GainRow]:
    """The gains at a few depths, and at the one that is worth the most."""
    best = best_depth(performance.gains)
    return [
        GainRow(gain=gain, promised=_promised(performance, gain))
        for gain in performance.gains
        if gain.share in DEPTHS or gain is best
    ]


def _promised(performance: Performance, gain: Gain) -> float | None:
    place = round(gain.share * GAINS) - 1
    return performance.promised_gains[place] if place < len(performance.promised_gains) else None


def best_told(performance: Performance) -> str:
    """Which depth is worth the most, in a sentence; empty where no value is declared."""
    if performance.contact is None or not performance.gains:
        return ""
    what = "outcome" if performance.kind == "probability" else "unit of the amount"
    worth = f"With {performance.contact.value:g} for each {what} and {performance.contact.cost:g} a contact"
    best = best_depth(performance.gains)
    if best is None:
        return f"{worth} no depth was worth its cost."
    everybody = performance.gains[-1].value_total or 0.0
    return (
        f"{worth} the best depth was {best.share:.0%} of the customers ({best.customers:,}):"
        f" {best.value_total:,.0f} in all; contacting everybody was worth {everybody:,.0f}."
    )


def gains_picture(performance: Performance) -> str:
    """The gains of the newest date beside those of the held-out dates; empty where there are none."""
    if not performance.gains:
        return ""
    best = best_depth(performance.gains)

    def draw(axes: Any) -> None:
        shares = [0.0, *(gain.share for gain in performance.gains)]
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, dashes=(4, 3), label="by chance")
        if performance.promised_gains:
            axes.plot(shares, [0.0, *performance.promised_gains], color=SERIES[0], linewidth=1.2, label="promised")
        held = [0.0, *(gain.held for gain in performance.gains)]
        axes.plot(shares, held, color=INK, marker="o", markersize=3, linewidth=1.2, label="realised")
        if best is not None:
            axes.plot([best.share], [best.held], color=SERIES[2], marker="o", markersize=8, linestyle="none",
                      label="worth the most")  # fmt: skip
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("share of the customers, the highest scores first")
        axes.tick_params(length=0, labelsize=10)
        axes.grid(linewidth=0.6)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
        axes.legend(loc="lower right", fontsize=10)

    what = "outcomes" if performance.kind == "probability" else "total amount"
    return as_svg("gains", 3.2, draw, f"Share of the {what} that the highest scores held")
