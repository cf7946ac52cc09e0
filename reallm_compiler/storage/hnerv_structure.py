"""Structure of the trained autoencoder: a quantized decoder and the latents of all patches.

The matrix [p, q] is cut into patches [ph, pw], ragged edges padded. A patch has a latent of c
channels, h rows and w columns. All latents of a matrix lie in one matrix, on which permutation,
scales and quantizer act as they would on the weights themselves:

    latent matrix [gh c, gw h w]     gh x gw patches; row = (patch row, channel),
                                     column = (patch column, row, column in the latent)

so a vector along `rows` is made of the channels of one position; a scale per `row` belongs to a
channel.

The decoder (HNeRV; Chen et al. 2023) is a 1 x 1 stem, one convolution with PixelShuffle for each
stride s, and a 3 x 3 head to one channel. Stage i has kernel k_i = min(k_min + 2 i, k_max) and
widths f_0 = width, f_(i+1) = max(round(f_i / reduce), min_width):

    stem z f_0 + f_0,   stage f_i f_(i+1) s^2 k^2 + f_(i+1) s^2,   head 9 f_n + 1

Stored are codes of b_phi bits for the stages' weights, a float16 scale for each of their output
channels, and stem, head and biases as float16. A scale per output channel is the coarsest that
costs nothing in training (it is a factor of the channel), and the cheapest: 2,960 scales, 0.003
bits per weight, where the official code's blocks of one input row need 43,120 for the decoder of
the paper's example.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from reallm_compiler.stages import Hnerv
from reallm_compiler.storage.base import SectionSpec
from reallm_compiler.storage.values import Finite
from reallm_compiler.units import ceil_div


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderStage:
    """One stage of a decoder: convolution at the low resolution, then PixelShuffle.

    Attributes:
        inputs, outputs: channels before and after the stage.
        stride: factor by which it enlarges.
        kernel: rows and columns of its kernel.
    """

    inputs: int
    outputs: int
    stride: int
    kernel: int

    @property
    def channels(self) -> int:
        """Output channels of the convolution, before PixelShuffle."""
        return self.outputs * self.stride**2

    @property
    def numel(self) -> int:
        """Weights of the convolution, without its biases."""
        return self.channels * self.inputs * self.kernel**2


def latent_parameters(params: Hnerv, shape: tuple[int, int]) -> int:
    """Latent values of all patches of a matrix [p, q]."""
    rows, columns = latent_shape(params, shape)
    return rows * columns


def grid(params: Hnerv, shape: tuple[int, int]) -> tuple[int, int]:
    """Patches of a matrix [p, q] along its rows and columns."""
    (p, q), (high, wide) = shape, params.patch_shape
    return ceil_div(p, high), ceil_div(q, wide)


def latent_shape(params: Hnerv, shape: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the matrix of all latents of a matrix [p, q]."""
    (high, wide), (channels, rows, columns) = grid(params, shape), params.latent
    return high * channels, wide * rows * columns


def decoder_width(params: Hnerv, shape: tuple[int, int], *, shared: bool) -> int:
    """Channels of the first stage: given, or solved for from `decoder_params`.

    The rule is HNeRV's own, which counts the latents of all patches with the decoder, and neither
    biases nor head, and the stem as 3 x 3. Of a shared decoder the latents are not counted: the
    size of what is shared cannot depend on a member's shape.
    """
    if params.width is not None or params.decoder_params is None:
        return params.width or 1
    latents = 0 if shared else latent_parameters(params, shape)
    return max(1, solved_width(params, params.decoder_params - latents))


def solved_width(params: Hnerv, parameters: int) -> int:
    """The largest f with a f^2 + 9 z f <= parameters; 0 or less where there is none."""
    reduce = Fraction(params.reduce)
    a = sum(
        (reduce ** (-2 * index - 1) * stride**2 * kernel**2)
        for index, (stride, kernel) in enumerate(zip(params.strides, kernels(params), strict=True))
    )
    if parameters < 0:
        return 0
    # With a = n / d the root of n f^2 + d b f - d c, in integers, so that no float decides a size.
    n, d, b = a.numerator, a.denominator, 9 * params.latent[0]
    return (math.isqrt((d * b) ** 2 + 4 * n * d * parameters) - d * b) // (2 * n)


def kernels(params: Hnerv) -> tuple[int, ...]:
    """Kernel of each stage."""
    return tuple(
        min(params.kernel_min + 2 * index, params.kernel_max)
        for index in range(len(params.strides))
    )


def stages(params: Hnerv, width: int) -> tuple[DecoderStage, ...]:
    """The stages of a decoder whose first has `width` channels."""
    made = []
    inputs = width
    for stride, kernel in zip(params.strides, kernels(params), strict=True):
        outputs = max(round(Fraction(inputs) / params.reduce), params.min_width)
        made.append(DecoderStage(inputs=inputs, outputs=outputs, stride=stride, kernel=kernel))
        inputs = outputs
    return tuple(made)


def decoder_parameters(params: Hnerv, width: int) -> int:
    """Parameters of a decoder: weights of the stages, and all that is stored as float16."""
    return sum(stage.numel for stage in stages(params, width)) + plain_values(params, width)


def plain_values(params: Hnerv, width: int) -> int:
    """Stem, head and biases: the parameters that are stored as float16."""
    made = stages(params, width)
    stem = params.latent[0] * width + width
    return stem + sum(stage.channels for stage in made) + 9 * made[-1].outputs + 1


def decoder_sections(params: Hnerv, width: int, *, shared: bool) -> list[SectionSpec]:
    """Sections of a decoder whose first stage has `width` channels."""
    made = stages(params, width)
    return [
        SectionSpec(
            role="decoder_codes",
            dtype=f"b{params.decoder_bits}",
            shape=(sum(stage.numel for stage in made),),
            term="decoder",
            shared=shared,
        ),
        SectionSpec(
            role="decoder_scales",
            dtype="f16",
            shape=(sum(stage.channels for stage in made),),
            term="decoder",
            shared=shared,
            values=Finite(negative=False),
        ),
        SectionSpec(
            role="decoder_values",
            dtype="f16",
            shape=(plain_values(params, width),),
            term="decoder",
            shared=shared,
            values=Finite(),
        ),
    ]


STRUCTURE = (
    "patch",
    "latent",
    "width",
    "decoder_bits",
    "reduce",
    "min_width",
    "kernel_min",
    "kernel_max",
)
"""Parameters that say how a decoder is built; the others say how it is trained."""


def structure(params: Hnerv, width: int) -> dict[str, Any]:
    """How a decoder of that width is built, as plain data."""
    plain = {**params.model_dump(mode="json"), "width": width}
    return {key: plain[key] for key in STRUCTURE}
