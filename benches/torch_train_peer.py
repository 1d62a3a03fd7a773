"""Training with PyTorch and peft, for the table of `make bench`: forward and backward passes without the optimiser, on the
tokens of `bitdelta bench train`, every token counting. One way a process, so that its greatest memory is its own."""

import argparse
import json
import resource
import sys
import time

from peer import PROJECTIONS, options, prompt_tokens


def measure(arguments: argparse.Namespace) -> dict:
    """The figure, with the keys of `bitdelta bench train --json` where they mean the same."""
    import torch
    import transformers

    torch.set_num_threads(arguments.threads)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[arguments.dtype]
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(arguments.model.parent), gguf_file=arguments.model.name, dtype=dtype
    )
    if arguments.rank:
        import peft

        lora = peft.LoraConfig(r=arguments.rank, lora_alpha=arguments.rank, target_modules=PROJECTIONS)
        model = peft.get_peft_model(model, lora, autocast_adapter_dtype=False)
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(any(f".{projection}." in name for projection in PROJECTIONS))
    model.train()
    rows = [prompt_tokens(i, arguments.length, model.config.vocab_size) for i in range(arguments.batch)]
    tokens = torch.tensor(rows)
    seconds = []
    for _ in range(arguments.runs + 1):
        begun = time.perf_counter()
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        seconds.append(time.perf_counter() - begun)
        model.zero_grad()
    fastest = min(seconds[1:])
    peer = "peft" if arguments.rank else "torch"
    common = {"peer": peer, "what": "train", "dtype": arguments.dtype, "threads": arguments.threads}
    shape = {"rank": arguments.rank, "batch": arguments.batch, "length": arguments.length}
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    measured = {"tokens_per_second": tokens.numel() / fastest, "seconds": fastest, "peak_memory": peak}
    print(f"{peer} train {arguments.dtype}: {measured['tokens_per_second']:.1f} tokens/s", file=sys.stderr)
    return {**common, **shape, **measured}


def main() -> None:
    """Measures and prints one JSON array."""
    parser = options(__doc__)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--rank", type=int, default=0, help="0 trains the projections themselves")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=64)
    print(json.dumps([measure(parser.parse_args())]))


if __name__ == "__main__":
    main()
