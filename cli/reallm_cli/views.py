"""What `budget`, `compile`, `inspect` and `demo` show alike: the sizes of an archive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from reallm_cli.tables import Sheet, show_sheet
from reallm_cli.terminal import Terminal
from reallm_compiler.numbers import amount_text, bits_column, error_text, grouped, share_text
from reallm_compiler.planning.budget import Budget, MatrixBudget
from reallm_compiler.planning.budget_rows import BudgetRow, budget_rows
from reallm_compiler.planning.model import Plan
from reallm_compiler.planning.opened import Stored
from reallm_compiler.storage.matrix import TERMS
from reallm_formats import SectionEntry

TERM_LABELS = {"low_rank": "low rank"}


def show_sizes(
    terminal: Terminal,
    plan: Plan,
    budget: Budget,
    *,
    errors: Mapping[str, float] | None = None,
    stored: Stored | None = None,
) -> None:
    """The table of matrices, the bytes of the file by name, and the notes."""
    show_matrix_sizes(terminal, plan, budget, errors=errors, stored=stored)
    if budget.totals.training_operations:
        terminal.data()
        show_autoencoders(terminal, plan, budget)
    terminal.data()
    show_file_bytes(terminal, budget, stored=stored)
    for warning in budget.warnings:
        terminal.data(terminal.text(f"warning: {warning}", style="bold"))
    for note in budget.notes:
        terminal.data(terminal.text(f"note: {note}"))


def show_matrix_sizes(
    terminal: Terminal,
    plan: Plan,
    budget: Budget,
    *,
    errors: Mapping[str, float] | None = None,
    stored: Stored | None = None,
) -> None:
    """A row for all matrices that are alike: bits per weight by term, then bytes."""
    if not budget.matrices:
        terminal.data("no matrix is coded: every tensor is kept as it is")
        return
    rows = budget_rows(plan, budget.matrices)
    whole = BudgetRow(name="all coded matrices", shape=(0, 0), matrices=budget.matrices)
    shown = [*rows, whole]
    columns: list[tuple[str, list[str]]] = [
        ("<matrices", [row.name for row in shown]),
        ("count", [grouped(row.count) for row in shown]),
        ("shape", [f"{row.shape[0]} x {row.shape[1]}" for row in rows] + [""]),
    ]
    columns += [
        (TERM_LABELS.get(term, term), bits_column(row.term_bits(term) for row in shown))
        for term in TERMS
        if whole.term_bytes(term)
    ]
    columns += [
        ("paper bits", bits_column(row.paper_bits for row in shown)),
        ("exact bits", bits_column(row.exact_bits for row in shown)),
        ("bytes", [grouped(row.nbytes) for row in shown]),
    ]
    if stored is not None:
        columns.append(("stored bytes", [grouped(_stored_of(row, stored)) for row in shown]))
    if errors is not None:
        measured = [_errors_of(row.matrices, errors) for row in shown]
        columns.append(("mean error", [error_text(_mean(values)) for values in measured]))
        worst = [error_text(max(values, default=None)) for values in measured]
        columns.append(("max error", worst))
    terms = [TERM_LABELS.get(term, term) for term in TERMS]
    _show_columns(terminal, columns, title="bits per weight", last=terms)


def show_autoencoders(terminal: Terminal, plan: Plan, budget: Budget) -> None:
    """For matrices with a trained autoencoder: the paper's bits by term, and what it costs."""
    rows = [
        row for row in budget_rows(plan, budget.matrices) if row.matrices[0].training_operations
    ]
    terms = [term for term in TERMS if any(row.paper_term_bits(term) for row in rows)]
    columns: list[tuple[str, list[str]]] = [("<matrices", [row.name for row in rows])]
    columns += [
        (TERM_LABELS.get(term, term), bits_column(row.paper_term_bits(term) for row in rows))
        for term in terms
    ]
    columns.append(("paper bits", bits_column(row.paper_bits for row in rows)))
    _show_columns(terminal, columns, title="paper bits by term", total=False)
    terminal.data()
    costs: list[tuple[str, list[str]]] = [
        ("<matrices", [row.name for row in rows]),
        ("count", [grouped(row.count) for row in rows]),
        ("decode each", [amount_text(row.matrices[0].decode_macs, "MAC") for row in rows]),
        (
            "train each",
            [amount_text(row.matrices[0].training_operations, "FLOP") for row in rows],
        ),
        (
            "train all",
            [
                amount_text(sum(one.training_operations for one in row.matrices), "FLOP")
                for row in rows
            ],
        ),
    ]
    _show_columns(terminal, costs, title="trained autoencoders", total=False)


def show_matrices(terminal: Terminal, budget: Budget, errors: Mapping[str, float]) -> None:
    """A row for each matrix by itself: what a trial of some matrices shows."""
    rows = budget.matrices
    columns = [
        ("<matrix", [row.name for row in rows]),
        ("shape", [f"{row.shape[0]} x {row.shape[1]}" for row in rows]),
        ("paper bits", bits_column(row.paper_bits for row in rows)),
        ("exact bits", bits_column(row.exact_bits for row in rows)),
        ("bytes", [grouped(row.nbytes) for row in rows]),
        ("error", [error_text(errors.get(row.name)) for row in rows]),
    ]
    _show_columns(terminal, columns, total=False)


def show_file_bytes(terminal: Terminal, budget: Budget, *, stored: Stored | None = None) -> None:
    """Every byte of the file under one name; the rows add up to the last one."""
    totals = budget.totals
    planned = [
        ("coded matrices", totals.coded_bytes),
        ("kept tensors", totals.kept_bytes),
        ("config and tokenizer", totals.other_bytes),
        ("header", totals.header_bytes),
        ("manifest", totals.manifest_bytes),
        ("padding", totals.padding_bytes),
        ("file", totals.file_bytes),
    ]
    columns = [
        ("<part of the file", [name for name, _ in planned]),
        ("bytes", [grouped(size) for _, size in planned]),
    ]
    if stored is not None:
        found = (
            stored.coded,
            stored.kept,
            stored.other,
            stored.header,
            stored.manifest,
            stored.padding,
            stored.file,
        )
        columns.append(("stored bytes", [grouped(size) for size in found]))
    columns.append(("share", [share_text(size, totals.file_bytes) for _, size in planned]))
    _show_columns(terminal, columns)
    terminal.data()
    terminal.data(
        f"{grouped(totals.numel)} coded weights, "
        f"{grouped(totals.low_rank_parameters)} low-rank parameters"
    )
    terminal.data(
        f"the original has {grouped(totals.source_bytes)} bytes, {float(totals.ratio):.2f} times "
        f"the file; the whole model has {grouped(totals.parameters)} numbers of "
        f"{float(totals.model_bits):.4f} bits"
    )


def show_sections(terminal: Terminal, entries: Sequence[SectionEntry]) -> None:
    """A row for each section: where its bytes are, and their digest."""
    sheet = Sheet(
        columns=["<section", "<type", "shape", "offset", "bytes", "<sha256"],
        rows=[
            (
                entry.name,
                entry.dtype,
                " x ".join(map(str, entry.shape)) or "1",
                grouped(entry.offset),
                grouped(entry.nbytes),
                entry.sha256.hex()[:16],
            )
            for entry in entries
        ],
    )
    show_sheet(terminal, sheet)


def section_json(entry: SectionEntry) -> dict[str, Any]:
    """A section under the documented keys."""
    return {
        "name": entry.name,
        "dtype": entry.dtype,
        "shape": list(entry.shape),
        "offset": entry.offset,
        "bytes": entry.nbytes,
        "sha256": entry.sha256.hex(),
    }


def differences(budget: Budget, stored: Stored) -> list[str]:
    """Where the stored bytes are not the planned ones, in words; empty when all agree."""
    totals = budget.totals
    pairs = [
        ("coded matrices", totals.coded_bytes, stored.coded),
        ("kept tensors", totals.kept_bytes, stored.kept),
        ("config and tokenizer", totals.other_bytes, stored.other),
        ("header", totals.header_bytes, stored.header),
        ("manifest", totals.manifest_bytes, stored.manifest),
        ("padding", totals.padding_bytes, stored.padding),
        ("file", totals.file_bytes, stored.file),
    ]
    return [
        f"{name}: {grouped(planned)} bytes planned, {grouped(found)} stored"
        for name, planned, found in pairs
        if planned != found
    ]


def _show_columns(
    terminal: Terminal,
    columns: Sequence[tuple[str, Sequence[str]]],
    *,
    title: str | None = None,
    last: Sequence[str] = (),
    total: bool = True,
) -> None:
    rows = [list(cells) for cells in zip(*(cells for _, cells in columns), strict=True)]
    bottom = rows.pop() if total else None
    headings = [heading for heading, _ in columns]
    sheet = Sheet(columns=headings, rows=[*rows], total=bottom, last=last)
    show_sheet(terminal, sheet, title=title)


def _stored_of(row: BudgetRow, stored: Stored) -> int:
    return sum(stored.matrices.get(matrix.name, 0) for matrix in row.matrices)


def _errors_of(matrices: Sequence[MatrixBudget], errors: Mapping[str, float]) -> list[float]:
    return [errors[matrix.name] for matrix in matrices if matrix.name in errors]


def _mean(values: Sequence[float]) -> float | None:
    return float(sum(map(Fraction, values)) / len(values)) if values else None
