"""`make bench`: bitdelta and its peers, measured on this machine, as one table with ratios.

Everything is taken in this run, on the same base, prompts, lengths and threads; llama.cpp (compressing and training:
PyTorch and peft) and ours in turn, several times, since a shared machine's speed drifts. Where two sides do not compute the
same thing the row's note says what differs. Writes `bench.json` (all figures; `bitdelta bench sweep --peers` reads it),
`table.md` and `sweep.svg`.
"""

import argparse
import datetime
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

import gguf_files
import psutil

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
    used = psutil.cpu_percent(interval=3)
    message = (
        f"THE MACHINE WAS BUSY WITH OTHER WORK ({used:.0f} % of its CPUs before the start): these figures are noise."
    )
    return message if used > 10 else None


def option(key: str, value: object) -> list[object]:
    """A setting as words of the command line; what is true is a flag."""
    name = f"--{key.replace('_', '-')}"
    return [name] if value is True else [name, value]


class Bench:
    """What is measured with, and what was measured so far."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.files = arguments.output / "files"
        self.ours: list[dict] = []
        self.theirs: list[dict] = []
        #: By the peer's name; where it is left out, why.
        self.versions: dict[str, str] = {}
        self.lengths = ["--prompt", arguments.prompt, "--generate", arguments.generate]

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

    def script(self, name: str, *more: object) -> dict | list:
        """What a peer's script prints."""
        a = self.arguments
        words = ["--model", a.model, "--threads", a.threads, *more]
        return printed_json([sys.executable, HERE / name, *map(str, words)])

    def llama_cpp(self, batch: int | None = None) -> list[dict]:
        """llama.cpp's figures of so many requests; without a number, of prefill."""
        what = ["--prefill", self.arguments.prefill, "--batch"] if batch is None else ["--prefill", 0, "--batch", batch]
        return self.kept(self.script("llama_cpp_peer.py", *self.lengths, "--folder", self.files, *what))

    def torch(self, name: str, ways: list[list[object]]) -> list[dict]:
        """What a script of PyTorch prints, each way in a process of its own; nothing without PyTorch."""
        if importlib.util.find_spec("torch") is None:
            return []
        figures = [figure for way in ways for figure in self.script(name, *way)]
        self.theirs += figures
        return figures

    def slow_peers(self) -> list[dict]:
        """The figures of the peers that are measured once, before the others."""
        a = self.arguments
        many = ["--folder", self.files, "--batch", *sorted({1, *a.batch})]
        mistralrs = self.script("mistralrs_peer.py", *self.lengths, *many)
        transformers = self.script("transformers_peer.py", *self.lengths, "--prefill", a.prefill)
        return [figure for peer in (mistralrs, transformers, self.candle()) for figure in self.kept(peer)]

    def kept(self, peer: dict) -> list[dict]:
        """A peer's figures; its version is noted, or why it is left out."""
        self.versions[peer["peer"]] = peer.get("version", peer.get("skipped"))
        if "skipped" in peer:
            print(f"{peer['peer']} is left out: {peer['skipped']}", file=sys.stderr)
        self.theirs += peer["figures"]
        return peer["figures"]

    def candle(self) -> dict:
        """What candle's program prints, on the Q8_0 file that llama.cpp was measured on."""
        a = self.arguments
        program = os.environ.get("CANDLE_PEER")
        if not program:
            return {"peer": "candle", "skipped": "CANDLE_PEER names no program (make bench builds it)", "figures": []}
        base = gguf_files.base(a.model, self.files, "q8_0")
        numbers = [a.threads, a.prompt, a.generate, a.prefill, a.runs]
        environment = os.environ | {"RAYON_NUM_THREADS": str(a.threads)}
        return printed_json([program, base, "q8_0", *map(str, numbers)], environment)


def spread(values: list[float]) -> str:
    """The median, and the least and the greatest where there are several."""
    middle = f"{statistics.median(values):.2f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2f} to {max(values):.2f})"


class Table:
    """Rows of ours beside theirs; what is added again in another turn joins its row."""

    #: How much of a figure is one of the unit.
    UNITS = {"tokens_per_second": (1, "tok/s"), "bytes_per_second": (1e9, "GB/s"), "peak_memory": (1e9, "GB")}

    def __init__(self) -> None:
        #: By what a row says of itself: what, peer, note and the figures' key.
        self.rows: dict[tuple[str, str, str, str], list[tuple[float, float]]] = {}

    def add(
        self,
        what: str,
        ours: dict,
        theirs: list[dict],
        wanted: dict,
        note: str = "",
        key: str = "tokens_per_second",
    ) -> None:
        """A row against each of `theirs` that has all of `wanted`; none where a peer was left out."""
        for figure in theirs:
            if all(figure.get(name) == value for name, value in wanted.items()):
                described = " ".join(
                    str(figure[name]) for name in ("peer", "base_dtype", "dtype", "adapter") if figure.get(name)
                )
                row = self.rows.setdefault((what, described, note, key), [])
                row.append((ours[key], figure[key]))

    def lines(self) -> list[str]:
        """In Markdown: the best of each side, and the median of the turns' ratios."""
        lines = ["| what | bitdelta | peer | ratio | not alike |", "| --- | --- | --- | --- | --- |"]
        for (what, described, note, key), turns in self.rows.items():
            size, unit = self.UNITS[key]
            ours, theirs = (f"{max(side) / size:.{0 if size == 1 else 2}f} {unit}" for side in zip(*turns, strict=True))
            ratio = spread([ours / theirs for ours, theirs in turns])
            lines.append(f"| {what} | {ours} | {theirs}: {described} | {ratio} | {note} |")
        return lines


class Own:
    """Batches in which everybody has a variant, beside the same batch of the base alone: what personalising costs."""

    KINDS = ("dense1", "lowrank16", "lowrank4")

    def __init__(self) -> None:
        #: By model, users, kind and bits a weight: the three shares of each turn.
        self.rows: dict[tuple[str, int, str, str], list[tuple[float, float, float | None]]] = {}

    def add(self, model: str, base: dict, ours: dict) -> None:
        """A row. The bytes explain base ÷ (base + variants), were the memory all that one waits for.

        The last column holds the seconds that the variants add to a step against the larger of two: reading their bytes
        at the memory's speed, and their multiplications at the speed of the product alone from cache (dense variants).
        """
        share = ours["tokens_per_second"] / base["tokens_per_second"]
        explained = ours["base_bytes"] / ours["bytes_per_step"]
        bits = 8 * ours["variant_bytes"] / ours["users"] / ours["weights"]
        added = None
        if ours["delta_rate"]:
            seconds = ours["batch"] / ours["tokens_per_second"] - base["batch"] / base["tokens_per_second"]
            reading = ours["variant_bytes"] / ours["read_bandwidth"]
            products = ours["batch"] * ours["weights"] / ours["delta_rate"]
            added = seconds / max(reading, products)
        row = self.rows.setdefault((model, ours["users"], ours["kind"], f"{bits:.3f}"), [])
        row.append((share, share / explained, added))

    def lines(self) -> list[str]:
        """In Markdown."""
        lines = [
            "| model | users | variant | bits a weight | of the base alone | of what the bytes explain | time added, of what "
            "bytes or products take |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row, turns in self.rows.items():
            shares = ["–" if None in column else spread(list(column)) for column in zip(*turns, strict=True)]
            lines.append(f"| {' | '.join(map(str, (*row, *shares)))} |")
        return lines


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


#: Where precisions differ, in every row of int8.
BLOCKS = (
    "ours: a GGUF's own codes (Q4_1 in 4 bits) or int8 in blocks of 64, activations in two int8 digits; "
    "llama.cpp: the same weights as Q8_0, one digit"
)


class Topics:
    """Our figures, each beside the peers' that are measured in turn with them, and beside the slow ones'."""

    def __init__(self, bench: Bench, slow: list[dict], table: Table, own: Own) -> None:
        self.bench, self.slow, self.table, self.own = bench, slow, table, own
        a = bench.arguments
        self.lengths = {"prompt": a.prompt, "generate": a.generate, "runs": a.runs}

    def alone(self) -> None:
        """One request on the base."""
        theirs = self.bench.llama_cpp(1) + self.slow
        single = {"what": "decode", "adapter": "base", "batch": 1}
        ours = self.bench.our("decode", batch=1, **self.lengths)
        self.table.add("decode, 1 request, base", ours, theirs, {**single, "base_dtype": "q8_0"}, BLOCKS)
        self.table.add("decode, 1 request, base", ours, theirs, {**single, "peer": "transformers"}, "int8 against f32")
        ours = self.bench.our("decode", base_dtype="bf16", batch=1, **self.lengths)
        self.table.add("decode, 1 request, base in bf16", ours, theirs, {**single, "base_dtype": "bf16"})

    def batch(self) -> None:
        """Many requests: on the base, and with a variant each."""
        for batch in self.bench.arguments.batch:
            self.requests(batch)

    def requests(self, batch: int) -> None:
        """So many of them."""
        bench, table, lengths, model = self.bench, self.table, self.lengths, self.bench.arguments.model.stem
        theirs = bench.llama_cpp(batch) + self.slow
        many = {"what": "decode", "batch": batch}
        base = ours = bench.our("decode", batch=batch, **lengths)
        table.add(f"decode, {batch} requests, base", ours, theirs, {**many, "adapter": "base"}, BLOCKS)
        for kind, words in (("dense1", "a one-bit variant"), ("lowrank16", "a rank-16 variant")):
            ours = bench.our("decode", batch=batch, users=batch, kind=kind, **lengths)
            self.own.add(model, base, ours)
            note = "one bit of every weight against rank 16" if kind == "dense1" else "4-bit factors against f16"
            what = f"decode, {batch} users, {words} each"
            table.add(what, ours, theirs, {**many, "adapter": "lora_each"}, note)
            table.add(what, ours, theirs, {**many, "adapter": "one_lora"}, "theirs: one LoRA for all")
            table.add(what, ours, theirs, {**many, "adapter": "base"}, "theirs: no adapter at all")
            ours = bench.our("decode", batch=batch, users=batch, kind=kind, over_http=True, **lengths)
            http = f"{what}, through our HTTP server"
            table.add(http, ours, theirs, {**many, "adapter": "lora_each"}, f"{note}; theirs: no HTTP")
        ours = bench.our("decode", batch=batch, users=batch, kind="lowrank4", **lengths)
        self.own.add(model, base, ours)

    def prefill(self) -> None:
        """A long prompt."""
        theirs, a = self.bench.llama_cpp() + self.slow, self.bench.arguments
        prefill = {"what": "prefill", "prompt": a.prefill}
        name = f"prefill, {a.prefill} tokens"
        ours = self.bench.our("prefill", prompt=a.prefill, runs=a.runs)
        self.table.add(name, ours, theirs, {**prefill, "base_dtype": "q8_0"}, BLOCKS)
        self.table.add(name, ours, theirs, {**prefill, "peer": "transformers"}, "int8 against f32")
        self.table.add(name, ours, theirs, {**prefill, "peer": "peft"}, "int8 base alone against f32 with one LoRA")
        ours = self.bench.our("prefill", base_dtype="bf16", prompt=a.prefill, runs=a.runs)
        both = "both in bf16 where the CPU has it"
        self.table.add(f"{name}, base in bf16", ours, theirs, {**prefill, "base_dtype": "bf16"}, both)

    def compress(self) -> None:
        """A matrix of a pair."""
        theirs = self.bench.torch("torch_compress_peer.py", [[]])
        for dtype in ("bf16", "f32"):
            ours = self.bench.our("compress", dtype=dtype)
            wanted = {"what": "compress", "dtype": dtype}
            note = "ours: outliers clipped, too"
            self.table.add(f"compress 9728 x 2560, {dtype}", ours, theirs, wanted, note, "bytes_per_second")

    def training(self) -> None:
        """Forward and backward passes."""
        ways = [["--dtype", dtype, "--rank", rank] for rank in TRAINED_RANKS for dtype in ("f32", "bf16")]
        theirs = self.bench.torch("torch_train_peer.py", ways)
        for rank in TRAINED_RANKS:
            wanted = {"what": "train", "rank": rank}
            what = "training, rank 16" if rank else "training, all projections"
            for dtype, flags in (("f32", {}), ("bf16", {"bf16": True})):
                ours = self.bench.our("train", rank=rank, **flags)
                same = {**wanted, "dtype": dtype}
                self.table.add(f"{what} in {dtype}, forward and back", ours, theirs, same)
                self.table.add(f"{what} in {dtype}, memory", ours, theirs, same, "less is better", "peak_memory")


#: What is measured, in this order.
TOPICS = ("alone", "batch", "prefill", "compress", "training")


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
    parser.add_argument("--runs", type=int, default=3, help="of which the fastest counts")
    parser.add_argument("--turns", type=int, default=3, help="how often each side is measured, one after the other")
    parser.add_argument("--only", nargs="*", choices=TOPICS, default=TOPICS, help="what to measure; all by default")
    parser.add_argument("--no-slow", action="store_true", help="leave out mistral.rs, transformers and candle")
    parser.add_argument("--shape", help="also measure random weights of this true shape, such as qwen3-4b")
    parser.add_argument("--no-sweep", action="store_true", help="leave the plot out")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    noise = busy()
    if noise:
        print(noise, file=sys.stderr)

    bench, table, own = Bench(arguments), Table(), Own()
    topics = Topics(bench, [] if arguments.no_slow else bench.slow_peers(), table, own)
    for topic in arguments.only:
        for _ in range(arguments.turns):
            getattr(topics, topic)()
    load = bench.our("load")
    if arguments.shape:
        measure_shape(bench, own)
    machine = {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": arguments.threads,
        "isa": load["isa"],
        "read_bandwidth": max(figure.get("read_bandwidth", 0) for figure in bench.ours),
    }
    bandwidth = machine["read_bandwidth"]
    record = {"machine": machine, "versions": bench.versions, "ours": bench.ours, "figures": bench.theirs}
    (arguments.output / "bench.json").write_text(json.dumps(record, indent=1) + "\n")
    settings = ", ".join(f"{key} {value}" for key, value in machine.items() if key != "read_bandwidth")
    used = "; ".join(f"{name}: {version}" for name, version in bench.versions.items())
    text = [
        settings + (f", {bandwidth / 1e9:.1f} GB/s of read bandwidth" if bandwidth else ""),
        "",
        f"{arguments.model.stem}, {arguments.prompt} + {arguments.generate} tokens a request, prompts inside the clock; {used}. "
        f"The best of {arguments.turns} turns and the median of their ratios (the least to the greatest); mistral.rs, "
        "transformers and candle have one turn.",
        "",
        *table.lines(),
        "",
        *own.lines(),
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
