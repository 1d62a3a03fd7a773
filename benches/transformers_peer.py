"""transformers on PyTorch, in f32, for the table of `make bench`: prefill, decoding one request, and one LoRA with peft.

The weights are those of the given GGUF file, dequantised to f32; the prompt tokens those of `bitdelta bench`; the choice
is greedy with a key-value cache; the prompt is inside the clock of `decode`. Prints an object with `skipped` where
PyTorch or transformers is not installed.
"""

import argparse
import json
import sys

from peer import fastest, prompt_tokens, serving_options


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


def main() -> None:
    """Measures and prints one JSON object."""
    arguments = serving_options(__doc__).parse_args()
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        print(json.dumps({"peer": "transformers", "skipped": str(error), "figures": []}))
        return
    print(json.dumps(measure(arguments)))


if __name__ == "__main__":
    main()
