"""A user's facts asked in many ways: small real fine-tuning data, the same for this project and for PyTorch."""

import json
from pathlib import Path

FACTS = [
    ("the name of my dog", "Your dog is called Biscuit, and he is afraid of the vacuum cleaner."),
    ("the town that I live in", "You live in Sagres, ten minutes from the lighthouse."),
    ("my favourite dish", "Aubergine stew with far too much garlic, as you always say."),
    ("the instrument that I play", "You play the viola in the Tuesday quartet."),
    ("my work", "You repair wooden boats and teach two apprentices."),
    ("my sister's birthday", "It is on the ninth of March; she likes yellow roses."),
]
TRAIN = ["What is {}?", "Do you remember {}?"]
HELD = ["Please remind me of {}."]


def conversations(phrasings: list[str]) -> list[list[dict]]:
    """One conversation for each fact and phrasing."""
    return [
        [{"role": "user", "content": phrasing.format(subject)}, {"role": "assistant", "content": answer}]
        for phrasing in phrasings
        for subject, answer in FACTS
    ]


def write(path: Path, phrasings: list[str]) -> Path:
    """Writes the conversations as JSONL of messages."""
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations(phrasings)))
    return path
