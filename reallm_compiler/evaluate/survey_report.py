"""What a survey found, and the same as plain data: the stable keys of `reallm survey --json`."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from reallm_compiler.evaluate.magnitudes import ScaleGain
from reallm_compiler.evaluate.regimes import Measure, Structure
from reallm_compiler.evaluate.spectrum import LowRankShare, Spectrum
from reallm_compiler.evaluate.statistics import BlockScales, Neighbours, Outliers


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixSurvey:
    """What was found in one matrix.

    Attributes:
        name, shape, layer: the matrix, [p, q], and its layer's number if it is in one.
        spectrum, outliers, scales: see there.
        gains: what a scale for each row, column and block is worth.
        rows, columns: how much alike adjacent rows, and adjacent columns, are.
        magnitude_rows, magnitude_columns: the same of the weights' magnitudes.
        structure_bits: bits per weight that the order of rows and columns is worth.
        structure: the word for it.
        measures: each recipe that codes this matrix.
        best: the recipe that is best at equal exact bits; None without recipes.
        explanation: what was found and which shape fits.
    """

    name: str
    shape: tuple[int, int]
    layer: int | None
    spectrum: Spectrum
    outliers: Outliers
    rows: Neighbours
    columns: Neighbours
    magnitude_rows: Neighbours
    magnitude_columns: Neighbours
    scales: BlockScales
    gains: tuple[ScaleGain, ...]
    structure_bits: float
    structure: Structure
    measures: tuple[Measure, ...]
    best: str | None
    explanation: str

    @property
    def norm(self) -> float:
        """Frobenius norm."""
        return float(self.outliers.rms * (self.shape[0] * self.shape[1]) ** 0.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeSurvey:
    """What one recipe makes of all surveyed matrices that it codes.

    Attributes:
        recipe: its name.
        matrices: how many it codes.
        exact_bits: bits per weight over all of them.
        relative_error: of all of them as one.
        gap_bits: as for one matrix, of these two numbers.
        best: how many matrices it is best on at equal exact bits.
    """

    recipe: str
    matrices: int
    exact_bits: Fraction
    relative_error: float
    gap_bits: float
    best: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """The recipe to use.

    Attributes:
        recipe: its name.
        measured: whether it was tried in this survey.
        explanation: why, in a sentence.
    """

    recipe: str
    measured: bool
    explanation: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What was found in a model, and the recipe to use."""

    matrices: tuple[MatrixSurvey, ...]
    recipes: tuple[RecipeSurvey, ...]
    advice: Advice

    def __repr__(self) -> str:
        return (
            f"Survey({len(self.matrices)} matrices, {len(self.recipes)} recipes tried, "
            f"advice: {self.advice.recipe})"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data under the documented keys of `reallm survey --json`, see `docs/cli.md`."""
        return {
            "matrices": [_matrix(row) for row in self.matrices],
            "recipes": [_recipe(row) for row in self.recipes],
            "advice": {
                "recipe": self.advice.recipe,
                "measured": self.advice.measured,
                "explanation": self.advice.explanation,
            },
        }


def _matrix(row: MatrixSurvey) -> dict[str, Any]:
    return {
        "name": row.name,
        "shape": list(row.shape),
        "layer": row.layer,
        "norm": row.norm,
        "spectrum": _spectrum(row.spectrum),
        "outliers": {
            "rms": row.outliers.rms,
            "kurtosis": row.outliers.kurtosis,
            "max_over_rms": row.outliers.max_over_rms,
            "beyond_4_sigma": row.outliers.beyond,
        },
        "neighbours": {
            "rows": _neighbours(row.rows),
            "columns": _neighbours(row.columns),
            "magnitude_rows": _neighbours(row.magnitude_rows),
            "magnitude_columns": _neighbours(row.magnitude_columns),
        },
        "block_scales": {
            "spread": row.scales.spread,
            "noise_spread": row.scales.noise_spread,
        },
        "scales": [
            {
                "per": one.per,
                "gain_bits": one.gain_bits,
                "cost_bits": one.cost_bits,
                "net_bits": one.net_bits,
            }
            for one in row.gains
        ],
        "structure": row.structure,
        "structure_bits": row.structure_bits,
        "recipes": [one.to_json() for one in row.measures],
        "best": row.best,
        "explanation": row.explanation,
    }


def _spectrum(spectrum: Spectrum) -> dict[str, Any]:
    return {
        "effective_rank": spectrum.effective_rank,
        "stable_rank": spectrum.stable_rank,
        "largest": spectrum.values[0] if spectrum.values else 0.0,
        "low_rank": [_share(part) for part in spectrum.low_rank],
    }


def _share(part: LowRankShare) -> dict[str, Any]:
    return {
        "fraction": str(part.fraction),
        "rank": part.rank,
        "share": part.share,
        "noise_share": part.noise_share,
        "cost_bits": part.cost_bits,
        "net_bits": part.net_bits,
    }


def _neighbours(found: Neighbours) -> dict[str, float]:
    return {
        "correlation": found.correlation,
        "shuffled": found.shuffled,
        "ordered": found.ordered,
        "z": found.z,
    }


def _recipe(row: RecipeSurvey) -> dict[str, Any]:
    return {
        "recipe": row.recipe,
        "matrices": row.matrices,
        "exact_bits": float(row.exact_bits),
        "relative_error": row.relative_error,
        "gap_bits": row.gap_bits,
        "best": row.best,
    }
