"""The client: one surface over a model in this process and a node elsewhere."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from typing import Any, Literal, overload

from zoo.gym import BitDeltaConfig, TrainedVariant, _data, _preferences
from zoo.gym._progress import ProgressCallback, Reporter
from zoo.gym.trainer import run_settings

from ._local import Local
from ._remote import Remote
from .errors import HanzoError
from .types import ChatCompletion, ChatCompletionChunk, Training


class Hanzo:
    """Chat with users' variants, and train them: ``Hanzo(inference_mode='local')`` in this process, or
    ``Hanzo(base_url=…, api_key=…)`` at a node."""

    def __init__(
        self,
        *,
        inference_mode: str | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        variants_dir: str | os.PathLike[str] = "variants",
        timeout: float = 600.0,
        max_retries: int = 2,
        **options: Any,
    ) -> None:
        """``base_url`` and ``api_key`` default to HANZO_BASE_URL and HANZO_API_KEY. Locally, variants are in
        ``variants_dir``, and ``options`` are the engine's (``base_dtype="int8"``, ``threads``, …)."""
        if inference_mode not in (None, "local", "remote"):
            raise HanzoError(f"inference_mode = {inference_mode!r} is not known: expected 'local' or 'remote'")
        if inference_mode == "local" and base_url is not None:
            raise HanzoError("inference_mode='local' answers in this process; leave base_url out")
        self._backend: Local | Remote
        url = base_url or os.environ.get("HANZO_BASE_URL")
        if inference_mode == "local":
            self._backend = Local(os.fspath(variants_dir), options)
        elif url is not None:
            if options:
                raise HanzoError(f"{next(iter(options))}: only a model in this process takes engine options")
            self._backend = Remote(url, api_key or os.environ.get("HANZO_API_KEY"), timeout, max_retries)
        else:
            raise HanzoError("say where to answer: inference_mode='local', or base_url='http://localhost:8080'")
        #: ``client.chat.completions.create``
        self.chat = Chat(self._backend)

    def train_variant(
        self,
        user_id: str,
        base_model: str | None = None,
        dataset: Any = None,
        config: BitDeltaConfig | None = None,
        preferences: Any = None,
        *,
        num_epochs: float = 3,
        eval_dataset: Any = None,
        method: str | None = None,
        progress: bool | ProgressCallback | None = None,
        **settings: Any,
    ) -> TrainedVariant | Training:
        """Trains and publishes a user's variant: in this process as
        :meth:`zoo.gym.PersonalizedTrainer.create_variant` does, else as a job at the node, whose end is waited for.

        The data and settings are the same; a node trains its own base, so ``base_model`` must be a name of it.
        """
        if isinstance(self._backend, Local):
            return self._backend.train(
                user_id,
                base_model,
                config,
                dataset=dataset,
                preferences=preferences,
                num_epochs=num_epochs,
                eval_dataset=eval_dataset,
                method=method,
                progress=progress,
                **settings,
            )
        run = run_settings(config, num_epochs, method, settings)
        extra, of_preferences = _preferences.plan(preferences)
        if base_model is not None:
            served = [model["id"] for model in self._backend.get("/v1/models")["data"]]
            if base_model not in served:
                raise HanzoError(f"the node does not serve {base_model!r}; it serves {', '.join(served)}")
        body = {
            "data": [*_data.examples_of(dataset, "dataset"), *extra],
            "eval_data": list(_data.examples_of(eval_dataset, "eval_dataset")),
            "settings": {**run, **of_preferences},
        }
        return self._backend.train(user_id, body, Reporter(progress).show)

    def close(self) -> None:
        """Frees the models of this process."""
        if isinstance(self._backend, Local):
            self._backend.close()

    def __enter__(self) -> Hanzo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Stream:
    """Chunks of an answer as they come. Closing it, or leaving its ``with``, ends the answer."""

    def __init__(self, events: Generator[dict[str, Any], None, None]) -> None:
        self._events = events
        # What is refused is refused here, not at the first chunk.
        self._first = [next(events)]

    def __iter__(self) -> Iterator[ChatCompletionChunk]:
        return self

    def __next__(self) -> ChatCompletionChunk:
        return ChatCompletionChunk.from_dict(self._first.pop() if self._first else next(self._events))

    def close(self) -> None:
        """Ends the answer."""
        self._events.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Chat:
    """The part of the API about chats."""

    def __init__(self, backend: Local | Remote) -> None:
        #: ``create``
        self.completions = Completions(backend)


class Completions:
    """Answers."""

    def __init__(self, backend: Local | Remote) -> None:
        self._backend = backend

    @overload
    def create(
        self,
        *,
        model: str,
        messages: Iterable[dict[str, Any]],
        user_id: str | None = None,
        stream: Literal[False] | None = None,
        extra_body: dict[str, Any] | None = None,
        **fields: Any,
    ) -> ChatCompletion: ...

    @overload
    def create(
        self,
        *,
        model: str,
        messages: Iterable[dict[str, Any]],
        user_id: str | None = None,
        stream: Literal[True],
        extra_body: dict[str, Any] | None = None,
        **fields: Any,
    ) -> Stream: ...

    def create(
        self,
        *,
        model: str,
        messages: Iterable[dict[str, Any]],
        user_id: str | None = None,
        stream: bool | None = None,
        extra_body: dict[str, Any] | None = None,
        **fields: Any,
    ) -> ChatCompletion | Stream:
        """Answers a conversation as the user's variant; without a user, as the base.

        ``fields`` are OpenAI's: ``max_completion_tokens``, ``temperature``, ``top_p``, ``n``, ``stop``, ``seed``,
        ``stream_options``, ``user``, … A user without a variant is an error, never answered by the base.
        """
        body = {"model": model, "messages": list(messages), **fields, **(extra_body or {})}
        if user_id is not None:
            body["user_id"] = user_id
        body = {name: value for name, value in body.items() if value is not None}
        if stream:
            body["stream"] = True
            if isinstance(self._backend, Local):
                return Stream(self._backend.stream(body))
            return Stream(self._backend.stream("/v1/chat/completions", body))
        if isinstance(self._backend, Local):
            return ChatCompletion.from_dict(self._backend.answer(body))
        return ChatCompletion.from_dict(self._backend.post("/v1/chat/completions", body))
