"""Training users' variants of one base, and asking them."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import json
import os
import warnings
from collections.abc import Iterator
from typing import Any

from . import _data, _native, _preferences
from ._engine import Sampling
from ._model import LocalModel
from ._progress import ProgressCallback, Reporter
from .config import BitDeltaConfig, DeltaSoupConfig
from .errors import ConfigError, DatasetError, NotEnforcedWarning, VariantExistsError

#: Other trainers' short words for settings.
_ALIASES = {
    "batch_size": "per_device_train_batch_size",
    "num_epochs": "num_train_epochs",
    "max_length": "cutoff_len",
}
#: Settings that :meth:`PersonalizedTrainer.create_variant` and the configuration decide.
_DECIDED = {
    "dataset",
    "eval_dataset",
    "output_dir",
    "model_name_or_path",
    "finetuning_type",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "quantization_method",
    "num_train_epochs",
}


@dataclasses.dataclass(frozen=True)
class TrainedVariant:
    """What came out of a training run. Losses are means over the held-out answers' tokens, None without any."""

    #: Whose it is.
    user_id: str
    #: The variant file.
    path: str
    #: Its size.
    bytes: int
    #: Optimiser steps.
    steps: int
    #: Held-out loss under the base.
    loss_base: float | None
    #: The same after training.
    loss_trained: float | None
    #: The same with the compressed variant.
    loss_variant: float | None
    #: Share of held-out preferences that the variant ranks as their data does, more than the base; None for answers.
    accuracy: float | None
    #: Mean reward of the base where experiences were learnt, else None; on held-out prompts if there are any.
    reward_base: float | None
    #: The same with the experiences.
    reward_variant: float | None
    #: What was learnt in words (``method="experience"``).
    experiences: list[str]
    #: Training speed.
    tokens_per_second: float
    #: What the user should know.
    warnings: list[str]


def run_settings(
    config: BitDeltaConfig | None, num_epochs: float, method: str | None, settings: dict[str, Any]
) -> dict[str, Any]:
    """A run's settings by name: what the configuration and the arguments decide, and the caller's others."""
    if method not in (None, "full", "lowrank", "experience"):
        raise ConfigError(f"method = {method!r} is not allowed: expected 'full', 'lowrank' or 'experience'")
    if config is not None and method == "experience":
        sentence = "method='experience' changes no weight: the configuration does not apply"
        warnings.warn(sentence, NotEnforcedWarning, stacklevel=4)
        config = None
    if config is not None and method == "lowrank":
        sentence = "method='lowrank' keeps factors at factor_bits: bits and groups of the configuration do not apply"
        warnings.warn(sentence, NotEnforcedWarning, stacklevel=4)
    fields = {field.name for field in dataclasses.fields(BitDeltaConfig)}
    decided = {} if config is None else config._settings()
    if config is not None and config.has_size and method == "full":
        raise ConfigError("method = 'full' is not allowed with a budget, which low-rank factors meet")
    low_rank = config is None or config.has_size
    decided["finetuning_type"] = method or ("lowrank" if low_rank else "full")
    decided["num_train_epochs"] = num_epochs
    if method == "experience":
        # There is no other stage for it.
        decided["stage"] = "grpo"
    run = dict(decided)
    for name, value in settings.items():
        name = _ALIASES.get(name, name)
        if name in _DECIDED or name in fields:
            raise ConfigError(f"{name}: is decided by the arguments and the configuration, not by a setting")
        if value is not None:
            run[name] = value
    return run


class PersonalizedTrainer:
    """One base model and a folder of users' variants."""

    def __init__(
        self,
        base_model: str | os.PathLike[str] | None = None,
        config: BitDeltaConfig | None = None,
        *,
        variants_dir: str | os.PathLike[str] = "variants",
        deltasoup: DeltaSoupConfig | None = None,
        device: Any = None,
        **options: Any,
    ) -> None:
        """``base_model``: a folder, a .gguf file, an alias or a hub id; without one, what BITDELTA_MODEL names.

        Without ``config``, variants are small low-rank factors, which measure best; with one they are what it says: all
        projections are trained and their change is kept at ``config.bits``. ``options`` are the engine's
        (``base_dtype="int8"``, ``threads``, …).
        """
        self._given = config is not None
        self.config = BitDeltaConfig() if config is None else config
        #: Where variants are: ``variants_dir/USER/variant.safetensors``.
        self.variants_dir = os.fspath(variants_dir)
        self.deltasoup = deltasoup
        options["variants_dir"] = self.variants_dir
        self._model = LocalModel(
            None if base_model is None else os.fspath(base_model),
            keep=self.config.cache_base_model,
            device=device,
            **options,
        )

    def create_variant(
        self,
        user_id: str,
        preferences: Any = None,
        dataset: Any = None,
        num_epochs: float = 3,
        *,
        eval_dataset: Any = None,
        method: str | None = None,
        overwrite: bool | None = None,
        progress: bool | ProgressCallback | None = None,
        **settings: Any,
    ) -> TrainedVariant:
        """Trains the user's variant and publishes it in ``variants_dir``, whole or not at all.

        ``dataset``: dicts (OpenAI ``messages``, sharegpt ``conversations``, alpaca, or prompt and response), a path to
        JSON or JSON lines, or a ``datasets.Dataset``. ``preferences``: words (a text,
        texts, or a dict), which the model with them in its prompt teaches the model without them, beside the data set or
        without one; or pairs with ``prompt``, ``chosen`` and ``rejected``.
        ``method``: "full", "lowrank", or "experience", which changes no weight and learns rules in words from the answers to
        the data set's prompts and what ``reward_command`` says they are worth. ``progress``: True or False, or a function that takes
        :class:`~zoo.gym.Progress`; None shows a bar where somebody can see it. ``settings`` are LLaMA-Factory's by name
        (``learning_rate``, ``max_steps``, ``seed``, ``val_size``, …); an unknown one is an error.

        Ctrl-C saves a checkpoint and raises :class:`~zoo.gym.errors.TrainingInterrupted`; the same call goes on from it.
        A variant that the user has already is replaced once the new one is complete. ``overwrite=False`` refuses instead;
        ``overwrite=True`` also starts anew where an interrupted run could go on.
        """
        _native.check_user(user_id)
        folder = os.path.join(self.variants_dir, user_id)
        run = self._settings(user_id, folder, num_epochs, method, overwrite, settings)
        if preferences is None and dataset is None:
            raise DatasetError("nothing to learn from: pass dataset, or preferences")
        extra, of_preferences = _preferences.plan(preferences)
        run.update(of_preferences)
        report = Reporter(progress)
        if not self._given and method is None:
            report(
                "say",
                "no configuration and no method given: training low-rank factors (method='full' trains all)",
                0,
                "",
            )
        examples = _data.as_file(dataset, extra) if dataset is not None or extra else contextlib.nullcontext("")
        with (
            examples as path,
            self._held_out(eval_dataset) as held_out,
            self._model.base() as base,
        ):
            run["dataset"] = path
            if held_out is not None:
                run["eval_dataset"] = held_out
            outcome = json.loads(_native.train(base, [(name, _text(value)) for name, value in run.items()], report))
        if self.deltasoup is not None:
            _native.annotate(outcome["path"], "deltasoup", self.deltasoup.to_json())
            outcome["bytes"] = os.path.getsize(outcome["path"])
        # What the configuration warned of when it was made is not said again.
        known = set(_native.check_config(self.config.to_json()))
        for sentence in outcome["warnings"]:
            if sentence not in known:
                warnings.warn(sentence, stacklevel=2)
        return TrainedVariant(user_id=user_id, **outcome)

    def serve_variant(
        self,
        user_id: str | None,
        prompt: Any,
        max_new_tokens: int = 512,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        stop: Any = None,
    ) -> str:
        """The answer of the user's variant to a prompt (a string, or messages); None asks the base.

        A user without a variant is an :class:`~zoo.gym.errors.UnknownUserError`, never answered by the base.
        """
        sampling = Sampling(max_new_tokens, temperature, top_p, top_k, seed, stop)
        return "".join(self.stream_variant(user_id, prompt, sampling))

    def stream_variant(self, user_id: str | None, prompt: Any, sampling: Sampling | None = None) -> Iterator[str]:
        """The same piece by piece."""
        with self._model.engine() as engine:
            for kind, payload in engine.stream(user_id, prompt, sampling or Sampling()):
                if kind == "text":
                    yield payload

    def variant_info(self, user_id: str) -> dict[str, Any]:
        """What the user's variant file records: its base, configuration, training, fidelity, hash and size."""
        _native.check_user(user_id)
        return json.loads(_native.variant_info(os.path.join(self.variants_dir, user_id)))

    def close(self) -> None:
        """Frees the base; it is loaded again when it is needed."""
        self._model.close()

    def _settings(
        self,
        user_id: str,
        folder: str,
        num_epochs: float,
        method: str | None,
        overwrite: bool | None,
        settings: dict[str, Any],
    ) -> dict[str, Any]:
        run = run_settings(self.config if self._given else None, num_epochs, method, settings)
        run |= {"model_name_or_path": self._model.name, "output_dir": folder}
        finished, interrupted = _state(folder)
        if finished and overwrite is False:
            raise VariantExistsError(f"{user_id} has a variant in {folder}, and overwrite=False keeps it")
        if interrupted and not overwrite:
            run["resume_from_checkpoint"] = "auto"
        elif finished or overwrite:
            run["overwrite_output_dir"] = True
        return run

    @staticmethod
    def _held_out(dataset: Any) -> Any:
        if dataset is None:
            return contextlib.nullcontext()
        return _data.as_file(dataset, [], "eval_dataset")


def _state(folder: str) -> tuple[bool, bool]:
    """Whether a variant is in the folder, and whether a run was interrupted there since."""
    paths = glob.glob(os.path.join(glob.escape(folder), "checkpoint-*"))
    variant = os.path.join(folder, "variant.safetensors")
    finished = os.path.getmtime(variant) if os.path.exists(variant) else None
    interrupted = any(finished is None or os.path.getmtime(path) > finished for path in paths)
    return finished is not None, interrupted


def _text(value: Any) -> str:
    """A setting's value as the run's settings are written."""
    return str(value).lower() if isinstance(value, bool) else str(value)
