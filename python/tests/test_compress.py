"""A pair of models into one file: sizes, data, what is refused, and an interruption that is taken up again."""

import os

import pytest

from conftest import EXAMPLES, GOLDEN
from zoo.gym import BitDeltaConfig, TrainingInterrupted, compress
from zoo.gym.errors import ConfigError, DatasetError, GymError

BASE, TUNED = (GOLDEN / name for name in ("tiny-llama", "tiny-llama-ft"))


@pytest.fixture
def output(tmp_path):
    return tmp_path / "user.safetensors"


def test_a_budget_is_met_with_data_and_without(output):
    data = {"dataset": EXAMPLES, "num_epochs": 1}
    beside = ({"general": 2, **data}, {"general": EXAMPLES[:1], **data})
    for words in ({"draw": 0}, data, {"draw": 4, "num_epochs": 1}, *beside):
        made = compress(BASE, TUNED, output, BitDeltaConfig(budget="4KB"), **words)
        assert made.bytes == os.path.getsize(output) <= 4000 and made.path == str(output)
    by_bits = compress(BASE, TUNED, output, BitDeltaConfig(bits_per_weight=0.6), draw=0)
    assert by_bits.bits_per_weight <= 0.6


def test_codes_are_those_of_the_configuration(output):
    sizes = [compress(BASE, TUNED, output, BitDeltaConfig(bits=bits)).bits_per_weight for bits in (1, 2, 4)]
    assert sizes[0] < sizes[1] < sizes[2]


def test_what_makes_no_sense_is_refused(output):
    with pytest.raises(GymError, match="14 linears|shape|tensors|x"):
        compress(BASE, GOLDEN / "tiny-qwen3", output)
    with pytest.raises(DatasetError):
        compress(BASE, TUNED, output, BitDeltaConfig(budget="4KB"), dataset=[{"no": "conversation"}])
    with pytest.raises(GymError, match="bytes"):
        compress(BASE, TUNED, output, BitDeltaConfig(budget=100), draw=0)
    with pytest.raises(ConfigError):
        compress(BASE, TUNED, output, BitDeltaConfig(budget="4 parsecs"))
    assert not output.exists()


def test_an_interrupted_lesson_goes_on_to_the_same_bytes(output, tmp_path):
    def interrupt(progress):
        if progress.phase == "distilling" and progress.done == 3:
            raise KeyboardInterrupt

    words = {"dataset": EXAMPLES * 8, "num_epochs": 6}
    config = BitDeltaConfig(budget="4KB")
    compress(BASE, TUNED, tmp_path / "unbroken", config, **words)
    with pytest.raises(TrainingInterrupted, match="continues from"):
        compress(BASE, TUNED, output, config, progress=interrupt, **words)
    assert not output.exists()
    said = []
    compress(BASE, TUNED, output, config, progress=lambda progress: said.append(progress.message), **words)
    assert any("continuing after step" in message for message in said)
    assert output.read_bytes() == (tmp_path / "unbroken").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["unbroken", "user.safetensors"]
