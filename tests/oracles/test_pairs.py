"""A pair that this project did not train: compressed, measured, exported, and opened by `transformers`."""

import conversations
import pytest
import reference
import torch
from conftest import MODEL, bitdelta, engine_logits, run
from transformers import AutoModelForCausalLM, AutoTokenizer

GROUP = 64
# The reconstructed model's loss against a PyTorch model with the same codes, relative. (Scales are f16.)
LOSS_TOLERANCE = 2e-3
# Thirty layers in f32, summed in another order, on logits of size 20.
LOGIT_TOLERANCE = 2e-3


@pytest.fixture(scope="module")
def variant(finetuned, tmp_path_factory):
    """The fine-tune compressed to one bit."""
    path = tmp_path_factory.mktemp("variant") / "user.safetensors"
    arguments = ["--base", MODEL, "--finetuned", finetuned.folder, "--bits", 1, "--group-size", GROUP, "-o", path]
    run("bitdelta", "compress", *arguments)
    return path


@pytest.fixture(scope="module")
def exported(variant, tmp_path_factory):
    """The merged model as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("exported") / "merged"
    run("bitdelta", "export", variant, "--base", MODEL, "--format", "hf", "-o", folder)
    return folder


def test_eval_equals_a_pytorch_reference_of_the_same_codes(smollm2, finetuned, tokenizer, held_examples, variant, held):
    found = bitdelta("eval", variant, "--base", MODEL, "--data", held, "--finetuned", finetuned.folder)
    assert found["loss_base"] == pytest.approx(reference.mean_loss(smollm2, held_examples), rel=LOSS_TOLERANCE)
    assert found["loss_finetuned"] == pytest.approx(finetuned.held_loss, rel=LOSS_TOLERANCE)

    model = reference.copy(smollm2)
    with torch.no_grad():
        tuned = reference.projections(finetuned.model)
        for name, weight in reference.projections(model).items():
            delta = (tuned[name] - weight).numpy()
            weight += torch.from_numpy(reference.quantise(delta, 1, GROUP))
    loss = reference.mean_loss(model, held_examples)
    assert found["loss_variant"] == pytest.approx(loss, rel=LOSS_TOLERANCE)
    retention = (found["loss_base"] - loss) / (found["loss_base"] - found["loss_finetuned"])
    assert found["retention"] == pytest.approx(retention, abs=0.01)
    assert found["bytes"] == variant.stat().st_size
    weights = sum(weight.numel() for weight in reference.projections(model).values())
    assert found["bits_per_weight"] == pytest.approx(8 * found["bytes"] / weights)


def test_the_exported_folder_opens_in_transformers_with_the_engines_logits(exported, variant, held_examples, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32, attn_implementation="eager")
    ids = held_examples[0][0]
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0]
    packed = engine_logits(tmp_path, MODEL, ids, variant)
    merged = engine_logits(tmp_path, exported, ids)
    torch.testing.assert_close(packed, expected, atol=LOGIT_TOLERANCE, rtol=0)
    torch.testing.assert_close(merged, expected, atol=LOGIT_TOLERANCE, rtol=0)


def test_the_exported_tokenizer_is_the_bases(exported, tokenizer):
    opened = AutoTokenizer.from_pretrained(exported)
    for text in ["Hello, world!", "  1234 naïve\n\ttabs", "<|im_start|>user\nhi<|im_end|>"]:
        assert opened(text)["input_ids"] == tokenizer(text)["input_ids"]
    chat = conversations.conversations(conversations.HELD)[0]
    render = {"tokenize": False, "add_generation_prompt": True}
    assert opened.apply_chat_template(chat[:1], **render) == tokenizer.apply_chat_template(chat[:1], **render)


def test_full_precision_deltas_give_the_fine_tune_back(finetuned, tmp_path, held_examples):
    """`--no-compression` keeps f16 deltas: the exported weights are the fine-tune's to f16's rounding."""
    path, folder = tmp_path / "user.safetensors", tmp_path / "merged"
    run("bitdelta", "compress", "--base", MODEL, "--finetuned", finetuned.folder, "--no-compression", "-o", path)
    run("bitdelta", "export", path, "--base", MODEL, "--format", "hf", "-o", folder)
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert reference.mean_loss(merged, held_examples) == pytest.approx(finetuned.held_loss, rel=LOSS_TOLERANCE)
