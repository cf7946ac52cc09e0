"""What a recipe may not ask of a model, reported at what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reallm_compiler.checkpoint import matrix_name
from reallm_compiler.errors import Problem, RecipeError, SourceError
from reallm_compiler.planning.fit import fit_problems
from reallm_compiler.planning.folding import Fold
from reallm_compiler.planning.parts import PlannedMatrix, PlannedTensor
from reallm_compiler.recipe import Decision, FieldSource, Recipe


def refuse_choice(recipe: Recipe) -> None:
    """A recipe that says what to choose from, and not what was chosen."""
    if recipe.allocate is None:
        return
    problem = Problem(
        location=str(recipe.allocate.location),
        path="allocate",
        message="this recipe leaves open which candidate each matrix gets",
        hint="let `reallm allocate RECIPE --model MODEL -o lock.yaml` choose, and use `lock.yaml`",
    )
    raise RecipeError([problem])


def refuse_impossible(
    recipe: Recipe, matrices: Sequence[PlannedMatrix], decisions: Mapping[str, Decision]
) -> None:
    """A plan that fits no matrix of this shape, reported at what the user wrote of that stage."""
    problems: dict[str, Problem] = {}
    for matrix in matrices:
        refused = matrix.layout.refusal
        if refused is None:
            continue
        stage, reason = refused
        written = _sources(decisions[matrix.name], stage)
        own = (f"{recipe.name}:", *(f"{path}:" for path in recipe.files[-1:]))  # plain, or a file
        at = next((one for one in written if one.location.startswith(own)), written[0])
        problem = at.problem(reason)
        problems.setdefault(str(problem), problem)
    if problems:
        raise RecipeError(list(problems.values()))


def refuse_unmeasured(recipe: Recipe, decisions: Mapping[str, Decision]) -> None:
    """A stage that needs statistics in a recipe that does not say so."""
    if recipe.statistics == "required":
        return
    problems: dict[str, Problem] = {}
    of_plan: dict[int, tuple[str, ...]] = {}
    for decision in decisions.values():
        if decision.plan is None:
            continue
        if id(decision.plan) not in of_plan:
            of_plan[id(decision.plan)] = decision.plan.stages_with_statistics
        for stage in of_plan[id(decision.plan)]:
            problem = _sources(decision, stage)[0].problem(
                f"this `{stage}` needs measured statistics, and the recipe asks for none",
                "add `statistics: required` to the recipe",
            )
            problems.setdefault(str(problem), problem)
    if problems:
        raise RecipeError(list(problems.values()))


def _sources(decision: Decision, stage: str) -> list[FieldSource]:
    """Who wrote what of a stage; a list of kinds has one source."""
    return [one for one in decision.trace if f"{one.path}.".startswith(f"{stage}.")]


def refuse_unfit(
    recipe: Recipe, matrices: Sequence[PlannedMatrix], tensors: Sequence[PlannedTensor]
) -> None:
    """A `fit` by which nothing can change."""
    if recipe.fit is None:
        return
    at = recipe.name if recipe.fit_at is None else str(recipe.fit_at)
    problems = fit_problems(recipe.fit, at, matrices, tensors)
    if problems:
        raise RecipeError(problems)


def refuse_folded_fit(recipe: Recipe, folds: Mapping[str, Fold]) -> None:
    """Norms that learn although the factors that are folded into them decide their gains."""
    if recipe.fit is None or not folds or "norms" not in recipe.fit.learn:
        return
    message = "`norms` do not learn where the factors of a transform are folded into them (`fold`)"
    hint = "leave `norms` out of `learn`, or `fold` out of the transform"
    at = recipe.name if recipe.fit_at is None else str(recipe.fit_at)
    raise RecipeError([Problem(location=at, path="fit.learn", message=message, hint=hint)])


def refuse_half_kept(matrices: Sequence[PlannedMatrix], kept: Mapping[str, str | None]) -> None:
    """A 3-D tensor of experts is coded whole or kept whole."""
    for matrix in matrices:
        if matrix.tensor in kept:
            raise SourceError(
                f"some experts of {matrix.tensor} are kept and others coded",
                note="a tensor of experts is stored either way as a whole",
                hint="let one rule match all of them, such as "
                f"`match: {matrix_name(matrix.tensor)}.*`",
            )
