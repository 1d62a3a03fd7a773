"""Training: the same run here and in PyTorch ends at the same held-out loss."""

import json

import pytest
import reference
from conftest import MODEL, bitdelta, run

# Relative. Sums run in another order, and low-rank factors start from other random numbers.
TOLERANCE = 0.02
# The same numbers computed by engine and trainer, relative.
SAME = 1e-3

# High, so that the random start, which differs from PyTorch's, evens out.
RANK = 64
SCALE = 2.0


def trained_here(folder, train, held, method, settings):
    """Held-out losses of this project's run: `loss_base`, `loss_trained`, and, quantised, `loss_variant`."""
    batches = len(reference.read_conversations(train)) // settings.batch
    options = {
        "model_name_or_path": MODEL,
        "dataset": train,
        "eval_dataset": held,
        "output_dir": folder,
        "finetuning_type": method,
        "per_device_train_batch_size": settings.batch,
        "gradient_accumulation_steps": batches,
        "max_steps": settings.steps,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": settings.warmup_steps,
        "max_grad_norm": settings.max_grad_norm,
        "lora_rank": RANK,
        "lora_alpha": RANK * SCALE,
        # As PyTorch computes here; bf16, the default beside factors, moves a loss by a thousandth.
        "bf16": False,
    }
    run("llamafactory-cli", "train", *(word for name, value in options.items() for word in (f"--{name}", value)))
    return json.loads((folder / "training_log.jsonl").read_text().splitlines()[-1])


def test_a_full_run_ends_where_pytorchs_ends(finetuned, train, held, tmp_path):
    found = trained_here(tmp_path, train, held, "full", reference.FULL)
    assert found["loss_trained"] == pytest.approx(finetuned.held_loss, rel=TOLERANCE)


def test_a_low_rank_run_ends_where_pytorchs_ends(smollm2, train, held, train_examples, held_examples, tmp_path):
    model = reference.copy(smollm2)
    factors = reference.add_low_rank(model, RANK, SCALE, seed=0)
    reference.train(model, factors, train_examples, reference.LOW_RANK)
    expected = reference.mean_loss(model, held_examples)
    found = trained_here(tmp_path, train, held, "lowrank", reference.LOW_RANK)
    assert found["loss_trained"] == pytest.approx(expected, rel=TOLERANCE)

    # What the trainer says of its variant is what the engine finds, computing from the packed factors.
    report = bitdelta("eval", tmp_path, "--base", MODEL, "--data", held)
    assert report["loss_base"] == pytest.approx(found["loss_base"], rel=SAME)
    assert report["loss_variant"] == pytest.approx(found["loss_variant"], rel=SAME)
