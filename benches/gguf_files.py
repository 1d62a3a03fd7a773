"""The files that llama.cpp needs and our bench does not: the base as Q8_0 and bf16, and LoRA adapters.

All are made from the base's own GGUF, so that the peers run the same model: the base files hold the dequantised weights
of the given one, rounded to blocks of 8 bits (as our int8 base is) or to bf16, with all metadata copied; an adapter
holds small random factors for every projection, as `peft` writes them for "all-linear", since what a product costs does
not depend on its values.
"""

from pathlib import Path

import gguf
import numpy as np

PROJECTIONS = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]


TYPES = {
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
}


def write_base(source: Path, target: Path, dtype: str) -> None:
    """Writes the model of `source` to `target` with every matrix in one of `TYPES`; vectors stay as they are."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, arch=reader.fields["general.architecture"].contents())
    written_by_the_writer = {"general.architecture", "general.file_type"}
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in written_by_the_writer:
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, inner)
    kind, file_type = TYPES[dtype]
    writer.add_file_type(file_type)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if len(tensor.shape) < 2:
            writer.add_tensor(tensor.name, values.astype(np.float32))
        else:
            writer.add_tensor(tensor.name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    finish(writer)


def write_lora(base: Path, target: Path, rank: int, seed: int) -> None:
    """Writes a LoRA adapter for every projection of `base`: A (rank, inputs), B (outputs, rank), both f16."""
    reader = gguf.GGUFReader(base)
    writer = gguf.GGUFWriter(target, arch=reader.fields["general.architecture"].contents())
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
    random = np.random.default_rng(seed)
    for tensor in reader.tensors:
        if tensor.name.split(".")[-2] not in PROJECTIONS:
            continue
        inputs, outputs = (int(size) for size in tensor.shape)
        a = 0.01 * random.standard_normal((rank, inputs), dtype=np.float32)
        b = 0.01 * random.standard_normal((outputs, rank), dtype=np.float32)
        writer.add_tensor(f"{tensor.name}.lora_a", a.astype(np.float16))
        writer.add_tensor(f"{tensor.name}.lora_b", b.astype(np.float16))
    finish(writer)


def finish(writer: gguf.GGUFWriter) -> None:
    """Writes header, metadata and tensors."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def once(path: Path, write) -> Path:
    """Makes `path` with `write(temporary)` where it is not there yet; it appears whole or not at all."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".partial")
        write(temporary)
        temporary.rename(path)
    return path


def base(model: Path, folder: Path, dtype: str) -> Path:
    """`model` in one of `TYPES`, made in `folder` at first use."""
    return once(folder / f"{model.stem}.{dtype}.gguf", lambda path: write_base(model, path, dtype))


def adapters(model: Path, folder: Path, count: int, rank: int) -> list[Path]:
    """`count` distinct LoRA adapters for `model`, made in `folder` at first use."""
    return [
        once(
            folder / f"{model.stem}.lora-r{rank}-{seed}.gguf",
            lambda path, seed=seed: write_lora(model, path, rank, seed),
        )
        for seed in range(count)
    ]
