"""Which recipe a survey names: by what was measured, or by what is known of the shipped ones."""

from __future__ import annotations

from collections.abc import Sequence

from reallm_compiler.evaluate.survey_report import Advice, MatrixSurvey, RecipeSurvey
from reallm_compiler.recipe.shipped import BEST, DATA_FREE, FIRST_CHOICE, measured_kl

TRAINED = "paper-hnerv"
"""The recipe for matrices with strongly correlated neighbours."""


def advise(rows: Sequence[MatrixSurvey], tried: Sequence[RecipeSurvey]) -> Advice:
    """The recipe to use for the matrices of a survey."""
    tried = [one for one in tried if one.matrices]
    if tried:
        return _measured(tried)
    numel = sum(row.shape[0] * row.shape[1] for row in rows)
    strong = sum(row.shape[0] * row.shape[1] for row in rows if row.structure == "strong")
    if 2 * strong > numel:
        return Advice(
            recipe=TRAINED,
            measured=False,
            explanation=f"neighbours are strongly correlated in {100 * strong / numel:.0f} % of "
            f"the weights, which a trained decoder can use; see what it costs with "
            f"`reallm budget`, and what it gains with `--recipe {TRAINED} --only NAME`",
        )
    own, free = (measured_kl(name)[0] for name in (FIRST_CHOICE, DATA_FREE[0]))
    larger = ", ".join(f"`{name}`" for name in BEST if name != FIRST_CHOICE)
    return Advice(
        recipe=FIRST_CHOICE,
        measured=False,
        explanation="the shipped recipe with the least loss at its size where matrices have no "
        f"strong structure, as here: KL {own} nats on the largest model of "
        "docs/results.md; it needs statistics of the model, which `reallm calibrate` measures; "
        f"larger: {larger}; without statistics `{DATA_FREE[0]}` (KL {free}), "
        f"which `--recipe {DATA_FREE[0]}` tries on these matrices",
    )


def _measured(tried: Sequence[RecipeSurvey]) -> Advice:
    best = min(tried, key=lambda one: one.gap_bits)
    many = "the only one tried"
    if len(tried) > 1:
        many = f"the least error at equal exact bits of the {len(tried)} tried"
    explanation = (
        f"{many}: {best.relative_error:.4f} with {float(best.exact_bits):.4f} exact bits, "
        f"{best.gap_bits:+.3f} bits from the best coder of noise"
    )
    if not {one.recipe for one in tried} & set(DATA_FREE):
        explanation += f"; not tried: `{DATA_FREE[0]}`, which needs no statistics either"
    explanation += (
        f"; with statistics of the model (`reallm calibrate`) `{FIRST_CHOICE}` loses less"
    )
    return Advice(recipe=best.recipe, measured=True, explanation=explanation)
