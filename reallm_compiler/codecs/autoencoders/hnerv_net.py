"""The networks of the trained autoencoder: a ConvNeXt encoder and a PixelShuffle decoder (HNeRV).

Both work on patches as images of one channel. The decoder is a plain function of its tensors, so
that training, measuring and reading run the very same operations on the very same numbers:

    latent [n, z, h, w] -> stem 1 x 1 -> GELU
        -> for each stride s: convolution f -> f' s^2 at the low resolution, PixelShuffle(s), GELU
        -> head 3 x 3 -> patch [n, 1, ph, pw]

The head is linear: weights have no bounds that an activation could know. The encoder mirrors the
decoder, with layer norms, a strided convolution for each stride and one ConvNeXt block after it;
it is not stored, only what it says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from reallm_compiler.stages import Hnerv
from reallm_compiler.storage import hnerv_structure as structure
from reallm_compiler.storage.hnerv_costs import ENCODER_KERNEL, EXPANSION

NORM_EPSILON = 1e-6
LAYER_SCALE = 1e-6
"""Start of the factor of each ConvNeXt block: the encoder begins as its strided convolutions."""

ENCODER_DEVIATION = 0.02
"""Deviation of the encoder's weights at the start, cut at two of them (ConvNeXt)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderTensors:
    """All numbers of a decoder, as they are used in its forward pass.

    Attributes:
        stem: weight [f_0, z, 1, 1] and bias [f_0].
        stages: weight [f_(i+1) s^2, f_i, k, k] and bias of each stage.
        head: weight [1, f_n, 3, 3] and bias [1].
    """

    stem: tuple[Tensor, Tensor]
    stages: tuple[tuple[Tensor, Tensor], ...]
    head: tuple[Tensor, Tensor]


def decode(params: Hnerv, tensors: DecoderTensors, latents: Tensor) -> Tensor:
    """Patches [n, 1, ph, pw] from latents [n, z, h, w]."""
    x = functional.gelu(functional.conv2d(latents, *tensors.stem))
    for stride, (weight, bias) in zip(params.strides, tensors.stages, strict=True):
        x = functional.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
        x = functional.gelu(functional.pixel_shuffle(x, stride))
    weight, bias = tensors.head
    return functional.conv2d(x, weight, bias, padding=1)


def plain_shapes(params: Hnerv, width: int) -> list[tuple[int, ...]]:
    """Shapes of what is stored as float16, in storage order: stem, biases of the stages, head."""
    made = structure.stages(params, width)
    return [
        (width, params.latent[0], 1, 1),
        (width,),
        *((stage.channels,) for stage in made),
        (1, made[-1].outputs, 3, 3),
        (1,),
    ]


def stage_shapes(params: Hnerv, width: int) -> list[tuple[int, int, int, int]]:
    """Shapes of the weights that are stored as codes, in storage order."""
    return [
        (stage.channels, stage.inputs, stage.kernel, stage.kernel)
        for stage in structure.stages(params, width)
    ]


def assemble(plain: list[Tensor], stages: list[Tensor]) -> DecoderTensors:
    """A decoder from tensors in storage order."""
    stem_weight, stem_bias, *biases, head_weight, head_bias = plain
    return DecoderTensors(
        stem=(stem_weight, stem_bias),
        stages=tuple(zip(stages, biases, strict=True)),
        head=(head_weight, head_bias),
    )


def start_values(shapes: Sequence[tuple[int, ...]], generator: torch.Generator) -> list[Tensor]:
    """Start of a decoder's tensors: weights uniform in +-sqrt(6 / inputs), biases zero.

    This is He's start, which keeps the deviation of what flows through; torch's own makes the
    output of five stages a thousand times too small, and learning begins with repairing that.
    Numbers are drawn on the CPU, so that every device starts alike.
    """
    tensors = []
    for shape in shapes:
        values = torch.zeros(shape)
        if len(shape) == 4:
            values = torch.rand(shape, generator=generator, dtype=torch.float32)
            values.mul_(2).sub_(1).mul_(math.sqrt(6 / math.prod(shape[1:])))
        tensors.append(values)
    return tensors


class Encoder(nn.Module):
    """The encoder: patches [n, 1, ph, pw] to latents [n, z, h, w].

    Args:
        params: the stage.
        generator: draws the weights, on the CPU.
    """

    def __init__(self, params: Hnerv, generator: torch.Generator) -> None:
        super().__init__()
        strides = tuple(reversed(params.strides))
        widths = [params.encoder_width] * (len(strides) - 1) + [params.latent[0]]
        layers: list[nn.Module] = []
        inputs = 1
        with torch.random.fork_rng(devices=[]):  # torch's own start values are replaced below
            for index, (stride, outputs) in enumerate(zip(strides, widths, strict=True)):
                down = nn.Conv2d(inputs, outputs, stride, stride=stride)
                norm = _ChannelNorm(outputs if index == 0 else inputs)
                layers += [down, norm] if index == 0 else [norm, down]
                layers.append(_Block(outputs))
                inputs = outputs
        self.layers = nn.Sequential(*layers)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                _start(layer, generator)

    def forward(self, patches: Tensor) -> Tensor:
        """Latents [n, z, h, w] of patches [n, 1, ph, pw]."""
        latents: Tensor = self.layers(patches)
        return latents


class _ChannelNorm(nn.Module):
    """Layer norm over the channels of [n, c, h, w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        last = x.permute(0, 2, 3, 1)
        last = functional.layer_norm(last, (x.shape[1],), self.weight, self.bias, NORM_EPSILON)
        return last.permute(0, 3, 1, 2)


class _Block(nn.Module):
    """A ConvNeXt block: depthwise convolution, norm, two layers with GELU, scaled and added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        kernel, hidden = ENCODER_KERNEL, EXPANSION * channels
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = _ChannelNorm(channels)
        # 1 x 1 convolutions are linear layers over the channels.
        self.widen = nn.Conv2d(channels, hidden, 1)
        self.narrow = nn.Conv2d(hidden, channels, 1)
        self.scale = nn.Parameter(torch.full((channels,), LAYER_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.narrow(functional.gelu(self.widen(self.norm(self.depthwise(x)))))
        return x + self.scale[:, None, None] * y


def _start(layer: nn.Conv2d, generator: torch.Generator) -> None:
    """Weights normal, cut at two deviations; bias zero."""
    assert layer.bias is not None
    values = torch.randn(layer.weight.shape, generator=generator, dtype=torch.float32)
    with torch.no_grad():
        layer.weight.copy_(values.clamp_(-2, 2).mul_(ENCODER_DEVIATION))
        layer.bias.zero_()
