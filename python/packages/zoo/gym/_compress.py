"""A fine-tuned model that exists already, beside its base, as one small variant file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from typing import Any

from . import _data, _native
from ._progress import ProgressCallback, Reporter
from .config import BitDeltaConfig


@dataclasses.dataclass(frozen=True)
class CompressedVariant:
    """A variant file that was made of a pair."""

    #: The file.
    path: str
    #: Its size.
    bytes: int
    #: 8 · bytes ÷ weights of the base's linears.
    bits_per_weight: float


def compress(
    base: str | os.PathLike[str],
    finetuned: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: BitDeltaConfig | None = None,
    *,
    dataset: Any = None,
    eval_dataset: Any = None,
    draw: int | None = None,
    general: Any = None,
    num_epochs: float | None = None,
    rank: int | None = None,
    patience: int = 4,
    progress: bool | ProgressCallback | None = None,
) -> CompressedVariant:
    """Writes the difference of ``finetuned`` from ``base`` into the file ``output``, whole or not at all.

    Both are folders, .gguf files, aliases or hub ids of one shape. ``config`` says how small: its ``budget`` or
    ``bits_per_weight``, or else ``bits`` for each weight; without one it is a quarter of a bit a weight, which keeps most for
    its bytes. ``dataset`` (in any form that ``create_variant`` takes) trains what is kept towards the fine-tuned model, for
    ``num_epochs`` passes, and so do ``draw`` conversations that it writes itself; None draws where that is worth minutes, 0
    never. ``general`` is text of no user's to train on beside them, on which the variant is to stay what the fine-tuned model is:
    a dataset, or how many conversations to draw from the base itself; None draws some where what is learnt from ``dataset``
    would drift without. ``eval_dataset`` is not trained on but watched: what came nearest on it is kept, and ``patience`` looks
    (four a pass) without a gain end the training. ``rank``: the largest of a budget's factors. ``progress`` as in
    ``create_variant``.

    Ctrl-C while it trains saves a checkpoint beside ``output`` and raises
    :class:`~zoo.gym.errors.TrainingInterrupted`; the same call goes on from there, to the same bytes.
    """
    options: dict[str, Any] = {"draw": draw, "epochs": num_epochs, "rank": rank, "patience": patience}
    if config is not None:
        budget = config.budget
        options["budget"] = _native.parse_size(budget) if isinstance(budget, str) else budget
        options["bits_per_weight"] = config.bits_per_weight
        options["config"] = json.loads(config.to_json())
    if isinstance(general, int):
        options["draw_general"], general = general, None
    with (
        _file(dataset, "dataset") as data,
        _file(eval_dataset, "eval_dataset") as eval_data,
        _file(general, "general") as general_data,
    ):
        options |= {"data": data, "eval_data": eval_data, "general": general_data}
        path = os.fspath(output)
        opened = _native.Base(os.fspath(base))
        made = _native.compress(opened, os.fspath(finetuned), path, json.dumps(options), Reporter(progress))
    return CompressedVariant(path, *made)


def _file(dataset: Any, what: str) -> contextlib.AbstractContextManager[str | None]:
    return contextlib.nullcontext() if dataset is None else _data.as_file(dataset, [], what)
