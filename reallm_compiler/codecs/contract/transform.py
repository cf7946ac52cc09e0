"""The contract of a codec of transforms: what is done to a matrix before it is encoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from reallm_compiler.codecs.contract.rows import Shape
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.codecs.statistics import MatrixStatistics
from reallm_compiler.codecs.windows import Mixing
from reallm_compiler.errors import CodecError
from reallm_compiler.stages import (
    TransformStage,
)


class MatrixTransform:
    """A transform T of one matrix W [p, q], invertible.

    Attributes:
        step: rows at a multiple of which a range must begin.
    """

    step: int = 1

    def apply_(self, matrix: Tensor) -> Tensor:
        """T(W) in the place of W [p, q]."""
        raise NotImplementedError

    def restore_(self, rows: Tensor, first: int) -> Tensor:
        """Rows first, first + 1, ... of W in the place of those of T(W)."""
        raise NotImplementedError

    def inputs(self, x: Tensor) -> Tensor:
        """x' = A x of activations x [..., q], where W x = `outputs`(T(W) x').

        Raises:
            CodecError: T does not act on rows and columns separately.
        """
        raise CodecError("this transform does not act on inputs and outputs separately")

    def outputs(self, y: Tensor) -> Tensor:
        """B y of y = T(W) x' [..., p]; see `inputs`.

        Raises:
            CodecError: T does not act on rows and columns separately.
        """
        raise CodecError("this transform does not act on inputs and outputs separately")

    def mixing(self) -> tuple[Mixing, Mixing] | None:
        """`inputs` and `outputs` as data for kernels; None where they are nothing of that form."""
        return None

    def gram(self, gram: Tensor) -> Tensor:
        """E[x' x'^T] = A G A^T of a Gram matrix G = E[x x^T] [q, q] of the inputs.

        Raises:
            CodecError: T does not act on rows and columns separately.
        """
        return self.inputs(self.inputs(gram).transpose(-1, -2)).transpose(-1, -2)

    def gradients(self, g: Tensor) -> Tensor:
        """B^T g of gradients g [..., p] at the outputs of W; see `outputs`.

        Raises:
            CodecError: T does not act on rows and columns separately.
        """
        raise CodecError("this transform does not act on inputs and outputs separately")

    def gradient_gram(self, gram: Tensor) -> Tensor:
        """B^T G B of G = E[g g^T] [p, p]: the same of the gradients at the outputs of T(W).

        Raises:
            CodecError: T does not act on rows and columns separately.
        """
        return self.gradients(self.gradients(gram).transpose(-1, -2)).transpose(-1, -2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What a transform that needs statistics is chosen by.

    Attributes:
        statistics: of the matrix W.
        coded: T(W) [p, q], which is not kept -> the same as the later stages would bring it back,
            a fresh tensor; with nearest codes, columns in their own order and scales unsearched.
    """

    statistics: MatrixStatistics
    coded: Callable[[Tensor], Tensor]


T = TypeVar("T", bound=TransformStage)


class TransformCodec(Generic[T]):
    """The codec of a kind of transform."""

    def encode(
        self, params: T, matrix: Tensor, trial: Trial | None = None
    ) -> tuple[Sections, Tensor]:
        """Sections, and the matrix [p, q] transformed in its place.

        Args:
            params: the stage.
            matrix: the matrix.
            trial: what it is chosen by, for a kind that needs statistics.
        """
        raise NotImplementedError

    def decoder(
        self, params: T, shape: Shape, sections: Mapping[str, Tensor], dtype: torch.dtype
    ) -> MatrixTransform:
        """The transform of a matrix [p, q] as stored."""
        raise NotImplementedError

    def factors(
        self, params: T, members: Sequence[tuple[Tensor, Trial]], head: int, times: int
    ) -> Tensor:
        """float64 [q], above 0: by what the columns of matrices that have one input are multiplied,
        for a kind that can be folded.

        Args:
            params: the stage.
            members: the matrices, each [p, q], and what is tried of them.
            head, times: of columns in heads of `head`, each `times` heads that follow each other
                have the same factors, as they are given the same numbers.
        """
        raise NotImplementedError
