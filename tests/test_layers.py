"""The layers: imports go down only, packages of one layer are strangers, torch starts at codecs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LAYERS = {
    "reallm_formats": 0,
    "reallm_compiler.distribution": 1,
    "reallm_compiler.errors": 1,
    "reallm_compiler.hints": 1,
    "reallm_compiler.numbers": 1,
    "reallm_compiler.tensors": 1,
    "reallm_compiler.units": 1,
    "reallm_compiler.system": 1,
    "reallm_compiler.publish": 2,
    "reallm_compiler.on_import": 2,
    "reallm_compiler.progress": 2,
    "reallm_compiler.demo": 2,
    "reallm_compiler.stages": 2,
    "reallm_compiler.recipe": 3,
    "reallm_compiler.storage": 3,
    "reallm_compiler.checkpoint": 3,
    "reallm_compiler.prepare": 4,
    "reallm_compiler.planning": 5,
    "reallm_compiler.codecs": 6,
    "reallm_compiler.kernels": 7,
    "reallm_compiler.models": 7,
    "reallm_compiler.runs": 7,
    "reallm_compiler.calibration": 8,
    "reallm_compiler.execute": 8,
    "reallm_compiler.reader": 8,
    "reallm_compiler.runtime": 9,
    "reallm_compiler.finetune": 10,
    "reallm_compiler.evaluate": 10,
    "reallm_compiler.report": 11,
    "reallm_compiler.search": 11,
    "reallm_compiler.estimates": 11,
    "reallm_compiler.integrations": 12,
    "reallm_cli": 13,
}

LIBRARIES = {
    "torch": 6,
    "transformers": 8,
    "safetensors": 7,
    "click": 13,
    "rich": 13,
    "peft": 10,
    "lm_eval": 10,
    "matplotlib": 10,
    "triton": 7,
    "vllm": 12,
}
"""The lowest layer that may import a library at the top of a file."""


def package_of(module: str) -> str | None:
    """The package that a module belongs to, or None if it is not ours."""
    for package in sorted(LAYERS, key=len, reverse=True):
        if module == package or module.startswith(package + "."):
            return package
    return None


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] in ("formats", "cli"):
        parts = parts[1:]
    return ".".join(part for part in parts if part != "__init__")


def sources() -> list[Path]:
    found = [
        path
        for folder in ("reallm_compiler", "formats/reallm_formats", "cli/reallm_cli")
        for path in (ROOT / folder).rglob("*.py")
        if "_recipes" not in path.parts and "_demo" not in path.parts
    ]
    return sorted(found)


def imports(tree: ast.AST, *, top_only: bool) -> set[str]:
    """Modules that a file imports; those under `if TYPE_CHECKING` count only for our packages."""
    found: set[str] = set()
    nodes = ast.walk(tree) if not top_only else iter(getattr(tree, "body", []))
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def breaches(module: str, text: str) -> list[str]:
    """What a file of this name and text does that the layers forbid."""
    package = package_of(module)
    if package is None:  # the package's own lazy interface may name every package
        return []
    tree = ast.parse(text)
    found = []
    for name in imports(tree, top_only=False):
        other = package_of(name)
        if other is None or other == package:
            continue
        if LAYERS[other] >= LAYERS[package]:
            found.append(f"{module} ({LAYERS[package]}) imports {name} ({LAYERS[other]})")
    for name in imports(tree, top_only=True):
        library = name.split(".")[0]
        if library in LIBRARIES and LAYERS[package] < LIBRARIES[library]:
            found.append(f"{module} ({LAYERS[package]}) imports {library}")
    return found


def test_there_is_something_to_hold() -> None:
    packages = {package_of(module_of(path)) for path in sources()}
    assert {
        "reallm_formats",
        "reallm_compiler.planning",
        "reallm_compiler.codecs",
        "reallm_cli",
    } <= (packages)


@pytest.mark.parametrize("path", sources(), ids=lambda path: module_of(path))
def test_imports_go_down_only(path: Path) -> None:
    assert breaches(module_of(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("reallm_compiler.planning.x", "from reallm_compiler.codecs import vq"),
        ("reallm_compiler.storage.x", "import torch"),
        ("reallm_compiler.execute.x", "def f():\n    from reallm_compiler.reader import archive"),
        ("reallm_compiler.recipe.x", "import reallm_compiler.storage.vq"),
        ("reallm_formats.x", "from reallm_compiler.units import ceil_div"),
        ("reallm_compiler.codecs.x", "from rich import print"),
    ],
)
def test_a_breach_is_seen(module: str, text: str) -> None:
    assert len(breaches(module, text)) == 1


def test_source_roots_are_no_packages() -> None:
    assert not (ROOT / "formats/__init__.py").exists()
    assert not (ROOT / "cli/__init__.py").exists()


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def import_graph() -> dict[str, set[str]]:
    """For each module those of ours that it imports, wherever in its text."""
    modules = {module_of(path): path for path in sources()}
    graph = {}
    for module, path in modules.items():
        names = imports(ast.parse(path.read_text(encoding="utf-8")), top_only=False)
        # `from package import name` names a module or something inside the package.
        found = {name if name in modules else name.rpartition(".")[0] for name in names}
        graph[module] = {name for name in found if name in modules and name != module}
    return graph


def test_no_module_imports_itself_through_others() -> None:
    graph = import_graph()
    graph.pop("reallm_compiler", None)  # the interface names what it brings when it is asked for
    assert circles({node: others - {"reallm_compiler"} for node, others in graph.items()}) == []


def test_a_circle_is_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_the_readme_draws_the_layers() -> None:
    """Each package and its layer; single files of `reallm_compiler` are not drawn."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    drawn = {
        name.rstrip("/").rpartition("/")[2]: int(level)
        for names, level in re.findall(r"^ {4,6}(\S.*?/)  +(\d+)  ", text, re.MULTILINE)
        for name in names.split()
    }
    packages = {
        name.rpartition(".")[2]: layer
        for name, layer in LAYERS.items()
        if "." not in name or (ROOT / name.replace(".", "/")).is_dir()
    }
    assert drawn == packages
