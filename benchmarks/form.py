"""The form of every benchmark: `--quick` or `--full`, a table to read, its rows in data/benchmarks/<name>.json."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

MET = {True: "yes", False: "no", None: "–"}
REPOSITORY = Path(__file__).resolve().parent.parent


def is_full(about: str) -> bool:
    """Whether the stated sizes are asked for (`--full`) and not those that take a minute (`--quick`, the default)."""
    parser = argparse.ArgumentParser(description=about)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="within a minute (the default)")
    size.add_argument("--full", action="store_true", help="the sizes that the README states")
    return bool(parser.parse_args().full)


def figure(
    name: str, ours: float, reference: float, aim: float | None, *, unit: str = "s", more_is_better: bool = False
) -> dict[str, Any]:
    """A row: ours against a reference measured in the same run, and whether the ratio meets the aim, if any."""
    ratio = ours / reference
    met = None if aim is None else bool(ratio >= aim if more_is_better else ratio <= aim)
    return {
        "figure": name,
        "ours": round(ours, 3),
        "reference": round(reference, 3),
        "unit": unit,
        "ratio": round(ratio, 3),
        "aim": aim,
        "met": met,
    }


def report(name: str, rows: list[dict[str, Any]], notes: dict[str, float]) -> None:
    """Prints the figures and the parts they are made of, and writes them to data/benchmarks/<name>.json."""
    table = Table(title=f"benchmarks/{name}.py", title_justify="left")
    for title in ("figure", "ours", "reference", "unit", "ratio", "aim", "met"):
        table.add_column(title, justify="left" if title in ("figure", "unit") else "right")
    for row in rows:
        *values, met = row.values()
        table.add_row(*("–" if value is None else str(value) for value in values), MET[met])
    console = Console(width=120)
    console.print(table)
    for part, value in notes.items():
        console.print(f"  {part:<90} {value:>10.2f}", highlight=False)
    folder = Path(os.environ.get("SCOREHOUSE_DATA") or REPOSITORY / "data") / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"figures": rows, "parts": notes}, indent=1))
