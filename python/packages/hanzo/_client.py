"""The client: one surface over a model in this process and a node elsewhere."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from typing import Any, Literal, overload

from zoo.gym import BitDeltaConfig, TrainedVariant
from zoo.gym.errors import NotSupportedError

from ._local import Local
from ._remote import Remote
from .errors import HanzoError
from .types import ChatCompletion, ChatCompletionChunk


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
        **settings: Any,
    ) -> TrainedVariant:
        """Trains and publishes a user's variant in this process; see
        :meth:`zoo.gym.PersonalizedTrainer.create_variant`."""
        if not isinstance(self._backend, Local):
            raise NotSupportedError(
                "train_variant trains in this process: use Hanzo(inference_mode='local') on the node's own machine, with "
                "variants_dir set to the folder that the node serves"
            )
        return self._backend.train(user_id, base_model, config, dataset=dataset, preferences=preferences, **settings)

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
