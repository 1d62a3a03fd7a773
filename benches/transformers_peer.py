"""transformers on PyTorch, in f32, for the table of `make bench`: prefill, decoding one request, and one LoRA with peft.

The weights are those of the given GGUF file, dequantised to f32; the prompt tokens those of `bitdelta bench`; the choice
is greedy with a key-value cache; the prompt is inside the clock of `decode`. Prints an object with `skipped` where
PyTorch or transformers is not installed.
"""

import argparse
import json
import sys
import time

from peer import prompt_tokens, serving_options


def fastest(runs: int, run) -> float:
    """Seconds of the fastest of `runs` calls; one more warms up."""
    seconds = []
    for _ in range(runs + 1):
        begun = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:])


def generate(model, tokens, count: int) -> list[int]:
    """`count` greedy tokens after a prompt of one sequence."""
    import torch

    answer, cache, inputs = [], None, torch.tensor([tokens])
    for _ in range(count):
        out = model(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        answer.append(int(out.logits[0, -1].argmax()))
        inputs = torch.tensor([[answer[-1]]])
    return answer


def measure(arguments: argparse.Namespace) -> dict:
    """Every figure, with the keys of `bitdelta bench --json` where they mean the same."""
    import torch
    import transformers

    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(arguments.model.parent), gguf_file=arguments.model.name, dtype=torch.float32
    ).eval()
    vocab = model.config.vocab_size
    figures = []

    def figure(peer: str, what: str, adapter: str, prompt: int, count: int) -> None:
        tokens = prompt_tokens(0, prompt, vocab)
        seconds = fastest(arguments.runs, lambda: generate(model, tokens, count))
        speed = (count if what == "decode" else prompt) / seconds
        common = {"base_dtype": "f32", "threads": arguments.threads, "batch": 1, "prompt": prompt, "generate": count}
        measured = {"tokens_per_second": speed, "seconds": seconds}
        figures.append({"peer": peer, "what": what, "adapter": adapter, **common, **measured})
        print(f"{peer} {what} {adapter}: {speed:.1f} tokens/s", file=sys.stderr)

    figure("transformers", "decode", "base", arguments.prompt, arguments.generate)
    figure("transformers", "prefill", "base", arguments.prefill, 1)
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    try:
        import peft
    except ImportError as error:
        print(f"peft is left out: {error}", file=sys.stderr)
    else:
        lora = peft.LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
        model = peft.get_peft_model(model, lora).eval()
        figure("peft", "decode", "one_lora", arguments.prompt, arguments.generate)
        figure("peft", "prefill", "one_lora", arguments.prefill, 1)
        versions += f", peft {peft.__version__}"
    return {"peer": "transformers", "version": versions, "figures": figures}


def compress_five_lines(arguments: argparse.Namespace) -> list[dict]:
    """Compressing a pair to one bit as five lines of PyTorch do it: the mark for `bitdelta bench compress`."""
    import torch

    torch.set_num_threads(arguments.threads)
    rows, cols, group = 9728, 2560, 128
    figures = []
    for dtype in (torch.float32, torch.bfloat16):
        base = torch.randn(rows, cols).to(dtype)
        tuned = (base.float() + 0.002 * torch.randn(rows, cols)).to(dtype)
        weight = (2 ** torch.arange(8)).to(torch.uint8)

        def compress(base=base, tuned=tuned, weight=weight) -> None:
            delta = (tuned - base).view(rows, -1, group)
            scale = delta.abs().mean(-1).half()
            bits = (delta >= 0).view(rows, -1, 8)
            packed = (bits * weight).sum(-1, dtype=torch.uint8)
            assert packed.numel() * 8 == base.numel() and scale.numel() * group == base.numel()

        seconds = fastest(arguments.runs, compress)
        read = 2 * base.numel() * base.element_size()
        name = {torch.float32: "f32", torch.bfloat16: "bf16"}[dtype]
        common = {"dtype": name, "threads": arguments.threads, "rows": rows, "cols": cols, "bits": 1, "group": group}
        measured = {"seconds": seconds, "input_bytes": read, "bytes_per_second": read / seconds}
        figures.append({"peer": "torch", "what": "compress", **common, **measured})
        print(f"torch compress {name}: {read / seconds / 1e9:.2f} GB/s", file=sys.stderr)
    return figures


def main() -> None:
    """Measures and prints one JSON object."""
    arguments = serving_options(__doc__).parse_args()
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        print(json.dumps({"peer": "transformers", "skipped": str(error), "figures": []}))
        return
    result = measure(arguments)
    result["figures"] += compress_five_lines(arguments)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
