"""A base model by its name: opened and loaded when it is first needed, kept or dropped between calls."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

from . import _native
from ._engine import LocalEngine
from .errors import ConfigError, DeviceError, ModelError

#: Devices that exist.
DEVICES = ("cpu",)

#: What an engine can be told, with defaults.
DEFAULTS: dict[str, Any] = {
    "threads": 0,
    "base_dtype": "auto",
    "kv_dtype": "auto",
    "max_batch": 32,
    "max_context": 8192,
    "kv_cache_bytes": 1 << 30,
    "variants_dir": None,
    "variant_memory": None,
}


def check_device(device: Any) -> None:
    """Refuses a device that is not there; a ``torch.device`` will do."""
    if device is not None and str(device) not in DEVICES:
        raise DeviceError(f"device {str(device)!r} is not supported: supported are {', '.join(DEVICES)}")


class LocalModel:
    """A base model of this machine with one engine, which all callers share."""

    def __init__(self, name: str | None, *, keep: bool, device: Any = None, **options: Any) -> None:
        check_device(device)
        unknown = sorted(set(options) - set(DEFAULTS))
        if unknown:
            raise ConfigError(f"unknown option {unknown[0]!r}; known: {', '.join(DEFAULTS)}")
        for option in ("threads", "max_batch", "max_context", "kv_cache_bytes", "variant_memory"):
            value = options.get(option)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
                raise ConfigError(f"{option} = {value!r} is out of range: expected a whole number")
        named = _native.default_model() if name is None else os.fspath(name)
        if named is None:
            raise ModelError(
                "no base model: pass base_model (a model folder, a .gguf file, an alias or a hub id), or set BITDELTA_MODEL"
            )
        #: The name that was asked for.
        self.name: str = named
        #: Whether the base stays in memory between calls.
        self.keep = keep
        self._options = {**DEFAULTS, **options}
        # Reentrant, because opening the base is part of loading the engine.
        self._lock = threading.RLock()
        self._base: _native.Base | None = None
        self._engine: LocalEngine | None = None
        self._users = 0
        self._loaded: dict[str, str] = {}

    @contextlib.contextmanager
    def base(self) -> Iterator[_native.Base]:
        """The opened base."""
        with self._lock:
            if self._base is None:
                self._base = _native.Base(self.name)
            base = self._base
            self._users += 1
        try:
            yield base
        finally:
            self._release()

    @contextlib.contextmanager
    def engine(self) -> Iterator[LocalEngine]:
        """The running engine."""
        with self._lock:
            if self._engine is None:
                with self.base() as base:
                    engine = LocalEngine(base, self._options)
                try:
                    for path in self._loaded.values():
                        engine.load(path)
                except BaseException:
                    engine.close()
                    raise
                self._engine = engine
            engine = self._engine
            self._users += 1
        try:
            yield engine
        finally:
            self._release()

    def load_variant(self, path: str) -> dict[str, Any]:
        """Loads a variant from a path and serves it from now on, also after the base was dropped and loaded again."""
        with self.engine() as engine:
            line = engine.load(path)
        self._loaded[line["user_id"]] = path
        return line

    def unload_variant(self, user_id: str) -> bool:
        """Forgets a user's variant."""
        known = self._loaded.pop(user_id, None) is not None
        with self._lock:
            return (self._engine is not None and self._engine.unload(user_id)) or known

    def close(self) -> None:
        """Frees the base; it is loaded again when it is needed."""
        with self._lock:
            engine, self._engine, self._base = self._engine, None, None
        if engine is not None:
            engine.close()

    def _release(self) -> None:
        with self._lock:
            self._users -= 1
            idle = not self.keep and self._users == 0
        if idle:
            self.close()
