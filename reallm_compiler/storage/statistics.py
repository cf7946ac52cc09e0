"""Size law of a row of statistics: the sections that the container asks for, with value rules."""

from __future__ import annotations

from reallm_compiler.storage.base import SectionSpec
from reallm_compiler.storage.values import Finite, Tally, Triangle, ValueRule
from reallm_formats import StatisticsEntry
from reallm_formats.kinds.statistics import FULL

TERM = "statistics"

_NOT_NEGATIVE = Finite(negative=False)


def sections(row: StatisticsEntry) -> list[SectionSpec]:
    """The sections of a row, in storage order."""
    inputs: ValueRule = Triangle() if row.input_form == FULL else _NOT_NEGATIVE
    outputs: ValueRule = Triangle() if row.output_form == FULL else _NOT_NEGATIVE
    rules: dict[str, ValueRule] = {
        "inputs": inputs,
        "mean_abs": _NOT_NEGATIVE,
        "counts": Tally(),
        "weighted_inputs": inputs,
        "outputs": outputs,
        "weighted_outputs": outputs,
        "energy": _NOT_NEGATIVE,
    }
    return [
        SectionSpec(role=role, dtype=dtype, shape=shape, term=TERM, values=rules[role])
        for role, dtype, shape in row.parts()
    ]
