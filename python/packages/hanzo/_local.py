"""Answers in this process, in the words of the API."""

from __future__ import annotations

import itertools
import secrets
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any

from zoo.gym import BitDeltaConfig, PersonalizedTrainer, Sampling, TrainedVariant
from zoo.gym._model import LocalModel
from zoo.gym.errors import ConfigError, NotSupportedError

#: Fields of a request that this does not do, each with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "modalities": (["text"],),
}


class Local:
    """Base models by name, each with one engine, and one folder of variants."""

    def __init__(self, variants_dir: str, options: dict[str, Any]) -> None:
        self._variants_dir = variants_dir
        self._options = options
        self._models: dict[str, LocalModel] = {}
        self._lock = threading.Lock()

    def train(
        self, user_id: str, base_model: str | None, config: BitDeltaConfig | None, **settings: Any
    ) -> TrainedVariant:
        """Trains and publishes a user's variant."""
        trainer = PersonalizedTrainer(base_model, config, variants_dir=self._variants_dir)
        return trainer.create_variant(user_id, **settings)

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """A whole answer."""
        wanted = _Wanted(body)
        texts, reasons, usage = [""] * wanted.choices, [""] * wanted.choices, _Usage()
        for index, kind, payload in self._events(wanted):
            if kind == "text":
                texts[index] += payload
            else:
                reasons[index] = payload["reason"]
                usage.add(payload)
        frame = wanted.frame("chat.completion")
        frame["choices"] = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "finish_reason": reason,
                "logprobs": None,
            }
            for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        frame["usage"] = usage.json()
        return frame

    def stream(self, body: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
        """The chunks of an answer."""
        wanted = _Wanted(body)
        options = body.get("stream_options") or {}
        frame, usage = wanted.frame("chat.completion.chunk"), _Usage()

        def chunk(index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
            choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}
            return {**frame, "choices": [choice]}

        events = self._events(wanted)
        # What is refused is refused before the stream begins.
        first = next(events)
        for index in range(wanted.choices):
            yield chunk(index, {"role": "assistant", "content": ""})
        for index, kind, payload in itertools.chain([first], events):
            if kind == "text":
                yield chunk(index, {"content": payload})
            else:
                usage.add(payload)
                yield chunk(index, {}, payload["reason"])
        if options.get("include_usage"):
            yield {**frame, "choices": [], "usage": usage.json()}

    def close(self) -> None:
        """Frees all bases."""
        with self._lock:
            models, self._models = self._models, {}
        for model in models.values():
            model.close()

    def _model(self, name: str) -> LocalModel:
        with self._lock:
            if name not in self._models:
                self._models[name] = LocalModel(name, keep=True, variants_dir=self._variants_dir, **self._options)
            return self._models[name]

    def _events(self, wanted: _Wanted) -> Iterator[tuple[int, str, Any]]:
        """The events of all answers to one request, which run in one batch."""
        samplings = [wanted.sampling(place) for place in range(wanted.choices)]
        with self._model(wanted.base).engine() as engine:
            yield from engine.stream_many(wanted.user, wanted.messages, samplings)


class _Wanted:
    """What a request asks for, checked."""

    def __init__(self, body: dict[str, Any]) -> None:
        given = {name: value for name, value in body.items() if value is not None}
        for name, neutral in _NEUTRAL.items():
            if name in given and given[name] not in neutral:
                raise NotSupportedError(f"{name} is not supported in this process")
        self.model = given.get("model")
        if not isinstance(self.model, str):
            raise ConfigError("model is required: a model folder, a .gguf file, an alias or a hub id")
        self.messages = given.get("messages")
        user = next((given[name] for name in ("user_id", "user", "safety_identifier") if name in given), None)
        self.base, in_name = self.model, None
        # No path and no hub id holds a colon; `base:user` does for programs that can only choose a model.
        if ":" in self.model:
            self.base, _, in_name = self.model.partition(":")
        self.user = user if user is not None else in_name or None
        if self.user is not None and not isinstance(self.user, str):
            raise ConfigError(f"user_id must be a string, not {type(self.user).__name__}")
        self.choices = given.get("n", 1)
        if not isinstance(self.choices, int) or not 1 <= self.choices <= 8:
            raise ConfigError(f"n = {self.choices!r} is out of range: expected 1 to 8")
        self._seed = given.get("seed", secrets.randbits(63))
        most = given.get("max_completion_tokens", given.get("max_tokens", 1024))
        self._sampling = {
            "max_new_tokens": most,
            "temperature": given.get("temperature", 0.0),
            "top_p": given.get("top_p", 1.0),
            "top_k": given.get("top_k", 0),
            "stop": given.get("stop"),
        }
        self.sampling(0)

    def sampling(self, index: int) -> Sampling:
        """How answer ``index`` is chosen."""
        seed = self._seed + index if isinstance(self._seed, int) else self._seed
        return Sampling(seed=seed, **self._sampling)

    def frame(self, kind: str) -> dict[str, Any]:
        """What all parts of the answer share."""
        number = f"chatcmpl-{secrets.token_hex(8)}"
        return {
            "id": number,
            "object": kind,
            "created": int(time.time()),
            "model": self.model,
            "system_fingerprint": None,
        }


class _Usage:
    """Tokens of all answers to one request."""

    def __init__(self) -> None:
        self._prompt = self._cached = self._completion = 0

    def add(self, figures: dict[str, int]) -> None:
        """Counts one finished answer."""
        first = self._prompt == 0
        self._cached = figures["cached_tokens"] if first else min(self._cached, figures["cached_tokens"])
        self._prompt = figures["prompt_tokens"]
        self._completion += figures["completion_tokens"]

    def json(self) -> dict[str, Any]:
        """As the API has it."""
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": self._completion,
            "total_tokens": self._prompt + self._completion,
            "prompt_tokens_details": {"cached_tokens": self._cached},
        }
