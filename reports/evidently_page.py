"""The page to read about drift: Evidently's charts of a sample of both sides, below what every row has shown."""

import html
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ml.encoding import LARGEST
from ml.explanation import as_text

if TYPE_CHECKING:
    import pandas as pd

NULL, OTHER = "(null)", "(other)"
# A character that no text holds. Categories have it for <, which Evidently does not escape, until the page is written:
# a customer's "</script>" would end the script that holds the figures.
LESS_THAN = "\ufdd0"
CHARTED_CATEGORIES = 50
LARGEST_ALONE = 2.0**48  # of a column with one number, in a chart
SHARE_OF_A_DRIFTED_TABLE = 0.5
SUMMARISED = 5  # columns, the first ones: a summary takes as long as the comparison of five columns

Shown = Literal["number", "category"]

HEAD = """<title>{title}</title>
<style>
  .report-head {{ font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 60rem; }}
  .report-head {{ margin: 2rem auto 1rem; padding: 1rem 1.5rem; background: #ffffff; border-radius: 8px; }}
  .report-head h1 {{ font-size: 1.6rem; margin: 0 0 .5rem; }}
  .report-head dl {{ display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .2rem 1rem; margin: 0; }}
  .report-head dt {{ color: #52606d; }}
  .report-head dd {{ margin: 0; overflow-wrap: anywhere; }}
</style>
</head>"""


class EvidentlyPage(msgspec.Struct, frozen=True):
    """A page that works without a network, and Evidently's snapshot of what it shows; None where it shows no column."""

    html: str
    snapshot: Any


def evidently_page(
    reference: pa.Table,
    current: pa.Table,
    *,
    title: str,
    day: date,
    columns: Mapping[str, Shown],
    head: Mapping[str, str],
) -> EvidentlyPage:
    """Evidently's drift of these rows, which are a sample already, as of a day, and its summary of the first columns.

    `columns` says how each is shown, in this order; booleans go as categories, dates as either. A null category is a
    category of its own, a null number is left out; a number without any value on one side is not shown. Of many
    categories the 50 most frequent are told apart. `head` are the lines above the charts, as text by name. Raises
    `ValueError` naming what is missing if a side has no rows or lacks a column.
    """
    for table, name in ((reference, "the reference rows"), (current, "the current rows")):
        missing = [column for column in columns if column not in table.column_names]
        if missing or not table.num_rows:
            raise ValueError(
                f"drift report '{title}': {name} lack " + (f"columns {', '.join(missing)}" if missing else "rows")
            )
    before, after = _frame(reference, columns), _frame(current, columns)
    _merge_rare(before, after, columns)
    on_page = [name for name in columns if _has_room(before[name].dropna(), after[name].dropna())]
    left_out = [name for name in columns if name not in on_page]
    lines = {**head, **({"Not in the charts": f"{', '.join(left_out)} (no values, or too large)"} if left_out else {})}
    page, snapshot = "<html><head></head><body></body></html>", None
    if on_page:
        with _quietly():
            snapshot = _snapshot(before[on_page], after[on_page], columns, title, day)
            page = snapshot.get_html_str(as_iframe=False).replace(json.dumps(LESS_THAN)[1:-1], r"\u003c")
    return EvidentlyPage(_with_head(page, title, lines), snapshot)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the warnings of statistics on constant columns."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def _frame(table: pa.Table, kinds: Mapping[str, Shown]) -> "pd.DataFrame":
    """Numbers as models read them, NaN where null or infinite; categories as text, `(null)` where null.

    Models read float32, so that numbers which differ by rounding alone do not differ, and none is too large to square.
    """
    import pandas as pd

    def values(name: str) -> Any:
        column = table.column(name)
        if kinds[name] == "category":
            texts = pc.replace_substring(as_text(column), "<", LESS_THAN)
            return texts.fill_null(NULL).to_numpy(zero_copy_only=False)
        if pa.types.is_date(column.type):
            column = column.cast(pa.date32()).cast(pa.int32())
        elif pa.types.is_timestamp(column.type):
            column = pc.divide(
                column.cast(pa.timestamp("s"), safe=False).cast(pa.int64()).cast(pa.float64(), safe=False), 86_400.0
            )
        numbers = column.cast(pa.float64(), safe=False).to_numpy()
        read = np.clip(numbers, -LARGEST, LARGEST).astype(np.float32).astype(np.float64)
        return np.where(np.isfinite(numbers), read, np.nan)

    return pd.DataFrame({name: values(name) for name in kinds})


def _merge_rare(before: "pd.DataFrame", after: "pd.DataFrame", kinds: Mapping[str, Shown]) -> None:
    """Leave the most frequent categories of both sides, in place."""
    for name in (name for name, kind in kinds.items() if kind == "category"):
        counts = before[name].value_counts().add(after[name].value_counts(), fill_value=0)
        if len(counts) > CHARTED_CATEGORIES:
            kept = sorted(counts.index, key=lambda value: (-counts[value], value))[:CHARTED_CATEGORIES]
            for frame in (before, after):
                frame[name] = frame[name].where(frame[name].isin(kept), OTHER)


def _has_room(*sides: "pd.Series[Any]") -> bool:
    """Whether Evidently can chart a column: values on both sides, and around a single number ten edges within one."""
    if any(side.empty for side in sides):
        return False
    ends = [(side.min(), side.max()) for side in sides if side.dtype.kind == "f"]
    return all(lowest < highest or abs(lowest) < LARGEST_ALONE for lowest, highest in ends)


def _snapshot(before: "pd.DataFrame", after: "pd.DataFrame", kinds: Mapping[str, Shown], title: str, day: date) -> Any:
    """Evidently's report of these columns, run."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset, DataSummaryPreset

    class Table(DataDriftPreset):  # type: ignore[misc]  # Evidently has no types
        """Without a metric and its chart per column, which the preset's page does not show and which take half."""

        def generate_metrics(self, context: Any) -> Any:
            return super().generate_metrics(context)[:1]

    definition = DataDefinition(
        numerical_columns=[str(name) for name in before if kinds[str(name)] == "number"],
        categorical_columns=[str(name) for name in before if kinds[str(name)] == "category"],
    )
    datasets = [Dataset.from_pandas(frame, data_definition=definition) for frame in (after, before)]
    summary = DataSummaryPreset(columns=[str(name) for name in before][:SUMMARISED])
    report = Report([Table(drift_share=SHARE_OF_A_DRIFTED_TABLE), summary])
    return report.run(*datasets, timestamp=datetime(day.year, day.month, day.day), name=title)


def _with_head(page: str, title: str, lines: Mapping[str, str]) -> str:
    """The page with a title, and a head of these lines."""
    items = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in lines.items())
    header = f'<body><header class="report-head"><h1>{html.escape(title)}</h1><dl>{items}</dl></header>'
    page = page.strip().replace("</head>", HEAD.format(title=html.escape(title)), 1)
    return page.replace("<body>", header, 1)
