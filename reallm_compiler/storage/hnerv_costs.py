"""What a trained autoencoder costs: multiply-accumulates, operations of a training, memory."""

from __future__ import annotations

import math

from reallm_compiler.stages import Hnerv
from reallm_compiler.storage.base import Shape
from reallm_compiler.storage.hnerv_structure import decoder_parameters, decoder_width, grid, stages

ENCODER_KERNEL = 7
"""Kernel of the encoder's depthwise convolutions (ConvNeXt)."""

EXPANSION = 4
"""Hidden channels of a ConvNeXt block for each of its own."""

DECODE_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}
"""Bytes of intermediates that one pass of the decoder may take; patches go through together."""


def encoder_parameters(params: Hnerv) -> int:
    """Parameters of the encoder, which is not stored."""
    total = 0
    for inputs, outputs, stride, index in _encoder_stages(params):
        norm = 2 * (outputs if index == 0 else inputs)
        total += inputs * outputs * stride**2 + outputs + norm
        hidden = EXPANSION * outputs
        total += outputs * ENCODER_KERNEL**2 + outputs + 2 * outputs  # depthwise and norm
        total += outputs * hidden + hidden + hidden * outputs + outputs + outputs  # and gamma
    return total


def _encoder_stages(params: Hnerv) -> list[tuple[int, int, int, int]]:
    """(input channels, output channels, stride, index) of each stage, the smallest stride first."""
    strides = tuple(reversed(params.strides))
    widths = [params.encoder_width] * (len(strides) - 1) + [params.latent[0]]
    inputs = [1, *widths[:-1]]
    return list(zip(inputs, widths, strides, range(len(strides)), strict=True))


def decode_macs(params: Hnerv, shape: tuple[int, int], *, shared: bool) -> int:
    """Multiply-accumulates that decode a matrix [p, q] once."""
    width = decoder_width(params, shape, shared=shared)
    high, wide = grid(params, shape)
    return high * wide * patch_macs(params, width)


def patch_macs(params: Hnerv, width: int) -> int:
    """Multiply-accumulates that decode one patch."""
    channels, rows, columns = params.latent
    positions = rows * columns
    total = positions * channels * width
    for stage in stages(params, width):
        total += positions * stage.numel
        positions *= stage.stride**2
    return total + positions * 9 * stage.outputs


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
    positions = high * wide
    total = 0
    for inputs, outputs, stride, _ in _encoder_stages(params):
        positions //= stride**2
        mixing = 2 * EXPANSION * outputs**2 + ENCODER_KERNEL**2 * outputs
        total += positions * (inputs * outputs * stride**2 + mixing)
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
    positions = rows * columns
    numbers = 0
    for stage in stages(params, width):
        positions *= stage.stride**2
        numbers += 4 * positions * stage.outputs
    high, wide = params.patch_shape
    positions = high * wide
    for _, outputs, stride, _ in _encoder_stages(params):
        positions //= stride**2
        numbers += 18 * positions * outputs
    parameters = decoder_parameters(params, width) + encoder_parameters(params)
    patches = math.prod(grid(params, shape))
    return 4 * (min(params.batch, patches) * numbers + 5 * parameters)


def decode_blocks(params: Hnerv, shape: Shape, *, shared: bool) -> int:
    """Memory of the largest intermediates on a GPU when a matrix [p, q] is decoded."""
    outputs = stages(params, decoder_width(params, shape, shared=shared))[-1].outputs
    return min(DECODE_BYTES["cuda"], 12 * outputs * shape[0] * shape[1])
