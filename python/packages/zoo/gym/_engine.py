"""Answers from a base in this process: one engine, any number of callers, with and without asyncio.

A thread takes the engine's events, all of a step at once, and hands each to whoever asked: into a queue that a caller
waits at, or into the event loop that an ``await`` runs in.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import queue
import secrets
import threading
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Any

from . import _native
from .errors import ConfigError, EngineError, PromptError

#: What a listener hears: ("text", str), ("done", figures), ("failed", exception) or ("ended", None).
Listener = Callable[[str, Any], None]

_WORD_ROLES = {"developer": "system"}


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How an answer is chosen. Greedy unless told otherwise, so that what a variant learnt is what it says."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: str | Iterable[str] | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("top_k", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name} = {value!r} is out of range: expected {least} or more")
        for name in ("temperature", "top_p"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise ConfigError(f"{name} = {value!r} is out of range: expected a number")
        if self.seed is not None and (not isinstance(self.seed, int) or isinstance(self.seed, bool)):
            raise ConfigError(f"seed = {self.seed!r} is out of range: expected a whole number")

    def wanted(self) -> dict[str, Any]:
        """The same as the engine takes it."""
        stop = [] if self.stop is None else [self.stop] if isinstance(self.stop, str) else list(self.stop)
        if not all(isinstance(text, str) and text for text in stop):
            raise ConfigError(f"stop = {self.stop!r} is out of range: expected texts that are not empty")
        return {
            "max_tokens": min(self.max_new_tokens, 2**63),
            "temperature": float(self.temperature),
            "top_p": float(self.top_p),
            "top_k": min(self.top_k, 2**63),
            "seed": secrets.randbits(64) if self.seed is None else self.seed % 2**64,
            "stop": stop,
        }


def messages_of(prompt: Any) -> list[tuple[str, str]]:
    """A prompt as turns: a string is one user's turn, else messages as OpenAI has them."""
    if isinstance(prompt, str):
        return [("user", prompt)]
    if not isinstance(prompt, Iterable) or isinstance(prompt, Mapping):
        raise PromptError(f"a prompt is a string or a list of messages, not {type(prompt).__name__}")
    turns = []
    for at, message in enumerate(prompt):
        if not isinstance(message, Mapping):
            raise PromptError(f"messages[{at}] must be a dict with role and content, not {type(message).__name__}")
        role, content = message.get("role"), message.get("content")
        if role not in ("system", "developer", "user", "assistant"):
            raise PromptError(f"messages[{at}].role must be system, developer, user or assistant, not {role!r}")
        if isinstance(content, Iterable) and not isinstance(content, (str, Mapping)):
            content = "\n".join(_text_of(part, f"messages[{at}].content") for part in content)
        if content is None and role == "assistant":
            content = ""
        if not isinstance(content, str):
            raise PromptError(f"messages[{at}].content must be a string or text parts, not {type(content).__name__}")
        turns.append((_WORD_ROLES.get(role, role), content))
    return turns


def _text_of(part: Any, where: str) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    raise PromptError(f"{where}: only parts of type text are supported")


class _Ticket:
    """A request's number, and whether it is still wanted."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.wanted = True


class LocalEngine:
    """A base with its users' variants, ready to answer."""

    def __init__(self, base: _native.Base, options: Mapping[str, Any]) -> None:
        self._native = _native.Engine(base, dict(options))
        self._numbers = itertools.count(1)
        self._listeners: dict[int, Listener] = {}
        pump = threading.Thread(target=_pump, args=(self._native, self._listeners), name="bitdelta-events", daemon=True)
        pump.start()
        # Also at the interpreter's end, while threads still run.
        self._finalizer = weakref.finalize(self, _close, self._native, pump)

    def close(self) -> None:
        """Ends all requests and frees the memory."""
        self._finalizer()

    def load(self, path: str) -> dict[str, Any]:
        """Loads a variant file or folder."""
        return self._native.load(path)

    def unload(self, user_id: str) -> bool:
        """Forgets a user's variant."""
        return self._native.unload(user_id)

    def variants(self) -> list[tuple[str, str, int]]:
        """Users with a variant: (user, path, bytes in memory)."""
        return self._native.variants()

    def stats(self) -> dict[str, int]:
        """Counters."""
        return self._native.stats()

    def stream(self, user_id: str | None, prompt: Any, sampling: Sampling) -> Iterator[tuple[str, Any]]:
        """The answer's events as they come: any number of ("text", …), then ("done", figures)."""
        for _, kind, payload in self.stream_many(user_id, prompt, [sampling]):
            yield kind, payload

    def stream_many(
        self, user_id: str | None, prompt: Any, samplings: list[Sampling]
    ) -> Iterator[tuple[int, str, Any]]:
        """The events of several answers to one prompt, which run in one batch: each with its answer's place."""
        events: queue.SimpleQueue[tuple[int, str, Any]] = queue.SimpleQueue()

        def listener(place: int) -> Listener:
            return lambda kind, payload: events.put((place, kind, payload))

        tickets = [self._ticket(listener(place)) for place in range(len(samplings))]
        try:
            for ticket, sampling in zip(tickets, samplings, strict=True):
                self._submit(ticket, user_id, prompt, sampling)
            running = len(tickets)
            while running:
                place, kind, payload = events.get()
                _check(kind, payload)
                running -= kind == "done"
                yield place, kind, payload
        finally:
            for ticket in tickets:
                self._cancel(ticket)

    async def astream(self, user_id: str | None, prompt: Any, sampling: Sampling) -> AsyncIterator[tuple[str, Any]]:
        """:meth:`stream` for an event loop, which is never blocked, not even by a variant's load."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

        def hear(kind: str, payload: Any) -> None:
            try:
                loop.call_soon_threadsafe(events.put_nowait, (kind, payload))
            except RuntimeError:
                # The loop was closed: nobody waits any more.
                self._cancel(ticket)

        ticket = self._ticket(hear)
        try:
            await asyncio.to_thread(self._submit, ticket, user_id, prompt, sampling)
            while True:
                kind, payload = await events.get()
                _check(kind, payload)
                yield kind, payload
                if kind == "done":
                    return
        finally:
            self._cancel(ticket)

    def _ticket(self, listener: Listener) -> _Ticket:
        ticket = _Ticket(next(self._numbers))
        self._listeners[ticket.number] = listener
        return ticket

    def _submit(self, ticket: _Ticket, user_id: str | None, prompt: Any, sampling: Sampling) -> None:
        if not ticket.wanted:
            return
        sentence = self._native.submit(ticket.number, user_id, messages_of(prompt), sampling.wanted())
        if sentence is not None:
            warnings.warn(sentence, stacklevel=4)
        if not ticket.wanted:
            self._native.cancel(ticket.number)

    def _cancel(self, ticket: _Ticket) -> None:
        """Calls a request back, unless it is over."""
        ticket.wanted = False
        if self._listeners.pop(ticket.number, None) is not None and self._finalizer.alive:
            try:
                self._native.cancel(ticket.number)
            except EngineError:
                # Closed meanwhile, which ended it.
                pass


def _check(kind: str, payload: Any) -> None:
    """Raises what ended an answer before its end."""
    if kind == "failed":
        raise payload
    if kind == "ended":
        raise EngineError("the answer was called back")


def _pump(native: _native.Engine, listeners: dict[int, Listener]) -> None:
    """Hands events out until the engine is closed."""
    while (events := native.poll(60.0)) is not None:
        for number, kind, payload in events:
            listener = listeners.get(number) if kind == "text" else listeners.pop(number, None)
            if listener is not None:
                listener(kind, payload)
    while listeners:
        _, listener = listeners.popitem()
        listener("failed", EngineError("the engine has stopped"))


def _close(native: _native.Engine, pump: threading.Thread) -> None:
    native.close()
    if pump is not threading.current_thread():
        pump.join()
