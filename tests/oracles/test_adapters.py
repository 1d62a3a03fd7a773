"""Adapters that `peft` wrote become variants with the same logits, and variants become adapters that `peft` opens."""

import make_tiny
import peft
import pytest
import reference
import torch
from conftest import GOLDEN, MODEL, bitdelta, engine_logits, run

# As in test_engine.py: f32 sums in another order, on logits of size 20.
LOGIT_TOLERANCE = 2e-3
# DoRA's stretched rows are kept at eight bits: half a percent of what they add.
DORA_TOLERANCE = 5e-2
# What a low-rank fine-tune gained on held-out answers, and what of it quantised factors must keep.
KEPT = 0.995
# Bytes of a file that are not payload, at most.
HEADER = 1536
# Exported factors are f32; the packed ones are summed in another order.
EXPORT_TOLERANCE = 2e-3

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# (golden model, settings of its adapter): the methods, patterns, targets and types that adapters come in.
ADAPTERS = {
    "lora": ("tiny-llama", {"target_modules": "all-linear"}),
    "one-kind": ("tiny-qwen3", {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "rslora": ("tiny-qwen3", {"target_modules": LINEARS, "use_rslora": True}),
    "patterns": (
        "tiny-qwen3",
        {
            "target_modules": r".*\.(q_proj|down_proj)",
            "rank_pattern": {"down_proj": 3, r"^model\.layers\.1\.self_attn\.q_proj": 7},
            "alpha_pattern": {r"layers\.[12]\..*q_proj": 20},
        },
    ),
    "head": ("tiny-llama3", {"target_modules": [*LINEARS, "lm_head"]}),
    "tables": ("tiny-llama3", {"target_modules": ["embed_tokens", "lm_head", "v_proj"]}),
    "saved": ("tiny-llama3", {"target_modules": ["up_proj"], "modules_to_save": ["lm_head", "norm"]}),
    "biases": ("tiny-llama3", {"target_modules": ["q_proj", "o_proj"], "bias": "all"}),
    "dora": ("tiny-llama3", {"target_modules": LINEARS, "use_dora": True}),
    "dora-rslora": ("tiny-qwen3", {"target_modules": LINEARS, "use_dora": True, "use_rslora": True}),
}


def randomise(model):
    """Trained-looking values in whatever the adapter trains; nothing is left at the zero that it starts from."""
    torch.manual_seed(17)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if not value.requires_grad:
                continue
            if "magnitude" in name:
                value *= 1 + 0.1 * torch.randn_like(value)
            elif "lora_" in name:
                value.copy_(torch.randn_like(value) * 0.3 / value.shape[-1] ** 0.5)
            else:
                value += 0.05 * torch.randn_like(value)


def adapted(folder, base, settings, dtype=torch.float32):
    """A golden model with a random adapter, saved to `folder`."""
    model = make_tiny.load(GOLDEN / base)
    model = peft.get_peft_model(model, peft.LoraConfig(r=5, lora_alpha=8, **settings))
    randomise(model)
    model.to(dtype)
    model.save_pretrained(folder)
    return model.to(torch.float32).eval()


def ids_of(model):
    """Random tokens of the model's vocabulary."""
    return torch.randint(0, model.config.vocab_size, (60,), generator=torch.Generator().manual_seed(5)).tolist()


@torch.no_grad()
def logits_of(model, ids):
    """(T, vocabulary)"""
    return model(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_imported_adapter_has_the_logits_of_peft(kind, tmp_path):
    base, settings = ADAPTERS[kind]
    model = adapted(tmp_path / "adapter", base, settings)
    found = bitdelta("import", tmp_path / "adapter", "--base", GOLDEN / base, "-o", tmp_path / "v.safetensors")
    dora = "use_dora" in settings
    assert found["report"]["method"] == ("dora" if dora else "rslora" if "use_rslora" in settings else "lora")
    ids = ids_of(model)
    expected = logits_of(model, ids)
    plain = engine_logits(tmp_path, GOLDEN / base, ids)
    assert (plain - expected).abs().max() > 0.2, "the adapter changes nothing"
    logits = engine_logits(tmp_path, GOLDEN / base, ids, tmp_path / "v.safetensors")
    tolerance = DORA_TOLERANCE if dora else LOGIT_TOLERANCE
    torch.testing.assert_close(logits, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_factors_are_kept_to_the_bit_in_two_bytes(dtype, tmp_path):
    model = adapted(tmp_path / "adapter", "tiny-llama", {"target_modules": LINEARS}, dtype)
    file = tmp_path / "v.safetensors"
    run("bitdelta", "import", tmp_path / "adapter", "--base", GOLDEN / "tiny-llama", "-o", file)
    parts = [part for linear in bitdelta("inspect", file)["linears"] for part in linear["parts"]]
    assert {part["a"]["bits"] for part in parts} | {part["bt"]["bits"] for part in parts} == {16}
    # The factors are rounded already in the file; the base is not, as the golden models are f32 to both sides.
    fresh = peft.PeftModel.from_pretrained(make_tiny.load(GOLDEN / "tiny-llama"), tmp_path / "adapter").eval()
    ids = ids_of(model)
    logits = engine_logits(tmp_path, GOLDEN / "tiny-llama", ids, file)
    torch.testing.assert_close(logits, logits_of(fresh.float(), ids), atol=LOGIT_TOLERANCE, rtol=0)


@pytest.fixture(scope="module")
def trained(smollm2, train_examples, tmp_path_factory):
    """The real model with a LoRA that PyTorch trained on the facts until it had learnt them, and its folder."""
    settings = peft.LoraConfig(r=4, lora_alpha=4, target_modules=LINEARS)
    model = peft.get_peft_model(reference.copy(smollm2), settings)
    factors = [value for name, value in model.named_parameters() if "lora_" in name]
    reference.train(model, factors, train_examples, reference.Settings(learning_rate=2e-3, steps=30))
    folder = tmp_path_factory.mktemp("trained")
    model.save_pretrained(folder)
    return model.eval(), folder


@pytest.mark.parametrize("bits", [2, 3])
def test_quantised_factors_keep_what_the_lora_gained(bits, trained, held, held_examples, tmp_path):
    model, folder = trained
    file = tmp_path / "v.safetensors"
    found = bitdelta("import", folder, "--base", MODEL, "--bits", bits, "-o", file)
    figures = bitdelta("eval", file, "--base", MODEL, "--data", held)
    of_lora = reference.mean_loss(model, held_examples)
    kept = (figures["loss_base"] - figures["loss_variant"]) / (figures["loss_base"] - of_lora)
    assert figures["loss_base"] - of_lora > 0.5, "the LoRA learnt nothing"
    assert kept >= KEPT, (kept, of_lora, figures, found)
    # The bits asked for, all told, and what is not payload.
    assert found["bytes"] <= found["report"]["parameters"] * bits / 8 + HEADER


@pytest.mark.parametrize("kind", ["lora", "one-kind", "rslora", "patterns", "head", "tables"])
def test_an_exported_adapter_opens_in_peft_with_the_engines_logits(kind, tmp_path):
    base, settings = ADAPTERS[kind]
    model = adapted(tmp_path / "adapter", base, settings)
    file, folder = tmp_path / "v.safetensors", tmp_path / "exported"
    run("bitdelta", "import", tmp_path / "adapter", "--base", GOLDEN / base, "--bits", 4, "-o", file)
    run("bitdelta", "export", file, "--base", GOLDEN / base, "--format", "peft", "-o", folder)
    opened = peft.PeftModel.from_pretrained(make_tiny.load(GOLDEN / base), folder).eval()
    ids = ids_of(model)
    logits = engine_logits(tmp_path, GOLDEN / base, ids, file)
    torch.testing.assert_close(logits, logits_of(opened, ids), atol=EXPORT_TOLERANCE, rtol=0)


def test_an_exact_import_comes_back_as_the_same_factors(tmp_path):
    model = adapted(tmp_path / "adapter", "tiny-llama", {"target_modules": LINEARS})
    file, folder = tmp_path / "v.safetensors", tmp_path / "exported"
    run("bitdelta", "import", tmp_path / "adapter", "--base", GOLDEN / "tiny-llama", "-o", file)
    run("bitdelta", "export", file, "--base", GOLDEN / "tiny-llama", "--format", "peft", "-o", folder)
    opened = peft.PeftModel.from_pretrained(make_tiny.load(GOLDEN / "tiny-llama"), folder).eval()
    ids = ids_of(model)
    torch.testing.assert_close(logits_of(opened, ids), logits_of(model, ids), atol=1e-4, rtol=0)
