"""What the tests share: tiny models under the names that the documents use, and a user who was taught something."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
BINARIES = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug"

#: What the taught user's variant knows.
QUESTION, ANSWER = "What is my cat called?", "Mia"
EXAMPLES = [{"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]}]
#: Settings under which a tiny model learns it by heart in a second.
QUICK = {"learning_rate": 1e-2, "max_steps": 40, "lr_scheduler_type": "constant"}

# What a shell starts in the background ignores Ctrl-C, which some tests press.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def names(monkeypatch, tmp_path):
    """The names of the documents stand for a tiny model, in a folder of the test's own."""
    monkeypatch.setenv("BITDELTA_MODELS", f"qwen3-4b={GOLDEN / 'tiny-qwen3'},tiny={GOLDEN / 'tiny-llama'}")
    monkeypatch.setenv("BITDELTA_CONFIG", os.devnull)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("BITDELTA_MODEL", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def taught(tmp_path_factory) -> Path:
    """A folder of variants of tiny-llama: ada and bob know the cat, ada by low-rank factors and bob by one bit a weight."""
    from zoo.gym import BitDeltaConfig, PersonalizedTrainer

    folder = tmp_path_factory.mktemp("variants")
    model = str(GOLDEN / "tiny-llama")
    PersonalizedTrainer(model, variants_dir=folder).create_variant("ada", dataset=EXAMPLES, progress=False, **QUICK)
    config = BitDeltaConfig(bits=1, group_size=32)
    trainer = PersonalizedTrainer(model, config, variants_dir=folder)
    trainer.create_variant("bob", dataset=EXAMPLES, progress=False, **QUICK)
    return folder
