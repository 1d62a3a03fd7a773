"""What the peers' scripts share: the prompts of `bitdelta bench`, the linears that learn, and their options."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

#: Every projection, as Hugging Face names them.
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def prompt_tokens(request: int, length: int, vocab: int) -> list[int]:
    """The prompt that `bitdelta bench` gives this request."""
    return [(request * 7919 + i * 104_729 + 11) % vocab for i in range(length)]


def fastest(runs: int, run: Callable[[], object]) -> float:
    """Seconds of the fastest of `runs` calls; one more warms up."""
    seconds = []
    for _ in range(runs + 1):
        begun = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:])


def options(description: str) -> argparse.ArgumentParser:
    """Those of every script."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="the base as a GGUF file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    return parser


def serving_options(description: str) -> argparse.ArgumentParser:
    """Those of the scripts that answer prompts, too."""
    parser = options(description)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument(
        "--prefill", type=int, default=512, help="tokens of the prefill measurement, where there is one"
    )
    return parser


def batch_options(description: str) -> argparse.ArgumentParser:
    """Those of the scripts that answer many users, too."""
    parser = serving_options(description)
    parser.add_argument("--folder", type=Path, required=True, help="where the base files and the adapters are kept")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8, 32])
    return parser
