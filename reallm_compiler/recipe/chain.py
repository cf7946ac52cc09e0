"""A recipe file and those that it extends: found by name or path, read, and followed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reallm_compiler.errors import Problem, RecipeError
from reallm_compiler.recipe.check import check_version
from reallm_compiler.recipe.document import read_file, unreadable
from reallm_compiler.recipe.nodes import MapNode, Node, ScalarNode, from_plain, problem_at
from reallm_compiler.recipe.shipped import list_all, shipped_path
from reallm_compiler.recipe.vocabulary import suggestion

_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundFile:
    """A recipe that exists by name: its file, and how messages call it."""

    path: Path
    label: str
    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeFile:
    """A recipe that was read; `path` is None for plain data."""

    tree: Node
    name: str
    path: Path | None


class Chain:
    """A recipe and what it extends; gathers what is wrong on the way.

    Attributes:
        files: the recipe itself first, the most basic last.
        problems: of reading them.
        complete: whether all of them could be read.
    """

    def __init__(self) -> None:
        self.files: list[RecipeFile] = []
        self.problems: list[Problem] = []
        self.complete = True

    @classmethod
    def of_plain(cls, data: Mapping[str, Any], name: str) -> Chain:
        """From a recipe as plain data."""
        chain = cls()
        tree, problems = from_plain(data, name)
        chain.problems += problems
        chain._add(RecipeFile(tree=tree, name=name, path=None))
        return chain

    @classmethod
    def of_file(cls, found: FoundFile) -> Chain:
        """From a recipe file."""
        chain = cls()
        chain._read(found)
        return chain

    @property
    def maps(self) -> list[MapNode]:
        """The trees of all files that this reallm can read, the most basic first."""
        trees = [file.tree for file in reversed(self.files)]
        return [tree for tree in trees if isinstance(tree, MapNode) and not check_version(tree)]

    @property
    def folders(self) -> dict[str, Path | None]:
        """The folder of each file, to which paths in it are relative, by its name in messages."""
        return {
            file.tree.location.file: None if file.path is None else file.path.parent
            for file in self.files
        }

    def _read(self, found: FoundFile) -> None:
        try:
            tree, problems = read_file(found.path, found.label)
        except RecipeError as error:
            self.problems += error.problems
            self.complete = False
            return
        self.problems += problems
        self._add(RecipeFile(tree=tree, name=found.name, path=found.path))

    def _add(self, file: RecipeFile) -> None:
        self.files.append(file)
        wrong = check_version(file.tree)
        if wrong or not isinstance(file.tree, MapNode):
            self.problems += wrong
            self.complete = False
            return
        node = file.tree.fields.get("extends")
        if isinstance(node, ScalarNode) and isinstance(node.value, str) and node.value:
            self._follow(node, file.path.parent if file.path else None)

    def _follow(self, node: ScalarNode, folder: Path | None) -> None:
        """Read the recipe that `extends` names."""
        try:
            found = named_file(node, folder)
        except RecipeError as error:
            self.problems += error.problems
            self.complete = False
            return
        before = [file.path for file in self.files if file.path is not None]
        known = [os.path.realpath(path) for path in before]
        if os.path.realpath(found.path) in known:
            start = known.index(os.path.realpath(found.path))
            circle = " -> ".join(path.name for path in (*before[start:], found.path))
            self.problems.append(problem_at(node, f"`extends` is circular: {circle}"))
            self.complete = False
            return
        self._read(found)


def named_file(node: ScalarNode, folder: Path | None) -> FoundFile:
    """The recipe file that a value names; paths are relative to `folder`.

    Raises:
        RecipeError: there is none; reported at the value.
    """
    try:
        found = find_file(str(node.value), folder)
    except RecipeError as error:
        (problem,) = error.problems
        raise RecipeError([problem_at(node, problem.message, problem.hint)]) from None
    if not os.path.isfile(found.path):
        raise RecipeError([problem_at(node, f"there is no recipe file `{found.path}`")])
    return found


def find_file(source: str, folder: Path | None = None) -> FoundFile:
    """The file that a name or path means; paths are relative to `folder` if one is given.

    Raises:
        RecipeError: it is neither a shipped recipe nor a path.
    """
    shipped = shipped_path(source)
    if shipped is not None:
        return FoundFile(path=shipped, label=shipped.name, name=source)
    if not source:
        raise unreadable("recipe", "no recipe is named")
    if "\n" in source:
        message = "this is text of several lines, not the name or path of a recipe"
        hint = "save it as a file, or give the recipe as plain data"
        raise unreadable("recipe", message, hint)
    if "\0" in source:
        raise unreadable("recipe", "this is neither a name nor a path: it contains a zero byte")
    path = (folder or Path()) / os.path.expanduser(source)
    is_name = os.sep not in source and not source.endswith(_SUFFIXES)
    if is_name and not os.path.exists(path):
        message = f"there is no shipped recipe `{source}`, and no file of that name"
        raise unreadable(source, message, suggestion(source, list_all()))
    return FoundFile(path=path, label=str(path), name=path.stem)
