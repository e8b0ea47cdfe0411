"""The form of every benchmark: `--quick` or `--full`, a table to read, its rows in data/benchmarks/<name>.json."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

MET = {True: "yes", False: "no", None: "–"}
REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # before the folder of the script, in which `serving` is a benchmark


def is_full(about: str) -> bool:
    """Whether the stated sizes are asked for (`--full`) and not those that take a minute (`--quick`, the default)."""
    return bool(arguments(about).parse_args().full)


def arguments(about: str) -> argparse.ArgumentParser:
    """What every benchmark can be asked; one may add to it."""
    parser = argparse.ArgumentParser(description=about)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="within a minute (the default)")
    size.add_argument("--full", action="store_true", help="the sizes that the README states")
    return parser


def results() -> Path:
    """The folder with the results of all benchmarks, made if it is not there."""
    folder = (Path(os.environ.get("SCOREHOUSE_DATA") or REPOSITORY / "data") / "benchmarks").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run(command: list[str], cwd: Path = REPOSITORY, **environment: str) -> tuple[str, float, float]:
    """What a process prints, its seconds, and its largest memory in GB. Ends this one if it fails."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=cwd, stdout=output, env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - started
        output.seek(0)
        said = output.read()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed, so there is nothing to measure:\n{said}")
    return said, seconds, used.ru_maxrss / 1e6


def alone(script: str, work: str, *arguments: object, python: Path | None = None) -> dict[str, float]:
    """What `work` of a script measures in a process of its own, the last line it prints, with its memory in GB."""
    said, _, gigabytes = run([str(python or sys.executable), script, "--alone", work, *map(str, arguments)])
    return {**json.loads(said.splitlines()[-1]), "gigabytes": gigabytes}


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
    (results() / f"{name}.json").write_text(json.dumps({"figures": rows, "parts": notes}, indent=1))
