"""`make bench`: bitdelta and its peers, measured one after another on this machine, as one table with ratios.

Everything is taken in this run, on the same base, prompts, lengths and threads. Where two sides do not compute the same
thing the row's note says what differs. Writes `bench.json` (all figures; `bitdelta bench sweep --peers` reads it),
`table.md` and `sweep.svg`.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import gguf_files

HERE = Path(__file__).parent
#: What training is measured on: all projections, and LoRA.
TRAINED_RANKS = (0, 16)


def cpu_name() -> str:
    """The CPU's name for itself."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def printed_json(command: list[str | Path], environment: dict[str, str] | None = None) -> dict | list:
    """Runs a command that prints one JSON value; its stderr is shown."""
    print("+", *command, file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout)


def busy() -> str | None:
    """A sentence, where the machine does other work: llama.cpp's threads wait for each other in busy loops."""
    load = os.getloadavg()[0]
    message = f"THE MACHINE WAS BUSY WITH OTHER WORK (load {load:.1f} before the start): these figures are noise."
    return message if load > 0.5 else None


def option(key: str, value: object) -> list[object]:
    """A setting as words of the command line; what is true is a flag."""
    name = f"--{key.replace('_', '-')}"
    return [name] if value is True else [name, value]


class Bench:
    """What is measured with, and what was measured so far."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.ours: list[dict] = []

    def our(self, command: str, **settings: object) -> dict:
        """One figure of `bitdelta bench`; the base in int8, and the given model, unless the settings say otherwise."""
        base = [] if command == "compress" or "shape" in settings else ["--model", self.arguments.model]
        if command not in ("compress", "train") and "base_dtype" not in settings:
            base += ["--base-dtype", "int8"]
        options = [text for key, value in settings.items() for text in option(key, value)]
        threads = [] if command == "train" else ["--threads", self.arguments.threads]
        words = [command, *base, *threads, *options, "--json"]
        environment = os.environ | {"RAYON_NUM_THREADS": str(self.arguments.threads)}
        figure = printed_json([self.arguments.bitdelta, "bench", *map(str, words)], environment)
        self.ours.append(figure)
        return figure

    def peers(self) -> list[dict]:
        """What the peers' scripts print."""
        common = ["--model", self.arguments.model, "--threads", str(self.arguments.threads)]
        lengths = ["--prompt", self.arguments.prompt, "--generate", self.arguments.generate]
        common += [*map(str, lengths), "--prefill", str(self.arguments.prefill)]
        batch = ["--batch", *map(str, sorted({1, *self.arguments.batch}))]
        folder = ["--folder", self.arguments.output / "files"]
        many = [*folder, *batch]
        scripts = {"llama_cpp_peer.py": many, "mistralrs_peer.py": many, "transformers_peer.py": []}
        found = [printed_json([sys.executable, HERE / name, *common, *more]) for name, more in scripts.items()]
        found.append(self.candle())
        if "skipped" not in found[-2]:  # transformers, and so PyTorch
            found.append(self.torch_training(common[:4]))
        for peer in found:
            if "skipped" in peer:
                print(f"{peer['peer']} is left out: {peer['skipped']}", file=sys.stderr)
        return found

    def torch_training(self, common: list[str | Path]) -> dict:
        """Training with PyTorch and peft, each way in a process of its own."""
        ways = [(dtype, rank) for rank in TRAINED_RANKS for dtype in ("f32", "bf16")]
        command = [sys.executable, HERE / "torch_train_peer.py", *common]
        figures = [printed_json([*command, "--dtype", dtype, "--rank", str(rank)]) for dtype, rank in ways]
        return {"peer": "torch and peft, training", "version": "as above", "figures": figures}

    def candle(self) -> dict:
        """What candle's program prints, on the Q8_0 file that llama.cpp was measured on."""
        a = self.arguments
        program = os.environ.get("CANDLE_PEER")
        if not program:
            return {"peer": "candle", "skipped": "CANDLE_PEER names no program (make bench builds it)", "figures": []}
        base = gguf_files.base(a.model, a.output / "files", "q8_0")
        numbers = [a.threads, a.prompt, a.generate, a.prefill, a.runs]
        environment = os.environ | {"RAYON_NUM_THREADS": str(a.threads)}
        return printed_json([program, base, "q8_0", *map(str, numbers)], environment)


class Table:
    """Rows of ours beside theirs."""

    def __init__(self, theirs: list[dict]) -> None:
        self.theirs = theirs
        self.lines = ["| what | bitdelta | peer | ratio | not alike |", "| --- | --- | --- | --- | --- |"]

    def add(self, what: str, ours: dict, wanted: dict, note: str = "", key: str = "tokens_per_second") -> None:
        """A row against each peer's figure that has all of `wanted`; none where a peer was left out."""
        for figure in self.theirs:
            if all(figure.get(name) == value for name, value in wanted.items()):
                unit = (1, "tok/s") if key == "tokens_per_second" else (1e9, "GB/s")
                ours_text, theirs_text = (
                    f"{side[key] / unit[0]:.{0 if unit[0] == 1 else 2}f} {unit[1]}" for side in (ours, figure)
                )
                described = " ".join(
                    str(figure[name]) for name in ("peer", "base_dtype", "dtype", "adapter") if figure.get(name)
                )
                ratio = ours[key] / figure[key]
                self.lines.append(f"| {what} | {ours_text} | {theirs_text}: {described} | {ratio:.2f} | {note} |")


class Own:
    """Batches in which everybody has a variant, beside the same batch of the base alone: what personalising costs."""

    KINDS = ("dense1", "lowrank16", "lowrank4")

    def __init__(self) -> None:
        self.lines = [
            "| model | users | variant | bits a weight | of the base alone | of what the bytes explain | time added, of what "
            "bytes or products take |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]

    def add(self, model: str, base: dict, ours: dict) -> None:
        """A row. The bytes explain base ÷ (base + variants), were the memory all that one waits for.

        The last column holds the seconds that the variants add to a step against the larger of two: reading their bytes
        at the memory's speed, and their multiplications at the speed of the product alone from cache (dense variants).
        """
        share = ours["tokens_per_second"] / base["tokens_per_second"]
        explained = ours["base_bytes"] / ours["bytes_per_step"]
        bits = 8 * ours["variant_bytes"] / ours["users"] / ours["weights"]
        added = "–"
        if ours["delta_rate"]:
            seconds = ours["batch"] / ours["tokens_per_second"] - base["batch"] / base["tokens_per_second"]
            reading = ours["variant_bytes"] / ours["read_bandwidth"]
            products = ours["batch"] * ours["weights"] / ours["delta_rate"]
            added = f"{seconds / max(reading, products):.2f}"
        row = (model, ours["users"], ours["kind"], f"{bits:.3f}", f"{share:.2f}", f"{share / explained:.2f}", added)
        self.lines.append(f"| {' | '.join(map(str, row))} |")


def measure_shape(bench: Bench, own: Own) -> None:
    """Random weights of a large model's true shape: for one request, and for as many users as memory holds."""
    shape, lengths = bench.arguments.shape, {"shape": bench.arguments.shape, "generate": 32, "runs": 2}
    for dtype in ("int8", "bf16"):
        one = bench.our("decode", base_dtype=dtype, batch=1, **lengths)
        print(f"{shape} {dtype}: {one['bandwidth_share']:.2f} of the read bandwidth at one request", file=sys.stderr)
    base = bench.our("decode", batch=8, **lengths)
    for kind in Own.KINDS:
        ours = bench.our("decode", batch=8, users=8, kind=kind, **lengths)
        print(f"{shape} {kind} x 8: {ours['memory_share']:.3f} of base + variants + KV in memory", file=sys.stderr)
        own.add(shape, base, ours)


def measure(bench: Bench, theirs: list[dict], own: Own) -> Table:
    """All our figures, each beside the peers'."""
    table = Table(theirs)
    arguments = bench.arguments
    lengths = {"prompt": arguments.prompt, "generate": arguments.generate, "runs": arguments.runs}
    blocks = (
        "ours: a GGUF's own codes (Q4_1 in 4 bits) or int8 in blocks of 64, activations in two int8 digits; "
        "llama.cpp: the same weights as Q8_0, one digit"
    )
    single = {"what": "decode", "adapter": "base", "batch": 1}
    ours = bench.our("decode", batch=1, **lengths)
    table.add("decode, 1 request, base", ours, {**single, "base_dtype": "q8_0"}, blocks)
    table.add("decode, 1 request, base", ours, {**single, "peer": "transformers"}, "int8 against f32")
    ours = bench.our("decode", base_dtype="bf16", batch=1, **lengths)
    table.add("decode, 1 request, base in bf16", ours, {**single, "base_dtype": "bf16"})
    for batch in arguments.batch:
        many = {"what": "decode", "batch": batch}
        base = ours = bench.our("decode", batch=batch, **lengths)
        table.add(f"decode, {batch} requests, base", ours, {**many, "adapter": "base"}, blocks)
        for kind, words in (("dense1", "a one-bit variant"), ("lowrank16", "a rank-16 variant")):
            ours = bench.our("decode", batch=batch, users=batch, kind=kind, **lengths)
            own.add(arguments.model.stem, base, ours)
            note = "one bit of every weight against rank 16" if kind == "dense1" else "4-bit factors against f16"
            what = f"decode, {batch} users, {words} each"
            table.add(what, ours, {**many, "adapter": "lora_each"}, note)
            table.add(what, ours, {**many, "adapter": "one_lora"}, "theirs: one LoRA for all")
            table.add(what, ours, {**many, "adapter": "base"}, "theirs: no adapter at all")
            ours = bench.our("decode", batch=batch, users=batch, kind=kind, over_http=True, **lengths)
            table.add(
                f"{what}, through our HTTP server", ours, {**many, "adapter": "lora_each"}, f"{note}; theirs: no HTTP"
            )
        own.add(arguments.model.stem, base, bench.our("decode", batch=batch, users=batch, kind="lowrank4", **lengths))
    prefill = {"what": "prefill", "prompt": arguments.prefill}
    name = f"prefill, {arguments.prefill} tokens"
    ours = bench.our("prefill", prompt=arguments.prefill, runs=arguments.runs)
    table.add(name, ours, {**prefill, "base_dtype": "q8_0"}, blocks)
    table.add(name, ours, {**prefill, "peer": "transformers"}, "int8 against f32")
    table.add(name, ours, {**prefill, "peer": "peft"}, "int8 base alone against f32 with one LoRA")
    ours = bench.our("prefill", base_dtype="bf16", prompt=arguments.prefill, runs=arguments.runs)
    table.add(f"{name}, base in bf16", ours, {**prefill, "base_dtype": "bf16"}, "both in bf16 where the CPU has it")
    for dtype in ("bf16", "f32"):
        ours = bench.our("compress", dtype=dtype)
        wanted = {"what": "compress", "dtype": dtype}
        table.add(f"compress 9728 x 2560, {dtype}", ours, wanted, "ours: outliers clipped, too", "bytes_per_second")
    for rank in TRAINED_RANKS:
        wanted = {"what": "train", "rank": rank}
        what = "training, rank 16" if rank else "training, all projections"
        peaks = [figure["peak_memory"] for figure in theirs if wanted.items() <= figure.items()]
        for dtype, flags in (("f32", {}), ("bf16", {"bf16": True})):
            ours = bench.our("train", rank=rank, **flags)
            memory = f"ours held {ours['peak_memory'] / min(peaks):.2f} of their least memory" if peaks else ""
            table.add(f"{what} in {dtype}, forward and back", ours, {**wanted, "dtype": dtype}, memory)
    bench.our("load")
    return table


def main() -> None:
    """Runs everything and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bitdelta", type=Path, required=True, help="the program")
    parser.add_argument("--model", type=Path, required=True, help="the base as a GGUF file")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, nargs="*", default=[8, 32])
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--shape", help="also measure random weights of this true shape, such as qwen3-4b")
    parser.add_argument("--no-sweep", action="store_true", help="leave the plot out")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    noise = busy()
    if noise:
        print(noise, file=sys.stderr)

    bench = Bench(arguments)
    peers = bench.peers()
    theirs = [figure for peer in peers for figure in peer["figures"]]
    own = Own()
    table = measure(bench, theirs, own)
    load = bench.ours[-1]
    if arguments.shape:
        measure_shape(bench, own)
    machine = {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": arguments.threads,
        "isa": load["isa"],
        "read_bandwidth": bench.ours[0]["read_bandwidth"],
    }
    versions = {peer["peer"]: peer.get("version", peer.get("skipped")) for peer in peers}
    record = {"machine": machine, "versions": versions, "ours": bench.ours, "figures": theirs}
    (arguments.output / "bench.json").write_text(json.dumps(record, indent=1) + "\n")
    settings = ", ".join(f"{key} {value}" for key, value in machine.items() if key != "read_bandwidth")
    used = "; ".join(f"{name}: {version}" for name, version in versions.items())
    text = [
        f"{settings}, {machine['read_bandwidth'] / 1e9:.1f} GB/s of read bandwidth",
        "",
        f"{arguments.model.stem}, {arguments.prompt} + {arguments.generate} tokens a request, prompts inside the clock; {used}",
        "",
        *table.lines,
        "",
        *own.lines,
        "",
        f"A {load['file_bytes'] / 1e6:.1f} MB variant is ready {1e3 * load['ready_seconds']:.1f} ms after it is asked for; "
        f"beside {load['batch']} running requests {1e3 * load['ready_seconds_busy']:.1f} ms. Longest time between two tokens "
        f"of those: {1e3 * load['longest_gap_seconds']:.1f} ms without and {1e3 * load['longest_gap_seconds_loading']:.1f} ms "
        "with variants loading.",
    ]
    if noise:
        text += ["", noise]
    (arguments.output / "table.md").write_text("\n".join(text) + "\n")
    if not arguments.no_sweep:
        common = ["--model", arguments.model, "--base-dtype", "int8", "--threads", str(arguments.threads)]
        plot = ["--plot", arguments.output / "sweep.svg", "--peers", arguments.output / "bench.json"]
        sweep = printed_json([arguments.bitdelta, "bench", "sweep", *common, *plot, "--json"])
        (arguments.output / "sweep.json").write_text(json.dumps(sweep, indent=1) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
