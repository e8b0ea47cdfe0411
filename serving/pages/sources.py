"""The raw tables as the page /sources shows them: what each batch brought. The pipeline writes the file."""

from datetime import datetime
from pathlib import Path
from statistics import median

import msgspec

FILE = "sources.json"


class BatchFigures(msgspec.Struct, frozen=True, kw_only=True):
    """A batch that came for a raw table. `rows` and what follows is None where it failed, `volume` where it was the
    first (rows over the median of the batches before), `lag_days` where the table has no cursor."""

    source: str
    loaded_at: datetime
    status: str
    fault: str | None
    rows: int | None
    landed: int | None
    rejected: int | None
    rejected_by_rule: dict[str, int]
    null_shares: dict[str, float]
    volume: float | None
    lag_days: float | None
    seconds: float | None


class SourceFigures(msgspec.Struct, frozen=True, kw_only=True):
    """A raw table with its newest batches, the oldest first. `quarantined` rows wait to be repaired; `fault` is what
    the last load failed of."""

    name: str
    description: str
    owner: str
    loaded_from: str
    rows: int
    quarantined: int
    fault: str | None = None
    batches: list[BatchFigures]


class SourceReport(msgspec.Struct, frozen=True, kw_only=True):
    """All raw tables, as of a moment."""

    written_at: datetime
    sources: list[SourceFigures]


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """A batch in a small chart: places and heights in percent; `told` is what it is in words.

    One that is `beyond` the chart's scale is as high as it."""

    x: float
    width: float
    rows: int
    height: float
    bad: float
    beyond: bool
    failed: bool
    told: str


class SourceView(msgspec.Struct, frozen=True, kw_only=True):
    """A raw table as a card: its state in a word, the bars of its batches, and columns whose nulls have changed."""

    source: SourceFigures
    state: str
    bars: list[Bar]
    nulls: list[tuple[str, float, float]]

    @property
    def newest(self) -> BatchFigures | None:
        return next((batch for batch in reversed(self.source.batches) if batch.status == "landed"), None)


WIDEST = 60  # batches in a chart
SCALE = 10  # times the median: a batch beyond it does not set the scale of the chart
JUMPED = 0.05  # of a null share, from which a column is worth a look


def read_sources(reports: Path) -> SourceReport | None:
    """What the pipeline wrote last; None before the first run. Reads the disk."""
    try:
        return msgspec.json.decode((reports / FILE).read_bytes(), type=SourceReport)
    except (FileNotFoundError, msgspec.DecodeError, msgspec.ValidationError):
        return None


def source_view(source: SourceFigures) -> SourceView:
    """A raw table as its card shows it."""
    batches = source.batches[-WIDEST:]
    landed = [batch for batch in batches if batch.status == "landed"]
    return SourceView(
        source=source,
        state="failed" if source.fault else "loaded" if landed else "waiting",
        bars=_bars(batches),
        nulls=_jumps(landed),
    )


def _bars(batches: list[BatchFigures]) -> list[Bar]:
    sizes = [batch.rows for batch in batches if batch.rows]
    # All of history, which often comes first and at once, would leave nothing to see of the days that follow.
    usual = [rows for rows in sizes if rows <= SCALE * median(sizes)]
    most = max(usual, default=1)
    step = 100 / max(len(batches), 12)
    bars = []
    for place, batch in enumerate(batches):
        height = min(100.0, 100 * (batch.rows or 0) / most)
        bad = (batch.rejected or 0) / batch.rows if batch.rows else 0.0
        told = f"{batch.loaded_at:%Y-%m-%d %H:%M}, {batch.source}: " + (
            f"{batch.rows:,} rows, {batch.rejected or 0:,} bad" if batch.rows is not None else "failed"
        )
        bars.append(
            Bar(
                x=round(place * step, 3),
                width=round(step * 0.8, 3),
                rows=batch.rows or 0,
                height=round(max(height, 2.0), 2),
                # a few bad rows among many would be no pixel high
                bad=round(max(height * bad, 4.0) if bad else 0.0, 2),
                beyond=(batch.rows or 0) > most,
                failed=batch.rows is None,
                told=told,
            )
        )
    return bars


def _jumps(landed: list[BatchFigures]) -> list[tuple[str, float, float]]:
    """(column, share of nulls before, share now) where the newest batch differs from the mean of those before."""
    if len(landed) < 2:
        return []
    newest, before = landed[-1], landed[:-1]
    jumps = []
    for column, share in newest.null_shares.items():
        earlier = [batch.null_shares[column] for batch in before if column in batch.null_shares]
        usual = sum(earlier) / len(earlier) if earlier else share
        if abs(share - usual) >= JUMPED:
            jumps.append((column, usual, share))
    return sorted(jumps, key=lambda jump: -abs(jump[2] - jump[1]))
