"""What a file of statistics will hold, before a weight is read or a token is seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from reallm_compiler.checkpoint import Inventory, MatrixFact
from reallm_compiler.checkpoint.linear import known_role
from reallm_compiler.planning.document import fixed_text
from reallm_formats import Layout, StatisticsDocument, StatisticsEntry, layout
from reallm_formats.kinds.statistics import DIAGONAL, FULL, NONE
from reallm_formats.v1 import DIGEST_BYTES

KIND = "statistics"

_ALIKE = (
    {"q_proj", "k_proj", "v_proj"},
    {"query", "key", "value"},
    {"q", "k", "v"},
    {"q_lin", "k_lin", "v_lin"},
    {"q_a_proj", "kv_a_proj_with_mqa"},
    {"gate_proj", "up_proj"},
    {"w1", "w3"},
    {"wi_0", "wi_1"},
)
"""Last words of the names of matrices of one module that have the same inputs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StatisticsForm:
    """How much is measured and stored.

    Attributes:
        gradients: whether gradients at outputs are measured.
        diagonal: extents above this keep the diagonal alone; None keeps all whole.
    """

    gradients: bool = True
    diagonal: int | None = None

    def of(self, extent: int) -> str:
        """The form of a symmetric matrix [extent, extent]."""
        return DIAGONAL if self.diagonal is not None and extent > self.diagonal else FULL


def measured_matrices(inventory: Inventory) -> tuple[MatrixFact, ...]:
    """The matrices that are multiplied with a state: those of linear layers, and heads.

    A table of embeddings is among them if it is the head as well.
    """
    heads = {kept for alias, kept in inventory.ties.items() if known_role(alias) == "head"}
    return tuple(
        fact
        for fact in inventory.matrices()
        if fact.role in ("linear", "head") or fact.tensor in heads
    )


def same_inputs(facts: Iterable[MatrixFact]) -> dict[str, str]:
    """For each matrix the first one that has the same inputs, which may be itself, by names."""
    first: dict[tuple[str, int, int], str] = {}
    found = {}
    for fact in facts:
        module, _, last = fact.name.rpartition(".")
        group = next((number for number, names in enumerate(_ALIKE) if last in names), None)
        key = (module, group, fact.shape[1]) if group is not None else None
        found[fact.name] = fact.name if key is None else first.setdefault(key, fact.name)
    return found


def statistics_rows(
    facts: Iterable[MatrixFact], inputs: Mapping[str, str], form: StatisticsForm
) -> tuple[StatisticsEntry, ...]:
    """The rows of the matrices, with blank digests.

    Args:
        facts: the matrices, in storage order.
        inputs: as of `same_inputs`.
        form: how much is stored; a head has its inputs alone, as its outputs are the vocabulary.
    """
    return tuple(
        StatisticsEntry(
            name=fact.name,
            shape=fact.shape,
            sha256=bytes(DIGEST_BYTES),
            inputs=inputs[fact.name],
            input_form=form.of(fact.shape[1]),
            output_form=form.of(fact.shape[0])
            if form.gradients and fact.role == "linear"
            else NONE,
        )
        for fact in facts
    )


def statistics_document(
    rows: Iterable[StatisticsEntry],
    *,
    tokens: int,
    settings: Mapping[str, Any],
    digests: Mapping[str, bytes] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> StatisticsDocument:
    """The document of a file of statistics.

    Args:
        rows: of the matrices.
        tokens: predicted tokens.
        settings: how they were measured.
        digests: of each matrix's tensor; blank when not known yet.
        provenance: blank when not known yet.
    """
    blank = fixed_text("")
    return StatisticsDocument(
        matrices=tuple(
            row if digests is None else replace(row, sha256=digests[row.name]) for row in rows
        ),
        tokens=tokens,
        settings=settings,
        provenance=dict(provenance)
        if provenance is not None
        else {"compute": blank, "reallm": blank, "torch": blank, "text": bytes(DIGEST_BYTES)},
    )


def statistics_layout(document: StatisticsDocument) -> Layout:
    """Where everything of a file of statistics lies."""
    return layout(kind=KIND, document=document.plain(), sections=document.sections())


def statistics_bytes(inventory: Inventory, form: StatisticsForm) -> int:
    """About the length of a file of statistics: all but its settings."""
    facts = measured_matrices(inventory)
    rows = statistics_rows(facts, same_inputs(facts), form)
    return statistics_layout(statistics_document(rows, tokens=1, settings={})).file_bytes
