"""The real model: the engine against PyTorch on the same weights, dequantised by the `gguf` package."""

import conversations
import pytest
import reference
import torch
from conftest import MODEL, bitdelta, engine_logits

# Thirty layers in f32, summed in another order, on logits of size 20.
LOGIT_TOLERANCE = 2e-3
# The engine's loss against PyTorch's, relative.
LOSS_TOLERANCE = 1e-3

TEXT = 'The lighthouse keeper wrote: "In 1887, three ships (the Ana, the Bruma & the Céu) passed at 4:30 am."\n\n'


def test_logits_equal_transformers(smollm2, tokenizer, tmp_path):
    ids = tokenizer(TEXT * 3, add_special_tokens=False)["input_ids"]
    found = engine_logits(tmp_path, MODEL, ids)
    with torch.no_grad():
        expected = smollm2(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(found, expected, atol=LOGIT_TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-llama3", "tiny-qwen3"])
def test_logits_of_other_tokens_than_the_golden_ones_equal_transformers(name, tmp_path):
    import make_tiny
    from conftest import GOLDEN

    model = make_tiny.load(GOLDEN / name)
    generator = torch.Generator().manual_seed(99)
    ids = torch.randint(0, model.config.vocab_size, (400,), generator=generator)
    with torch.no_grad():
        expected = model(ids[None]).logits[0]
    found = engine_logits(tmp_path, GOLDEN / name, ids.tolist())
    torch.testing.assert_close(found, expected, atol=LOGIT_TOLERANCE, rtol=0)


def test_the_loss_of_conversations_equals_transformers(smollm2, tokenizer, finetuned, variant, tmp_path):
    held = conversations.write(tmp_path / "held.jsonl", conversations.HELD)
    examples = [reference.encode(tokenizer, messages) for messages in reference.read_conversations(held)]
    expected = reference.mean_loss(smollm2, examples)
    found = bitdelta("eval", variant, "--base", MODEL, "--data", held, "--finetuned", finetuned.folder)
    assert found["loss_base"] == pytest.approx(expected, rel=LOSS_TOLERANCE)
    assert found["loss_finetuned"] == pytest.approx(finetuned.held_loss, rel=LOSS_TOLERANCE)
