"""Compressing a matrix of a pair to one bit as five lines of PyTorch do it, for the table of `make bench`.

Prints an array of figures.
"""

import argparse
import json
import sys

from peer import fastest, options


def measure(arguments: argparse.Namespace) -> list[dict]:
    """A figure for each type, with the keys of `bitdelta bench compress --json`."""
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
    """Measures and prints one JSON array."""
    print(json.dumps(measure(options(__doc__).parse_args())))


if __name__ == "__main__":
    main()
