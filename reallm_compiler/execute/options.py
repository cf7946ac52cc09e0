"""What a compile is asked to do."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reallm_compiler.checkpoint import Inventory
from reallm_compiler.execute.events import Event
from reallm_compiler.models.sequences import Paths
from reallm_compiler.recipe import Recipe
from reallm_compiler.runs.cluster import ClusterOptions

OnEvent = Callable[[Event], None]


def ignore_event(event: Event) -> None:
    """Does nothing with an event."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompileOptions:
    """The arguments of `compile_model`, which explains them."""

    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe
    model: str | os.PathLike[str] | Inventory | None = None
    output: str | os.PathLike[str] | None = None
    device: str = "auto"
    workers: int | None = None
    statistics: str | os.PathLike[str] | None = None
    text: Paths | None = None
    only: str | None = None
    cluster: ClusterOptions | None = None
    resume: str = "auto"
    force: bool = False
    cache: str | os.PathLike[str] | None = None
    on_event: OnEvent = ignore_event

    @property
    def cache_folder(self) -> Path | None:
        """The folder of what was coded before; None for none."""
        return None if self.cache is None else Path(self.cache).absolute()

    @property
    def recipe_file(self) -> str | os.PathLike[str] | None:
        """The recipe's file or name, if it was given so."""
        return self.recipe if isinstance(self.recipe, str | os.PathLike) else None
