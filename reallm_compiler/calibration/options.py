"""What a calibration is asked to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from reallm_compiler.calibration.events import Event
from reallm_compiler.errors import CalibrateError
from reallm_compiler.planning.statistics import StatisticsForm
from reallm_compiler.runs.output import Output


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrateOptions:
    """Settings that decide the bytes of the file.

    Attributes:
        samples: sequences that are drawn from the text; all if it has fewer.
        window: tokens of a sequence; 2048, or what the model takes if that is less, when None.
        seed: of the drawn sequences, labels and own text.
        separator: where the text is split into documents; None cuts it into windows.
        own_text: draw the text from the model itself.
        form: how much is measured and stored.
        shards: of the text, whose sums are added up in their order.
    """

    samples: int = 256
    window: int | None = None
    seed: int = 0
    separator: str | None = None
    own_text: bool = False
    form: StatisticsForm = field(default_factory=StatisticsForm)
    shards: int = 1

    def check(self) -> None:
        """Refuse settings without a meaning.

        Raises:
            CalibrateError: names the setting.
        """
        for name, value, least in (
            ("samples", self.samples, 1),
            ("window", self.window, 2),
            ("seed", self.seed, 0),
            ("shards", self.shards, 1),
            ("diagonal", self.form.diagonal, 0),
        ):
            if value is not None and (type(value) is not int or value < least):
                raise CalibrateError(
                    f"`{name}` must be an integer of at least {least}, not {value!r}"
                )
        if self.own_text and self.separator is not None:
            raise CalibrateError(
                "a text that the model writes itself has no separator",
                hint="leave out `separator`",
            )

    def plain(self, *, sequences: int, window: int) -> dict[str, Any]:
        """The settings as the file states them.

        Args:
            sequences: how many were measured.
            window: tokens of the longest at most.
        """
        return {
            "sequences": sequences,
            "window": window,
            "seed": self.seed,
            "separator": self.separator,
            "own_text": self.own_text,
            "gradients": self.form.gradients,
            "diagonal": self.form.diagonal,
            **({"shards": self.shards} if self.shards > 1 else {}),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """How a calibration is run, beside the settings that the file holds.

    Attributes:
        texts: files of text; none if the model writes its own.
        output: the file of statistics.
        workers: threads, or tasks at once on a cluster; by cores and memory when None.
        resume: `auto`, `required` or `never`.
        force: overwrite an existing file.
        emit: is called with events.
    """

    texts: tuple[str | os.PathLike[str], ...]
    output: Output
    workers: int | None
    resume: str
    force: bool
    emit: Callable[[Event], None]
