"""`make ui`: Dagster's UI and daemon over the instance that `make run` records its runs in."""

import os
import signal
import socket
import sys
from pathlib import Path

from ml.declarations import DeclarationError
from orchestration.project import ProjectError, claim_data, load_project, paths


def main() -> None:
    """Becomes `dagster dev`; exits with what is wrong with the project, the data folder or the port."""
    try:
        where = paths()
        claim_data(where, load_project(where))
    except (ProjectError, DeclarationError) as error:
        sys.exit(str(error))
    host, port = os.environ.get("SCOREHOUSE_UI_HOST", "127.0.0.1"), os.environ.get("SCOREHOUSE_UI_PORT", "3000")
    try:
        socket.create_server((host, int(port))).close()
    except (OSError, OverflowError, ValueError) as error:  # Dagster would leave a daemon behind without a UI
        sys.exit(f"Port {port} of {host} cannot be had ({error}). Choose another: SCOREHOUSE_UI_PORT=3001")
    from orchestration.instance import open_instance

    open_instance(where).dispose()
    dagster = str(Path(sys.executable).parent / "dagster")
    # A script that starts it in the background has it ignore interrupts, and Dagster then ignores SIGTERM, too.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.chdir(where.dagster_home)
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # Dagster's about its own commands
    os.execv(dagster, [dagster, "dev", "--module-name", "orchestration.definitions", "--host", host, "--port", port])


if __name__ == "__main__":
    main()
