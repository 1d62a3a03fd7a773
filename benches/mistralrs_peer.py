"""mistral.rs in f32, for the table of `make bench`: the one peer here that batches different LoRA adapters.

The weights are those of the given GGUF file, dequantised to f32 (the dtype it is fastest in on a CPU, and one that takes
adapters: with a GGUF base it refuses them). Its Python runner takes text alone, so prompts are words, cut to about the
length of `bitdelta bench`'s and then counted by mistral.rs; it takes one call at a time, so requests are streams that
start one after another and then run side by side. Prompts are inside the clock. Prints an object with `skipped` where
the package is not installed.
"""

import argparse
import json
import os
import sys
import threading
import time
from pathlib import Path

from peer import PROJECTIONS, batch_options

WORDS = "ship parrot harbour tide captain biscuit lantern rope sail anchor chart north south wind salt deck".split()


def write_base(model: Path, folder: Path) -> Path:
    """The base as a folder of safetensors, made at first use."""
    import torch
    import transformers

    target = folder / f"{model.stem}.f32"
    if not (target / "ready").exists():
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            str(model.parent), gguf_file=model.name, dtype=torch.float32
        )
        del loaded.config.quantization_config  # it says GGUF, and so refuses to be saved
        plain = type(loaded)(loaded.config)
        plain.load_state_dict(loaded.state_dict())
        plain.save_pretrained(target)
        config = target / "config.json"
        fields = json.loads(config.read_text())
        fields["rope_theta"] = fields["rope_parameters"]["rope_theta"]  # where transformers 4, and mistral.rs, look
        config.write_text(json.dumps(fields))
        transformers.AutoTokenizer.from_pretrained(str(model.parent), gguf_file=model.name).save_pretrained(target)
        (target / "ready").touch()
    return target


def write_adapters(base: Path, folder: Path, count: int, rank: int) -> list[Path]:
    """`count` distinct LoRA adapters for every projection, as peft writes them; made at first use."""
    import peft
    import torch
    import transformers

    targets = [folder / f"{base.name}.peft-r{rank}-{seed}" for seed in range(count)]
    if all((target / "ready").exists() for target in targets):
        return targets
    model = transformers.AutoModelForCausalLM.from_pretrained(str(base))
    model = peft.get_peft_model(model, peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=PROJECTIONS))
    for seed, target in enumerate(targets):
        torch.manual_seed(seed)
        for name, values in model.named_parameters():
            if "lora_" in name:
                values.data.normal_(std=0.01)
        model.save_pretrained(target)
        (target / "ready").touch()
    return targets


class Runner:
    """mistral.rs with the base and its adapters."""

    def __init__(self, base: Path, adapters: list[Path], sequences: int) -> None:
        import mistralrs

        self.package = mistralrs
        loaded = [mistralrs.LoraAdapter(f"user-{i}", str(path)) for i, path in enumerate(adapters)]
        which = mistralrs.Which.Lora(
            str(base), adapters=loaded, max_adapters=len(adapters), dtype=mistralrs.ModelDType.F32
        )
        self.runner = mistralrs.Runner(which=which, max_seqs=sequences, prefix_cache_n=0)
        self.starting = threading.Lock()

    def ask(self, request: int, words: int, count: int, adapter: int | None) -> int:
        """One streamed answer: its number of tokens."""
        prompt = " ".join(WORDS[(request + i) % len(WORDS)] for i in range(words))
        query = self.package.ChatCompletionRequest(
            model="default",
            messages=[{"role": "user", "content": prompt}],
            max_tokens=count,
            temperature=0.0,
            ignore_eos=True,
            stream=True,
            adapter=None if adapter is None else f"user-{adapter}",
        )
        with self.starting:
            pieces = self.runner.send_chat_completion_request(query)
        *_, last = pieces  # fewer than tokens, where two make one character
        if last.choices[0].finish_reason != "length":
            raise SystemExit(f"mistral.rs ended an answer for {last.choices[0].finish_reason}")
        return count

    def together(self, batch: int, words: int, count: int, adapter) -> float:
        """Generated tokens a second of `batch` requests side by side; `adapter` maps a request to its adapter."""
        tokens = [0] * batch

        def one(request: int) -> None:
            tokens[request] = self.ask(request, words, count, adapter(request))

        begun = time.perf_counter()
        threads = [threading.Thread(target=one, args=(request,)) for request in range(batch)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - begun
        if 0 in tokens:
            raise SystemExit("mistral.rs left a request without an answer")
        return sum(tokens) / seconds


def measure(arguments: argparse.Namespace) -> list[dict]:
    """Every figure, with the keys of `bitdelta bench --json` where they mean the same."""
    most = max(arguments.batch)
    base = write_base(arguments.model, arguments.folder)
    runner = Runner(base, write_adapters(base, arguments.folder, most, 16), most)
    words = max(1, arguments.prompt - 14)  # the chat template adds the rest
    ways = {"base": lambda _: None, "one_lora": lambda _: 0, "lora_each": lambda request: request}
    figures = []
    for batch in arguments.batch:
        for adapter, choose in ways.items():
            if batch == 1 and adapter == "lora_each":
                continue
            runs = range(arguments.runs + 1)  # the first one warms up
            speed = max(runner.together(batch, words, arguments.generate, choose) for _ in runs)
            common = {"peer": "mistral.rs", "what": "decode", "base_dtype": "f32", "threads": arguments.threads}
            lengths = {"batch": batch, "prompt": arguments.prompt, "generate": arguments.generate}
            figures.append({**common, **lengths, "adapter": adapter, "tokens_per_second": speed})
            print(f"mistral.rs decode {adapter} x {batch}: {speed:.1f} tokens/s", file=sys.stderr)
    return figures


def main() -> None:
    """Measures and prints one JSON object."""
    parser = batch_options(__doc__)  # no prefill: its runner does not say when a prompt is in
    parser.set_defaults(runs=2)
    arguments = parser.parse_args()
    os.environ["RUST_LOG"] = "off"  # its log goes to stdout
    try:
        import importlib.metadata

        import mistralrs  # noqa: F401
        import peft  # noqa: F401
    except ImportError as error:
        print(json.dumps({"peer": "mistral.rs", "skipped": str(error), "figures": []}))
        return
    version = f"mistralrs {importlib.metadata.version('mistralrs')}"
    print(json.dumps({"peer": "mistral.rs", "version": version, "figures": measure(arguments)}))


if __name__ == "__main__":
    main()
