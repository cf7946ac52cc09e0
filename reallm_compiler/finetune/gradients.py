"""The gradient of a batch, added up over processes in a fixed order.

Piece m of a batch is computed by process m mod N, and gradients are added up in the order of the
pieces: process m mod N receives the sum of those before, adds its own and hands it on. So a run
ends with the same bytes whatever N is, which a reduction in any order would not give. In one
process nothing of this happens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from reallm_compiler.finetune.processes import Processes, lost_to_error


class GradientSum:
    """The gradient of a batch, added up piece by piece in their order.

    Args:
        processes: that share the pieces.
        parameters: whose gradients are added up, float32.
        pieces: of the batch.
    """

    def __init__(
        self, processes: Processes, parameters: Mapping[str, nn.Parameter], pieces: int
    ) -> None:
        self._processes = processes
        self._parameters = list(parameters.values())
        self._pieces = pieces
        self._alone: list[Tensor | None] = [None] * len(self._parameters)
        self._flat: Tensor | None = None
        self._sent: Any = None

    def add(self, piece: int) -> None:
        """Take the gradients of a piece, which the parameters hold; they hold none afterwards."""
        if self._processes.count == 1:
            self._alone = [
                _added(before, parameter.grad)
                for before, parameter in zip(self._alone, self._parameters, strict=True)
            ]
        else:
            self._pass_on(piece)
        for parameter in self._parameters:
            parameter.grad = None

    def finish(self) -> None:
        """Give every parameter the gradient of the batch; None where no piece had one."""
        if self._processes.count == 1:
            for parameter, value in zip(self._parameters, self._alone, strict=True):
                parameter.grad = value
            return
        flat = self._buffer()
        with lost_to_error():
            self._wait()
            dist.broadcast(flat, src=(self._pieces - 1) % self._processes.count)
        there = self._there(flat).tolist()
        for parameter, view, known in zip(self._parameters, self._views(flat), there, strict=True):
            parameter.grad = view.clone() if known else None

    def _pass_on(self, piece: int) -> None:
        """The sum of the pieces before, with this one's added, to whom has the next one."""
        rank, count = self._processes.rank, self._processes.count
        flat = self._buffer()
        with lost_to_error():
            self._wait()
            if piece:
                dist.recv(flat, src=(rank - 1) % count)
            else:
                flat.zero_()
        there = self._there(flat)
        known = there.tolist()
        for index, (parameter, view) in enumerate(
            zip(self._parameters, self._views(flat), strict=True)
        ):
            if parameter.grad is None:
                continue
            if known[index]:
                view += parameter.grad
            else:
                view.copy_(parameter.grad)
                there[index] = 1
        if piece + 1 < self._pieces:
            with lost_to_error():
                self._sent = dist.isend(flat, dst=(rank + 1) % count)

    def _wait(self) -> None:
        if self._sent is not None:
            self._sent.wait()
            self._sent = None

    def _buffer(self) -> Tensor:
        """All gradients, one after the other, and for each whether it is there."""
        if self._flat is None:
            size = sum(parameter.numel() for parameter in self._parameters)
            self._flat = torch.zeros(
                size + len(self._parameters), dtype=torch.float32, device=self._processes.device
            )
        return self._flat

    def _there(self, flat: Tensor) -> Tensor:
        return flat[len(flat) - len(self._parameters) :]

    def _views(self, flat: Tensor) -> list[Tensor]:
        sizes = [parameter.numel() for parameter in self._parameters]
        parts = torch.split(flat[: sum(sizes)], sizes)
        return [part.view_as(one) for part, one in zip(parts, self._parameters, strict=True)]


def _added(before: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    if before is None or gradient is None:
        return gradient if before is None else before
    return before.add_(gradient)
