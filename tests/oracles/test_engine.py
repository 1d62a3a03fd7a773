"""The engine's logits against PyTorch's: the real model, and tiny ones on other tokens than the golden files'."""

import make_tiny
import pytest
import torch
from conftest import GOLDEN, MODEL, engine_logits

# Thirty layers in f32, summed in another order, on logits of size 20.
LOGIT_TOLERANCE = 2e-3

TEXT = 'The lighthouse keeper wrote: "In 1887, three ships (the Ana, the Bruma & the Céu) passed at 4:30 am."\n\n'


def test_logits_of_the_real_model_equal_transformers(smollm2, tokenizer, tmp_path):
    ids = tokenizer(TEXT * 3, add_special_tokens=False)["input_ids"]
    found = engine_logits(tmp_path, MODEL, ids)
    with torch.no_grad():
        expected = smollm2(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(found, expected, atol=LOGIT_TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-llama3", "tiny-qwen3"])
def test_logits_of_long_random_texts_equal_transformers(name, tmp_path):
    model = make_tiny.load(GOLDEN / name)
    generator = torch.Generator().manual_seed(99)
    ids = torch.randint(0, model.config.vocab_size, (400,), generator=generator)
    with torch.no_grad():
        expected = model(ids[None]).logits[0]
    found = engine_logits(tmp_path, GOLDEN / name, ids.tolist())
    torch.testing.assert_close(found, expected, atol=LOGIT_TOLERANCE, rtol=0)
