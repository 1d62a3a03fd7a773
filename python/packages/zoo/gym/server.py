"""Serving many users' variants from one base in this process, for programs that await."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from typing import Any

from ._engine import Sampling
from ._model import LocalModel
from .config import BitDeltaConfig


class PersonalizedServer:
    """One base in memory, and for each user a small variant. All requests that run at a time share each pass of the base."""

    def __init__(
        self,
        base_model: str | os.PathLike[str] | None = None,
        config: BitDeltaConfig | None = None,
        device: Any = "cpu",
        *,
        variants_dir: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        """``base_model``: a folder, a .gguf file, an alias or a hub id; without one, what BITDELTA_MODEL names.

        Of ``config`` only ``cache_base_model`` matters here: a variant carries what it was made with. Users of
        ``variants_dir`` are found there when they first ask; others come by :meth:`load_variants`. ``options`` are the
        engine's: ``base_dtype`` ("auto", "f32", "bf16", "int8"), ``kv_dtype``, ``threads``, ``max_batch``,
        ``max_context``, ``kv_cache_bytes``, ``variant_memory``.
        """
        self.config = BitDeltaConfig() if config is None else config
        options["variants_dir"] = None if variants_dir is None else os.fspath(variants_dir)
        name = None if base_model is None else os.fspath(base_model)
        self._model = LocalModel(name, keep=self.config.cache_base_model, device=device, **options)

    def load_variants(self, paths: Iterable[str | os.PathLike[str]]) -> list[str]:
        """Loads variants, each a file or a folder that holds one; returns their users, whom the paths' last parts name.

        The first that cannot be loaded is an error; those before it stay loaded.
        """
        if isinstance(paths, (str, os.PathLike)):
            paths = [paths]
        return [self._model.load_variant(os.fspath(path))["user_id"] for path in paths]

    def unload_variant(self, user_id: str) -> bool:
        """Forgets a user's variant; requests that use it end first. Whether it was known."""
        return self._model.unload_variant(user_id)

    def variants(self) -> list[str]:
        """Users who have a variant here."""
        with self._model.engine() as engine:
            return [user for user, _, _ in engine.variants()]

    async def infer(self, user_id: str | None, prompt: Any, max_new_tokens: int = 512, **sampling: Any) -> str:
        """The answer of the user's variant to a prompt (a string, or messages); None asks the base.

        ``sampling``: ``temperature``, ``top_p``, ``top_k``, ``seed``, ``stop``. A user without a variant is an
        :class:`~zoo.gym.errors.UnknownUserError`. A cancelled task gives its place in the batch back.
        """
        pieces = [piece async for piece in self.stream(user_id, prompt, max_new_tokens, **sampling)]
        return "".join(pieces)

    async def stream(
        self, user_id: str | None, prompt: Any, max_new_tokens: int = 512, **sampling: Any
    ) -> AsyncIterator[str]:
        """The same piece by piece: ``async for piece in server.stream(user_id, prompt)``."""
        chosen = Sampling(max_new_tokens, **sampling)
        held = self._model.engine()
        # Loading the base takes seconds, which are the thread's and not the loop's.
        engine = await asyncio.to_thread(held.__enter__)
        try:
            events = engine.astream(user_id, prompt, chosen)
            try:
                async for kind, payload in events:
                    if kind == "text":
                        yield payload
            finally:
                await events.aclose()
        finally:
            await asyncio.shield(asyncio.to_thread(held.__exit__, None, None, None))

    async def infer_batch(
        self, requests: Iterable[tuple[str | None, Any]], max_new_tokens: int = 512, **sampling: Any
    ) -> list[str]:
        """Answers for many users at once, (user_id, prompt) each, in one batch and in the requests' order.

        Each answer is the one that :meth:`infer` alone would give. If one fails, the others are called back.
        """
        tasks = [
            asyncio.ensure_future(self.infer(user, prompt, max_new_tokens, **sampling)) for user, prompt in requests
        ]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    def stats(self) -> dict[str, int]:
        """Requests running and waiting, tokens so far, bytes of the base and the variants."""
        with self._model.engine() as engine:
            return engine.stats()

    def close(self) -> None:
        """Ends all requests and frees the base."""
        self._model.close()
