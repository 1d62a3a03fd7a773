"""A pair of Qwen3-4B's true shape, compressed to one bit a weight and to 10 MB, and the latter served to eight users; then two
steps of training beside the base in four bits.

The weights are random: this measures time, memory and sizes, no quality. The pair takes 16 GB of disk: the base where
`bitdelta bench --shape qwen3-4b` keeps it, the fine-tune in --folder until the end. Memory is what a process holds itself;
pages of files that it maps, which the system takes back when it needs them, are counted apart.

    make .venv-bench/ready
    .venv-bench/bin/python benches/true_shape.py --bitdelta target/release/bitdelta
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

SHAPE = "qwen3-4b"
#: Components of the fine-tune's change, and how large it and its noise are beside the weights.
RANK, CHANGE, NOISE = 8, 0.02, 0.005
#: Rows of a matrix that are changed at a time.
ROWS = 1024
#: Conversations of a step of training, and words of a question and of an answer.
CONVERSATIONS, WORDS = 4, 64
#: Seconds between two looks at a process's memory.
LOOK = 0.05


def run(*command: object) -> dict:
    """The JSON that a command prints, with the most memory that it held itself and that it mapped from files, in bytes."""
    words = [str(word) for word in command]
    print("+", *words, file=sys.stderr, flush=True)
    own = mapped = 0
    with tempfile.TemporaryFile("w+") as printed:
        process = psutil.Popen(words, stdout=printed)
        while process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                memory = process.memory_info()
                own, mapped = max(own, memory.rss - memory.shared), max(mapped, memory.shared)
            time.sleep(LOOK)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, words)
        printed.seek(0)
        return json.load(printed) | {"own_memory": own, "mapped": mapped}


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


def train(bitdelta: Path, base: Path, folder: Path) -> dict:
    """Two steps on conversations of no meaning; the random base gets a tokeniser that has a template's tokens."""
    speaking = folder / "speaking"
    speaking.mkdir()
    for file in base.iterdir():
        (speaking / file.name).symlink_to(file)
    (speaking / "tokenizer.json").unlink()
    turns = ["<|im_start|>", "<|im_end|>"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    added = [{"id": at, "content": turn, **flags} for at, turn in enumerate(turns, 1)]
    vocabulary = {"<unk>": 0} | {token["content"]: token["id"] for token in added}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    tokenizer = {"version": "1.0", "added_tokens": added, "pre_tokenizer": {"type": "Whitespace"}, "model": model}
    (speaking / "tokenizer.json").write_text(json.dumps(tokenizer))
    messages = [{"role": role, "content": "word " * WORDS} for role in ("user", "assistant")]
    data = folder / "data.jsonl"
    data.write_text((json.dumps({"messages": messages}) + "\n") * CONVERSATIONS)
    options = ["--template", "chatml", "--rank", 8, "--epochs", 2, "--set", "quantization_bit=4"]
    options += ["--set", f"per_device_train_batch_size={CONVERSATIONS}", "--set", "gradient_accumulation_steps=1"]
    return run(
        bitdelta, "train", "--base", speaking, "--data", data, "--output-dir", folder / "run", *options, "--json"
    )


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
        lines = ["| what | file | time or speed | own memory | mapped files |", "| --- | --- | --- | --- | --- |"]

        def line(what: str, file: str, speed: str, found: dict) -> None:
            own, mapped = (f"{found[key] / 1e9:.1f} GB" for key in ("own_memory", "mapped"))
            lines.append(f"| {what} | {file} | {speed} | {own} | {mapped} |")

        for what in (["--bits", 1], ["--budget", "10MB", "--draw", 0]):
            file = tuned / "user.safetensors"
            made = run(
                arguments.bitdelta, "compress", "--base", base, "--finetuned", tuned, *what, "-o", file, "--json"
            )
            label = "compress " + " ".join(str(word) for word in what)
            line(label, f"{made['bytes']:,} bytes", f"{made['seconds']:.0f} s", made)
        served = run(*decode, "--users", 8, "--variant", file)
        (tuned / "model.safetensors").unlink()
        trained = train(arguments.bitdelta, base, tuned)
    for what, found in (
        ("8 rows of the base", alone),
        ("8 users, 10 MB each", served),
        ("train rank 8, base in 4 bits", trained),
    ):
        line(what, "", f"{found['tokens_per_second']:.2f} tokens/s", found)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
