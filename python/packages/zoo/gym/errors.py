"""What can go wrong, each kind with a class of its own; most are also the built-in kind that a caller would expect."""

from __future__ import annotations


class GymError(Exception):
    """Everything that this package raises, but for a training that was interrupted."""


class ConfigError(GymError, ValueError):
    """A field or setting outside its range, or one that does not exist."""


class TensorError(GymError, ValueError):
    """A tensor that cannot be compressed: shapes that are no pair, NaN, infinity."""


class ModelError(GymError):
    """A base model that is not there or cannot be read."""


class DeviceError(GymError, ValueError):
    """A device that is not supported."""


class DatasetError(GymError, ValueError):
    """Training data that is not what its format asks for; the message says where."""


class PromptError(GymError, ValueError):
    """A prompt that cannot be made or does not fit."""


class InvalidUserError(GymError, ValueError):
    """A user id that cannot name a variant."""


class UnknownUserError(GymError, LookupError):
    """No variant of that user."""


class VariantError(GymError):
    """A variant file that is damaged, foreign, or does not fit."""


class WrongBaseError(VariantError):
    """A variant that was made on another base."""


class VariantExistsError(VariantError):
    """The user has a variant already."""


class MemoryLimitError(GymError, MemoryError):
    """More memory than the machine or the budget has; nothing was begun."""


class BusyError(GymError):
    """The queue is full; try again later."""


class EngineError(GymError):
    """The engine has stopped, or an answer's time is over."""


class TrainingError(GymError):
    """A run that failed on its way: the loss became NaN, a checkpoint cannot be used."""


class NotSupportedError(GymError, NotImplementedError):
    """Something that this version does not do; the message says what is possible."""


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during training. What was learnt up to here is saved; the same call goes on from it."""

    def __init__(self, message: str, step: int = 0, checkpoint: str = "") -> None:
        super().__init__(message)
        #: Optimiser steps done.
        self.step = step
        #: Folder of the checkpoint.
        self.checkpoint = checkpoint


class NotEnforcedWarning(UserWarning):
    """A setting that is recorded and that nothing enforces yet."""
