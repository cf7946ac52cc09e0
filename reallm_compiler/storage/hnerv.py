"""Size law of the trained autoencoder: a quantised decoder and the latents of all patches.

The matrix [p, q] is cut into patches [ph, pw], ragged edges padded. A patch has a latent of c
channels, h rows and w columns. All latents of a matrix lie in one matrix, on which permutation,
scales and quantizer act as they would on the weights themselves:

    latent matrix [gh c, gw h w]     gh x gw patches; row = (patch row, channel),
                                     column = (patch column, row, column in the latent)

so a vector along `rows` is made of channels of one place, a scale per `row` belongs to a channel.

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

ENCODER_KERNEL = 7
"""Kernel of the encoder's depthwise convolutions (ConvNeXt)."""

EXPANSION = 4
"""Hidden channels of a ConvNeXt block for each of its own."""


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
    def weights(self) -> int:
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


def refusal(params: Hnerv, shape: tuple[int, int], *, shared: bool) -> str | None:
    """Why no decoder of this size exists for a matrix [p, q]; None if one does."""
    if params.width is not None or params.decoder_params is None:
        return None
    latents = 0 if shared else latent_parameters(params, shape)
    if _solved_width(params, params.decoder_params - latents) >= 1:
        return None
    return (
        f"decoder_params counts the latents, {latents} for a matrix of {shape[0]} x {shape[1]}, "
        f"and {params.decoder_params} leaves too little for a decoder"
    )


def decoder_width(params: Hnerv, shape: tuple[int, int], *, shared: bool) -> int:
    """Channels of the first stage: given, or solved for from `decoder_params`.

    The rule is HNeRV's own, which counts the latents of all patches with the decoder, and neither
    biases nor head, and the stem as 3 x 3. Of a shared decoder the latents are not counted: the
    size of what is shared cannot depend on a member's shape.
    """
    if params.width is not None or params.decoder_params is None:
        return params.width or 1
    latents = 0 if shared else latent_parameters(params, shape)
    return max(1, _solved_width(params, params.decoder_params - latents))


def _solved_width(params: Hnerv, parameters: int) -> int:
    """The largest f with a f^2 + 9 z f <= parameters; 0 or less where there is none."""
    reduce = Fraction(params.reduce)
    a = sum(
        (reduce ** (-2 * place - 1) * stride**2 * kernel**2)
        for place, (stride, kernel) in enumerate(zip(params.strides, kernels(params), strict=True))
    )
    if parameters < 0:
        return 0
    # With a = n / d the root of n f^2 + d b f - d c, in integers, so that no float decides a size.
    n, d, b = a.numerator, a.denominator, 9 * params.latent[0]
    return (math.isqrt((d * b) ** 2 + 4 * n * d * parameters) - d * b) // (2 * n)


def kernels(params: Hnerv) -> tuple[int, ...]:
    """Kernel of each stage."""
    return tuple(
        min(params.kernel_min + 2 * place, params.kernel_max)
        for place in range(len(params.strides))
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
    return sum(stage.weights for stage in stages(params, width)) + plain_values(params, width)


def plain_values(params: Hnerv, width: int) -> int:
    """Stem, head and biases: the parameters that are stored as float16."""
    made = stages(params, width)
    stem = params.latent[0] * width + width
    return stem + sum(stage.channels for stage in made) + 9 * made[-1].outputs + 1


def encoder_parameters(params: Hnerv) -> int:
    """Parameters of the encoder, which is not stored."""
    total = 0
    for inputs, outputs, stride, place in _encoder_stages(params):
        norm = 2 * (outputs if place == 0 else inputs)
        total += inputs * outputs * stride**2 + outputs + norm
        hidden = EXPANSION * outputs
        total += outputs * ENCODER_KERNEL**2 + outputs + 2 * outputs  # depthwise and norm
        total += outputs * hidden + hidden + hidden * outputs + outputs + outputs  # and gamma
    return total


def _encoder_stages(params: Hnerv) -> list[tuple[int, int, int, int]]:
    """(input channels, output channels, stride, place) of each stage, the smallest stride first."""
    strides = tuple(reversed(params.strides))
    widths = [params.encoder_width] * (len(strides) - 1) + [params.latent[0]]
    inputs = [1, *widths[:-1]]
    return list(zip(inputs, widths, strides, range(len(strides)), strict=True))


def sections(params: Hnerv, shape: tuple[int, int], *, shared: bool) -> list[SectionSpec]:
    """Sections of the decoder, and of the level and deviation of a matrix [p, q].

    A trained decoder that is used as it is stands in an archive of its own.
    """
    # Mean and deviation, so that a network always sees and makes numbers around 1.
    level = SectionSpec(role="level", dtype="f32", shape=(2,), term="scales", values=Finite())
    if params.decoder is not None:
        return [level]
    width = decoder_width(params, shape, shared=shared)
    return [*decoder_sections(params, width, shared=shared), level]


def decoder_sections(params: Hnerv, width: int, *, shared: bool) -> list[SectionSpec]:
    """Sections of a decoder whose first stage has `width` channels."""
    made = stages(params, width)
    return [
        SectionSpec(
            role="decoder_codes",
            dtype=f"b{params.decoder_bits}",
            shape=(sum(stage.weights for stage in made),),
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


def nominal_bits(params: Hnerv) -> int:
    """c x b_phi, the decoder as the paper's Table 5 counts it; 0 for one that stands elsewhere."""
    if params.decoder is not None:
        return 0
    c = params.decoder_params
    if c is None:
        assert params.width is not None  # the schema wants one of the two
        c = decoder_parameters(params, params.width)
    return c * params.decoder_bits


def decode_macs(params: Hnerv, shape: tuple[int, int], *, shared: bool) -> int:
    """Multiply-accumulates that decode a matrix [p, q] once."""
    width = decoder_width(params, shape, shared=shared)
    high, wide = grid(params, shape)
    return high * wide * patch_macs(params, width)


def patch_macs(params: Hnerv, width: int) -> int:
    """Multiply-accumulates that decode one patch."""
    channels, rows, columns = params.latent
    places = rows * columns
    total = places * channels * width
    for stage in stages(params, width):
        total += places * stage.weights
        places *= stage.stride**2
    return total + places * 9 * stage.outputs


def patch_bytes(params: Hnerv, width: int, element: int) -> int:
    """Memory that decoding one patch takes, in numbers of `element` bytes.

    The last stage holds most: its convolution, that shuffled, and that after GELU.
    """
    high, wide = params.patch_shape
    return 3 * stages(params, width)[-1].outputs * high * wide * element


def decode_bytes(params: Hnerv, shape: tuple[int, int], *, shared: bool) -> int:
    """Memory that decoding a matrix [p, q] takes: a patch at work, and all patches, in float32."""
    width = decoder_width(params, shape, shared=shared)
    patches = math.prod(grid(params, shape)) * math.prod(params.patch_shape)
    return patch_bytes(params, width, 4) + 4 * patches


def encoder_macs(params: Hnerv) -> int:
    """Multiply-accumulates that encode one patch."""
    high, wide = params.patch_shape
    places = high * wide
    total = 0
    for inputs, outputs, stride, _ in _encoder_stages(params):
        places //= stride**2
        mixing = 2 * EXPANSION * outputs**2 + ENCODER_KERNEL**2 * outputs
        total += places * (inputs * outputs * stride**2 + mixing)
    return total


def training_operations(params: Hnerv, shape: tuple[int, int], *, shared: bool) -> int:
    """Floating-point operations that train a matrix [p, q].

    A member of a share group takes part in the group's training and then trains an encoder of its
    own to the finished decoder, whose weights need no gradient any more.
    """
    frozen = params.decoder is not None
    operations = 0 if frozen else joint_operations(params, shape, shared=shared)
    if shared or frozen:
        width = decoder_width(params, shape, shared=True)
        high, wide = grid(params, shape)
        each = 4 * patch_macs(params, width) + 6 * encoder_macs(params)
        operations += params.epochs * high * wide * each
    return operations


def joint_operations(params: Hnerv, shape: tuple[int, int], *, shared: bool) -> int:
    """Floating-point operations that train encoder and decoder on the patches of a matrix.

    Two for each multiply-accumulate; a backward pass counts as two forward passes; for all epochs.
    """
    width = decoder_width(params, shape, shared=shared)
    high, wide = grid(params, shape)
    each = patch_macs(params, width) + encoder_macs(params)
    return 6 * params.epochs * high * wide * each


def working_bytes(params: Hnerv, shape: tuple[int, int], *, shared: bool) -> int:
    """Memory of a training step: what a batch leaves for its backward pass, and Adam's numbers.

    An estimate on the safe side, in float32: four numbers for each that a stage of the decoder
    makes, eighteen channels' worth for each stage of the encoder, five for each parameter.
    """
    width = decoder_width(params, shape, shared=shared)
    _, rows, columns = params.latent
    places = rows * columns
    numbers = 0
    for stage in stages(params, width):
        places *= stage.stride**2
        numbers += 4 * places * stage.outputs
    high, wide = params.patch_shape
    places = high * wide
    for _, outputs, stride, _ in _encoder_stages(params):
        places //= stride**2
        numbers += 18 * places * outputs
    parameters = decoder_parameters(params, width) + encoder_parameters(params)
    patches = math.prod(grid(params, shape))
    return 4 * (min(params.batch, patches) * numbers + 5 * parameters)
