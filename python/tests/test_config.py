"""Configurations: one definition with Rust's, every field checked, nothing accepted in silence."""

import dataclasses
import json
import warnings

import pytest

from zoo.gym import BitDeltaConfig, DeltaSoupConfig, NotEnforcedWarning, _native
from zoo.gym.errors import ConfigError, GymError


def test_the_fields_and_defaults_are_those_of_variant_files():
    ours = dataclasses.asdict(BitDeltaConfig())
    assert ours.pop("budget") is None and ours.pop("bits_per_weight") is None
    theirs = json.loads(_native.default_config())
    # 32-bit floats print as they are read there.
    assert {name: pytest.approx(value) if isinstance(value, float) else value for name, value in theirs.items()} == ours


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bits", 3),
        ("bits", "1"),
        ("bits", True),
        ("bits", 1.5),
        ("group_size", 31),
        ("group_size", "wide"),
        ("group_size", -64),
        ("symmetric", 1),
        ("outlier_threshold", 0),
        ("outlier_threshold", float("nan")),
        ("safety_threshold", 1.5),
        ("safety_threshold", "high"),
        ("aggregation_weight", -0.1),
        ("byzantine_robust", None),
    ],
)
def test_a_field_out_of_range_is_an_error_of_this_package_and_a_value_error(field, value):
    with pytest.raises(ConfigError, match="outlier|expected|invalid|data did not match") as caught:
        BitDeltaConfig(**{field: value})
    assert isinstance(caught.value, (GymError, ValueError))


@pytest.mark.parametrize("group_size", [32, 256, "row", None])
def test_group_sizes_are_numbers_rows_or_left_to_the_model(group_size):
    assert BitDeltaConfig(group_size=group_size).group_size == group_size


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"safety_threshold": 0.6}, "safety_threshold"),
        ({"enable_deltasoup": True}, "enable_deltasoup"),
        ({"aggregation_weight": 0.5}, "aggregation_weight"),
        ({"byzantine_robust": False}, "byzantine_robust"),
    ],
)
def test_what_nothing_enforces_warns_whoever_wrote_it(fields, said):
    with pytest.warns(NotEnforcedWarning, match=said) as caught:
        BitDeltaConfig(**fields)
    assert caught[0].filename == __file__


def test_defaults_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BitDeltaConfig()


@pytest.mark.parametrize("bits", [0, -0.1, float("nan"), float("inf"), "0.02", True])
def test_bits_a_weight_are_a_number_above_0(bits):
    with pytest.raises(ConfigError, match="bits_per_weight"):
        BitDeltaConfig(bits_per_weight=bits)


def test_a_size_is_given_in_one_way():
    with pytest.raises(ConfigError, match="exclude"):
        BitDeltaConfig(budget="3KB", bits_per_weight=0.4)


@pytest.mark.parametrize("budget", ["340 parsecs", 0, -5, 1.5, True])
def test_a_budget_is_a_size(budget):
    with pytest.raises(ConfigError):
        BitDeltaConfig(budget=budget)


def test_a_configuration_is_changed_by_a_checked_copy():
    config = BitDeltaConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.bits = 2
    assert dataclasses.replace(config, bits=2).bits == 2
    with pytest.raises(ConfigError, match="bits"):
        dataclasses.replace(config, bits=3)


def test_deltasoup_is_checked_and_warns():
    with pytest.warns(NotEnforcedWarning, match="aggregates"):
        config = DeltaSoupConfig(trim_percent=0.3)
    assert json.loads(config.to_json())["trim_percent"] == 0.3
    for fields in ({"trim_percent": 0.5}, {"aggregation_method": "best"}, {"min_contributors": 0}, {"epsilon": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(fields))):
            DeltaSoupConfig(**fields)
