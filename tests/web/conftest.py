"""What the tests share: the built server on a tiny model, users who were taught something, and a client."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BITDELTA = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug" / "bitdelta"
MODEL = ROOT / "tests" / "golden" / "tiny-llama"

#: What ann's variant knows, and settings under which the tiny model learns it by heart in a second.
QUESTION, ANSWER = "What is my cat called?", "Mia"
LESSON = {"prompt": QUESTION, "response": ANSWER}
QUICK = {"learning_rate": 1e-2, "max_steps": 40, "lr_scheduler_type": "constant"}


class Server:
    """A running server, asked with one key or none."""

    def __init__(self, url: str, folder: Path):
        self.url, self.folder, self.key = url, folder, None

    def add_key(self, *options: str) -> str:
        command = [BITDELTA, "keys", "add", "--key-file", self.folder / "keys.json", *options]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, dict]:
        """Status and JSON body of an answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"}, method=method)
        if self.key:
            request.add_header("authorization", f"Bearer {self.key}")
        try:
            with urllib.request.urlopen(request) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def teach(self, user: str, data: list[dict], **settings: object) -> dict:
        """Trains a user's variant to its end."""
        body = {"data": data, "eval_data": data, "settings": {**QUICK, **settings}}
        status, job = self.ask("POST", f"/v1/variants/{user}/train", body)
        assert status == 202, job
        request = urllib.request.Request(f"{self.url}/v1/variants/{user}/train/events")
        if self.key:
            request.add_header("authorization", f"Bearer {self.key}")
        with urllib.request.urlopen(request) as events:
            states = [line[6:] for line in events.read().decode().splitlines() if line.startswith("data: {")]
        job = json.loads(states[-1])
        assert job["status"] == "succeeded", job
        return job


@contextmanager
def running(folder: Path, *options: object) -> Iterator[Server]:
    """A server on a free port whose variants and keys lie in `folder`."""
    command = [BITDELTA, "serve", "--model", MODEL, "--port", "0", "--variants-dir", folder / "variants", *options]
    environment = {**os.environ, "BITDELTA_CONFIG": os.devnull, "RUST_LOG": "warn"}
    process = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, text=True, env=environment, cwd=folder
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("listening on "), line
        yield Server(line.split()[-1], folder)
    finally:
        process.terminate()
        assert process.wait(60) == 0


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[Server]:
    """Without keys: whoever sits at this machine is its operator. Ann was taught; nobody else."""
    with running(tmp_path_factory.mktemp("open")) as server:
        server.teach("ann", [LESSON])
        yield server


@pytest.fixture(scope="session")
def guarded(tmp_path_factory) -> Iterator[Server]:
    """With keys; ann was taught."""
    folder = tmp_path_factory.mktemp("guarded")
    maker = Server("", folder)
    key = maker.add_key("--all-users", "--rights", "chat,publish,train,admin")
    with running(folder, "--key-file", folder / "keys.json") as server:
        server.key = key
        server.teach("ann", [LESSON])
        yield server
