"""A pair of Qwen3-4B's true shape, compressed to one bit a weight and to 10 MB, and the latter served to eight users.

The weights are random: this measures time, memory and sizes, no quality. The pair takes 16 GB of disk: the base where
`bitdelta bench --shape qwen3-4b` keeps it, the fine-tune in --folder until the end.

    .venv/bin/python benches/true_shape.py --bitdelta target/release/bitdelta
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

SHAPE = "qwen3-4b"
#: Components of the fine-tune's change, and how large it and its noise are beside the weights.
RANK, CHANGE, NOISE = 8, 0.02, 0.005
#: Rows of a matrix that are changed at a time.
ROWS = 1024


def run(*command: object) -> dict:
    """The JSON that a command prints."""
    words = [str(word) for word in command]
    print("+", *words, file=sys.stderr, flush=True)
    return json.loads(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout)


def fine_tune(base: Path, folder: Path) -> None:
    """Copies the base with a change in every linear: a few components and noise, as training leaves it."""
    for file in base.iterdir():
        if file.suffix == ".json":
            shutil.copy(file, folder)
    source = np.memmap(base / "model.safetensors", np.uint8, "r")
    target = np.memmap(folder / "model.safetensors", np.uint8, "w+", shape=source.shape)
    length = int(source[:8].view(np.uint64)[0])
    header = json.loads(bytes(source[8 : 8 + length]))
    target[: 8 + length] = source[: 8 + length]
    generator = np.random.default_rng(1)
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + length + offset for offset in tensor["data_offsets"])
        if not name.endswith("_proj.weight"):
            target[begin:end] = source[begin:end]
            continue
        rows, cols = tensor["shape"]
        before, after = (array[begin:end].view(np.uint16).reshape(rows, cols) for array in (source, target))
        inputs = generator.standard_normal((RANK, cols), np.float32)
        for at in range(0, rows, ROWS):
            weights = (before[at : at + ROWS].astype(np.uint32) << 16).view(np.float32)
            size = float(np.sqrt(np.mean(weights**2)))
            outputs = generator.standard_normal((len(weights), RANK), np.float32) / RANK**0.5
            noise = generator.standard_normal(weights.shape, np.float32)
            changed = weights + size * (CHANGE * (outputs @ inputs) + NOISE * noise)
            after[at : at + ROWS] = (changed.view(np.uint32) + 0x8000 >> 16).astype(np.uint16)
    target.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bitdelta", type=Path, required=True, help="the program, compiled with optimisation")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/bitdelta", help="where the base is kept")
    parser.add_argument("--folder", type=Path, help="where the fine-tune is made; by default in the cache")
    arguments = parser.parse_args()
    decode = [arguments.bitdelta, "bench", "decode", "--shape", SHAPE, "--cache-dir", arguments.cache]
    decode += ["--base-dtype", "int8", "--batch", 8, "--generate", 16, "--runs", 1, "--json"]
    alone = run(*decode)
    base = arguments.cache / f"random-{SHAPE}"
    with tempfile.TemporaryDirectory(dir=arguments.folder or arguments.cache, prefix="tuned-") as folder:
        tuned = Path(folder)
        fine_tune(base, tuned)
        lines = ["| what | file | seconds | peak memory |", "| --- | --- | --- | --- |"]
        for what in (["--bits", 1], ["--budget", "10MB", "--draw", 0]):
            file = tuned / "user.safetensors"
            made = run(
                arguments.bitdelta, "compress", "--base", base, "--finetuned", tuned, *what, "-o", file, "--json"
            )
            memory = made["peak_memory"] / 1e9
            label = "compress " + " ".join(str(word) for word in what)
            lines.append(f"| {label} | {made['bytes']:,} bytes | {made['seconds']:.0f} | {memory:.1f} GB |")
        served = run(*decode, "--users", 8, "--variant", file)
    for what, found in (("8 rows of the base", alone), ("8 users, 10 MB each", served)):
        lines.append(f"| {what} | | {found['tokens_per_second']:.2f} tokens/s | |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
