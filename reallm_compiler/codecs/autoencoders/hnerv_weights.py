"""A decoder's weights as codes: training with them, storing them, reading them back.

A weight of output channel o becomes the nearest of 2^b levels without a zero,

    w^ = s_o (code - 2^(b-1) + 1/2),   code = clamp(floor(w / s_o) + 2^(b-1), 0, 2^b - 1)

with s_o in float16: every level is used and the range is symmetric, which matters at 2 or 3 bits.
Training with quantized weights (QAT) passes gradients straight through to w inside the range, and
to s_o as in LSQ (Esser et al. 2020): the step is learned, as its logarithm, so that it stays
positive and moves by fractions of itself. The forward pass of training computes w^ exactly as a
reader does. What is stored as float16 (stem, head, biases) is rounded in training likewise.

Rounding after training (PTQ) takes for each channel the step with the least squared error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reallm_compiler.codecs.autoencoders import hnerv_net as net
from reallm_compiler.codecs.numerics.numbers import stored
from reallm_compiler.codecs.numerics.packing import pack, unpack
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.errors import CodecError
from reallm_compiler.stages import Hnerv

LEAST_STEP = 2.0**-14
"""The least step, float16's least normal number."""

STEP_TRIALS = 48
"""Steps that are tried for a channel when a range is chosen by squared error."""


class Decoder(nn.Module):
    """A decoder in training.

    Args:
        params: the stage.
        width: channels of its first stage.
        generator: draws the weights, on the CPU.
    """

    def __init__(self, params: Hnerv, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.params = params
        plain = net.start_values(net.plain_shapes(params, width), generator)
        stages = net.start_values(net.stage_shapes(params, width), generator)
        self.plain = nn.ParameterList([nn.Parameter(values) for values in plain])
        self.stages = nn.ParameterList([nn.Parameter(values) for values in stages])
        # Unused until `start_quantizing`.
        steps = [torch.zeros(len(values)) for values in stages] if params.qat else []
        self.log_steps = nn.ParameterList([nn.Parameter(step) for step in steps])
        self.quantized = False

    @torch.no_grad()
    def start_quantizing(self) -> None:
        """From now on the forward pass sees the numbers as stored, unless `qat` is false."""
        self.quantized = self.params.qat
        for log_step, weight in zip(self.log_steps, self.stages, strict=False):
            log_step.copy_(best_steps(weight, self.params.decoder_bits).log())

    def tensors(self) -> net.DecoderTensors:
        """The decoder's numbers for a forward pass: as they are, or as stored once quantized."""
        if not self.quantized:
            return net.assemble(list(self.plain), list(self.stages))
        bits = self.params.decoder_bits
        stages = [
            _quantized(weight, log_step, bits)
            for weight, log_step in zip(self.stages, self.log_steps, strict=True)
        ]
        return net.assemble([_half(values) for values in self.plain], stages)

    def forward(self, latents: Tensor) -> Tensor:
        """Patches [n, 1, ph, pw] of latents [n, z, h, w]."""
        return net.decode(self.params, self.tensors(), latents)

    @torch.no_grad()
    def sections(self) -> Sections:
        """The decoder as it is stored.

        Raises:
            CodecError: a number overflows float16, or is none.
        """
        bits = self.params.decoder_bits
        if self.quantized:
            steps = [_step(log_step) for log_step in self.log_steps]
        else:
            steps = [best_steps(weight, bits) for weight in self.stages]
        codes = [
            _codes(weight, step, bits) for weight, step in zip(self.stages, steps, strict=True)
        ]
        plain = torch.cat([values.reshape(-1) for values in self.plain])
        scales = torch.cat(steps)
        hint = "use a smaller `lr`"
        if not (torch.isfinite(plain).all() and torch.isfinite(scales).all()):
            raise CodecError(
                "the training of a decoder has diverged: a parameter became NaN or infinite",
                hint=hint,
            )
        flat = torch.cat([code.reshape(-1) for code in codes])
        return {
            "decoder_codes": pack(flat, bits),
            "decoder_scales": stored(scales, torch.float16, "steps of a decoder", hint),
            "decoder_values": stored(plain, torch.float16, "parameters of a decoder", hint),
        }


def read(
    params: Hnerv, width: int, sections: Mapping[str, Tensor], dtype: torch.dtype
) -> net.DecoderTensors:
    """A stored decoder's numbers in the precision `dtype`."""
    shapes = net.stage_shapes(params, width)
    codes = unpack(
        sections["decoder_codes"], params.decoder_bits, sum(math.prod(shape) for shape in shapes)
    )
    scales = sections["decoder_scales"].to(dtype)
    plain = _split(sections["decoder_values"].to(dtype), net.plain_shapes(params, width))
    steps = _split(scales, [shape[:1] for shape in shapes])
    stages = [
        _levels(code, step, params.decoder_bits)
        for code, step in zip(_split(codes, shapes), steps, strict=True)
    ]
    return net.assemble(plain, stages)


def best_steps(weight: Tensor, bits: int) -> Tensor:
    """The step of each output channel with the least squared error, as float16 holds it: [out]."""
    flat = weight.detach().reshape(len(weight), -1)
    widest = flat.abs().amax(1) / 2 ** (bits - 1)
    best = _stored_step(widest)
    least = torch.full_like(widest, torch.inf)
    for trial in range(STEP_TRIALS):
        step = _stored_step(widest * (1 - trial / STEP_TRIALS))
        wrong = _levels(_codes(flat, step, bits), step, bits).sub_(flat).square_().sum(1)
        best = torch.where(wrong < least, step, best)
        least = torch.minimum(least, wrong)
    return best


def _stored_step(step: Tensor) -> Tensor:
    return step.clamp(min=LEAST_STEP).to(torch.float16).to(step.dtype)


def _step(log_step: Tensor) -> Tensor:
    return _stored_step(log_step.exp())


def _per_channel(step: Tensor, like: Tensor) -> Tensor:
    """Steps [out] that broadcast over a weight [out, ...]."""
    return step.view(-1, *[1] * (like.dim() - 1))


def _codes(weight: Tensor, step: Tensor, bits: int) -> Tensor:
    half = 2 ** (bits - 1)
    codes = torch.floor(weight / _per_channel(step, weight)).add_(half)
    return codes.clamp_(0, 2 * half - 1).to(torch.uint8)


def _levels(codes: Tensor, step: Tensor, bits: int) -> Tensor:
    centre = 2 ** (bits - 1) - 0.5
    return codes.to(step.dtype).sub_(centre).mul_(_per_channel(step, codes))


class _QuantizedFunction(torch.autograd.Function):
    """w^ of (w, log s): the stored levels forward, straight through backward."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, log_step: Tensor, bits: int) -> Tensor:  # noqa: ANN401
        step = _step(log_step)
        ctx.save_for_backward(weight, step)
        ctx.bits = bits
        return _levels(_codes(weight, step, bits), step, bits)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401
        (gradient,) = gradients
        weight, step = ctx.saved_tensors
        half = 2 ** (ctx.bits - 1)
        scaled = weight / _per_channel(step, weight)
        inside = scaled.abs() < half
        # d w^ / d s: the rounding error of a weight inside the range, the last level outside.
        level = torch.floor(scaled).add_(0.5).clamp_(0.5 - half, half - 0.5)
        slope = torch.where(inside, level - scaled, level)
        to_step = (gradient * slope).flatten(1).sum(1) * step
        # LSQ's factor: a step moves like one weight, however many it serves.
        count = weight[0].numel()
        return gradient * inside, to_step / math.sqrt(count * max(half - 1, 1)), None


def _quantized(weight: Tensor, log_step: Tensor, bits: int) -> Tensor:
    result: Tensor = _QuantizedFunction.apply(weight, log_step, bits)  # type: ignore[no-untyped-call]
    return result


class _HalfFunction(torch.autograd.Function):
    """A number as float16 holds it, straight through backward."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ANN401
        return values.to(torch.float16).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ANN401
        return gradients[0]


def _half(values: Tensor) -> Tensor:
    result: Tensor = _HalfFunction.apply(values)  # type: ignore[no-untyped-call]
    return result


def _split(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Consecutive parts of a flat tensor, each with its shape."""
    parts = torch.split(flat, [math.prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
