"""What a budget says: the sizes of each matrix and of the whole file, as integers.

The byte terms of the totals add up to the file; `planning.sizes` counts them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from reallm_compiler.planning.gc_paused import gc_paused


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixBudget:
    """Sizes of one matrix.

    Attributes:
        name, shape: the matrix, [p, q], rows are outputs.
        transposed: the checkpoint stores it as [q, p].
        paper_bits: bits per weight as the paper's Table 5 counts them.
        exact_bits: 8 x bytes / pq.
        nbytes: all that is stored for it, with its part of what its group shares.
        terms: the same bytes by budget term.
        paper_terms: the parts of `paper_bits`, by budget term.
        decode_macs: multiply-accumulates that its trained decoder takes, once; 0 without one.
        training_operations: floating-point operations that train its autoencoder; 0 without one.
    """

    name: str
    shape: tuple[int, int]
    transposed: bool = False
    paper_bits: Fraction
    exact_bits: Fraction
    nbytes: int
    terms: Mapping[str, int]
    paper_terms: Mapping[str, Fraction]
    decode_macs: int
    training_operations: int

    @property
    def numel(self) -> int:
        """Number of weights, p q."""
        return self.shape[0] * self.shape[1]

    def to_json(self) -> dict[str, Any]:
        """Plain data; `terms` are bytes and add up to `bytes`."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "transposed": self.transposed,
            "paper_bits": float(self.paper_bits),
            "exact_bits": float(self.exact_bits),
            "bytes": self.nbytes,
            "terms": dict(self.terms),
            "decode_macs": self.decode_macs,
            "training_operations": self.training_operations,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """Sizes of the whole archive; the six byte terms add up to `file_bytes`.

    Attributes:
        numel: weights of all coded matrices.
        low_rank_parameters: factors stored, r (p + q) summed.
        paper_bits, exact_bits: bits per weight over all coded matrices.
        coded_bytes: sections of coded matrices.
        kept_bytes: kept tensors.
        header_bytes, manifest_bytes: the container's own.
        padding_bytes: alignment between sections.
        other_bytes: config and tokenizer files.
        file_bytes: length of the archive.
        decode_macs, training_operations: of all trained autoencoders together.
        parameters: numbers in all tensors, coded and kept.
        model_bits: bits per number over all of them, coded and kept.
        source_bytes: the original: its tensors as the checkpoint stores them (what is tied once),
            config and tokenizer; of an archive reckoned from the types that it names.
    """

    numel: int
    low_rank_parameters: int
    paper_bits: Fraction
    exact_bits: Fraction
    coded_bytes: int
    kept_bytes: int
    header_bytes: int
    manifest_bytes: int
    padding_bytes: int
    other_bytes: int
    file_bytes: int
    decode_macs: int
    training_operations: int
    parameters: int
    model_bits: Fraction
    source_bytes: int

    @property
    def ratio(self) -> Fraction:
        """How many times smaller the file is than the original; below 1 if it is larger."""
        return Fraction(self.source_bytes, self.file_bytes)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "numel": self.numel,
            "low_rank_parameters": self.low_rank_parameters,
            "paper_bits": float(self.paper_bits),
            "exact_bits": float(self.exact_bits),
            "coded_bytes": self.coded_bytes,
            "kept_bytes": self.kept_bytes,
            "header_bytes": self.header_bytes,
            "manifest_bytes": self.manifest_bytes,
            "padding_bytes": self.padding_bytes,
            "other_bytes": self.other_bytes,
            "file_bytes": self.file_bytes,
            "decode_macs": self.decode_macs,
            "training_operations": self.training_operations,
            "parameters": self.parameters,
            "model_bits": float(self.model_bits),
            "source_bytes": self.source_bytes,
            "ratio": float(self.ratio),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Sizes of each matrix and of the whole, remarks, and what speaks against the recipe."""

    matrices: tuple[MatrixBudget, ...]
    totals: Totals
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        bits, size = float(self.totals.exact_bits), self.totals.file_bytes
        return f"Budget({len(self.matrices)} matrices, {bits:.4f} exact bits, {size} bytes)"

    @gc_paused()
    def to_json(self) -> dict[str, Any]:
        """Plain data under the documented keys of `reallm budget --json`."""
        alike: dict[tuple[int, int, tuple[int, int], bool], dict[str, Any]] = {}
        rows = []
        for matrix in self.matrices:
            # Matrices of one size share their terms, and differ in nothing but the name.
            key = (id(matrix.terms), id(matrix.paper_terms), matrix.shape, matrix.transposed)
            row = alike.get(key)
            if row is None:
                row = alike[key] = matrix.to_json()
            rows.append(row | {"name": matrix.name})
        return {
            "matrices": rows,
            "totals": self.totals.to_json(),
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }
