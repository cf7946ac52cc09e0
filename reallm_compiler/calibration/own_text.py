"""A text that the model writes itself, so that no data is needed.

Each sequence begins with one BOS (or EOS, or a drawn token where there is neither) and goes on with
tokens drawn from the model's own prediction. The whole model is in memory meanwhile. What is drawn
is kept on disk, so a run that is killed draws only what it has not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reallm_compiler.calibration.events import Sampled
from reallm_compiler.calibration.labels import inverted
from reallm_compiler.errors import CalibrateError
from reallm_compiler.models.build import ModelFiles, build_model
from reallm_compiler.runs.seeds import seed_for
from reallm_compiler.runs.state import load_state, save_state

BATCH = 32
"""Sequences that are drawn together: fixed, because numbers depend on it."""


class OwnText:
    """The text of one run.

    Args:
        path: where it is kept.
        identity: of the run; text of another run is not taken.
    """

    def __init__(self, path: Path, identity: Mapping[str, str]) -> None:
        self._path = path
        self._identity = dict(identity)
        self._rows = torch.empty(0, 0, dtype=torch.int64)

    def sequences(
        self,
        files: ModelFiles,
        tokenizer: Any,  # noqa: ANN401
        count: int,
        window: int,
        seed: int,
        device: torch.device,
        emit: Callable[[Sampled], None],
    ) -> list[list[int]]:
        """So many sequences of `window` tokens.

        Raises:
            SourceError: the checkpoint cannot be read.
            CalibrateError: the model predicts numbers that are not finite, or the disk refuses.
        """
        self._rows = self._kept(window)
        if len(self._rows) < count:
            model = build_model(files, torch.float32).to(device).requires_grad_(False).eval()
            while len(self._rows) < count:
                first = len(self._rows)
                numbers = range(first, min(count, first + BATCH))
                made = _drawn(model, _start(model, tokenizer), numbers, window, seed, device)
                self._rows = torch.cat([self._rows, made])
                self.keep()
                emit(Sampled(tokens_done=len(self._rows) * window, tokens=count * window))
        rows: list[list[int]] = self._rows[:count].tolist()
        return rows

    def keep(self) -> None:
        """Store what is drawn.

        Raises:
            CalibrateError: the disk refuses.
        """
        try:
            save_state(self._path, {"ids": self._rows}, self._identity)
        except OSError as error:
            raise CalibrateError(
                f"the text that was drawn cannot be kept: {error}", location=str(self._path)
            ) from error

    def _kept(self, window: int) -> Tensor:
        """What an interrupted run has drawn, [n, window]."""
        try:
            identity, tensors = load_state(self._path)
        except ValueError:
            return torch.empty(0, window, dtype=torch.int64)
        if identity != self._identity:
            return torch.empty(0, window, dtype=torch.int64)
        return tensors["ids"]


def _start(model: Any, tokenizer: Any) -> int | None:  # noqa: ANN401
    """The token that sequences begin with; None for a drawn one."""
    config = model.config.get_text_config()
    found = (
        tokenizer.bos_token_id,
        getattr(config, "bos_token_id", None),
        tokenizer.eos_token_id,
    )
    return next((token for token in found if isinstance(token, int)), None)


def _drawn(
    model: Any,  # noqa: ANN401
    start: int | None,
    numbers: range,
    window: int,
    seed: int,
    device: torch.device,
) -> Tensor:
    """Sequences [b, window] of these numbers, each from its own generator, on the CPU."""
    uniform = torch.stack(
        [
            torch.rand(
                window,
                dtype=torch.float64,
                generator=torch.Generator().manual_seed(seed_for(seed, f"own text/{number}")),
            )
            for number in numbers
        ]
    )  # [b, window]
    vocabulary = int(model.config.get_text_config().vocab_size)
    first = (
        (uniform[:, 0] * vocabulary).long() if start is None else torch.full((len(numbers),), start)
    )
    ids = first[:, None].to(device)
    cache: Any = None
    with torch.no_grad():
        for position in range(1, window):
            output = model(
                input_ids=ids if cache is None else ids[:, -1:],
                past_key_values=cache,
                use_cache=True,
            )
            cache = getattr(output, "past_key_values", None)
            predicted = torch.softmax(output.logits[:, -1].float(), -1)  # [b, v]
            if not bool(torch.isfinite(predicted).all()):
                raise CalibrateError(
                    f"the model predicts numbers that are not finite at token {position}",
                    hint="give a text with `--text`",
                )
            drawn = inverted(predicted, uniform[:, position])
            ids = torch.cat([ids, drawn[:, None]], 1)
    return ids.cpu()
