"""The trained autoencoder: a matrix as patches, the patches as latents and a small decoder.

    encode: matrix -> mean 0, deviation 1 -> patches -> (training) -> decoder's codes, latents
    decode: latents of all patches -> decoder -> patches -> matrix x deviation + mean

The latents of a matrix lie in one matrix [gh c, gw h w] (`storage.hnerv_structure`), which the
later stages code. A share group trains one decoder on all its matrices; each of them then trains an
encoder of its own to the finished decoder, so that any member can be coded by itself, in any order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from reallm_compiler.codecs.autoencoders import hnerv_net as net
from reallm_compiler.codecs.autoencoders import hnerv_weights
from reallm_compiler.codecs.autoencoders.hnerv_train import Trainer, Training
from reallm_compiler.codecs.callback import State
from reallm_compiler.codecs.contract import (
    AutoencoderCodec,
    Coding,
    LatentCoder,
    LatentDecoder,
    LearnTables,
    RowDecoder,
    Shape,
)
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.errors import CodecError
from reallm_compiler.stages import Hnerv
from reallm_compiler.storage import hnerv_structure as structure
from reallm_compiler.storage.hnerv_costs import DECODE_BYTES, patch_bytes

DECODER = "decoder_codes"
"""The section by which a share group is known to have a decoder."""


class HnervCodec(AutoencoderCodec[Hnerv]):
    """A small decoder, own or shared, and latents of patches."""

    def encode(self, params: Hnerv, target: Tensor, coding: Coding, learn: LearnTables) -> Sections:
        """Sections of a matrix [p, q], without those that its group shares.

        Raises:
            CodecError: training diverged.
        """
        width = structure.decoder_width(params, coding.shape, shared=coding.in_group)
        frozen = None
        if DECODER in coding.shared:
            frozen = hnerv_weights.read(params, width, coding.shared, torch.float32)
        level, patches, inside = _prepare(params, target)
        latents = _Latents(params, [coding], coding.shared, learn)
        trainer = Trainer(
            Training(
                params=params,
                width=width,
                patches=patches,
                inside=inside,
                latents=latents,
                frozen=frozen,
                seed=coding.seed,
            )
        )
        raw = trainer.run(coding.callback)
        sections = {"level": level}
        if trainer.decoder is not None:
            sections |= trainer.decoder.sections()
        return sections | latents.sections(raw)

    def fit_group(
        self,
        params: Hnerv,
        members: Iterable[tuple[Coding, Tensor]],
        count: int,
        generator: torch.Generator,
        learn: LearnTables,
    ) -> Sections:
        """The decoder of a share group of `count` members, and their quantizer's tables.

        Raises:
            CodecError: training diverged.
        """
        codings: list[Coding] = []
        patches, inside = [], []
        for coding, target in members:
            _, own, own_inside = _prepare(params, target)
            codings.append(coding)
            patches.append(own)
            inside.append(torch.ones_like(own) if own_inside is None else own_inside)
        if not codings:
            raise CodecError("a decoder needs at least one matrix")
        covered = torch.cat(inside)
        latents = _Latents(params, codings, {}, learn)
        trainer = Trainer(
            Training(
                params=params,
                width=structure.decoder_width(params, codings[0].shape, shared=True),
                patches=torch.cat(patches),
                inside=None if bool(covered.all()) else covered,
                latents=latents,
                frozen=None,
                seed=codings[0].seed,
            )
        )
        trainer.run(codings[0].callback)
        assert trainer.decoder is not None
        return trainer.decoder.sections() | latents.state()

    def decoder(
        self,
        params: Hnerv,
        shape: Shape,
        sections: Mapping[str, Tensor],
        latent: LatentDecoder,
        dtype: torch.dtype,
        *,
        in_group: bool,
    ) -> RowDecoder:
        """A decoder of the matrix [p, q]."""
        width = structure.decoder_width(params, shape, shared=in_group)
        return PatchDecoder(params, width, shape, sections, latent, dtype)


class PatchDecoder(RowDecoder):
    """Rows of a matrix whose patches a decoder makes: all at once, when the first are asked for."""

    def __init__(
        self,
        params: Hnerv,
        width: int,
        shape: Shape,
        sections: Mapping[str, Tensor],
        latent: LatentDecoder,
        dtype: torch.dtype,
    ) -> None:
        self._params = params
        self._width = width
        self._shape = shape
        self._sections = sections
        self._latent = latent
        self._dtype = dtype
        self._matrix: Tensor | None = None

    def rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last) of the decoded matrix, a fresh tensor."""
        if self._matrix is None:
            self._matrix = self._decode()
        return self._matrix[first:last].clone()

    @torch.no_grad()
    def _decode(self) -> Tensor:
        params, grid = self._params, structure.grid(self._params, self._shape)
        tensors = hnerv_weights.read(params, self._width, self._sections, self._dtype)
        latents = to_patches(params, grid, self._latent.whole().to(self._dtype))
        together = _patches_at_once(params, self._width, latents)
        parts = [net.decode(params, tensors, part) for part in torch.split(latents, together)]
        matrix = from_patches(grid, torch.cat(parts))[: self._shape[0], : self._shape[1]]
        mean, deviation = self._sections["level"].to(self._dtype)
        decoded: Tensor = matrix * deviation + mean
        return decoded


def _patches_at_once(params: Hnerv, width: int, latents: Tensor) -> int:
    """Patches that go through the decoder together."""
    each = patch_bytes(params, width, latents.element_size())
    return max(1, DECODE_BYTES.get(latents.device.type, 1 << 30) // each)


class _Latents:
    """The latents of one matrix or of a group, as the later stages of the plan code them.

    This is what the trainer knows of these stages (`hnerv_train.Latents`).

    Args:
        params: the stage.
        codings: of each matrix, in the order of its patches.
        shared: sections of the group; empty if its tables are to be learned.
        learn: learns the quantizer's tables.
    """

    def __init__(
        self,
        params: Hnerv,
        codings: Sequence[Coding],
        shared: Mapping[str, Tensor],
        learn: LearnTables,
    ) -> None:
        self.coarse = codings[0].coarse
        self._params = params
        self._codings = codings
        self._grids = [structure.grid(params, coding.shape) for coding in codings]
        # A decoder that is reused brings no tables, the sections of a group do.
        self._given = dict(shared) if codings[0].in_group else {}
        self._learn = learn
        self._learned: Sections = {}

    def learn(self, latents: Tensor) -> None:
        """Learn the quantizer's tables if it has any and none were given."""
        if self._given:
            return
        # A generator of its own each time: what is learned depends on nothing before it.
        generator = torch.Generator().manual_seed(self._codings[0].seed)
        self._learned = self._learn(self._matrices(latents), len(self._codings), generator)

    def stored(self, latents: Tensor) -> Tensor:
        """Latents [n, z, h, w] as a reader will see them."""
        parts = []
        for (coder, matrix), grid in zip(self._matrices(latents), self._grids, strict=True):
            dtype = matrix.dtype
            sections = {**coder.encode(matrix, self._tables), **self._tables}
            parts.append(to_patches(self._params, grid, coder.decoder(sections, dtype).whole()))
        return torch.cat(parts)

    def sections(self, latents: Tensor) -> Sections:
        """Sections of the latents of the only matrix."""
        ((coder, matrix),) = self._matrices(latents)
        return coder.encode(matrix, self._tables) | self.state()

    def state(self) -> State:
        """The tables that were learned."""
        return dict(self._learned)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take learned tables back."""
        self._learned = dict(state)

    @property
    def _tables(self) -> Sections:
        return self._given or self._learned

    def _matrices(self, latents: Tensor) -> list[tuple[LatentCoder, Tensor]]:
        """The matrix of all latents of each member, a fresh tensor, with its coder."""
        parts = torch.split(latents, [high * wide for high, wide in self._grids])
        return [
            (coding.coder, to_matrix(grid, part))
            for coding, grid, part in zip(self._codings, self._grids, parts, strict=True)
        ]


def to_matrix(grid: tuple[int, int], latents: Tensor) -> Tensor:
    """Latents [gh gw, z, h, w] as one matrix [gh z, gw h w], a fresh tensor."""
    _, z, h, w = latents.shape
    matrix = latents.reshape(*grid, z, h, w).permute(0, 2, 1, 3, 4)  # [gh, z, gw, h, w]
    return matrix.reshape(grid[0] * z, grid[1] * h * w).clone()


def to_patches(params: Hnerv, grid: tuple[int, int], matrix: Tensor) -> Tensor:
    """The inverse of `to_matrix`: [gh gw, z, h, w]."""
    z, h, w = params.latent
    latents = matrix.reshape(grid[0], z, grid[1], h, w).permute(0, 2, 1, 3, 4)
    return latents.reshape(-1, z, h, w)


def from_patches(grid: tuple[int, int], patches: Tensor) -> Tensor:
    """Patches [gh gw, 1, ph, pw] side by side as a matrix [gh ph, gw pw]."""
    high, wide = patches.shape[2:]
    rows: Tensor = patches.reshape(*grid, high, wide).transpose(1, 2)  # [gh, ph, gw, pw]
    return rows.reshape(grid[0] * high, grid[1] * wide)


def cut(params: Hnerv, matrix: Tensor) -> Tensor:
    """Patches [gh gw, 1, ph, pw] of a matrix [p, q]; a ragged edge is padded with zeros."""
    (p, q), (high, wide) = matrix.shape, params.patch_shape
    padded = functional.pad(matrix, (0, -q % wide, 0, -p % high))
    tiles = padded.reshape(padded.shape[0] // high, high, padded.shape[1] // wide, wide)
    return tiles.transpose(1, 2).reshape(-1, 1, high, wide)


def _prepare(params: Hnerv, target: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Mean and deviation [2] of a matrix [p, q] as stored; its patches; where they lie inside.

    A matrix of equal weights has deviation 1: any other would divide by nothing.
    """
    wide = target.to(torch.float64)
    deviation = wide.std(correction=0)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    level = torch.stack([wide.mean(), deviation]).to(torch.float32)
    mean, unit = level.to(target.dtype)
    patches = cut(params, (target - mean) / unit).to(torch.float32)
    (p, q), (high, across) = target.shape, params.patch_shape
    if p % high == 0 and q % across == 0:
        return level, patches, None
    return level, patches, cut(params, torch.ones_like(target, dtype=torch.float32))
