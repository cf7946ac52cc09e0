"""A survey as tables: statistics, measures, recipes over all matrices, and the words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from reallm_cli.tables import Sheet, show_sheet
from reallm_cli.terminal import Terminal
from reallm_compiler.numbers import bits_text, counted, error_text

if TYPE_CHECKING:
    from reallm_compiler.evaluate.survey_report import Survey


def show_survey(terminal: Terminal, survey: Survey) -> None:
    """The tables: statistics, measures, recipes over all matrices, and the words."""
    show_sheet(terminal, _statistics(survey), title="matrices")
    if survey.recipes:
        terminal.data()
        show_sheet(terminal, _measures(survey), title="recipes on each matrix")
        terminal.data()
        show_sheet(terminal, _totals(survey), title="recipes on all matrices that they code")
    terminal.data()
    terminal.data(terminal.text("what fits", style="bold"))
    by_explanation: dict[str, list[str]] = {}
    for row in survey.matrices:
        by_explanation.setdefault(row.explanation, []).append(row.name)
    for explanation, names in by_explanation.items():
        named = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
        terminal.data(terminal.text(f"  {named}: {explanation}"))
    terminal.data()
    terminal.data(terminal.text("recipe to use", style="bold"))
    terminal.data(terminal.text(f"  {survey.advice.recipe}: {survey.advice.explanation}"))


def _statistics(survey: Survey) -> Sheet:
    rows: list[Sequence[str]] = []
    for row in survey.matrices:
        first = row.spectrum.low_rank[0] if row.spectrum.low_rank else None
        scales = max(row.gains, key=lambda one: one.net_bits)
        rows.append(
            (
                row.name,
                f"{row.shape[0]} x {row.shape[1]}",
                f"{row.spectrum.effective_rank:.0f}",
                f"{100 * first.share:.1f} %" if first else "-",
                f"{100 * first.noise_share:.1f} %" if first else "-",
                f"{row.outliers.kurtosis:.1f}",
                f"{row.outliers.max_over_rms:.1f}",
                f"{100 * row.outliers.beyond:.3f} %",
                f"{row.rows.ordered:.3f}",
                f"{row.columns.ordered:.3f}",
                f"{row.scales.spread:.2f}",
                f"{scales.gain_bits:.2f} per {scales.per}" if scales.net_bits > 0 else "-",
                f"{row.structure_bits:.2f}",
                row.structure,
            )
        )
    return Sheet(
        columns=[
            "<matrix",
            "shape",
            "eff. rank",
            "in 1/64",
            "noise has",
            "kurtosis",
            "max/rms",
            "> 4 sigma",
            "rows alike",
            "columns alike",
            "scale spread",
            "scales save",
            "order, bits",
            "<structure",
        ],
        rows=rows,
    )


def _measures(survey: Survey) -> Sheet:
    return Sheet(
        columns=[
            "<matrix",
            "<recipe",
            "paper bits",
            "exact bits",
            "error",
            "gap",
            "<best at equal bits",
            "<best with as many or fewer",
        ],
        rows=[
            (
                row.name,
                one.recipe,
                bits_text(one.paper_bits),
                bits_text(one.exact_bits),
                error_text(one.relative_error),
                f"{one.gap_bits:+.3f}",
                "yes" if one.recipe == row.best else "",
                "itself" if one.best_within == one.recipe else one.best_within,
            )
            for row in survey.matrices
            for one in row.measures
        ],
        always=2,
    )


def _totals(survey: Survey) -> Sheet:
    return Sheet(
        columns=["<recipe", "matrices", "exact bits", "error", "gap", "best on"],
        rows=[
            (
                row.recipe,
                str(row.matrices),
                bits_text(row.exact_bits),
                error_text(row.relative_error),
                f"{row.gap_bits:+.3f}",
                counted(row.best, "matrix", "matrices"),
            )
            for row in survey.recipes
        ],
    )
