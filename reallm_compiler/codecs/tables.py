"""Which codec a kind of transform or autoencoder has: no method has a path of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from reallm_compiler.codecs.autoencoder import Coding
from reallm_compiler.codecs.autoencoders import hnerv, identity
from reallm_compiler.codecs.latent import LatentReader
from reallm_compiler.codecs.quantizers.scalar import RowReader
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.codecs.transforms import hadamard, normalize
from reallm_compiler.stages import Hadamard, Hnerv, Identity, Normalize


class Undo(Protocol):
    """Undoes a transform on decoded rows."""

    @property
    def step(self) -> int:
        """Rows at a multiple of which a range must begin."""
        ...

    def restore_(self, rows: Tensor, first: int) -> Tensor:
        """Rows first, first + 1, ... of the matrix in the place of the transformed ones."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformCodec:
    """The codec of a kind of transform.

    Attributes:
        encode: (params, matrix) -> sections, the transformed matrix in its place.
        reader: (params, shape, sections, dtype) -> what undoes it on decoded rows.
    """

    encode: Callable[[Any, Tensor], tuple[Sections, Tensor]]
    reader: Callable[[Any, tuple[int, int], Mapping[str, Tensor], torch.dtype], Undo]


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderCodec:
    """The codec of a kind of autoencoder.

    Attributes:
        encode: (params, matrix, coding) -> sections of decoder and latent.
        fit_shared: (params, members, their number, generator) -> sections of a share group.
        reader: (params, shape, sections, latent's reader, dtype) -> reader of rows.
    """

    encode: Callable[[Any, Tensor, Coding], Sections]
    fit_shared: Callable[[Any, Iterable[tuple[Coding, Tensor]], int, torch.Generator], Sections]
    reader: Callable[
        [Any, tuple[int, int], Mapping[str, Tensor], LatentReader, torch.dtype], RowReader
    ]


TRANSFORMS: dict[type, TransformCodec] = {
    Normalize: TransformCodec(encode=normalize.encode, reader=normalize.reader),
    Hadamard: TransformCodec(encode=hadamard.encode, reader=hadamard.reader),
}
"""The codec of each kind of transform."""

AUTOENCODERS: dict[type, AutoencoderCodec] = {
    Identity: AutoencoderCodec(
        encode=identity.encode, fit_shared=identity.fit_shared, reader=identity.reader
    ),
    Hnerv: AutoencoderCodec(encode=hnerv.encode, fit_shared=hnerv.fit_shared, reader=hnerv.reader),
}
"""The codec of each kind of autoencoder."""
