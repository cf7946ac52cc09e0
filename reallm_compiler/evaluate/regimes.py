"""Which shape fits a matrix: the paper's two regimes, by statistics and by measurement.

Section 3 of the paper finds two sets of good shapes: a small latent with a large decoder for
matrices with patterns, and a large latent with a small decoder (plain VQ at its end) for the rest.
The thresholds between them are our own, and are defined here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from reallm_compiler.evaluate.magnitudes import Group, ScaleGain
from reallm_compiler.evaluate.spectrum import LowRankShare, Spectrum
from reallm_compiler.evaluate.statistics import Z_FOUND, Neighbours
from reallm_compiler.planning.budget import MatrixBudget

Structure = Literal["none", "magnitudes", "weak", "strong"]

STRONG_BITS = 0.5
"""Least `structure_bits` of strong structure.

At 2 bits good VQ is about 0.3 bits above the bound for noise, and a decoder has to be stored: a
trained decoder must find more than that to win. 0.5 bits are those of an `ordered` of 0.71 along
one axis, or of 0.54 along both.
"""

WEAK_BITS = 0.02
"""Least `structure_bits` of weak structure: an `ordered` of 0.17 along one axis."""

LOW_RANK_NET_BITS = 0.02
"""Least bits per weight that a low-rank part must save to be named."""

LOW_RANK_COST_BITS = 1.0
"""Most bits per weight that its factors may cost: more is as much as a whole format at few bits."""

SCALE_NET_BITS = 0.02
"""Least bits per weight that scales must save, themselves paid, to be named."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """What one recipe makes of one matrix.

    Attributes:
        recipe: its name.
        trained: whether it decodes by a trained decoder.
        paper_bits, exact_bits: bits per weight.
        nbytes: all that is stored, with the part of what its group shares.
        relative_error: ||W - W^|| / ||W||, of the decoded sections.
        gap_bits: exact bits less log2(1 / error), the least that any coder of white Gaussian
            noise needs for this error; negative where a recipe makes use of structure. As the
            error of a quantizer falls by half with each bit, this compares recipes at equal
            exact bits: x bits less are an error smaller by 2^x.
        best_within: the recipe with the least error among those with as many exact bits or fewer.
    """

    recipe: str
    trained: bool
    paper_bits: Fraction
    exact_bits: Fraction
    nbytes: int
    relative_error: float
    gap_bits: float
    best_within: str

    def to_json(self) -> dict[str, Any]:
        """Plain data under the documented keys."""
        return {
            "recipe": self.recipe,
            "trained": self.trained,
            "paper_bits": float(self.paper_bits),
            "exact_bits": float(self.exact_bits),
            "bytes": self.nbytes,
            "relative_error": self.relative_error,
            "gap_bits": self.gap_bits,
            "best_within": self.best_within,
        }


def gap_bits(exact_bits: Fraction, relative_error: float) -> float:
    """Exact bits less the rate of white Gaussian noise at this error."""
    if relative_error <= 0:
        return -math.inf
    return float(exact_bits) + math.log2(relative_error)


def measures(rows: Sequence[tuple[str, MatrixBudget, float]]) -> tuple[Measure, ...]:
    """The measures of one matrix, from (recipe, sizes, relative error) of each."""
    return tuple(
        Measure(
            recipe=recipe,
            trained=bool(sizes.terms.get("decoder") or sizes.training_operations),
            paper_bits=sizes.paper_bits,
            exact_bits=sizes.exact_bits,
            nbytes=sizes.nbytes,
            relative_error=error,
            gap_bits=gap_bits(sizes.exact_bits, error),
            best_within=min(
                (row for row in rows if row[1].nbytes <= sizes.nbytes),
                key=lambda row: (row[2], row[1].nbytes),
            )[0],
        )
        for recipe, sizes, error in rows
    )


def best_of(found: Sequence[Measure]) -> Measure | None:
    """The measure that is best at equal exact bits: the least `gap_bits`, then fewest bytes."""
    return min(found, key=lambda one: (one.gap_bits, one.nbytes), default=None)


def structure_of(bits: float, scales: Sequence[ScaleGain] = ()) -> Structure:
    """The word for `structure_bits`, or else for magnitudes that `paying_scales` take."""
    if bits >= STRONG_BITS:
        return "strong"
    if bits >= WEAK_BITS:
        return "weak"
    return "magnitudes" if scales else "none"


def paying_low_rank(spectrum: Spectrum) -> LowRankShare | None:
    """The low-rank part that saves most, if one saves enough to be named."""
    pays = max(
        (part for part in spectrum.low_rank if part.cost_bits <= LOW_RANK_COST_BITS),
        key=lambda part: part.net_bits,
        default=None,
    )
    return pays if pays is not None and pays.net_bits >= LOW_RANK_NET_BITS else None


def paying_scales(gains: Sequence[ScaleGain], spectrum: Spectrum) -> tuple[ScaleGain, ...]:
    """The scales that pay: those of rows, of columns, of both, or if they save more of blocks.

    None where a low-rank part saves more: the magnitudes that it has are not a matter of scales.
    """
    part = paying_low_rank(spectrum)
    least = max(SCALE_NET_BITS, part.net_bits if part is not None else 0.0)
    paying = sorted((one for one in gains if one.net_bits >= least), key=lambda one: -one.net_bits)
    lines = tuple(one for one in paying if one.per != "block")
    blocks = tuple(one for one in paying if one.per == "block")
    saved = [sum(one.net_bits for one in some) for some in (lines, blocks)]
    return lines if saved[0] >= saved[1] else blocks


def explain(
    bits: float,
    spectrum: Spectrum,
    scales: Sequence[ScaleGain],
    magnitudes: Sequence[Neighbours],
    found: Sequence[Measure],
) -> str:
    """What was found in a matrix, and which shape fits it, in English.

    Args:
        bits: its `structure_bits`.
        spectrum: its singular values.
        scales: those that pay.
        magnitudes: how much alike magnitudes of adjacent rows, and of adjacent columns, are.
        found: what recipes make of it.
    """
    if not any(spectrum.values):
        return "all weights are zero: any recipe fits"
    text = [_explain_structure(bits, scales, magnitudes)]
    pays = paying_low_rank(spectrum)
    if pays is not None:
        rank = pays.fraction if pays.rank > 1 else "1"
        text.append(
            f"a low-rank part pays: rank {rank} holds {100 * pays.share:.1f} % of the squared norm "
            f"for {pays.cost_bits:.2f} bits per weight"
        )
    best = best_of(found)
    if best is not None:
        text.append(_explain_measured(best, found))
    return "; ".join(text)


def _explain_structure(
    bits: float, scales: Sequence[ScaleGain], magnitudes: Sequence[Neighbours]
) -> str:
    structure = structure_of(bits, scales)
    if structure == "strong":
        return (
            f"structure was found: neighbours predict {bits:.2f} bits of each weight; a small "
            "latent with a large decoder (`hnerv`) is worth trying"
        )
    if structure == "weak":
        text = (
            f"weak structure was found: neighbours predict {bits:.2f} bits of each weight; try a "
            "permutation and plain VQ first, and measure before a decoder is trained at length"
        )
        return f"{text}; magnitudes {_explain_scales(scales)}" if scales else text
    if structure == "magnitudes":
        return (
            "structure was found in the magnitudes alone, not in the signs: they "
            f"{_explain_scales(scales)}; with them a large latent with a small decoder fits, and "
            "at its end plain VQ"
        )
    alike = any(abs(axis.z) >= Z_FOUND for axis in magnitudes)
    noise = (
        "as in a random order but for their magnitudes, which differ too little for scales of "
        "their own to pay"
        if alike
        else "as in a random order, as in white noise"
    )
    return (
        f"no structure was found: neighbours are {noise}; a large latent with a small decoder "
        "fits, and at its end plain VQ"
    )


_CHANGES: dict[Group, str] = {
    "row": "from row to row",
    "column": "from column to column",
    "block": "from block to block",
}


def _explain_scales(scales: Sequence[ScaleGain]) -> str:
    """Where magnitudes change, what scales save, and what takes them."""
    changes = " and ".join(_CHANGES[one.per] for one in scales)
    saved = " and ".join(
        f"one for each {one.per} saves {one.gain_bits:.2f} bits per weight for {one.cost_bits:.2f}"
        for one in scales
    )
    taken = (
        f"`scales` or the transform `normalize` with `per: {scales[0].per}` take it"
        if len(scales) == 1
        else "`scales` take one of them and the transform `normalize` the other"
    )
    return f"change {changes}, and a scale {saved.removeprefix('one ')}; {taken}"


def _explain_measured(best: Measure, found: Sequence[Measure]) -> str:
    text = f"measured: {best.recipe} is best at equal exact bits"
    trained = best_of([one for one in found if one.trained])
    plain = best_of([one for one in found if not one.trained])
    if trained is None or plain is None:
        return text
    ahead, behind = (trained, plain) if best.trained else (plain, trained)
    lead = behind.gap_bits - ahead.gap_bits
    side = "the trained decoder" if best.trained else "a recipe without a trained decoder"
    return f"{text}, {side} leads by {lead:.2f} bits per weight"
