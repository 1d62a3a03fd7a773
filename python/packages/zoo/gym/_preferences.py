"""What a user prefers, as training examples. The one place where ``preferences`` is looked at.

Pairs of a chosen and a rejected answer become examples of the chosen one, with a warning that the rejected one is not
used. Preferences in words are refused: to learn them takes context distillation, which this version does not have.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from ._data import examples_of
from .errors import DatasetError, NotEnforcedWarning, NotSupportedError

_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}


def plan(preferences: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What a run is to learn of preferences: examples beside the data set's, and settings of the run."""
    if preferences is None:
        return [], {}
    if _are_words(preferences):
        raise _in_words()
    pairs = list(examples_of(preferences, "preferences"))
    found = [_example(pair, number) for number, pair in enumerate(pairs, 1)]
    if any("rejected" in pair for pair in pairs):
        sentence = "preferences: the chosen answers are learnt; the rejected ones are not used in this version"
        warnings.warn(sentence, NotEnforcedWarning, stacklevel=3)
    return found, {}


def _are_words(preferences: Any) -> bool:
    """A text, texts, or a dict of them, and no path to pairs."""
    if isinstance(preferences, str):
        return not os.path.isfile(preferences)
    if isinstance(preferences, Mapping):
        return True
    return isinstance(preferences, (list, tuple)) and any(isinstance(item, str) for item in preferences)


def _in_words() -> NotSupportedError:
    return NotSupportedError(
        "preferences in words are not supported in this version; pass pairs, each a dict with prompt, chosen and rejected, "
        "or show what is preferred by examples in dataset"
    )


def _example(pair: Mapping[str, Any], number: int) -> dict[str, Any]:
    """One pair as a conversation that ends in the chosen answer."""
    where = f"preferences: example {number}"
    if "chosen" not in pair:
        raise DatasetError(f"{where}: chosen: is missing (the example has {', '.join(map(str, pair))})")
    messages = []
    if isinstance(pair.get("system"), str):
        messages.append({"role": "system", "content": pair["system"]})
    for name in ("prompt", "instruction", "question", "messages", "conversations"):
        if name in pair:
            messages += _turns(pair[name], "user", f"{where}: {name}")
            break
    if isinstance(pair.get("input"), str) and pair["input"]:
        messages[-1]["content"] += "\n" + pair["input"]
    chosen = _turns(pair["chosen"], "assistant", f"{where}: chosen")
    # Some data sets repeat the prompt inside the chosen conversation.
    messages = chosen if len(chosen) > 1 else messages + chosen
    if [turn["role"] for turn in messages[-2:]] != ["user", "assistant"]:
        raise DatasetError(f"{where}: expected a prompt and the answer that was chosen")
    return {"messages": messages}


def _turns(value: Any, role: str, where: str) -> list[dict[str, str]]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    turns = [value] if isinstance(value, Mapping) else value
    if not isinstance(turns, Iterable):
        raise DatasetError(f"{where}: expected a string or messages, not {type(value).__name__}")
    found = []
    for turn in turns:
        speaker = turn.get("role", turn.get("from")) if isinstance(turn, Mapping) else None
        content = turn.get("content", turn.get("value")) if isinstance(turn, Mapping) else None
        if speaker not in _ROLES or not isinstance(content, str):
            raise DatasetError(f"{where}: expected messages with role and content, not {turn!r}")
        found.append({"role": _ROLES[speaker], "content": content})
    return found
