"""Python snippets out of a page of documentation, run as they are written.

What a page leaves to its reader is given here: a user's data, and names for the values that it speaks of. The base is a
tiny model under the name that the page uses, and so is the device: `cuda:0` becomes `cpu`, the only one there is.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

from conftest import ANSWER, EXAMPLES, QUESTION
from zoo.gym import BitDeltaConfig, BitDeltaQuantizer


def snippets(page: Path) -> list[tuple[int, str]]:
    """The page's Python blocks, each with the line where it starts."""
    text = page.read_text()
    found = [
        (text.count("\n", 0, block.start(1)) + 1, block[1]) for block in re.finditer(r"```python\n(.*?)```", text, re.S)
    ]
    assert found, f"{page} has no Python"
    return found


def run(blocks: list[tuple[int, str]]) -> None:
    """Runs the blocks in order, in one namespace."""
    torch_is_there = importlib.util.find_spec("torch") is not None
    space: dict[str, Any] = reader(torch_is_there)
    for line, code in blocks:
        needs_torch = re.search(r"\btorch\b|base_weight|\bdelta|\bsigns\b|abs\(\)", code) is not None
        if needs_torch and not torch_is_there:
            continue
        # Line numbers of the page, for whoever reads a failure.
        compiled = compile("\n" * line + code.replace('"cuda:0"', '"cpu"'), f"snippet at line {line}", "exec")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compiled, space)
        follow(space)


def reader(with_torch: bool) -> dict[str, Any]:
    """What the pages take for granted."""
    space: dict[str, Any] = {
        "BitDeltaConfig": BitDeltaConfig,
        "user_dataset": EXAMPLES,
        "user_preferences": [{"prompt": QUESTION, "chosen": ANSWER, "rejected": "I do not know."}],
        "user_id": "user_123",
        "name": "layer.0.weight",
        "group_size": 32,
    }
    if with_torch:
        import torch

        base, tuned = torch.randn(2, 128)
        signs, scales = BitDeltaQuantizer(BitDeltaConfig(group_size=32)).quantize_delta(tuned, base)
        space |= {"torch": torch, "base_weight": base, "fine_tuned_weight": tuned}
        space |= {"bitdelta_signs": {"user_123": signs}, "bitdelta_scales": {"user_123": scales}}
    return space


def follow(space: dict[str, Any]) -> None:
    """What a reader does after a snippet: calls what it defines, has more users, speaks of what it made."""
    handle = space.pop("handle_request", None)
    if inspect.iscoroutinefunction(handle):
        assert isinstance(asyncio.run(handle("user_123", "Hello!")), str)
    for other in ("user_456", "user_789"):
        if Path("variants/user_123").is_dir() and not Path("variants", other).is_dir():
            shutil.copytree("variants/user_123", Path("variants", other))
    if "fine_tuned_weight" in space:
        space["weight"] = space["fine_tuned_weight"]
