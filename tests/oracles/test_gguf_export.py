"""A variant merged into one GGUF file, opened by `transformers` through the `gguf` package. (llama.cpp: `make bench`.)"""

import pytest
import torch
from conftest import GOLDEN, engine_logits, run
from transformers import AutoModelForCausalLM, AutoTokenizer

# As in test_engine.py.
LOGIT_TOLERANCE = 2e-3
# Eight bits a weight move the logits of models drawn at random with large weights by this much at most.
ROUNDED_TOLERANCE = 0.3

IDS = torch.randint(0, 288, (60,), generator=torch.Generator().manual_seed(11)).tolist()


@pytest.fixture(scope="module")
def variant(tmp_path_factory):
    """tiny-llama's fine-tune at four bits."""
    path = tmp_path_factory.mktemp("variant") / "v.safetensors"
    pair = ["--base", GOLDEN / "tiny-llama", "--finetuned", GOLDEN / "tiny-llama-ft"]
    run("bitdelta", "compress", *pair, "--bits", 4, "-o", path)
    return path


@pytest.mark.parametrize(("dtype", "tolerance"), [("f32", LOGIT_TOLERANCE), ("q8_0", ROUNDED_TOLERANCE)])
def test_a_merged_gguf_opens_in_transformers_with_the_engines_logits(dtype, tolerance, variant, tmp_path):
    base, file = GOLDEN / "tiny-llama", tmp_path / "merged.gguf"
    run("bitdelta", "export", variant, "--base", base, "--format", "gguf", "--dtype", dtype, "-o", file)
    packed = engine_logits(tmp_path, base, IDS, variant)
    torch.testing.assert_close(engine_logits(tmp_path, file, IDS), packed, atol=tolerance, rtol=0)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        opened = model.eval()(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(opened, packed, atol=tolerance, rtol=0)
    ours, theirs = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    for text in ["Hello, world! 123", "  naïve\n\ttabs"]:
        assert theirs(text)["input_ids"] == ours(text)["input_ids"]
