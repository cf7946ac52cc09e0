"""Layers whose weight is packed: ordinary ones to transformers and peft, without its detours.

Any module works with a `PackedWeight`; these save the way through the tensor's dispatch, some tens
of microseconds a call.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reallm_compiler.kernels.packed import PackedMatrix
from reallm_compiler.runtime.weight import PackedWeight


class PackedLinear(nn.Linear):
    """A linear layer whose `weight` [p, q] is a parameter of type `PackedWeight`.

    Use `of`, or let `pack_modules` turn layers of a model into it.
    """

    @classmethod
    def of(
        cls, packed: PackedMatrix, *, dtype: torch.dtype, bias: Tensor | None = None
    ) -> PackedLinear:
        """A frozen layer over a packed matrix.

        Args:
            packed: the matrix.
            dtype: the type that `weight` shows and decodes in.
            bias: [p] or None.
        """
        p, q = packed.shape
        made = cls(q, p, bias=False, device="meta", dtype=dtype)
        made.weight = nn.Parameter(PackedWeight.of(packed, dtype), requires_grad=False)
        if bias is not None:
            made.bias = nn.Parameter(bias, requires_grad=False)
        return made

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [..., p] for inputs [..., q], in the type of the inputs."""
        weight = self.weight
        # A compiler follows the weight's dispatch better than its attributes.
        if isinstance(weight, PackedWeight) and not torch.compiler.is_compiling():
            pieces = weight.value.pieces
            if len(pieces) == 1 and pieces[0].form and not weight.flipped:
                return pieces[0].linear(x, self.bias)
        return super().forward(x)


class PackedEmbedding(nn.Embedding):
    """An embedding whose `weight` is a parameter of type `PackedWeight`: rows decode alone.

    A head that is tied to it is a `PackedLinear` over the same parameter.
    """

    @classmethod
    def of(
        cls, packed: PackedMatrix, *, dtype: torch.dtype, padding_idx: int | None = None
    ) -> PackedEmbedding:
        """A frozen embedding over a packed matrix [rows, width]; arguments as of `PackedLinear`."""
        p, q = packed.shape
        made = cls(p, q, padding_idx=padding_idx, device="meta", dtype=dtype)
        made.weight = nn.Parameter(PackedWeight.of(packed, dtype), requires_grad=False)
        return made


def pack_modules(model: nn.Module) -> None:
    """Turn a model's plain layers that hold a packed weight into the classes of this file.

    Packed weights are frozen: codes have no gradient.
    """
    for module in model.modules():
        weight = module._parameters.get("weight")
        if isinstance(weight, PackedWeight):
            if type(module) is nn.Linear:
                module.__class__ = PackedLinear
            elif type(module) is nn.Embedding:
                module.__class__ = PackedEmbedding
    for parameter in model.parameters():
        if isinstance(parameter, PackedWeight):
            parameter.requires_grad_(False)


def unpack_modules(model: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Decode all packed weights of a model, in place; tied ones stay tied.

    Args:
        model: the model.
        dtype: of the decoded weights; their own when None.
    """
    decoded: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if not isinstance(weight, PackedWeight):
                continue
            if id(weight) not in decoded:
                values = weight.dequantize().to(dtype or weight.dtype)
                decoded[id(weight)] = nn.Parameter(values, requires_grad=False)
            module._parameters[name] = decoded[id(weight)]
        if type(module) in (PackedLinear, PackedEmbedding):
            module.__class__ = type(module).__base__  # type: ignore[assignment]


def packed_weights(model: nn.Module) -> dict[str, PackedWeight]:
    """The packed weights of a model by parameter name, a tied one once."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if isinstance(parameter, PackedWeight)
    }
