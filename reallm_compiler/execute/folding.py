"""Factors that are folded, as numbers: from statistics and matrices, or from a norm that has them.

The factors s of a norm are what its stored gains say of them: with gains g and g' before and after,
s = g / g' exactly, whatever the rounding of g'. So the norm's own task finds and stores them, and
the matrices behind it read its section. Those of a matrix are found anew by whoever needs them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reallm_compiler.codecs import from_bytes
from reallm_compiler.codecs.contract import Trial
from reallm_compiler.codecs.decode import work_dtype
from reallm_compiler.codecs.matrix_encoder import trial_of
from reallm_compiler.codecs.registry import codec_of
from reallm_compiler.codecs.sections import TORCH_DTYPES
from reallm_compiler.codecs.statistics_file import StatisticsFile
from reallm_compiler.execute.statistics import read_statistics
from reallm_compiler.models.weights import Weights
from reallm_compiler.planning.model import Plan
from reallm_compiler.planning.parts import PlannedMatrix, PlannedTensor
from reallm_compiler.runs.seeds import seed_for
from reallm_compiler.runs.sink import Sink
from reallm_formats import names


@dataclass(frozen=True, slots=True)
class FoldedFactors:
    """Finds the factors of a plan.

    Attributes:
        plan: of the compile.
        weights: of the model before factors are folded.
        statistics: of its matrices.
        device: where the numerical work runs.
        sink: what finished tasks have stored.
        known: what was found, by name.
    """

    plan: Plan
    weights: Weights
    statistics: StatisticsFile | None
    device: torch.device
    sink: Sink
    known: dict[str, Tensor]

    def __call__(self, name: str) -> Tensor:
        """float64 [n]: factors, read from the norm that has them where that is stored."""
        if name not in self.known:
            norm = self.plan.folds[name].norm
            data = None if norm is None else self.sink.read(names.tensor_section(norm.name))
            if data is None or norm is None:
                return self.find(name)
            self.known[name] = self._of_norm(norm, name, from_bytes(data, norm.spec))
        return self.known[name]

    def find(self, name: str) -> Tensor:
        """float64 [n]: factors from statistics and matrices."""
        if name not in self.known:
            fold = self.plan.folds[name]
            producer = fold.activation.producer
            found: Tensor = codec_of(fold.stage).factors(
                fold.stage,
                [self._member(one) for one in fold.matrices],
                producer.head,
                producer.times,
            )
            found = found.view(-1, producer.times, producer.head)[:, 0].reshape(-1)
            if fold.norm is not None:
                found = self._of_norm(
                    fold.norm, name, self._gains(fold.norm, producer.offset, found)
                )
            self.known[name] = found.cpu()
        return self.known[name]

    def _member(self, matrix: PlannedMatrix) -> tuple[Tensor, Trial]:
        assert self.statistics is not None  # as planning has seen
        weight = self.weights.matrix(matrix.tensor, matrix.index, transposed=matrix.transposed)
        statistics = read_statistics(self.statistics, matrix, self.weights, self.device)
        seed = seed_for(self.plan.seed, matrix.name)
        trial = trial_of(matrix.plan, matrix.shape, matrix.dtype, seed, statistics)
        return weight.to(self.device, work_dtype(matrix.dtype)), trial

    def _gains(self, norm: PlannedTensor, offset: int, factors: Tensor) -> Tensor:
        """The numbers [q] of a norm that is divided by factors, as stored; those that would be no
        number there stay what they are.
        """
        own = self._own(norm)
        divided = (own.to(torch.float64) + offset) / factors.cpu() - offset
        stored = divided.to(own.dtype).to(TORCH_DTYPES[norm.dtype])
        lost = ~stored.isfinite() | (stored.to(torch.float64) + offset == 0)
        return torch.where(lost, own.to(stored.dtype), stored)

    def _of_norm(self, norm: PlannedTensor, name: str, stored: Tensor) -> Tensor:
        """float64 [q]: the factors by which a norm was divided that has become `stored`."""
        offset = self.plan.folds[name].activation.producer.offset
        before = self._own(norm).to(torch.float64) + offset
        after = stored.to(torch.float64) + offset
        return torch.where((before == 0) | (after == 0), 1.0, before / after)

    def _own(self, norm: PlannedTensor) -> Tensor:
        """The numbers [q] of a norm before, in the checkpoint's type."""
        return self.weights.tensor(norm.name, self.weights.by_name[norm.name].dtype)
