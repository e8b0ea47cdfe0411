"""dbt as the engine runs it, in a process of its own: `python -P -m orchestration.running_dbt <what dbt is told>`.

This process holds the warehouse, not the one that started it: whatever becomes of that, nobody else opens the file
while dbt has it open. And it ends with the one that started it: nobody would wait for what an orphan builds.
"""

import os
import threading
import time
from pathlib import Path

from dbt.cli.main import cli

from orchestration.project import Paths
from orchestration.warehouse import reserved


def main() -> None:
    threading.Thread(target=_end_after, args=(os.getppid(),), daemon=True).start()
    where = Paths(project=Path(os.environ["SCOREHOUSE_PROJECT"]), data=Path(os.environ["SCOREHOUSE_DATA"]))
    with reserved(where.warehouse):
        cli()


def _end_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)  # what dbt was at, the warehouse takes back


if __name__ == "__main__":
    main()
