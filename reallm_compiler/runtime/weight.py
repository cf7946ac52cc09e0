"""A weight that stays packed: a tensor to whoever looks at it, sections of an archive inside.

    weight = PackedWeight.of(packed, torch.bfloat16)     # [p, q]
    y = torch.nn.functional.linear(x, weight)            # runs from the codes

Products (`linear`, `mm`, `addmm`, `bmm`, `embedding`) go to the operators of `ops`; `t`, `detach`,
`to`, `select`, `stack` and `cat` along rows give packed weights again. Whatever else is asked of it
decodes it for that one operation. What writes to it (`weight.data += delta`, as peft does to
merge) makes it an ordinary tensor inside. Its sections keep their stored types whatever type the
weight is given: `to(bfloat16)` changes the type in which it decodes.

A weight is made of pieces, matrices [p_i, q] whose rows follow each other (gate and up
projections that a model joins), and a stack of experts [e, p, q] of as many pieces for each. What
an expert's forward pass does not select is not touched.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from reallm_compiler.kernels.packed import PackedMatrix
from reallm_compiler.runtime.pieces import Piece, Pieces
from reallm_compiler.runtime.weight_ops import HANDLERS, dense, written


class PackedWeight(Tensor):
    """A packed weight [p, q] or a stack of them [e, p, q]; see the module.

    Attributes:
        value: its pieces.
        experts: e of a stack; None for one matrix.
        flipped: the last two extents are swapped: [q, p].
    """

    value: Pieces
    experts: int | None
    flipped: bool

    @staticmethod
    def __new__(
        cls: type[PackedWeight],
        value: Pieces,
        dtype: torch.dtype,
        experts: int | None = None,
        flipped: bool = False,
    ) -> PackedWeight:
        """A tensor of the weight's shape without memory of its own."""
        each = len(value.pieces) // (experts or 1)
        p = sum(piece.shape[0] for piece in value.pieces[:each])
        q = value.pieces[0].shape[1]
        shape: tuple[int, ...] = (q, p) if flipped else (p, q)
        strides: tuple[int, ...] = (1, q) if flipped else (q, 1)
        if experts is not None:
            shape, strides = (experts, *shape), (p * q, *strides)
        # Selected in inference mode, it stays a view of a weight that was not made there.
        with torch.inference_mode(False):
            made: PackedWeight = Tensor._make_wrapper_subclass(
                cls,
                shape,
                strides=strides,
                dtype=dtype,
                device=value.pieces[0].sections[0].device,
                requires_grad=False,
            )
        return made

    def __init__(
        self, value: Pieces, dtype: torch.dtype, experts: int | None = None, flipped: bool = False
    ) -> None:
        self.value = value
        self.experts = experts
        self.flipped = flipped

    @classmethod
    def of(cls, packed: PackedMatrix, dtype: torch.dtype) -> PackedWeight:
        """The weight [p, q] of a packed matrix, in the type in which it shall decode."""
        piece = Piece(tuple(packed.sections.values()), packed.form.text)
        return cls(Pieces([piece]), dtype)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]  # noqa: ANN401
        kind = "packed" if self.packed else "dense"
        return f"PackedWeight({list(self.shape)}, {self.dtype}, {kind}, {self.device})"

    @property
    def packed(self) -> bool:
        """Whether it is still in its sections: nothing has been written to it."""
        return all(piece.form for piece in self.value.pieces)

    @property
    def nbytes_stored(self) -> int:
        """Bytes of its sections."""
        return sum(one.nbytes for piece in self.value.pieces for one in piece.sections)

    def dequantize(self) -> Tensor:
        """The decoded weight, an ordinary tensor of its shape and type."""
        decoded = [piece.dense(self.dtype) for piece in self.value.pieces]
        whole = decoded[0] if len(decoded) == 1 else torch.cat(decoded)
        if self.experts is not None:
            whole = whole.view(self.experts, -1, whole.shape[1])
        return whole.mT if self.flipped else whole

    # ---- as a tensor -------------------------------------------------------------------------

    @property
    def data(self) -> Tensor:
        """An alias without a graph; what is assigned takes the place of the weight."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        if value.shape != self.shape:
            raise ValueError(f"the weight is {list(self.shape)}, not {list(value.shape)}")
        if isinstance(value, PackedWeight) and value.flipped == self.flipped:
            self.value.pieces = value.value.pieces
        else:
            self.write(value.detach())

    def write(self, values: Tensor) -> None:
        """Hold these numbers from now on, no codes."""
        values = values.dequantize() if isinstance(values, PackedWeight) else values
        rows = values.mT if self.flipped else values
        parts = [rows] if self.experts is None else list(rows)
        self.value.pieces = tuple(Piece((part.contiguous(),), "") for part in parts)

    def __tensor_flatten__(self) -> tuple[list[str], object]:
        """For the compiler: the inner tensors by name, and the rest."""
        names: list[str] = []
        counts: list[tuple[int, str]] = []
        for piece in self.value.pieces:
            counts.append((len(piece.sections), piece.form))
            for section in piece.sections:
                names.append(f"section_{len(names)}")
                setattr(self, names[-1], section)
        return names, (tuple(counts), self.dtype, self.experts, self.flipped)

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, Tensor],
        context: Any,  # noqa: ANN401
        size: object,
        stride: object,
    ) -> PackedWeight:
        """The weight of inner tensors; see `__tensor_flatten__`."""
        counts, dtype, experts, flipped = context
        sections, pieces = iter(inner.values()), []
        for count, form in counts:
            pieces.append(Piece(tuple(next(sections) for _ in range(count)), form))
        return PackedWeight(Pieces(pieces), dtype, experts, flipped)

    def __deepcopy__(self, memo: dict[int, object]) -> PackedWeight:
        """A weight of its own over the same sections, which nobody writes to."""
        value = self.value.copy()
        made = PackedWeight(value, self.dtype, self.experts, self.flipped)
        if isinstance(self, torch.nn.Parameter):
            made = torch.nn.Parameter(made, requires_grad=self.requires_grad)  # type: ignore[assignment]
        memo[id(self)] = made
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,  # noqa: ANN401
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        handler = HANDLERS.get(func)
        if handler is not None:
            result = handler(func, args, kwargs)
            if result is not NotImplemented:
                return result
        if func._schema.is_mutable and isinstance(args[0], PackedWeight):
            return written(func, args, kwargs)
        return func(*tree_map(dense, args), **tree_map(dense, kwargs))
