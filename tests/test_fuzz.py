"""The API under whatever its OpenAPI document allows, and what it does not: schemathesis, under the real server."""

import subprocess
import sys
from pathlib import Path

from serving.keys import create_key
from tests.sample_generations import publish
from tests.test_api import serving

EXAMPLES = 25  # of each operation and phase


def test_no_request_gets_what_the_document_does_not_say(tmp_path: Path) -> None:
    publish(tmp_path / "data" / "generations")
    publish(tmp_path / "data" / "generations", score="upsell", ids=["a/b", "é", "0"])
    _, token = create_key(tmp_path / "data" / "keys.json", "fuzz", ["admin"])
    with serving(tmp_path / "data") as server:
        asked = subprocess.run(
            [
                *(Path(sys.executable).parent / "schemathesis", "run", f"http://127.0.0.1:{server.port}/openapi.json"),
                *("--checks", "all", "--max-examples", str(EXAMPLES), "--seed", "1", "--request-timeout", "10"),
                *("--header", f"Authorization: Bearer {token}", "--no-color"),
            ],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    assert asked.returncode == 0, asked.stdout
    assert "No issues found" in asked.stdout, asked.stdout
