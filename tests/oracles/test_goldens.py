"""The committed golden files are what `transformers` computes today."""

import json

import make_tiny
import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file

# Another CPU rounds sums in another order; a changed weight or constant moves logits a hundred times further.
TOLERANCE = 1e-4
# One code of a quantised weight may flip where a random weight differs in its last bit.
CODE_STEP = 0.05


@pytest.fixture(scope="module")
def anew(tmp_path_factory):
    """A folder with every golden file made again."""
    folder = tmp_path_factory.mktemp("golden")
    threads = torch.get_num_threads()
    make_tiny.make_all(folder)
    torch.set_num_threads(threads)
    return folder


def files(folder, pattern):
    """Paths below the model folders of `folder`, relative to it."""
    return sorted(path.relative_to(folder) for path in folder.glob(f"tiny-*/{pattern}"))


def test_the_same_files_are_made(anew):
    assert files(GOLDEN, "*") == files(anew, "*")


def test_tensors_are_the_same(anew):
    for name in files(anew, "*.safetensors"):
        committed, made = load_file(GOLDEN / name), load_file(anew / name)
        assert committed.keys() == made.keys(), name
        for key, tensor in committed.items():
            assert tensor.dtype == made[key].dtype, (name, key)
            torch.testing.assert_close(tensor, made[key], atol=TOLERANCE, rtol=TOLERANCE, msg=f"{name}: {key}")


def test_gguf_weights_are_the_same(anew):
    for name in files(anew, "*.gguf"):
        committed, made = make_tiny.gguf_weights(GOLDEN / name), make_tiny.gguf_weights(anew / name)
        assert committed.keys() == made.keys(), name
        for key, tensor in committed.items():
            torch.testing.assert_close(tensor, made[key], atol=CODE_STEP, rtol=0, msg=f"{name}: {key}")


def test_texts_are_the_same(anew):
    for name in files(anew, "*.json"):
        committed, made = (json.loads((folder / name).read_text()) for folder in (GOLDEN, anew))
        if name.name == "config.json":
            committed.pop("transformers_version")
            made.pop("transformers_version")
        assert committed == made, name
