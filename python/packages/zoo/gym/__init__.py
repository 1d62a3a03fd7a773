"""Personal variants of a language model: one base in memory, one small file for each user.

:class:`PersonalizedTrainer` trains users' variants and asks them, :class:`PersonalizedServer` serves many users at once,
:func:`compress` makes a variant of a fine-tuned model that exists already, :mod:`zoo.gym.quantization` compresses bare
tensors.
"""

from __future__ import annotations

from . import errors
from ._compress import CompressedVariant, compress
from ._engine import Sampling
from ._progress import Progress
from .config import BitDeltaConfig, DeltaSoupConfig
from .errors import GymError, NotEnforcedWarning, TrainingInterrupted
from .quantization import BitDeltaQuantizer
from .server import PersonalizedServer
from .trainer import PersonalizedTrainer, TrainedVariant

__all__ = [
    "BitDeltaConfig",
    "BitDeltaQuantizer",
    "CompressedVariant",
    "DeltaSoupConfig",
    "GymError",
    "NotEnforcedWarning",
    "PersonalizedServer",
    "PersonalizedTrainer",
    "Progress",
    "Sampling",
    "TrainedVariant",
    "TrainingInterrupted",
    "compress",
    "errors",
]
