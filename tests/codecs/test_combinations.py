"""Any stages together: what the schema admits keeps the laws, what it refuses has a reason.

Drawn over all registered kinds of all stages, own or shared; the draw knows no kind by name.
"""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import example, given, note, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from reallm_compiler.stages import KINDS, MatrixPlan, kind_name, kinds
from tests.codecs.size_law import check_plan
from tests.plans import some_fields, some_kind

SHAPES = st.sampled_from([(1, 1), (1, 7), (13, 6), (33, 20)])
SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=100)
@given(draw=SEEDS, shape=SHAPES, seed=st.integers(0, 3))
@example(draw=469567566, shape=(1, 1), seed=0)  # a latent that does not lie in one piece
@example(draw=130, shape=(33, 20), seed=3)  # vectors across rows of different orders, with feedback
def test_what_the_schema_admits_keeps_its_size_law(draw, shape, seed) -> None:
    fields = some_fields(random.Random(draw))
    note(f"plan: {fields}")
    try:
        plan = MatrixPlan.model_validate(fields)
    except ValidationError as error:
        for problem in error.errors():
            assert problem["type"] == "value_error"  # a reason of ours, in words
            assert len(str(problem["ctx"]["error"])) > 30
        return
    check_plan(plan, shape, seed)


def test_every_kind_is_coded_in_some_plan() -> None:
    """The draw reaches what it shall, and most of it is coded."""
    for stage in KINDS:
        listed = isinstance(getattr(MatrixPlan(), stage), tuple)
        for name in kinds(stage):
            outcomes: Counter[bool] = Counter()
            draw = random.Random(f"{stage} {name}")
            while not outcomes[True]:
                kind = some_kind(draw, stage, name)
                fields = {**some_fields(draw), stage: [kind] if listed else kind}
                try:
                    plan = MatrixPlan.model_validate(fields)
                except ValidationError:
                    continue
                one = getattr(plan, stage)
                made = [kind_name(type(part)) for part in (one if listed else (one,))]
                assert made == ([] if listed and name == "none" else [name])
                outcomes[check_plan(plan, (8, 16), 0)] += 1
                assert outcomes[False] < 50, f"no plan with {name} is coded"
