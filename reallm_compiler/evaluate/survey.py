"""The survey: which matrix wants which shape.

Each recipe is tried on the matrices, as `compile --only` would, with the sizes that the planner
gives; then each matrix is read by itself, looked at (`spectrum.py`, `statistics.py`) and let go.
Nothing is written.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch

from reallm_compiler.checkpoint import Inventory, MatrixFact
from reallm_compiler.errors import CompileError, EvaluationError
from reallm_compiler.evaluate.magnitudes import scale_gains
from reallm_compiler.evaluate.regimes import (
    Measure,
    best_of,
    explain,
    gap_bits,
    measures,
    paying_scales,
    structure_of,
)
from reallm_compiler.evaluate.spectrum import spectrum
from reallm_compiler.evaluate.statistics import (
    block_scales,
    neighbours,
    outliers,
    relative_total,
    structure_bits,
)
from reallm_compiler.evaluate.survey_advice import advise
from reallm_compiler.evaluate.survey_report import MatrixSurvey, RecipeSurvey, Survey
from reallm_compiler.evaluate.survey_source import Surveyed, open_surveyed
from reallm_compiler.execute.events import CompileReport
from reallm_compiler.execute.options import OnEvent
from reallm_compiler.execute.preflight import DEVICE_TYPES
from reallm_compiler.execute.run import compile_model
from reallm_compiler.planning.budget import MatrixBudget
from reallm_compiler.progress import Progress, is_watched, progress_callback
from reallm_compiler.recipe import Recipe, load_recipe
from reallm_compiler.recipe.shipped import DATA_FREE
from reallm_compiler.runs.devices import choose_device
from reallm_compiler.units import bits_per_weight


def survey_model(
    model: str | os.PathLike[str] | Inventory,
    *,
    recipes: Sequence[str | os.PathLike[str] | Recipe] = (),
    only: str | None = None,
    device: str = "auto",
    workers: int | None = None,
    progress: Progress | None = None,
    on_recipe: Callable[[str], OnEvent] | None = None,
    allow_cost: bool = False,
) -> Survey:
    """Look at the matrices of a checkpoint, and try recipes on them.

    Args:
        model: the checkpoint, or an archive, whose matrices are looked at as it decodes them.
        recipes: shipped names, files or loaded recipes to try on the matrices that they code.
        only: a glob on matrix names; without one, the weights of linear layers.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        workers: processes that encode; chosen by size, cores and memory when None.
        progress: see `reallm_compiler.progress`; counts matrices that were looked at.
        on_recipe: given a recipe's name, returns the callback for the events of its trial.
        allow_cost: decode an archive whatever its plan costs to decode.

    Raises:
        SourceError: the model cannot be read or has no weights.
        EvaluationError: no matrix matches `only`, or one holds a NaN or an infinity.
        RecipeError, CompileError, CodecError: a recipe does not fit, or fails.
    """
    loaded = _loaded(recipes)
    with open_surveyed(model, allow_cost=allow_cost) as source:
        return _survey(source, loaded, only, device, workers, progress, on_recipe)


def _survey(
    source: Surveyed,
    loaded: Mapping[str, Recipe],
    only: str | None,
    device: str,
    workers: int | None,
    progress: Progress | None,
    on_recipe: Callable[[str], OnEvent] | None,
) -> Survey:
    """As `survey_model`, of an open model."""
    facts = [fact for fact in source.facts if only is None or fnmatchcase(fact.name, only)]
    if not facts:
        raise EvaluationError(
            f"`--only {only}` matches no matrix" if only else "the model has no matrix",
            location=source.path,
            hint="`reallm budget RECIPE --model MODEL --json` lists the names" if only else None,
        )
    trials: dict[str, CompileReport] = {}
    for name, recipe in loaded.items():
        if source.inventory is None:
            raise EvaluationError(
                "a recipe is tried on a checkpoint, and this is an archive",
                location=source.path,
                hint="leave `--recipe` out, or give the checkpoint that it was compiled from",
            )
        if recipe.statistics == "required":
            raise EvaluationError(
                "a survey compares the errors of weights, and this recipe chooses codes by what "
                "errors cost the model's predictions",
                location=name,
                hint="compile it with `--stats` and measure it with `reallm eval ... --reference "
                f"MODEL`; here try one that needs no statistics, such as `{DATA_FREE[0]}`",
            )
        if recipe.fit is not None:
            raise EvaluationError(
                "a survey compares the errors of weights, and by this recipe blocks of the model "
                "learn by a text",
                location=name,
                hint="compile it with `--text` and measure it with `reallm eval ... --reference "
                f"MODEL`; here try one by which nothing learns, such as `{DATA_FREE[0]}`",
            )
        trials[name] = compile_model(
            recipe,
            model=source.inventory,
            only=only or "*",
            device=device,
            workers=workers,
            progress=progress is True or (progress is None and is_watched(sys.stderr)),
            on_event=on_recipe(name) if on_recipe is not None else None,
        )
    tried: dict[str, list[tuple[str, MatrixBudget, float]]] = {}
    for name, report in trials.items():
        for row in report.budget.matrices:
            tried.setdefault(row.name, []).append((name, row, report.errors[row.name]))
    facts = [fact for fact in facts if only or fact.coded_by_default]
    chosen = choose_device(device, CompileError, types=DEVICE_TYPES)
    rows = []
    advance = progress_callback(progress, "survey", "matrices")
    for done, fact in enumerate(facts):
        advance(done, len(facts))
        weight = source.read(fact).to(chosen)
        rows.append(survey_matrix(weight, fact, measures(tried.get(fact.name, []))))
    advance(len(facts), len(facts))
    totals = tuple(_total(name, rows) for name in trials)
    return Survey(matrices=tuple(rows), recipes=totals, advice=advise(rows, totals))


def survey_matrix(
    weight: torch.Tensor, fact: MatrixFact, found: tuple[Measure, ...] = ()
) -> MatrixSurvey:
    """What is found in one matrix [p, q].

    Raises:
        EvaluationError: it is empty, or holds a NaN or an infinity.
    """
    if not weight.numel() or not torch.isfinite(weight.float()).all():
        raise EvaluationError(
            "a matrix without weights" if not weight.numel() else "a weight is not a finite number",
            location=fact.name,
            note="nothing can be measured in it",
            hint="leave it out with `--only`",
        )
    if weight.element_size() == 1:  # few operations know the types of 8 bits
        weight = weight.float()
    rows, columns = neighbours(weight)
    magnitude_rows, magnitude_columns = neighbours(weight.abs())
    bits = structure_bits(rows, columns)
    singular = spectrum(weight)
    gains = scale_gains(weight)
    scales = paying_scales(gains, singular)
    best = best_of(found)
    return MatrixSurvey(
        name=fact.name,
        shape=fact.shape,
        layer=fact.layer,
        spectrum=singular,
        outliers=outliers(weight),
        rows=rows,
        columns=columns,
        magnitude_rows=magnitude_rows,
        magnitude_columns=magnitude_columns,
        scales=block_scales(weight),
        gains=gains,
        structure_bits=bits,
        structure=structure_of(bits, scales),
        measures=found,
        best=best.recipe if best is not None else None,
        explanation=explain(bits, singular, scales, (magnitude_rows, magnitude_columns), found),
    )


def _loaded(recipes: Sequence[str | os.PathLike[str] | Recipe]) -> dict[str, Recipe]:
    """Recipes by a name of their own: where two files have one name, their paths are it."""
    found: dict[str, Recipe] = {}
    pairs = [
        (one, one.name) if isinstance(one, Recipe) else (load_recipe(one), os.fspath(one))
        for one in recipes
    ]
    names = [recipe.name for recipe, _ in pairs]
    for recipe, text in pairs:
        name = recipe.name if names.count(recipe.name) == 1 else text
        count = sum(known.split(" #")[0] == name for known in found)
        found[f"{name} #{count + 1}" if count else name] = recipe
    return found


def _total(name: str, rows: Sequence[MatrixSurvey]) -> RecipeSurvey:
    coded = [(row, one) for row in rows for one in row.measures if one.recipe == name]
    size = sum(one.nbytes for _, one in coded)
    bits = bits_per_weight(size, sum(row.shape[0] * row.shape[1] for row, _ in coded))
    error = relative_total([one.relative_error for _, one in coded], [row.norm for row, _ in coded])
    return RecipeSurvey(
        recipe=name,
        matrices=len(coded),
        exact_bits=bits,
        relative_error=error,
        gap_bits=gap_bits(bits, error),
        best=sum(row.best == name for row in rows),
    )
