"""From a name, a path or plain data to a checked recipe, `extends` followed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from reallm_compiler.errors import Problem, RecipeError
from reallm_compiler.recipe import check, check_cache, check_sets
from reallm_compiler.recipe.allocation import SECTION as ALLOCATE
from reallm_compiler.recipe.allocation import NamedPlan
from reallm_compiler.recipe.chain import Chain, find_file, named_file
from reallm_compiler.recipe.check_allocation import check_allocation, merge_sections
from reallm_compiler.recipe.model import Recipe, RecipeForm, ShapesForm
from reallm_compiler.recipe.nodes import Node, ScalarNode, problem_at
from reallm_compiler.recipe.patch import merge_maps
from reallm_compiler.recipe.rule import rule_of
from reallm_compiler.recipe.tuning import SECTION as FINETUNE
from reallm_compiler.stages import BlockFit


def load_recipe(
    source: str | os.PathLike[str] | Mapping[str, Any], *, name: str | None = None
) -> Recipe:
    """A recipe, checked as far as it can be without a model.

    Args:
        source: a shipped recipe's name, the path of a recipe file, or a recipe as plain data.
        name: the recipe's name in messages, for plain data.

    Raises:
        RecipeError: with everything that is wrong.
    """
    if isinstance(source, Mapping):
        return _recipe(Chain.of_plain(source, name or "recipe"))
    return _recipe(Chain.of_file(find_file(os.fspath(source))))


def _recipe(chain: Chain, *, candidate: bool = False) -> Recipe:
    """What the recipes of a chain say together.

    Args:
        chain: what was read.
        candidate: another recipe chooses from this one, which may not choose itself.

    Raises:
        RecipeError: with everything that is wrong.
    """
    problems = list(chain.problems)
    maps = chain.maps
    forms: list[RecipeForm] = []
    for tree in maps:
        form, wrong = check.check_form(tree)
        problems += wrong
        forms += [form] if form else []
        if candidate and ALLOCATE in tree.fields:
            message = "a candidate is a plan, and this recipe chooses among plans itself"
            problems.append(problem_at(tree.fields[ALLOCATE], message))
    defaults = check.built_in_plan()
    rules: list[Node] = []
    for tree in maps:
        patch = check_sets.defaults_node(tree)
        if patch is not None:
            defaults = merge_maps(defaults, patch)
        rules += check_sets.rule_nodes(tree)
    plan, allocation = None, None
    section = None if candidate else merge_sections(maps)
    if chain.complete:  # without the base, what follows would be wrong for no reason of its own
        plan, wrong = check.check_plan(defaults)
        problems += wrong + check_sets.check_sets(rules, defaults)
        if section is not None and plan is not None:
            load_named = partial(_named_plan, folders=chain.folders, forms=forms)
            allocation, wrong = check_allocation(section, defaults, rules, load_named)
            problems += wrong
    else:
        for patch in check_sets.patches(maps):
            problems += check_sets.check_alone(patch)
    kv_cache, wrong = check_cache.kv_cache_of(maps, complete=chain.complete)
    problems += wrong
    if problems or plan is None:
        raise RecipeError(_ordered(problems, [file.tree for file in chain.files]))
    rule_forms = [rule for form in forms for rule in form.rules]
    fit: BlockFit | None = _last(forms, "fit")
    fit_at = [tree.fields["fit"].location for tree in maps if "fit" in tree.fields]
    model = _last(forms, "model")
    finetune: dict[str, Any] = {}
    for one in forms:
        finetune = _over(finetune, one.finetune.set_fields())
    whole = {key: _last_set(forms, key) for key in ("seed", "statistics", "prepare")}
    document = {
        "reallm": check.VERSION,
        "seed": whole["seed"],
        "defaults": plan.plain(),
        "rules": [form.document() for form in rule_forms],
    }
    if whole["statistics"] != "none":
        document["statistics"] = whole["statistics"]
    if whole["prepare"]:
        document["prepare"] = [stage.model_dump(mode="json") for stage in whole["prepare"]]
    if fit is not None:
        document["fit"] = fit.model_dump(mode="json")
    if kv_cache is not None:
        document["kv_cache"] = kv_cache.model_dump(mode="json")
    if finetune:
        document[FINETUNE] = finetune
    return Recipe(
        name=chain.files[0].name,
        model=model.model_dump(exclude_none=True) if isinstance(model, ShapesForm) else model,
        output=_last(forms, "output"),
        plan=plan,
        tree=defaults,
        rules=tuple(rule_of(form, node) for form, node in zip(rule_forms, rules, strict=True)),
        fit=fit,
        fit_at=fit_at[-1] if fit_at else None,
        allocate=allocation,
        kv_cache=kv_cache,
        finetune=finetune,
        document=document,
        files=tuple(file.path for file in reversed(chain.files) if file.path),
        **whole,
    )


def _named_plan(
    node: ScalarNode, folders: Mapping[str, Path | None], forms: Sequence[RecipeForm]
) -> NamedPlan:
    """The recipe that a candidate names.

    Args:
        node: the name or path.
        folders: of each file, to which paths in it are relative.
        forms: of the recipe that chooses.

    Raises:
        RecipeError: there is no such recipe, it is wrong, or it does something to the whole model
            that the recipe which chooses does not do.
    """
    found = named_file(node, folders.get(node.location.file))
    recipe = _recipe(Chain.of_file(found), candidate=True)
    if recipe.statistics == "required" and _last_set(forms, "statistics") != "required":
        raise _unfit(
            node,
            f"`{node.value}` needs measured statistics, and this recipe asks for none",
            "add `statistics: required` to the recipe",
        )
    if recipe.prepare and recipe.prepare != _last_set(forms, "prepare"):
        raise _unfit(
            node,
            f"`{node.value}` prepares the whole model, and a candidate is one matrix's plan",
            "write the same `prepare` into this recipe",
        )
    if recipe.fit is not None and recipe.fit != _last(forms, "fit"):
        raise _unfit(
            node,
            f"`{node.value}` lets blocks learn, and a candidate is one matrix's plan",
            "write the same `fit` into this recipe",
        )
    return NamedPlan(tree=recipe.tree, rules=recipe.rules)


def _unfit(node: Node, message: str, hint: str) -> RecipeError:
    return RecipeError([problem_at(node, message, hint)])


def _last(forms: Sequence[RecipeForm], key: str) -> Any:  # noqa: ANN401 - a field's value
    """The value of the last recipe that has one; null inherits."""
    return next((v for form in reversed(forms) if (v := getattr(form, key)) is not None), None)


def _last_set(forms: Sequence[RecipeForm], key: str) -> Any:  # noqa: ANN401 - a field's value
    """The value in the last recipe that sets the field, else the field's default."""
    setting = (form for form in reversed(forms) if key in form.model_fields_set)
    return getattr(next(setting, RecipeForm(reallm=check.VERSION)), key)


def _over(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the settings of `patch` put over it, map by map."""
    merged = dict(base)
    for key, value in patch.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            value = _over(below, value)
        merged[key] = value
    return merged


def _ordered(problems: Sequence[Problem], trees: Sequence[Node]) -> list[Problem]:
    """Each problem once, file by file, from top to bottom."""
    files = {tree.location.file: index for index, tree in enumerate(trees)}

    def key(problem: Problem) -> tuple[int, int, int]:
        file, _, rest = problem.location.rpartition(":")
        file, _, line = file.rpartition(":")
        if not (line.isdigit() and rest.isdigit()):
            return files.get(problem.location, len(files)), 0, 0
        return files.get(file, len(files)), int(line), int(rest)

    unique: dict[tuple[str, str, str], Problem] = {}
    for problem in sorted(dict.fromkeys(problems), key=key):
        # A slip in the defaults shows again under every rule that is merged over them; plain
        # data has no lines, and there its path distinguishes two mistakes.
        path = "" if problem.location[-1:].isdigit() else problem.path
        unique.setdefault((problem.location, path, problem.message), problem)
    return list(unique.values())
