"""Configurations. Ranges, defaults and words are those of the Rust crates; the fields stand here for editors and help."""

from __future__ import annotations

import dataclasses
import json
import warnings
from typing import Any

from . import _native
from .errors import ConfigError, NotEnforcedWarning


@dataclasses.dataclass(frozen=True)
class BitDeltaConfig:
    """How a weight difference is compressed. Checked when it is made; ``dataclasses.replace`` makes a changed copy."""

    #: Bits a weight: 1, 2 or 4.
    bits: int = 1
    #: Inputs that share a scale, 32 to 256 or "row"; None goes by the model's size, and is 128 on bare tensors.
    group_size: int | str | None = None
    #: No offset for each group.
    symmetric: bool = True
    #: False keeps the difference as 16-bit floats, for comparison.
    enable_compression: bool = True
    #: Keep the base in memory between calls.
    cache_base_model: bool = True
    #: From 0 to 1; recorded with a warning: no safety gate enforces it yet.
    safety_threshold: float = 0.0
    #: Clip each tensor's difference at mean ± ``outlier_threshold``·σ first.
    clip_outliers: bool = True
    #: Multiple of the standard deviation, above 0.
    outlier_threshold: float = 3.0
    #: Offer the variant to aggregation; recorded with a warning: nothing aggregates yet.
    enable_deltasoup: bool = False
    #: Weight of the aggregate, from 0 to 1; recorded.
    aggregation_weight: float = 0.1
    #: Aggregate by a robust rule; recorded.
    byzantine_robust: bool = True
    #: Size that a trained variant's file may have, as bytes or "340KB": low-rank factors, trained for it; ``bits`` and
    #: ``group_size`` have no effect then.
    budget: int | str | None = None
    #: The same as bits a weight of the linears, such as 0.02; one of both.
    bits_per_weight: float | None = None

    def __post_init__(self) -> None:
        _check_types(self)
        _check_budget(self.budget, self.bits_per_weight)
        sentences = _native.check_config(self.to_json())
        if not self.enable_deltasoup:
            for field in ("aggregation_weight", "byzantine_robust"):
                if getattr(self, field) != BitDeltaConfig.__dataclass_fields__[field].default:
                    sentences.append(f"{field} is recorded, but nothing aggregates variants in this version")
        for sentence in sentences:
            # Through the dataclass's own __init__, to whoever wrote the configuration.
            warnings.warn(sentence, NotEnforcedWarning, stacklevel=3)

    def to_json(self) -> str:
        """The configuration as the Rust crates and variant files have it."""
        fields = dataclasses.asdict(self)
        del fields["budget"], fields["bits_per_weight"]
        return json.dumps(fields)

    @property
    def has_size(self) -> bool:
        """Whether a size is given, which low-rank factors meet."""
        return self.budget is not None or self.bits_per_weight is not None

    def _settings(self) -> dict[str, Any]:
        """The fields that a training run takes, by the run's names. ``cache_base_model`` is the caller's."""
        fields = dataclasses.asdict(self)
        del fields["cache_base_model"]
        return {name: value for name, value in fields.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class DeltaSoupConfig:
    """How many users' variants are to be aggregated. Checked and recorded; this version does not aggregate."""

    #: mean, median, trimmed_mean, weighted_mean, byzantine_robust, federated_average, krum or multi_krum.
    aggregation_method: str = "byzantine_robust"
    #: Share cut off at each end by the trimmed mean, from 0 to below 0.5.
    trim_percent: float = 0.2
    #: Share of contributors that may be malicious, from 0 to below 0.5.
    byzantine_threshold: float = 0.3
    #: Fewest contributors of an aggregate.
    min_contributors: int = 3
    #: Add noise to what a contributor shares.
    enable_differential_privacy: bool = True
    #: Privacy loss, above 0.
    epsilon: float = 1.0
    #: Probability that the loss is larger, above 0 and below 1.
    delta: float = 1e-5
    #: Least quality of a contribution, from 0 to 1.
    quality_threshold: float = 0.8
    #: Weight of being unlike the others, from 0 to 1.
    diversity_bonus: float = 0.1
    #: Share of the newest figure in a contributor's reputation, above 0 up to 1.
    reputation_alpha: float = 0.1

    def __post_init__(self) -> None:
        _check_types(self)
        methods = ("mean", "median", "trimmed_mean", "weighted_mean", "byzantine_robust", "federated_average")
        methods += ("krum", "multi_krum")
        ranges: list[tuple[str, bool, str]] = [
            ("aggregation_method", self.aggregation_method in methods, ", ".join(methods)),
            ("trim_percent", 0 <= self.trim_percent < 0.5, "a number from 0 to below 0.5"),
            ("byzantine_threshold", 0 <= self.byzantine_threshold < 0.5, "a number from 0 to below 0.5"),
            ("min_contributors", self.min_contributors >= 1, "1 or more"),
            ("epsilon", 0 < self.epsilon < float("inf"), "a finite number above 0"),
            ("delta", 0 < self.delta < 1, "a number above 0 and below 1"),
            ("quality_threshold", 0 <= self.quality_threshold <= 1, "a number from 0 to 1"),
            ("diversity_bonus", 0 <= self.diversity_bonus <= 1, "a number from 0 to 1"),
            ("reputation_alpha", 0 < self.reputation_alpha <= 1, "a number above 0 up to 1"),
        ]
        for field, sound, expected in ranges:
            if not sound:
                raise ConfigError(f"{field} = {getattr(self, field)!r} is not allowed: expected {expected}")
        sentence = "DeltaSoupConfig is recorded, but nothing aggregates variants in this version"
        warnings.warn(sentence, NotEnforcedWarning, stacklevel=3)

    def to_json(self) -> str:
        """The configuration as a variant file records it."""
        return json.dumps(dataclasses.asdict(self))


def _check_types(config: BitDeltaConfig | DeltaSoupConfig) -> None:
    """Refuses what a range cannot judge: a truth value for a number, a word for a truth value."""
    for field in dataclasses.fields(config):
        value, default = getattr(config, field.name), field.default
        if default is None:
            continue
        if isinstance(default, bool):
            sound, expected = isinstance(value, bool), "True or False"
        elif isinstance(default, int):
            sound, expected = isinstance(value, int) and not isinstance(value, bool), "a whole number"
        elif isinstance(default, float):
            sound, expected = isinstance(value, (int, float)) and not isinstance(value, bool), "a number"
        else:
            sound, expected = isinstance(value, str), "a string"
        if not sound:
            raise ConfigError(f"{field.name} = {value!r} is not allowed: expected {expected}")


def _check_budget(budget: int | str | None, bits_per_weight: float | None) -> None:
    """A size above 0, as bytes or in words, or as bits a weight."""
    if bits_per_weight is not None:
        number = isinstance(bits_per_weight, (int, float)) and not isinstance(bits_per_weight, bool)
        if not number or not 0 < bits_per_weight < float("inf"):
            raise ConfigError(f"bits_per_weight = {bits_per_weight!r} is not allowed: expected a number above 0")
        if budget is not None:
            raise ConfigError("bits_per_weight and budget exclude each other: both are the size of the file")
    if budget is None:
        return
    if isinstance(budget, bool) or not isinstance(budget, (int, str)):
        raise ConfigError(f'budget = {budget!r} is not allowed: expected bytes, or a size such as "340KB"')
    if (_native.parse_size(budget) if isinstance(budget, str) else budget) <= 0:
        raise ConfigError(f"budget = {budget!r} is not allowed: expected a size above 0")
