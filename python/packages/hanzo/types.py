"""OpenAI's objects: attributes, ``model_dump()`` and ``model_dump_json()``, without a library of models."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, ClassVar, TypeVar

M = TypeVar("M", bound="Model")


@dataclasses.dataclass
class Model:
    """An object of the API. Fields that this package does not know are attributes too."""

    #: Fields that hold objects, or lists of them, by class.
    _nested: ClassVar[dict[str, type[Model]]] = {}

    @classmethod
    def from_dict(cls: type[M], data: dict[str, Any]) -> M:
        """From decoded JSON."""
        known = {field.name for field in dataclasses.fields(cls)}
        made = {name: cls._read(name, value) for name, value in data.items()}
        model = cls(**{name: value for name, value in made.items() if name in known})
        for name, value in made.items():
            if name not in known:
                setattr(model, name, value)
        return model

    @classmethod
    def _read(cls, name: str, value: Any) -> Any:
        nested = cls._nested.get(name)
        if nested is None or value is None:
            return value
        if isinstance(value, list):
            return [nested.from_dict(item) for item in value]
        return nested.from_dict(value)

    def model_dump(self, *, exclude_none: bool = False) -> dict[str, Any]:
        """As plain dicts and lists."""

        def plain(value: Any) -> Any:
            if isinstance(value, Model):
                return value.model_dump(exclude_none=exclude_none)
            return [plain(item) for item in value] if isinstance(value, list) else value

        fields = {name: plain(value) for name, value in vars(self).items()}
        return {name: value for name, value in fields.items() if not (exclude_none and value is None)}

    def model_dump_json(self, *, indent: int | None = None, exclude_none: bool = False) -> str:
        """As JSON."""
        return json.dumps(self.model_dump(exclude_none=exclude_none), indent=indent, ensure_ascii=False)


@dataclasses.dataclass
class ChatCompletionMessage(Model):
    """What the model said."""

    role: str = "assistant"
    content: str | None = None
    refusal: str | None = None


@dataclasses.dataclass
class Choice(Model):
    """One answer."""

    _nested = {"message": ChatCompletionMessage}

    index: int = 0
    message: ChatCompletionMessage = dataclasses.field(default_factory=ChatCompletionMessage)
    finish_reason: str | None = None
    logprobs: Any = None


@dataclasses.dataclass
class PromptTokensDetails(Model):
    """Of the prompt's tokens, those found in the cache."""

    cached_tokens: int = 0


@dataclasses.dataclass
class CompletionUsage(Model):
    """Tokens used."""

    _nested = {"prompt_tokens_details": PromptTokensDetails}

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | None = None


@dataclasses.dataclass
class ChatCompletion(Model):
    """A whole answer."""

    _nested = {"choices": Choice, "usage": CompletionUsage}

    id: str = ""
    object: str = "chat.completion"
    created: int = 0
    model: str = ""
    choices: list[Choice] = dataclasses.field(default_factory=list)
    usage: CompletionUsage | None = None
    system_fingerprint: str | None = None


@dataclasses.dataclass
class ChoiceDelta(Model):
    """What a chunk adds."""

    role: str | None = None
    content: str | None = None


@dataclasses.dataclass
class ChunkChoice(Model):
    """One answer's part of a chunk."""

    _nested = {"delta": ChoiceDelta}

    index: int = 0
    delta: ChoiceDelta = dataclasses.field(default_factory=ChoiceDelta)
    finish_reason: str | None = None
    logprobs: Any = None


@dataclasses.dataclass
class ChatCompletionChunk(Model):
    """A piece of a streamed answer."""

    _nested = {"choices": ChunkChoice, "usage": CompletionUsage}

    id: str = ""
    object: str = "chat.completion.chunk"
    created: int = 0
    model: str = ""
    choices: list[ChunkChoice] = dataclasses.field(default_factory=list)
    usage: CompletionUsage | None = None
    system_fingerprint: str | None = None


@dataclasses.dataclass
class Training(Model):
    """A training at a node, as it stands."""

    object: str = "training"
    user_id: str = ""
    #: queued, running, succeeded, failed or cancelled.
    status: str = "queued"
    phase: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    note: str = ""
    #: What is to be read: warnings, losses.
    messages: list[str] = dataclasses.field(default_factory=list)
    error: str | None = None
    #: The version of the variant that came of it.
    version: int | None = None
