"""Training data as people have it: a list of dicts, a path, or a ``datasets.Dataset``, brought into a file to read."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .errors import DatasetError


@contextlib.contextmanager
def as_file(dataset: Any, extra: list[dict[str, Any]], what: str = "dataset") -> Iterator[str]:
    """A path to ``dataset`` followed by the examples of ``extra``. A file made for it is gone afterwards; errors then
    speak of examples, counted from 1."""
    if isinstance(dataset, (str, os.PathLike)) and not extra:
        yield os.fspath(dataset)
        return
    with tempfile.TemporaryDirectory(prefix="zoo-gym-") as folder:
        path = os.path.join(folder, f"{what}.jsonl")
        with open(path, "w", encoding="utf-8") as file:
            for example in [*examples_of(dataset, what), *extra]:
                try:
                    file.write(json.dumps(example, ensure_ascii=False) + "\n")
                except (TypeError, ValueError) as error:
                    raise DatasetError(f"{what}: an example is not plain JSON data: {error}") from None
        try:
            yield path
        except DatasetError as error:
            said = str(error).replace(path, what)
            raise DatasetError(re.sub(rf"^{what}: line (\d+)", rf"{what}: example \1", said)) from None


def examples_of(dataset: Any, what: str) -> Iterator[Mapping[str, Any]]:
    """The examples of a data set in any of its forms; none for None."""
    if dataset is None:
        return
    if isinstance(dataset, (str, os.PathLike)):
        yield from _lines(os.fspath(dataset))
        return
    if isinstance(dataset, Mapping):
        splits = ", ".join(map(str, dataset))
        raise DatasetError(f"{what}: a dict is not a list of examples; pass one of its parts ({splits})")
    if not isinstance(dataset, Iterable):
        raise DatasetError(
            f"{what}: expected a list of dicts, a path, or a datasets.Dataset, not {type(dataset).__name__}"
        )
    for number, example in enumerate(dataset, 1):
        if not isinstance(example, Mapping):
            raise DatasetError(f"{what}: example {number}: must be a dict, not {type(example).__name__}")
        yield dict(example)


def _lines(path: str) -> Iterator[Mapping[str, Any]]:
    """The examples of a JSON or JSON lines file."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
        if text.lstrip().startswith("["):
            yield from json.loads(text)
        else:
            yield from (json.loads(line) for line in text.splitlines() if line.strip())
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: {error}") from None
