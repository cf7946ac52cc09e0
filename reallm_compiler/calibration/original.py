"""The model that is measured, and where its matrices lie in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reallm_compiler.calibration.products import Memory
from reallm_compiler.checkpoint import Inventory, MatrixFact
from reallm_compiler.errors import CalibrateError
from reallm_compiler.models.joined import Location
from reallm_compiler.models.streamed import StreamedModel


class Original(StreamedModel):
    """A frozen model in float32, of which one block is in memory at a time.

    Args:
        inventory: of the checkpoint.
        facts: the matrices to measure.
        device: where it runs.
        whole: keep all of it in memory.

    Attributes:
        memory: where the matrices lie that are in memory now.

    Raises:
        SourceError, CalibrateError: as of `StreamedModel`.
    """

    def __init__(
        self,
        inventory: Inventory,
        facts: Sequence[MatrixFact],
        device: torch.device,
        *,
        whole: bool = False,
    ) -> None:
        self.memory = Memory()
        super().__init__(inventory, facts, device, whole=whole, error=CalibrateError)

    def _filled(self, data: Tensor, inside: list[Location]) -> None:
        if inside:
            self.memory.add(data, inside)

    def _emptied(self, data: Tensor) -> None:
        self.memory.remove(data)
