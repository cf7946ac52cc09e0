"""Matrices of a checkpoint to their sections, one at a time: read, look up, code.

With a cache, what was coded before of the same weights by the same plan is taken over instead. It
is used only if it decodes to the error that was measured when it was coded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from reallm_compiler.checkpoint import Inventory
from reallm_compiler.codecs import encode_matrix, fit_shared
from reallm_compiler.codecs.callback import TrainingCallback
from reallm_compiler.codecs.decode import MatrixDecoder, deviation, work_dtype
from reallm_compiler.codecs.decoder_file import read_decoder
from reallm_compiler.codecs.encode import Encoded
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.codecs.statistics import MatrixStatistics
from reallm_compiler.codecs.statistics_file import StatisticsFile
from reallm_compiler.errors import CodecError
from reallm_compiler.execute.group_weights import GroupWeights
from reallm_compiler.execute.kept_sections import fits, matrix_identity, sections_digest
from reallm_compiler.execute.statistics import original_name, read_statistics
from reallm_compiler.models.weights import Weights
from reallm_compiler.planning.parts import PlannedMatrix
from reallm_compiler.runs.cache import Cache
from reallm_compiler.runs.identity import digest_of
from reallm_compiler.runs.seeds import seed_for
from reallm_formats import names

CODED = "coded"
"""Folder of a cache that holds sections of matrices."""

CODED_BYTES = 8 << 30
"""The most bytes of sections that a cache holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A matrix as it was read.

    Attributes:
        weight: [p, q] in the checkpoint's type, on the device.
        source: SHA-256 of the stored bytes that it was made of, by tensor, in hex.
    """

    weight: torch.Tensor
    source: Mapping[str, str]


class MatrixCoder:
    """Codes matrices of one checkpoint.

    Args:
        inventory: of the checkpoint.
        seed: the recipe's.
        device: where the work runs.
        decoders: files of trained decoders that are used as they are, by digest.
        statistics: of the matrices; None if no plan needs them.
        cache: a folder in which coded sections are looked up and kept; None for none.
        keep_groups: those of matrices with a share group too, whose sections fit no other table.
        factors: those that are folded into the inventory's tensors, by name; None without any.

    Attributes:
        weights: what reads the checkpoint.
    """

    def __init__(
        self,
        inventory: Inventory,
        seed: int,
        device: torch.device,
        decoders: Mapping[str, Path],
        statistics: StatisticsFile | None = None,
        cache: Path | None = None,
        factors: Callable[[str], torch.Tensor] | None = None,
        *,
        keep_groups: bool = True,
    ) -> None:
        self.weights = Weights(inventory, factors)
        self._seed = seed
        self._device = device
        self._decoders = decoders
        self._statistics = statistics
        self._coded = None if cache is None else Cache(cache / CODED, CODED_BYTES)
        self._keep_groups = keep_groups
        self._reused: dict[str, Sections] = {}

    def load(self, matrix: PlannedMatrix) -> Loaded:
        """Read a matrix.

        Raises:
            SourceError: a shard cannot be read.
        """
        weights, before = self.weights, self.weights.take_digests()
        weight = weights.matrix(matrix.tensor, matrix.index, transposed=matrix.transposed)
        source = weights.digests
        weights.digests = before | source
        return Loaded(weight=weight.to(self._device), source=source)

    def encode(
        self,
        matrix: PlannedMatrix,
        loaded: Loaded,
        shared: Mapping[str, torch.Tensor] | None = None,
        callback: TrainingCallback | None = None,
        statistics: MatrixStatistics | None = None,
    ) -> Encoded:
        """The sections of a matrix.

        Args:
            matrix: what to code, and how.
            loaded: its weights.
            shared: sections of its share group.
            callback: called while an autoencoder is trained.
            statistics: as `measured` gave them; read here, if the plan needs them, when None.

        Raises:
            CodecError: it cannot be coded.
            FormatError: its statistics are damaged.
        """
        common = self.common(matrix, shared)
        key = "" if self._coded is None else self._key(matrix, loaded, common)
        found = self._found(key, matrix, loaded, common)
        if found is not None:
            return found
        if statistics is None and matrix.plan.needs_statistics:
            statistics = self.measured(matrix)
        with located(lambda: matrix.name):
            encoded = encode_matrix(
                matrix.plan,
                loaded.weight,
                seed=seed_for(self._seed, matrix.name),
                source_dtype=matrix.dtype,
                shared=common,
                callback=callback,
                statistics=statistics,
                layout=matrix.layout,
            )
        if self._coded is not None and (self._keep_groups or matrix.plan.share is None):
            facts = {"error": encoded.relative_error.hex()}
            sections = {role: data.cpu().contiguous() for role, data in encoded.sections.items()}
            self._coded.put(key, facts, sections)
        return encoded

    def fit_group(
        self,
        group: str,
        members: Sequence[PlannedMatrix],
        callback: TrainingCallback | None = None,
    ) -> Sections:
        """What the matrices of a share group have in common.

        Raises:
            SourceError: a shard cannot be read.
            CodecError: a matrix cannot be coded.
        """
        weights = GroupWeights(lambda matrix: self.load(matrix).weight, members)
        with located(lambda: weights.current or f"share group {group}"):
            return fit_shared(
                [member.plan for member in members],
                weights,
                seed=seed_for(self._seed, names.share_section(group, "")),
                callback=callback,
            )

    def measured(self, matrix: PlannedMatrix) -> MatrixStatistics | None:
        """The statistics of a matrix; None where there are none of it.

        Raises:
            FormatError: a section is damaged.
        """
        name = original_name(matrix, self.weights.by_name[matrix.tensor])
        if self._statistics is None or name not in self._statistics.rows:
            return None
        return read_statistics(self._statistics, matrix, self.weights, self._device)

    def decoder_of(
        self, matrix: PlannedMatrix, own: Sections, shared: Mapping[str, torch.Tensor] | None
    ) -> MatrixDecoder:
        """What decodes the sections of a coded matrix, in the precision of the work."""
        sections = {**own, **self.common(matrix, shared)}
        return MatrixDecoder(matrix.layout, sections, work_dtype(matrix.dtype))

    def common(
        self, matrix: PlannedMatrix, shared: Mapping[str, torch.Tensor] | None
    ) -> Mapping[str, torch.Tensor]:
        """What decoding a matrix needs beside its own sections.

        That is what its share group has, or the trained decoder that it uses as it is.
        """
        if matrix.plan.share is not None:
            return shared or {}
        digest = matrix.plan.autoencoder.reused
        if digest is None:
            return {}
        if digest not in self._reused:
            found = read_decoder(self._decoders[digest], digest, matrix.layout.reused_sections)
            self._reused[digest] = {role: data.to(self._device) for role, data in found.items()}
        return self._reused[digest]

    def _key(
        self, matrix: PlannedMatrix, loaded: Loaded, common: Mapping[str, torch.Tensor]
    ) -> str:
        """The key of a matrix's sections in the cache."""
        statistics = None if self._statistics is None else self._statistics.digest.hex()
        spec = self.weights.by_name[matrix.tensor]
        identity = matrix_identity(
            matrix, spec, loaded.source, statistics, self._seed, self._device
        )
        parts = {"common": common, "factors": self.weights.factors(matrix.tensor)}
        return digest_of(identity | {key: sections_digest(part) for key, part in parts.items()})

    def _found(
        self,
        key: str,
        matrix: PlannedMatrix,
        loaded: Loaded,
        common: Mapping[str, torch.Tensor],
    ) -> Encoded | None:
        """What the cache holds of a matrix, if it is what was coded."""
        entry = None if self._coded is None else self._coded.get(key)
        if entry is None:
            return None
        facts, tensors = entry
        specs = matrix.layout.own_sections
        if not fits(tensors, specs):
            return None
        sections = {spec.role: tensors[spec.role].to(self._device) for spec in specs}
        try:
            kept = float.fromhex(facts["error"])
            work = loaded.weight.to(work_dtype(matrix.dtype))
            found = deviation(work, self.decoder_of(matrix, sections, common))
        except (CodecError, KeyError, ValueError):
            return None
        if found.error != kept:
            return None
        return Encoded(sections=sections, relative_error=found.error, shrink=found.shrink)


@contextmanager
def located(name: Callable[[], str]) -> Iterator[None]:
    """Put what was being coded in front of the location of a `CodecError`."""
    try:
        yield
    except CodecError as error:
        error.location = f"{name()}, {error.location}" if error.location else name()
        raise
