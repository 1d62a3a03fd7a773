"""A variant merged into one GGUF file, opened by `transformers` through the `gguf` package. (llama.cpp: `make bench`.)"""

import gguf
import numpy as np
import pytest
import torch
from conftest import GOLDEN, engine_logits, run
from transformers import AutoModelForCausalLM, AutoTokenizer

# As in test_engine.py.
LOGIT_TOLERANCE = 2e-3

IDS = torch.randint(0, 288, (60,), generator=torch.Generator().manual_seed(11)).tolist()


@pytest.fixture(scope="module")
def variant(tmp_path_factory):
    """tiny-llama's fine-tune at four bits."""
    path = tmp_path_factory.mktemp("variant") / "v.safetensors"
    pair = ["--base", GOLDEN / "tiny-llama", "--finetuned", GOLDEN / "tiny-llama-ft"]
    run("bitdelta", "compress", *pair, "--bits", 4, "-o", path)
    return path


def exported(variant, folder, dtype):
    """The merged model as `folder`/merged.gguf."""
    folder.mkdir()
    file = folder / "merged.gguf"
    run(
        "bitdelta", "export", variant, "--base", GOLDEN / "tiny-llama", "--format", "gguf", "--dtype", dtype, "-o", file
    )
    return file


def opened(file):
    """The logits that `transformers` computes with the file."""
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        return model.eval()(torch.tensor([IDS])).logits[0]


def test_a_merged_gguf_opens_in_transformers_with_the_engines_logits(variant, tmp_path):
    base, file = GOLDEN / "tiny-llama", exported(variant, tmp_path / "f32", "f32")
    packed = engine_logits(tmp_path, base, IDS, variant)
    torch.testing.assert_close(engine_logits(tmp_path, file, IDS), packed, atol=LOGIT_TOLERANCE, rtol=0)
    torch.testing.assert_close(opened(file), packed, atol=LOGIT_TOLERANCE, rtol=0)
    ours, theirs = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for text in ["Hello, world! 123", "  naïve\n\ttabs"]:
        assert theirs(text)["input_ids"] == ours(text)["input_ids"]


def test_a_merged_gguf_in_q8_0_has_the_codes_of_gguf_and_the_same_logits_everywhere(variant, tmp_path):
    exact = {tensor.name: tensor for tensor in gguf.GGUFReader(exported(variant, tmp_path / "f32", "f32")).tensors}
    file = exported(variant, tmp_path / "q8_0", "q8_0")
    rounded = 0
    for tensor in gguf.GGUFReader(file).tensors:
        if tensor.tensor_type == gguf.GGMLQuantizationType.Q8_0:
            codes = gguf.quants.quantize(exact[tensor.name].data, gguf.GGMLQuantizationType.Q8_0)
            np.testing.assert_array_equal(tensor.data, codes, err_msg=tensor.name)
            rounded += 1
        else:
            np.testing.assert_array_equal(tensor.data, exact[tensor.name].data, err_msg=tensor.name)
    assert rounded > 7
    torch.testing.assert_close(opened(file), engine_logits(tmp_path, file, IDS), atol=LOGIT_TOLERANCE, rtol=0)
