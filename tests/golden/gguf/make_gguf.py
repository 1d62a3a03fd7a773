"""Makes the golden files beside it with the public `gguf` package (0.19), NumPy and a fixed seed.

    python -m pip install gguf==0.19.0 && python tests/golden/gguf/make_gguf.py

For each block type: `<type>.bin` holds random blocks as a file would store them, `<type>.f32` what the package's own
`gguf.quants.dequantize` makes of them. `tiny-llama.gguf` is a random one-layer Llama written with the package's
writer, its q/k rows permuted as llama.cpp's converter does; `tiny-llama.f32` holds q, k and up unpermuted, one after the other.
"""

import pathlib

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize

HERE = pathlib.Path(__file__).parent
TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
# Bytes at which a block holds its f16 scales: random bits there would be infinities and NaN.
SCALES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
}
HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, VOCAB = 64, 96, 4, 2, 300


def blocks(rng):
    for name in TYPES:
        kind = GGMLQuantizationType[name]
        _, size = GGML_QUANT_SIZES[kind]
        raw = rng.integers(0, 256, (3, size), dtype=np.uint8)
        for at in SCALES[name]:
            scale = rng.normal(0, 0.02, (3, 1)).astype(np.float16)
            raw[:, at : at + 2] = scale.view(np.uint8)
        (HERE / f"{name}.bin").write_bytes(raw.tobytes())
        (HERE / f"{name}.f32").write_bytes(dequantize(raw, kind).astype("<f4").tobytes())


def permute(weights, heads):
    rows = weights.shape[0]
    return weights.reshape(heads, 2, rows // heads // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def byte_tokens():
    """GPT-2's printable characters for the 256 bytes, in order."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = iter(range(256, 512))
    return [chr(byte) if byte in kept else chr(next(other)) for byte in range(256)]


def tiny_llama(rng):
    writer = GGUFWriter(HERE / "tiny-llama.gguf", "llama")
    writer.add_name("Tiny")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ġ hello"]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_tokens(), *(m.replace(" ", "") for m in merges)]
    tokens += [f"[PAD{i}]" for i in range(len(tokens), VOCAB)]
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (256 + len(merges)) + [5] * (VOCAB - 259 - len(merges)))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    head = HIDDEN // HEADS
    shapes = [
        ("token_embd", (VOCAB, HIDDEN), "Q8_0", None),
        ("blk.0.attn_norm", (HIDDEN,), "F32", None),
        ("blk.0.attn_q", (HIDDEN, HIDDEN), "Q4_1", HEADS),
        ("blk.0.attn_k", (KV_HEADS * head, HIDDEN), "F16", KV_HEADS),
        ("blk.0.attn_v", (KV_HEADS * head, HIDDEN), "Q4_0", None),
        ("blk.0.attn_output", (HIDDEN, HIDDEN), "Q5_0", None),
        ("blk.0.ffn_gate", (INTERMEDIATE, HIDDEN), "Q5_1", None),
        ("blk.0.ffn_up", (INTERMEDIATE, HIDDEN), "BF16", None),
        ("blk.0.ffn_down", (HIDDEN, INTERMEDIATE), "F32", None),
        ("blk.0.ffn_norm", (HIDDEN,), "F32", None),
        ("output_norm", (HIDDEN,), "F32", None),
    ]
    expected = b""
    for name, shape, dtype, heads in shapes:
        kind = GGMLQuantizationType[dtype]
        values = rng.normal(0, 0.05, shape).astype(np.float32)
        stored = quantize(values, kind)
        # Groups run along a row, so permuting rows before or after quantising is the same.
        back = values if dtype == "F32" else dequantize(stored, kind)
        expected += back.astype("<f4").tobytes() if name in ("blk.0.attn_q", "blk.0.attn_k", "blk.0.ffn_up") else b""
        if heads:
            stored = permute(stored, heads)
        # The writer keeps NumPy's f32 and f16 as they are and takes the rest as bytes of a named type.
        if dtype in ("F32", "F16"):
            writer.add_tensor(f"{name}.weight", stored)
        else:
            writer.add_tensor(f"{name}.weight", stored.view(np.uint8), raw_dtype=kind)
    (HERE / "tiny-llama.f32").write_bytes(expected)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    generator = np.random.default_rng(7)
    blocks(generator)
    tiny_llama(generator)
