"""One unit of work, start to end: read, code, write into its slots, make durable.

This runs in the compiling process or in a worker; both hold the same `Encoder`. What it returns
is plain data for the journal.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import torch

from reallm_compiler.checkpoint import Inventory
from reallm_compiler.codecs import encode_matrix, fit_shared, from_bytes, to_bytes
from reallm_compiler.codecs.callback import TrainingCallback
from reallm_compiler.codecs.decoder_file import read_decoder
from reallm_compiler.errors import CodecError, CompileError
from reallm_compiler.execute.bands import CODES, BandCoder, band_rows, by_bands
from reallm_compiler.execute.seeds import seed_for
from reallm_compiler.execute.shortage import shortage_told
from reallm_compiler.execute.training import TrainingWatch, Watches, digest_of
from reallm_compiler.execute.units import Unit, units_of
from reallm_compiler.execute.weights import Weights
from reallm_compiler.planning.model import Plan
from reallm_compiler.planning.parts import PlannedMatrix, PlannedTensor
from reallm_formats import Writer, names

THREADS = 1
"""Threads of torch in one worker: fixed, because sums depend on it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitResult:
    """What a finished unit leaves for the journal.

    Attributes:
        unit: its key.
        sections: SHA-256 of each section that it wrote, in hex.
        errors: relative error of each matrix that it coded.
        source: SHA-256 of each tensor that it read, in hex.
    """

    unit: str
    sections: dict[str, str] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)

    def to_record(self) -> dict[str, Any]:
        """Plain data for the journal."""
        return {
            "unit": self.unit,
            "sections": self.sections,
            "errors": self.errors,
            "source": self.source,
        }


class Encoder:
    """Codes units of one plan into one reserved file.

    Args:
        plan: the plan.
        inventory: the checkpoint.
        path: the reserved file; None tries matrices without writing.
        device: where the numerical work runs, such as `cpu` or `cuda:0`.
        watches: looks on trainings.
    """

    def __init__(
        self,
        plan: Plan,
        inventory: Inventory,
        path: Path | None,
        device: str,
        watches: Watches,
    ) -> None:
        self.plan = plan
        self.watches = watches
        self.units = {unit.key: unit for wave in units_of(plan) for unit in wave}
        self.device = torch.device(device)
        self.weights = Weights(inventory)
        self.files = dict(inventory.files)
        self.writer = Writer.open(path, plan.layout) if path is not None else None
        self.fitted: dict[str, Mapping[str, torch.Tensor]] = {}

    def run(self, unit: Unit) -> UnitResult:
        """Do one unit.

        Raises:
            SourceError: a shard cannot be read.
            CodecError: a matrix cannot be coded.
            CompileError: the disk refuses a write, or memory runs out.
        """
        self.weights.take_digests()
        result = UnitResult(unit=unit.key)
        with shortage_told(unit.title):
            if unit.kind == "copy":
                self._copy(result)
            elif unit.kind == "share":
                self._share(unit.name, result)
            elif by_bands(self.plan.by_name[unit.name]):
                self._bands(self.plan.by_name[unit.name], result)
            else:
                self._matrix(self.plan.by_name[unit.name], self._watch(unit), result)
        if self.writer is not None:
            self.writer.flush()
        result.source.update(self.weights.take_digests())
        return result

    def close(self) -> None:
        """Close the file."""
        if self.writer is not None:
            self.writer.close()

    def _watch(self, unit: Unit) -> TrainingWatch:
        return self.watches.of(unit, lambda: digest_of(self.weights.digests))

    def _copy(self, result: UnitResult) -> None:
        for file in self.plan.files:
            self._write(names.file_section(file.path), [self.files[file.path]], result)
        for tensor in self.plan.tensors:
            self._write(names.tensor_section(tensor.name), self._kept(tensor), result)

    def _kept(self, tensor: PlannedTensor) -> Iterator[memoryview]:
        """The bytes of a kept tensor, by pieces: it may be far larger than any matrix."""
        for piece in self.weights.pieces(tensor.name, tensor.dtype):
            yield to_bytes(piece, replace(tensor.spec, shape=(len(piece),)))

    def _share(self, group: str, result: UnitResult) -> None:
        members = self.plan.groups[group]
        seed = seed_for(self.plan.seed, names.share_section(group, ""))
        callback = self._watch(self.units[f"share:{group}"])
        weights = _Members(self._load, members)
        with _located(lambda: weights.current or f"share group {group}"):
            fitted = fit_shared(members[0].plan, weights, seed=seed, callback=callback)
        self.fitted[group] = fitted
        for spec in members[0].specs:
            if spec.shared:
                name = members[0].section_name(spec)
                self._write(name, [to_bytes(fitted[spec.role], spec)], result)

    def _matrix(
        self, matrix: PlannedMatrix, callback: TrainingCallback, result: UnitResult
    ) -> None:
        shared = self._shared(matrix)
        weight = self._load(matrix)
        with _located(lambda: matrix.name):
            encoded = encode_matrix(
                matrix.plan,
                weight,
                seed=seed_for(self.plan.seed, matrix.name),
                source_dtype=matrix.dtype,
                shared=shared,
                callback=callback,
            )
        for spec in matrix.specs:
            if not spec.shared:
                data = to_bytes(encoded.sections[spec.role], spec)
                self._write(matrix.section_name(spec), [data], result)
        result.errors[matrix.name] = encoded.relative_error

    def _bands(self, matrix: PlannedMatrix, result: UnitResult) -> None:
        rows = self.weights.bands(matrix.tensor, band_rows(matrix.shape[1]))
        coder = BandCoder(
            matrix,
            (band.to(self.device) for band in rows),
            seed_for(self.plan.seed, matrix.name),
        )
        with _located(lambda: matrix.name):
            self._write(names.matrix_section(matrix.name, CODES), coder.codes(), result)
        for role, parts in coder.others.items():
            self._write(names.matrix_section(matrix.name, role), parts, result)
        result.errors[matrix.name] = coder.relative_error

    def _load(self, matrix: PlannedMatrix) -> torch.Tensor:
        weight = self.weights.matrix(matrix.tensor, matrix.index, transposed=matrix.transposed)
        return weight.to(self.device)

    def _shared(self, matrix: PlannedMatrix) -> Mapping[str, torch.Tensor] | None:
        """What the matrix's group has stored, from this process or from the file."""
        group = matrix.plan.share
        if group is None:
            return self._reused(matrix)
        if group not in self.fitted:
            if self.writer is None:  # a trial fits the group when it first meets it
                self._share(group, UnitResult(unit=""))
            else:
                self.fitted[group] = {
                    spec.role: from_bytes(self.writer.read(matrix.section_name(spec)), spec).to(
                        self.device
                    )
                    for spec in matrix.specs
                    if spec.shared
                }
        return self.fitted[group]

    def _reused(self, matrix: PlannedMatrix) -> Mapping[str, torch.Tensor] | None:
        """The trained decoder that the matrix uses as it is, from its own file."""
        digest = matrix.plan.autoencoder.reused
        if digest is None:
            return None
        if digest not in self.fitted:
            specs = matrix.layout.reused_sections
            found = read_decoder(self.plan.decoders[digest], digest, specs)
            self.fitted[digest] = {role: values.to(self.device) for role, values in found.items()}
        return self.fitted[digest]

    def _write(self, name: str, parts: Iterable[bytes | memoryview], result: UnitResult) -> None:
        if self.writer is None:
            for _ in parts:  # a trial measures what it does not write
                pass
            return
        try:
            result.sections[name] = self.writer.write_parts(name, parts).hex()
        except OSError as error:
            raise CompileError(
                f"cannot write: {error.strerror}",
                location=f"section {name}",
                hint="make room and run the same command again: finished matrices are kept",
            ) from error


class _Members(Sequence[torch.Tensor]):
    """The weights of a group, each read when it is asked for, so that one is in memory.

    Attributes:
        current: name of the matrix that was last given out in turn; empty before the first and
            once they have all been taken.
    """

    def __init__(
        self, load: Callable[[PlannedMatrix], torch.Tensor], matrices: tuple[PlannedMatrix, ...]
    ) -> None:
        self._load = load
        self._matrices = matrices
        self.current = ""

    def __len__(self) -> int:
        return len(self._matrices)

    def __iter__(self) -> Iterator[torch.Tensor]:
        # The iterator of `Sequence` would hold each weight while the next one is read.
        for matrix in self._matrices:
            self.current = matrix.name
            yield self._load(matrix)
        self.current = ""

    @overload
    def __getitem__(self, place: int) -> torch.Tensor: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[torch.Tensor]: ...
    def __getitem__(self, place: int | slice) -> torch.Tensor | Sequence[torch.Tensor]:
        if isinstance(place, slice):
            return _Members(self._load, self._matrices[place])
        return self._load(self._matrices[place])


@contextmanager
def _located(place: Callable[[], str]) -> Iterator[None]:
    """Put what was being coded in front of the location of a `CodecError`."""
    try:
        yield
    except CodecError as error:
        error.location = f"{place()}, {error.location}" if error.location else place()
        raise


def fix_numerics(device: torch.device) -> None:
    """Make torch's results depend on nothing but data, software and processor."""
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    # Otherwise torch fills every tensor that will be overwritten anyway.
    torch_mode: Any = torch.utils.deterministic  # its one attribute is made at run time
    torch_mode.fill_uninitialized_memory = False
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = False
