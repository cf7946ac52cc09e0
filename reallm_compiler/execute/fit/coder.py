"""The task of one block: its matrices are coded, learn together, and are stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reallm_compiler.checkpoint import Inventory
from reallm_compiler.codecs import decode_matrix
from reallm_compiler.codecs.callback import TrainingCallback
from reallm_compiler.codecs.decode import MatrixDecoder, relative_error, work_dtype
from reallm_compiler.codecs.fit import LearnedMatrix
from reallm_compiler.codecs.learned import LearnedNumbers
from reallm_compiler.codecs.sections import Sections, check_sections
from reallm_compiler.execute.fit.blocks import Block, Blocks, Weights
from reallm_compiler.execute.fit.train import Learned, Outcome, Training
from reallm_compiler.planning.fit import FitBlock, fit_blocks, fit_of
from reallm_compiler.planning.model import Plan
from reallm_compiler.planning.parts import PlannedMatrix, PlannedTensor
from reallm_compiler.stages import Learnable
from reallm_compiler.storage.base import SectionSpec
from reallm_formats import names


@dataclass(frozen=True, kw_only=True, slots=True)
class StartingPoint:
    """A matrix as it was coded before it learns.

    Attributes:
        weight: [p, q], the matrix itself.
        sections: of it, those of its share group too.
    """

    weight: Tensor
    sections: Sections


@dataclass(frozen=True, kw_only=True, slots=True)
class CodedBlock:
    """A block that has learned.

    Attributes:
        sections: own sections of each matrix, by name and role.
        errors: relative error of each matrix.
        norms: the stored gains of each norm that may learn, by its tensor's name.
        outcome: how it has learned.
    """

    sections: Mapping[str, Sections]
    errors: Mapping[str, float]
    norms: Mapping[str, Tensor]
    outcome: Outcome


class BlockCoder:
    """Codes the blocks of a model whose matrices learn.

    Args:
        plan: of the compile.
        inventory: of the checkpoint, or of the prepared model, its factors folded.
        ids: int64 [n, t], the text.
        device: where the numerical work runs.
        read: a section that was stored, by its name.
        factors: those that are folded, by name.

    Raises:
        CompileError: the blocks of this model cannot be run one by one, or memory is too small.
    """

    def __init__(
        self,
        plan: Plan,
        inventory: Inventory,
        ids: Tensor,
        device: torch.device,
        read: Callable[[str, SectionSpec], Tensor],
        factors: Callable[[str], Tensor] | None = None,
    ) -> None:
        fit = fit_of(plan)
        assert fit is not None  # else there are no such blocks
        self._fit = fit
        self._all = fit_blocks(plan)
        self._seed = plan.seed
        self._read = read
        self._blocks = Blocks(inventory, self._all, ids, fit.batch, device, factors)

    def code(
        self,
        block: FitBlock,
        start: Callable[[PlannedMatrix], StartingPoint],
        norm: Callable[[PlannedTensor], Tensor],
        callback: TrainingCallback,
    ) -> CodedBlock:
        """Let a block learn; those before it are stored.

        Args:
            block: the block.
            start: codes a matrix before it learns.
            norm: the gains of a norm as they are stored if they do not learn.
            callback: of the training.
        """
        self._catch_up(block.number)
        started = {matrix.name: start(matrix) for matrix in block.matrices}
        matrices = {
            matrix.name: LearnedMatrix(
                matrix.layout,
                started[matrix.name].weight,
                started[matrix.name].sections,
                self._fit.learn,
            )
            for matrix in block.matrices
        }
        norms = {
            tensor.name: LearnedNumbers(tensor.spec, norm(tensor)).to(self._blocks.device)
            for tensor in block.norms
        }
        with self._blocks.loaded() as loaded:
            outcome = self._learn(block, loaded, matrices, norms, callback)
            sections = {name: one.sections() for name, one in matrices.items()}
            gains = {name: one.stored() for name, one in norms.items()}
            weights = {
                matrix.name: decoded(matrix, sections[matrix.name]) for matrix in block.matrices
            }
            moved = {
                name: one.to(self._blocks.device, torch.float32) for name, one in gains.items()
            }
            self._blocks.advance(loaded, {**weights, **moved})
        own: dict[str, Sections] = {}
        errors = {}
        for matrix in block.matrices:
            layout, found = matrix.layout, sections[matrix.name]
            own[matrix.name] = {spec.role: found[spec.role] for spec in layout.own_sections}
            check_sections(own[matrix.name], layout.own_sections)
            work = work_dtype(matrix.dtype)
            errors[matrix.name] = relative_error(
                started[matrix.name].weight.to(work), MatrixDecoder(layout, found, work)
            )
        return CodedBlock(sections=own, errors=errors, norms=gains, outcome=outcome)

    def _catch_up(self, number: int) -> None:
        """Bring hidden states to a block, through those before it as they are stored."""
        if self._blocks.number > number:
            self._blocks.rewind()
        for before in self._all[self._blocks.number : number]:
            weights = {}
            for matrix in before.matrices:
                sections = {
                    spec.role: self._read(matrix.section_name(spec), spec) for spec in matrix.specs
                }
                weights[matrix.name] = decoded(matrix, sections)
            for tensor in before.norms:
                stored = self._read(names.tensor_section(tensor.name), tensor.spec)
                weights[tensor.name] = stored.to(torch.float32)
            with self._blocks.loaded() as loaded:
                self._blocks.advance(loaded, weights)

    def _learn(
        self,
        block: FitBlock,
        loaded: Block,
        matrices: Mapping[str, LearnedMatrix],
        norms: Mapping[str, LearnedNumbers],
        callback: TrainingCallback,
    ) -> Outcome:
        """Train all that may change in the block."""
        learned: dict[str, Learned] = {}

        def add(
            name: str, learnable: Learnable, parameter: nn.Parameter, project: Callable[[], None]
        ) -> None:
            parameter.requires_grad_(True)
            learned[name] = Learned(learnable=learnable, parameter=parameter, project=project)

        for name, matrix in matrices.items():
            for part, learnable, parameter in matrix.learned():
                add(f"{name}/{part}", learnable, parameter, matrix.project_)
        for name, numbers in norms.items():
            add(name, "norms", numbers.theta, _nothing)
        if not learned:
            return Outcome(before=0.0, after=0.0, lost=None)
        blocks = self._blocks
        targets = blocks.targets(loaded)

        def made_weights() -> dict[str, Tensor]:
            weights = {name: matrix() for name, matrix in matrices.items()}
            return weights | {name: numbers.values() for name, numbers in norms.items()}

        def error(indices: Tensor, weights: Weights) -> Tensor:
            made = loaded.run(indices, blocks.coded, weights)  # [b, t, d]
            wanted = targets[indices].to(made.device)
            return (made.float() - wanted).square().mean()

        training = Training(
            self._fit,
            learned,
            made_weights,
            error,
            samples=len(blocks.coded),
            seed=self._seed,
            label=str(block.layer),
            scale=float(targets.square().mean(dtype=torch.float64)),
            callback=callback,
        )
        return training.run()


def decoded(matrix: PlannedMatrix, sections: Mapping[str, Tensor]) -> Tensor:
    """The matrix [p, q] in float32 as a reader decodes it."""
    return decode_matrix(
        matrix.plan,
        matrix.shape,
        matrix.dtype,
        sections,
        dtype=torch.float32,
        layout=matrix.layout,
    )


def _nothing() -> None:
    """No bounds."""
