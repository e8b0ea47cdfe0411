"""The pictures of a model card, as SVG to stand in a page: matplotlib draws, the page's style gives the colours."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ml.evaluation import Evaluation, Moves
from ml.metrics import Bin, Kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

# Colours that are drawn, and the variables of the page's style that stand in their place, for light and dark.
INK, QUIET, LINE = "#010101", "#020202", "#030303"
SERIES = ("#040401", "#040402", "#040403", "#040404", "#040405", "#040406")
VARIABLES = {INK: "--ink", QUIET: "--quiet", LINE: "--line"} | {
    colour: f"--s{place}" for place, colour in enumerate(SERIES)
}
LOW, HIGH, NEITHER = "#3f86bd", "#d9742b", "#8b9598"  # of values; seen on light ground and on dark
WIDTH = 5.0  # inches, of 72 units of the page: narrow, so that text stays readable on a phone
DOTS_PER_INCH = 170
LONGEST_NAME = 46  # letters that have room
SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "text.parse_math": False,  # a dollar sign is one
    "font.size": 12,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": QUIET,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "grid.color": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "axes.axisbelow": True,
}


def calibration_picture(kind: Kind, evaluation: Evaluation) -> str:
    """What was forecast against what came, in bins of equal count; empty where there is nothing to draw."""
    percent = kind != "amount"

    def draw(axes: "Axes") -> None:
        most = max(max(one.predicted, one.observed) for bins in drawn.values() for one in bins)
        least = min(0.0, *(min(one.predicted, one.observed) for bins in drawn.values() for one in bins))
        span = (most - least) or 1.0
        axes.plot([least, most], [least, most], color=QUIET, linewidth=1, dashes=(4, 3))
        for place, (name, bins) in enumerate(drawn.items()):
            x, y = ([getattr(one, side) for one in bins] for side in ("predicted", "observed"))
            if name == "uncalibrated":
                axes.plot(x, y, color=QUIET, linewidth=1, marker="o", markersize=3, label="before calibration")
                continue
            colour = SERIES[place]
            if percent and len(drawn) - ("uncalibrated" in drawn) == 1:
                low, high = _by_chance(bins)
                axes.vlines(x, low, high, color=colour, linewidth=1.4, alpha=0.55)
            axes.plot(x, y, color=colour, linewidth=1.6, marker="o", markersize=5, label=_label(name, kind))
        axes.set_xlim(least - 0.04 * span, most + 0.05 * span)
        axes.set_ylim(least - 0.04 * span, most + 0.08 * span)
        axes.set_xlabel("forecast")
        axes.set_ylabel("what came")
        axes.grid(linewidth=0.6)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(_percent if percent else _amount)
        if len(drawn) > 1:
            axes.legend(loc="upper left")

    drawn = _most(evaluation.bins, {name: sum(one.observed for one in bins) for name, bins in evaluation.bins.items()})
    return as_svg("calibration", 3.5, draw, "Forecast against what came, in ten bins of equal count") if drawn else ""


def gains_picture(kind: Kind, evaluation: Evaluation) -> str:
    """The share of all outcomes, or of the total amount, that the highest scores hold; empty where there is none."""

    def draw(axes: "Axes") -> None:
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, dashes=(4, 3))
        for place, (name, gains) in enumerate(drawn.items()):
            x = np.arange(len(gains) + 1) / len(gains)
            y = np.concatenate([[0], gains])
            axes.plot(x, y, color=SERIES[place], linewidth=1.8, label=_label(name, kind) if len(drawn) > 1 else None)
            if len(drawn) == 1:
                tenth = float(np.interp(0.1, x, y))
                told = f"the highest 10 % hold {100 * tenth:.0f} %"
                axes.plot([0.1], [tenth], color=SERIES[place], marker="o", markersize=6, linewidth=0, label=told)
        axes.set_xlim(0, 1.01)
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("share of rows, the highest scores first")
        axes.set_ylabel("share of the total" if kind == "amount" else "share of the outcomes")
        axes.grid(linewidth=0.6)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(_percent)
        axes.legend(loc="lower right")  # below the dashed line, where nothing else is

    drawn = _most(evaluation.gains, {name: -place for place, name in enumerate(evaluation.gains)})
    return as_svg("gains", 3.5, draw, "Share of the outcomes that the highest scores hold") if drawn else ""


def moves_picture(moves: Sequence[Moves], unit: str) -> str:
    """A row of points for each feature: what it added to the score of each drawn row, coloured by its value there."""

    def draw(axes: "Axes") -> None:
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.transforms import blended_transform_factory

        colours = LinearSegmentedColormap.from_list("value", [LOW, "#9a8fa0", HIGH])
        beside = blended_transform_factory(axes.transAxes, axes.transData)
        axes.axvline(0, color=QUIET, linewidth=0.8)
        for row, one in enumerate(moves):
            added = np.array(one.contributions)
            values = np.array([np.nan if value is None else value for value in one.values], dtype=np.float64)
            if one.type == "category":
                values[:] = np.nan  # its codes have no order
            known = ~np.isnan(values)
            y = row + 0.15 + 0.27 * _spread(added)
            axes.axhline(row - 0.5, color=LINE, linewidth=0.6)
            for part, colour in ((~known, NEITHER), (known, colours(values[known]))):
                axes.scatter(added[part], y[part], s=10, c=colour, linewidths=0, alpha=0.8, rasterized=True)
        least, most = axes.get_xlim()
        end, side = (0, "left") if -least > most else (1, "right")  # where a name has most room beside the line of zero
        for row, one in enumerate(moves):
            name = axes.text(end, row - 0.3, _short(one.feature), transform=beside, va="center", ha=side, size=11)
            name.set_in_layout(False)  # a long name narrows nothing
        axes.set_ylim(len(moves) - 0.4, -0.55)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"moves the score, {unit}" if unit else "moves the score")

    height = 0.7 + 0.48 * len(moves)
    return as_svg("moves", height, draw, "What each feature added to the score of each drawn row") if moves else ""


def _by_chance(bins: Sequence[Bin]) -> "tuple[NDArray[np.float64], NDArray[np.float64]]":
    """The 95 % interval of each bin's observed rate (Wilson's score interval)."""
    rate, rows = np.array([one.observed for one in bins]), np.array([one.rows for one in bins])
    z = 1.96
    middle = (rate + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z * np.sqrt(rate * (1 - rate) / rows + z**2 / (4 * rows**2)) / (1 + z**2 / rows)
    return middle - half, middle + half


def _most(series: Mapping[str, tuple[Any, ...]], weight: Mapping[str, float]) -> dict[str, tuple[Any, ...]]:
    """As many series as there are colours, the weightiest, in their order; those without any point left out."""
    full = {name: values for name, values in series.items() if values}
    kept = set(sorted(full, key=lambda name: -weight[name])[: len(SERIES)])
    return {name: values for name, values in full.items() if name in kept}


def _label(name: str, kind: Kind) -> str:
    return _short(name) if kind == "category" else "the score"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _percent(value: float, _: Any) -> str:
    return f"{100 * value:.3g} %"


def _amount(value: float, _: Any) -> str:
    return f"{value:,.6g}"


def _spread(values: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Places from -1 to 1 for points on a line, so that those next to each other don't lie upon each other."""
    span = np.ptp(values)
    if not len(values) or not span:
        return np.linspace(-1, 1, len(values))
    crowd = np.round((values - values.min()) / span * 90).astype(np.int64)
    order = np.argsort(crowd, kind="stable")
    _, starts, counts = np.unique(crowd[order], return_index=True, return_counts=True)
    layer = np.arange(len(values)) - np.repeat(starts, counts)
    side = np.where(layer % 2 == 0, 1, -1) * ((layer + 1) // 2)
    places = np.empty(len(values))
    places[order] = side
    return np.asarray(places / max(6, np.abs(places).max()), dtype=np.float64)


def as_svg(name: str, height: float, draw: Any, told: str) -> str:
    """What `draw` puts on axes, `height` inches high, as an SVG element; the same bytes each time.

    `name` keeps its ids apart from those of the page's other pictures, `told` is for those who can't see it.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    settings: Any = {**SETTINGS, "svg.hashsalt": name}
    with rc_context(settings):
        figure = Figure(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, layout="constrained")
        draw(figure.add_subplot())
        written = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(written, format="svg", transparent=True, dpi=DOTS_PER_INCH, metadata=nothing)
    return _for_a_page(written.getvalue(), told)


def _for_a_page(text: str, told: str) -> str:
    """The SVG of a file as an element: of the page's width, fonts and colours, and with no ids but those it uses."""
    head, _, rest = text[text.index("<svg") :].partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    assert box, "an SVG of matplotlib has a viewBox"
    for needless in (r"<metadata>.*?</metadata>", r"<defs>\s*<style.*?</style>\s*</defs>", r" font-family: [^;\"]*;"):
        rest = re.sub(needless, "", rest, flags=re.DOTALL)
    rest = re.sub(r'<g id="[^"]*"', "<g", rest)
    for colour, variable in VARIABLES.items():
        rest = rest.replace(colour, f"var({variable})")
    return f'<svg class="picture" {box[0]} role="img" aria-label="{told}">' + re.sub(r"\s*\n\s*", "\n", rest).strip()
