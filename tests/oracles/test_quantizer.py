"""The quantizer, through `compress` and `export`, against its definition in NumPy."""

import numpy as np
import pytest
import reference
from conftest import GOLDEN, bitdelta, run
from safetensors.numpy import load_file

BASE, TUNED = GOLDEN / "tiny-llama", GOLDEN / "tiny-llama-ft"

# Scales are stored as f16 times one f32: each is right to 2^-11.
SCALE_ROUNDING = 1e-3
# Our fit of a step against the best of sixty tried ones.
FIT_SLACK = 1.02
# The file keeps errors in a byte each.
RECORDED_ERROR = 0.025


def deltas(folder):
    """The difference of each linear from the base's."""
    base, other = load_file(BASE / "model.safetensors"), load_file(folder / "model.safetensors")
    return {name: other[name] - base[name] for name in base if name.split(".")[-2] in reference.PROJECTIONS}


def reconstructed(folder, *options):
    """The deltas that a variant of the pair holds, and the pair's own."""
    variant, merged = folder / "user.safetensors", folder / "merged"
    run("bitdelta", "compress", "--base", BASE, "--finetuned", TUNED, "-o", variant, *options)
    run("bitdelta", "export", variant, "--base", BASE, "--format", "hf", "-o", merged)
    return deltas(merged), deltas(TUNED)


@pytest.mark.parametrize("group", [32, 64, "row"])
def test_one_bit_is_the_sign_times_the_mean_magnitude(group, tmp_path):
    found, exact = reconstructed(tmp_path, "--bits", 1, "--group-size", group)
    for name, delta in exact.items():
        expected = reference.quantise(delta, 1, delta.shape[1] if group == "row" else group)
        distance = np.linalg.norm(found[name] - expected) / np.linalg.norm(expected)
        assert distance < SCALE_ROUNDING, name


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("group", [32, 64])
def test_more_bits_fit_as_well_as_the_best_of_many_steps(bits, group, tmp_path):
    found, exact = reconstructed(tmp_path, "--bits", bits, "--group-size", group)
    for name, delta in exact.items():
        clipped = reference.clip(delta, 3.0)
        best = np.linalg.norm(reference.quantise(delta, bits, group) - clipped)
        assert np.linalg.norm(found[name] - clipped) <= FIT_SLACK * best, name


def test_inspect_reports_the_errors_that_numpy_finds(tmp_path):
    found, exact = reconstructed(tmp_path, "--bits", 1, "--group-size", 64)
    report = bitdelta("inspect", tmp_path / "user.safetensors")
    assert len(report["linears"]) == len(exact)
    for linear in report["linears"]:
        name = f"model.{linear['name']}.weight"
        error = np.linalg.norm(found[name] - exact[name]) / np.linalg.norm(exact[name])
        assert linear["relative_error"] == pytest.approx(error, rel=RECORDED_ERROR), name
