"""The contract of a size law.

A size law is a pure integer function from a stage's parameters and a shape to the sections that
the stage stores. It needs no data and no torch, so the length of an archive is known before the
first weight is read. Its codec must write exactly these sections. Beside the
sections a size law gives what a kind costs, and which shapes it refuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Generic, TypeVar

from reallm_compiler.stages import AutoencoderStage, ResidualStage, Stage
from reallm_compiler.storage.values import Anything, ValueRule
from reallm_compiler.storage.windows import CodeWindows, ScaleArrays
from reallm_compiler.storage.work import Work
from reallm_formats.dtypes import section_bytes

DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "int8": "i8"}
"""Number types of recipes, as section types."""

DTYPE_NAMES = {section: name for name, section in DTYPES.items()}
"""Section types of numbers, as recipes name them."""

Shape = tuple[int, int]
"""Rows p and columns q."""

ANYTHING = Anything()


@dataclass(frozen=True, kw_only=True, slots=True)
class SectionSpec:
    """A section that will be stored.

    Attributes:
        role: the last part of its name, unique within its matrix or group.
        dtype: element type (`reallm_formats.dtypes`).
        shape: extents in elements.
        term: the budget term that it counts under.
        shared: stored once for the matrix's share group.
        values: what its elements may be; not compared.
    """

    role: str
    dtype: str
    shape: tuple[int, ...]
    term: str
    shared: bool = False
    values: ValueRule = field(default=ANYTHING, compare=False)

    @property
    def nbytes(self) -> int:
        """Stored bytes, by the size law of `reallm_formats.dtypes`."""
        return section_bytes(self.dtype, self.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What a size law depends on beside parameters and shape.

    Attributes:
        source_dtype: type of the checkpoint's tensor, a name of the container.
        shared: the matrix belongs to a share group.
        sharers: matrices of that group; 1 without one.
    """

    source_dtype: str
    shared: bool = False
    sharers: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a matrix costs beside reading and writing it.

    Attributes:
        decode_macs: multiply-accumulates of a trained decoder, for decoding once.
        decode_bytes: memory of a trained decoder at work.
        training_operations: floating-point operations of a training, its group's part included.
        group_operations: the part of them that the matrix causes in the training of its group.
        host_bytes: memory that coding takes beside copies of the matrix, on whichever device.
        device_bytes: the largest blocks that a codec works in on a GPU, beside the former.
    """

    decode_macs: int = 0
    decode_bytes: int = 0
    training_operations: int = 0
    group_operations: int = 0
    host_bytes: int = 0
    device_bytes: int = 0

    @staticmethod
    def of(parts: Sequence[Cost]) -> Cost:
        """The cost of stages together: sums; of device blocks, which take turns, the largest."""
        names = [one.name for one in fields(Cost)]
        total = {name: sum(getattr(part, name) for part in parts) for name in names}
        total["device_bytes"] = max((part.device_bytes for part in parts), default=0)
        return Cost(**total)


P = TypeVar("P", bound=Stage)


class SizeLaw(Generic[P]):
    """The size law of a kind; this one is of a kind that stores nothing and costs nothing.

    `params` are the kind's parameters. `shape` is that of the matrix for residuals, transforms and
    autoencoders, and that of the latent for permutations, scales and quantizers.
    """

    def sections(self, params: P, shape: Shape, context: Context) -> list[SectionSpec]:
        """Sections in storage order."""
        return []

    def paper_bits(self, params: P, shape: Shape, context: Context) -> dict[str, Fraction]:
        """Bits of the whole matrix as the paper's Table 5 counts them, by budget term."""
        return {}

    def cost(self, params: P, shape: Shape, context: Context) -> Cost:
        """What it costs."""
        return Cost()

    def work(self, params: P, shape: Shape, context: Context) -> Work:
        """Operations that coding takes (`storage.work`), without what is learned for a group."""
        return {}

    def learning_work(self, params: P, shapes: Sequence[Shape]) -> Work:
        """Operations that learn what these matrices share, or one matrix has for itself."""
        return {}

    def refusal(self, params: P, shape: Shape, context: Context) -> str | None:
        """Why this shape cannot be stored so; None if it can."""
        return None

    def group_bytes(self, params: P, shapes: Sequence[Shape]) -> int:
        """Memory of what is gathered from a share group's matrices to learn what they share."""
        return 0

    def code_windows(self, params: P, shape: Shape) -> CodeWindows | None:
        """How a quantizer's codes of a latent [p, q] are read; None if not by such windows."""
        return None

    def scale_arrays(self, params: P) -> ScaleArrays | None:
        """How scales are stored; None without any, or if they are stored otherwise."""
        return None


R = TypeVar("R", bound=ResidualStage)


class ResidualLaw(SizeLaw[R]):
    """The size law of a kind of residual."""

    def rank(self, params: R, shape: Shape) -> int:
        """Rank of the factors that tuning can change; 0 without factors."""
        return 0

    def factor_dtype(self, params: R) -> str | None:
        """Recipe word for the stored type of its factors; None without factors."""
        return None


A = TypeVar("A", bound=AutoencoderStage)


class AutoencoderLaw(SizeLaw[A]):
    """The size law of a kind of autoencoder."""

    def latent_shape(self, params: A, shape: Shape) -> Shape:
        """Rows and columns of the latent of a matrix, on which the later stages act."""
        return shape

    def reused_sections(self, params: A, shape: Shape) -> list[SectionSpec]:
        """Sections that decoding needs from an archive of kind `decoder`."""
        return []
