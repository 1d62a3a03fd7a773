"""The interface against its own description: what schemathesis makes of /openapi.json is answered as that says, never by
a 5xx."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from conftest import LESSON, running
from hooks import USER

HOOKS = Path(__file__).with_name("hooks.py")
#: Requests of each operation, on top of those that cover its parameters one by one.
EXAMPLES = 25


def test_every_answer_is_as_described(tmp_path):
    options = [
        f"--max-examples={EXAMPLES}",
        "--seed=1",
        "--no-shrink",
        "--continue-on-failure",
        "--request-timeout=60",
        "--warnings=off",
        # What makes a file a variant, or a setting one of a training, is more than a schema can say.
        "--exclude-checks=positive_data_acceptance",
    ]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": str(HOOKS), "NO_COLOR": "1"}
    # A server of its own: whatever is published, trained or deleted there is nobody else's.
    with running(tmp_path, "--max-tokens", "4") as server:
        server.teach(USER, [LESSON])
        command = [Path(sys.executable).with_name("st"), "run", f"{server.url}/openapi.json", *options]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-20000:] + done.stderr
        # It is well after all of that.
        assert server.ask("GET", "/ready") == (200, {"status": "ready"})
