"""Rewards an answer of at most twelve words: what `--set reward_command=…` runs in docs/src/reference/training.md."""

import json
import sys

for line in sys.stdin:
    words = json.loads(line)["answer"].split()
    print(1.0 if 0 < len(words) <= 12 else 0.0, flush=True)
