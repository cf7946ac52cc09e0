"""Parameters of the autoencoder: the latent that is quantized, and what decodes it."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from reallm_compiler.stages.base import Extent, Rational, Stage, Whole, as_tuple


class AutoencoderStage(Stage):
    """Base of the kinds of autoencoder.

    Attributes:
        trained: it is trained, once, on what the residual leaves of a matrix.
        shares: what the matrices of a share group store once, in words; None if nothing.
    """

    trained: ClassVar[bool] = False
    shares: ClassVar[str | None] = None

    @property
    def reused(self) -> str | None:
        """The file of a trained decoder that is used as it is; None without one."""
        return None


class Identity(AutoencoderStage):
    """The latent is the matrix itself: e0 = p, e1 = q, e2 = 1."""

    kind: Literal["identity"] = "identity"

    @property
    def by_rows(self) -> bool:
        """Yes."""
        return True


LARGEST_STRIDE = 7
"""The largest factor by which one stage of a decoder may enlarge its input."""


class Hnerv(AutoencoderStage):
    """A convolutional autoencoder trained on the patches of the matrix (HNeRV; paper, section 3).

    The latent of each patch and the decoder's weights are stored, the encoder is not. One stage of
    the decoder enlarges by one prime factor of patch / latent, the largest factor first.
    """

    trained: ClassVar[bool] = True
    shares: ClassVar[str | None] = "a decoder"

    kind: Literal["hnerv"]
    patch: (
        Extent
        | Annotated[
            tuple[Extent, Extent], BeforeValidator(as_tuple, json_schema_input_type=list[int])
        ]
    ) = Field(
        default=512,
        description="Rows and columns of a patch, or one number for both; a ragged edge is padded.",
    )
    latent: Annotated[
        tuple[Extent, Extent, Extent],
        BeforeValidator(as_tuple, json_schema_input_type=list[Extent]),
    ] = Field(
        default=(16, 16, 16), description="Channels, rows and columns of the latent of one patch."
    )
    decoder_params: Whole | None = Field(
        default=None,
        ge=1,
        le=10**10,
        description="The paper's c: parameters of decoder and latents of a matrix together (of the "
        "decoder alone if it is shared), for which the width is solved. Either this or `width`.",
    )
    width: int | None = Field(
        default=None,
        ge=1,
        le=65536,
        description="Channels of the decoder's first stage. Either this or `decoder_params`.",
    )
    decoder: str | None = Field(
        default=None,
        min_length=1,
        description="A trained decoder that is used as it is: an archive of kind `decoder`, which "
        "says how it is built; only latents are learned and stored.",
    )
    decoder_bits: int = Field(
        default=6, ge=2, le=8, description="Bits of a weight of the decoder's convolutions."
    )
    qat: bool = Field(
        default=True,
        description="true: the decoder is trained with quantized weights (straight-through) in the "
        "second half of the epochs; false: it is rounded after training.",
    )
    reduce: Rational = Field(
        default=Fraction(6, 5), description="Factor by which each stage has fewer channels."
    )
    min_width: int = Field(default=12, ge=1, le=65536, description="Fewest channels of a stage.")
    kernel_min: int = Field(default=1, ge=1, le=15, description="Kernel of the first stage, odd.")
    kernel_max: int = Field(
        default=5, ge=1, le=15, description="Kernels grow by 2 with each stage up to this, odd."
    )
    encoder_width: int = Field(
        default=64, ge=1, le=4096, description="Channels of the encoder, which is not stored."
    )
    epochs: int = Field(
        default=2000, ge=1, le=10**6, description="Passes over all patches of the matrix."
    )
    lr: float = Field(
        default=1e-3, gt=0, le=1, description="Largest learning rate of Adam; cosine schedule."
    )
    batch: int = Field(default=2, ge=1, le=65536, description="Patches of one training step.")

    @property
    def reused(self) -> str | None:
        """The file of a trained decoder that is used as it is; None without one."""
        return self.decoder

    @property
    def patch_shape(self) -> tuple[int, int]:
        """Rows and columns of a patch."""
        return (self.patch, self.patch) if isinstance(self.patch, int) else self.patch

    @property
    def strides(self) -> tuple[int, ...]:
        """Factors of the decoder's stages: the primes of patch / latent, the largest first."""
        ratio, factors, prime = self.patch_shape[0] // self.latent[1], [], 2
        while ratio > 1:
            if ratio % prime:
                prime += 1
            else:
                factors.append(prime)
                ratio //= prime
        return tuple(reversed(factors))

    @model_validator(mode="after")
    def _stages_exist(self) -> Hnerv:
        (high, wide), (_, rows, columns) = self.patch_shape, self.latent
        if high % rows or wide % columns or high // rows != wide // columns or high == rows:
            raise ValueError(
                f"a patch of {high} x {wide} cannot come from a latent of {rows} x {columns}: rows "
                "and columns must grow by the same whole factor above 1"
            )
        if self.strides[0] > LARGEST_STRIDE:
            raise ValueError(
                f"patch / latent is {high // rows}, and its prime factor {self.strides[0]} is more "
                f"than one stage can enlarge by; use factors up to {LARGEST_STRIDE}"
            )
        return self

    @model_validator(mode="after")
    def _size_known(self) -> Hnerv:
        if self.decoder is not None and self.decoder_params is not None:
            raise ValueError("a trained `decoder` has its size already: leave out `decoder_params`")
        if self.decoder is None and (self.decoder_params is None) == (self.width is None):
            raise ValueError("give the decoder's size once: `decoder_params` or `width`")
        if not 1 <= self.reduce <= 16:
            raise ValueError("reduce must lie between 1 and 16")
        if self.kernel_min % 2 == 0 or self.kernel_max % 2 == 0:
            raise ValueError("kernels must be odd, so that a convolution keeps rows and columns")
        if self.kernel_max < self.kernel_min:
            raise ValueError("kernel_max is below kernel_min")
        return self
