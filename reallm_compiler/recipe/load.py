"""From a name, a path or plain data to a checked recipe, `extends` followed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from reallm_compiler.errors import Problem, RecipeError
from reallm_compiler.recipe import check, check_cache, check_sets
from reallm_compiler.recipe.allocation import SECTION as ALLOCATE
from reallm_compiler.recipe.allocation import NamedPlan
from reallm_compiler.recipe.check_allocation import bases_of, check_allocation, merge_sections
from reallm_compiler.recipe.document import read_file
from reallm_compiler.recipe.model import Recipe, RecipeForm, ShapesForm
from reallm_compiler.recipe.nodes import MapNode, Node, ScalarNode, from_plain
from reallm_compiler.recipe.patch import merge_maps
from reallm_compiler.recipe.rule import RuleForm, rule_of
from reallm_compiler.recipe.shipped import list_all, shipped_path
from reallm_compiler.recipe.tuning import SECTION
from reallm_compiler.recipe.vocabulary import suggestion
from reallm_compiler.stages import BlockFit, PrepareStage
from reallm_compiler.stages.base import plain_number

_SUFFIXES = (".yaml", ".yml", ".json")


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
    chain = _Chain()
    if isinstance(source, Mapping):
        label = name or "recipe"
        tree, problems = from_plain(source, label)
        chain.problems += problems
        chain.add(_File(tree=tree, name=label, path=None))
    else:
        chain.read(_file_of(os.fspath(source), folder=None))
    return chain.recipe()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """A recipe file that exists by name: where it is and how messages call it."""

    path: Path
    label: str
    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    """A recipe file that was read; `path` is None for plain data."""

    tree: Node
    name: str
    path: Path | None


def _file_of(source: str, folder: Path | None) -> _Found:
    """The file that a name or path means; paths are relative to `folder` if one is given.

    Raises:
        RecipeError: it is neither a shipped recipe nor a file.
    """
    shipped = shipped_path(source)
    if shipped is not None:
        return _Found(path=shipped, label=shipped.name, name=source)
    if not source:
        raise _refused("recipe", "no recipe is named")
    if "\n" in source:
        message = "this is text of several lines, not the name or path of a recipe"
        hint = "save it as a file, or give the recipe as plain data"
        raise _refused("recipe", message, hint)
    if "\0" in source:
        raise _refused("recipe", "this is neither a name nor a path: it contains a zero byte")
    path = (folder or Path()) / os.path.expanduser(source)
    is_name = os.sep not in source and not source.endswith(_SUFFIXES)
    if is_name and not os.path.exists(path):
        message = f"there is no shipped recipe `{source}`, and no file of that name"
        raise _refused(source, message, suggestion(source, list_all()))
    return _Found(path=path, label=str(path), name=path.stem)


def _refused(location: str, message: str, hint: str | None = None) -> RecipeError:
    return RecipeError([Problem(location=location, path="", message=message, hint=hint)])


class _Chain:
    """A recipe and what it extends, the recipe itself first; gathers problems on the way.

    Args:
        candidate: the recipe is one that another chooses from, and may not choose itself.
    """

    def __init__(self, *, candidate: bool = False) -> None:
        self.candidate = candidate
        self.files: list[_File] = []
        self.problems: list[Problem] = []
        self.complete = True

    def read(self, found: _Found) -> None:
        try:
            tree, problems = read_file(found.path, found.label)
        except RecipeError as error:
            self.problems += error.problems
            self.complete = False
            return
        self.problems += problems
        self.add(_File(tree=tree, name=found.name, path=found.path))

    def add(self, file: _File) -> None:
        self.files.append(file)
        wrong = check.check_version(file.tree)
        if wrong or not isinstance(file.tree, MapNode):
            self.problems += wrong
            self.complete = False
            return
        node = file.tree.fields.get("extends")
        if isinstance(node, ScalarNode) and isinstance(node.value, str) and node.value:
            self.follow(node, node.value, file.path.parent if file.path else None)

    def follow(self, node: ScalarNode, source: str, folder: Path | None) -> None:
        try:
            found = _file_of(source, folder)
        except RecipeError as error:
            self.complete = False
            self.problem(node, error.problems[0].message, error.problems[0].hint)
            return
        before = [file.path for file in self.files if file.path is not None]
        known = [os.path.realpath(path) for path in before]
        if os.path.realpath(found.path) in known:
            start = known.index(os.path.realpath(found.path))
            circle = " -> ".join(path.name for path in (*before[start:], found.path))
            self.complete = False
            self.problem(node, f"`extends` is circular: {circle}")
            return
        if not os.path.isfile(found.path):
            self.complete = False
            self.problem(node, f"there is no recipe file `{found.path}`")
            return
        self.read(found)

    def _folders(self) -> dict[str, Path | None]:
        """The folder of each file, by its name in messages."""
        return {
            file.tree.location.file: None if file.path is None else file.path.parent
            for file in self.files
        }

    def problem(self, node: Node, message: str, hint: str | None = None) -> None:
        self.problems += _at(node, message, hint).problems

    def recipe(self) -> Recipe:
        trees = [file.tree for file in reversed(self.files)]  # the most basic first
        maps = [t for t in trees if isinstance(t, MapNode) and not check.check_version(t)]
        forms: list[RecipeForm] = []
        for tree in maps:
            form, problems = check.check_form(tree)
            self.problems += problems
            forms += [form] if form else []
            if self.candidate and ALLOCATE in tree.fields:
                message = "a candidate is a plan, and this recipe chooses among plans itself"
                self.problem(tree.fields[ALLOCATE], message)
        defaults = check.built_in_plan()
        rules: list[Node] = []
        for tree in maps:
            patch = check_sets.defaults_node(tree)
            if patch is not None:
                defaults = merge_maps(defaults, patch)
            rules += check_sets.rule_nodes(tree)
        allocation = None
        plan = None
        section = None if self.candidate else merge_sections(maps)
        if self.complete:  # without the base, what follows would be wrong for no reason of its own
            plan, problems = check.check_plan(defaults)
            self.problems += problems + check_sets.check_sets(rules, defaults)
            if section is not None and plan is not None:
                named = partial(_named_plan, folders=self._folders(), forms=forms)
                bases = bases_of(defaults, rules)
                allocation, problems = check_allocation(section, bases, named)
                self.problems += problems
        else:
            for patch in check_sets.patches(maps):
                self.problems += check_sets.check_alone(patch)
        kv_cache, problems = check_cache.kv_cache_of(maps, complete=self.complete)
        self.problems += problems
        if self.problems or plan is None:
            raise RecipeError(_ordered(self.problems, [file.tree for file in self.files]))
        forms_of_rules = [rule for form in forms for rule in form.rules]
        checked = [rule_of(form, node) for form, node in zip(forms_of_rules, rules, strict=True)]
        seed = next((f.seed for f in reversed(forms) if "seed" in f.model_fields_set), 0)
        statistics, prepare = _whole_model(forms)
        fit: BlockFit | None = _last(forms, "fit")
        fit_at = [tree.fields["fit"].location for tree in maps if "fit" in tree.fields]
        model = _last(forms, "model")
        finetune: dict[str, Any] = {}
        for one in forms:
            finetune = _over(finetune, one.finetune.set_fields())
        return Recipe(
            name=self.files[0].name,
            model=model.model_dump(exclude_none=True) if isinstance(model, ShapesForm) else model,
            output=_last(forms, "output"),
            seed=seed,
            plan=plan,
            tree=defaults,
            rules=tuple(checked),
            statistics=statistics,
            prepare=prepare,
            fit=fit,
            fit_at=fit_at[-1] if fit_at else None,
            allocate=allocation,
            kv_cache=kv_cache,
            finetune=finetune,
            document={
                "reallm": check.VERSION,
                "seed": seed,
                "defaults": plan.plain(),
                "rules": [_rule_document(form) for form in forms_of_rules],
                **({"statistics": statistics} if statistics != "none" else {}),
                **({"prepare": [s.model_dump(mode="json") for s in prepare]} if prepare else {}),
                **({} if fit is None else {"fit": fit.model_dump(mode="json")}),
                **({} if kv_cache is None else {"kv_cache": kv_cache.model_dump(mode="json")}),
                **({SECTION: finetune} if finetune else {}),
            },
            files=tuple(file.path for file in reversed(self.files) if file.path),
        )


def _whole_model(
    forms: Sequence[RecipeForm],
) -> tuple[Literal["none", "required"], tuple[PrepareStage, ...]]:
    """Whether recipes that extend each other need statistics, and what they do to the model."""
    said = [form.statistics for form in forms if "statistics" in form.model_fields_set]
    prepare = next((f.prepare for f in reversed(forms) if "prepare" in f.model_fields_set), ())
    return said[-1] if said else "none", prepare


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
    chain = _Chain(candidate=True)
    folder = folders.get(node.location.file)
    try:
        found = _file_of(str(node.value), folder)
    except RecipeError as error:
        problem = error.problems[0]
        raise _at(node, problem.message, problem.hint) from None
    if not os.path.isfile(found.path):
        raise _at(node, f"there is no recipe file `{found.path}`")
    chain.read(found)
    recipe = chain.recipe()
    statistics, prepare = _whole_model(forms)
    if recipe.statistics == "required" and statistics != "required":
        raise _at(
            node,
            f"`{node.value}` needs measured statistics, and this recipe asks for none",
            "add `statistics: required` to the recipe",
        )
    if recipe.prepare and recipe.prepare != prepare:
        raise _at(
            node,
            f"`{node.value}` prepares the whole model, and a candidate is one matrix's plan",
            "write the same `prepare` into this recipe",
        )
    if recipe.fit is not None and recipe.fit != _last(forms, "fit"):
        raise _at(
            node,
            f"`{node.value}` lets blocks learn, and a candidate is one matrix's plan",
            "write the same `fit` into this recipe",
        )
    return NamedPlan(tree=recipe.tree, rules=recipe.rules)


def _at(node: Node, message: str, hint: str | None = None) -> RecipeError:
    location = str(node.location)
    return RecipeError([Problem(location=location, path=node.path, message=message, hint=hint)])


def _last(forms: Sequence[RecipeForm], key: str) -> Any:  # noqa: ANN401 - a field's value
    """The value of the last recipe that sets one; a base's `model` is not inherited twice."""
    return next((v for form in reversed(forms) if (v := getattr(form, key)) is not None), None)


def _over(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the settings of `patch` put over it, map by map."""
    merged = dict(base)
    for key, value in patch.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            value = _over(below, value)
        merged[key] = value
    return merged


def _rule_document(form: RuleForm) -> dict[str, Any]:
    """A rule as canonical plain data: only what it sets, always in the same form."""
    document: dict[str, Any] = {}
    if form.match is not None:
        document["match"] = list(form.match)
    if form.role is not None:
        document["role"] = list(form.role)
    if form.min_fraction is not None:
        document["min_fraction"] = plain_number(form.min_fraction)
    if form.min_numel is not None:
        document["min_numel"] = form.min_numel
    if form.except_ is not None:
        document["except"] = list(form.except_)
    if form.layers is not None:
        document["layers"] = form.layers
    if form.set is not None:
        document["set"] = form.set
    if form.keep is not None:
        document["keep"] = form.keep
    if form.optional:
        document["optional"] = True
    if form.note is not None:
        document["note"] = form.note
    return document


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
