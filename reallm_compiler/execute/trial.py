"""A plan of some matrices, to try a recipe on them."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase

from reallm_compiler.errors import CompileError
from reallm_compiler.planning.build import KIND
from reallm_compiler.planning.document import section_list, to_document
from reallm_compiler.planning.model import Plan
from reallm_formats import layout


def trial_plan(plan: Plan, pattern: str) -> Plan:
    """The plan of the matrices whose names match a glob.

    A group's shared sections are fitted on the chosen members alone.

    Raises:
        CompileError: none matches.
    """
    chosen = tuple(matrix for matrix in plan.matrices if fnmatchcase(matrix.name, pattern))
    if not chosen:
        near = difflib.get_close_matches(pattern, [m.name for m in plan.matrices], n=1, cutoff=0.3)
        raise CompileError(
            f"`--only {pattern}` matches no coded matrix",
            hint=f"try `--only '{near[0]}'`" if near else None,
        )
    return Plan(
        recipe=plan.recipe,
        matrices=chosen,
        tensors=(),
        files=(),
        ties={},
        layout=layout(
            kind=KIND,
            features=[],
            document=to_document(plan.recipe, chosen, {}),
            sections=section_list(chosen, (), ()),
        ),
        traces=plan.traces,
        decoders=plan.decoders,
    )


def work_of(plan: Plan) -> int:
    """A measure of the work of a plan: that of its trainings, or else its weights."""
    totals = plan.budget().totals
    return max(1, totals.training_operations or totals.weights)
