"""llama.cpp's figures for the table of `make bench`, through the C interface that llama-cpp-python binds.

Definitions are those of `bitdelta bench`: the same prompt tokens, all prompts in before the first step, greedy choice,
the prompts inside the clock of `decode`, the fastest of a few runs. What the adapters cost is measured three ways:

- `base`: no adapter, all rows in one batch;
- `one_lora`: one adapter for all rows, in one batch;
- `lora_each`: an adapter each. llama.cpp has one set of adapters a context, so rows with different adapters cannot share
  a batch: its server batches only requests with equal adapters, and so does this. Two orders are tried, each user's
  whole answer after another's, and a token of each in turn; the faster counts.
"""

import argparse
import ctypes
import json
import sys
import time
from pathlib import Path

import gguf_files
import llama_cpp
import numpy as np
from peer import batch_options, prompt_tokens


@llama_cpp.llama_log_callback
def only_errors(level: int, text: bytes, _data: object) -> None:
    """Passes on what llama.cpp calls an error."""
    if level == 4:
        sys.stderr.write(text.decode(errors="replace"))


class Peer:
    """A model and one context for `sequences` sequences of up to `length` tokens."""

    def __init__(self, model: Path, adapters: list[Path], threads: int, sequences: int, length: int) -> None:
        self.model = llama_cpp.llama_model_load_from_file(str(model).encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {model}")
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.adapters = [self.adapter(path) for path in adapters]
        options = llama_cpp.llama_context_default_params()
        # As many cells as one sequence needs, rounded up to what llama.cpp pads to, for each sequence.
        options.n_ctx = sequences * (-(-length // 256) * 256)
        options.n_seq_max = sequences
        options.n_batch = 2048
        options.n_ubatch = 512
        options.n_threads = options.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        if not self.context:
            raise SystemExit(f"llama.cpp cannot make a context of {options.n_ctx} tokens")
        self.batch = llama_cpp.llama_batch_init(options.n_batch, 0, 1)

    def adapter(self, path: Path):
        """Loads a LoRA adapter."""
        loaded = llama_cpp.llama_adapter_lora_init(self.model, str(path).encode())
        if not loaded:
            raise SystemExit(f"llama.cpp cannot load the adapter {path}")
        return loaded

    def use(self, adapter: int | None) -> None:
        """Makes `adapter` the one of all rows from now on, or none."""
        if adapter is None:
            status = llama_cpp.llama_set_adapters_lora(self.context, None, 0, None)
        else:
            chosen = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(self.adapters[adapter])
            status = llama_cpp.llama_set_adapters_lora(self.context, chosen, 1, (ctypes.c_float * 1)(1.0))
        if status != 0:
            raise SystemExit(f"llama.cpp refused the adapter {adapter}: {status}")

    def step(self, rows: list[tuple[int, int, list[int]]]) -> list[int]:
        """Runs (sequence, position of the first token, tokens) of each row in one batch: the likeliest next tokens."""
        batch, at, last = self.batch, 0, []
        for sequence, start, tokens in rows:
            for i, token in enumerate(tokens):
                batch.token[at] = token
                batch.pos[at] = start + i
                batch.n_seq_id[at] = 1
                batch.seq_id[at][0] = sequence
                batch.logits[at] = i + 1 == len(tokens)
                at += 1
            last.append(at - 1)
        batch.n_tokens = at
        status = llama_cpp.llama_decode(self.context, batch)
        if status != 0:
            raise SystemExit(f"llama_decode failed with {status} on {at} tokens")
        shape = (self.vocab,)
        logits = (np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, i), shape) for i in last)
        return [int(row.argmax()) for row in logits]

    def together(self, sequences: range, prompt: int, generate: int) -> dict[int, list[int]]:
        """All sequences in one batch: their prompts, then token after token of each."""
        chunk, tokens = max(1, 2048 // prompt), []
        for start in range(0, len(sequences), chunk):
            part = sequences[start : start + chunk]
            tokens += self.step([(s, 0, prompt_tokens(s, prompt, self.vocab)) for s in part])
        answers = {s: [token] for s, token in zip(sequences, tokens, strict=True)}
        for done in range(1, generate):
            tokens = self.step([(s, prompt + done - 1, [answers[s][-1]]) for s in sequences])
            for s, token in zip(sequences, tokens, strict=True):
                answers[s].append(token)
        return answers

    def in_turn(self, sequences: range, prompt: int, generate: int) -> dict[int, list[int]]:
        """A token of each sequence in turn, each with its own adapter."""
        answers: dict[int, list[int]] = {s: [] for s in sequences}
        for done in range(generate):
            for s in sequences:
                self.use(s)
                if done == 0:
                    row = (s, 0, prompt_tokens(s, prompt, self.vocab))
                else:
                    row = (s, prompt + done - 1, [answers[s][-1]])
                answers[s] += self.step([row])
        return answers

    def one_after_another(self, sequences: range, prompt: int, generate: int) -> dict[int, list[int]]:
        """The whole answer of each sequence, each with its own adapter."""
        answers = {}
        for s in sequences:
            self.use(s)
            answers |= self.together(range(s, s + 1), prompt, generate)
        return answers

    def seconds(self, run, runs: int) -> float:
        """The fastest of `runs` calls of `run`, each from an empty cache; one more call warms up."""
        fastest = float("inf")
        for i in range(runs + 1):
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)
            begun = time.perf_counter()
            run()
            if i > 0:
                fastest = min(fastest, time.perf_counter() - begun)
        return fastest

    def close(self) -> None:
        """Gives the memory back."""
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)


class Figures:
    """What was measured, with the keys of `bitdelta bench --json` where they mean the same."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.list: list[dict] = []

    def add(self, dtype: str, what: str, adapter: str, batch: int, prompt: int, generate: int, seconds: float, **more):
        """One figure: tokens generated a second in all; of `prefill`, prompt tokens."""
        speed = batch * (generate if what == "decode" else prompt) / seconds
        setting = {"base_dtype": dtype, "threads": self.threads, "batch": batch, "prompt": prompt, "generate": generate}
        measured = {"tokens_per_second": speed, "seconds": seconds}
        self.list.append({"peer": "llama.cpp", "what": what, "adapter": adapter, **setting, **measured, **more})
        print(f"llama.cpp {dtype} {what} {adapter} batch {batch}: {speed:.1f} tokens/s", file=sys.stderr)


def decode(figures: Figures, arguments: argparse.Namespace, base: Path, batch: int) -> None:
    """`batch` requests: on the base, on one adapter, on an adapter each."""
    prompt, generate, runs = arguments.prompt, arguments.generate, arguments.runs
    loras = gguf_files.adapters(arguments.model, arguments.folder, batch, rank=16)
    peer = Peer(base, loras, arguments.threads, batch, prompt + generate)
    rows = range(batch)

    def together() -> None:
        peer.together(rows, prompt, generate)

    figures.add("q8_0", "decode", "base", batch, prompt, generate, peer.seconds(together, runs))
    peer.use(0)
    figures.add("q8_0", "decode", "one_lora", batch, prompt, generate, peer.seconds(together, runs))
    orders = {
        order.__name__: peer.seconds(lambda order=order: order(rows, prompt, generate), max(1, runs // 2))
        for order in (peer.one_after_another, peer.in_turn)
    }
    best = min(orders, key=orders.get)
    more = {"order": best, "seconds_by_order": orders}
    figures.add("q8_0", "decode", "lora_each", batch, prompt, generate, orders[best], **more)
    peer.close()


def alone(figures: Figures, arguments: argparse.Namespace, dtype: str, what: str, prompt: int, generate: int) -> None:
    """One request on the base."""
    base = gguf_files.base(arguments.model, arguments.folder, dtype)
    peer = Peer(base, [], arguments.threads, 1, prompt + generate)
    seconds = peer.seconds(lambda: peer.together(range(1), prompt, generate), arguments.runs)
    figures.add(dtype, what, "base", 1, prompt, generate, seconds)
    peer.close()


def measure(arguments: argparse.Namespace) -> list[dict]:
    """Every figure."""
    figures = Figures(arguments.threads)
    base = gguf_files.base(arguments.model, arguments.folder, "q8_0")
    for batch in arguments.batch:
        decode(figures, arguments, base, batch)
    if 1 in arguments.batch:
        alone(figures, arguments, "bf16", "decode", arguments.prompt, arguments.generate)
    if arguments.prefill > 0:
        for dtype in gguf_files.TYPES:
            alone(figures, arguments, dtype, "prefill", arguments.prefill, 1)
    return figures.list


def main() -> None:
    """Measures and prints one JSON object."""
    arguments = batch_options(__doc__).parse_args()
    llama_cpp.llama_log_set(only_errors, ctypes.c_void_p())
    llama_cpp.llama_backend_init()
    figures = measure(arguments)
    system = llama_cpp.llama_print_system_info().decode().strip()
    print(json.dumps({"peer": "llama.cpp", "version": llama_cpp.__version__, "system": system, "figures": figures}))


if __name__ == "__main__":
    main()
