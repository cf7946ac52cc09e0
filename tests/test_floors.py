"""The floors: imports go down only, rooms on one floor are strangers, torch starts at codecs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FLOORS = {
    "reallm_formats": 0,
    "reallm_compiler.callable_package": 1,
    "reallm_compiler.distribution": 1,
    "reallm_compiler.errors": 1,
    "reallm_compiler.tensors": 1,
    "reallm_compiler.units": 1,
    "reallm_compiler.system": 1,
    "reallm_compiler.publish": 2,
    "reallm_compiler.progress": 2,
    "reallm_compiler.demo": 2,
    "reallm_compiler.recipe": 2,
    "reallm_compiler.storage": 2,
    "reallm_compiler.checkpoint": 2,
    "reallm_compiler.planning": 3,
    "reallm_compiler.codecs": 4,
    "reallm_compiler.calibrate": 5,
    "reallm_compiler.execute": 6,
    "reallm_compiler.reader": 6,
    "reallm_compiler.runtime": 7,
    "reallm_compiler.finetune": 8,
    "reallm_compiler.evaluate": 8,
    "reallm_cli": 9,
}

NEIGHBOURS = {("reallm_compiler.storage", "reallm_compiler.recipe")}
"""The one exception: a size law is a function of the recipe's stage models."""

LIBRARIES = {
    "torch": 4,
    "transformers": 6,
    "safetensors": 6,
    "click": 9,
    "rich": 9,
    "peft": 8,
    "lm_eval": 8,
    "matplotlib": 8,
}
"""The lowest floor that may import a library at the top of a file."""


def room_of(module: str) -> str | None:
    """The room that a module belongs to, or None if it is not ours."""
    for room in sorted(FLOORS, key=len, reverse=True):
        if module == room or module.startswith(room + "."):
            return room
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
    """Modules that a file imports; those under `if TYPE_CHECKING` count only for our rooms."""
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
    """What a file of this name and text does that the floors forbid."""
    room = room_of(module)
    if room is None:  # the package's own lazy front door may name every room
        return []
    tree = ast.parse(text)
    found = []
    for name in imports(tree, top_only=False):
        other = room_of(name)
        if other is None or other == room or (room, other) in NEIGHBOURS:
            continue
        if FLOORS[other] >= FLOORS[room]:
            found.append(f"{module} ({FLOORS[room]}) imports {name} ({FLOORS[other]})")
    for name in imports(tree, top_only=True):
        library = name.split(".")[0]
        if library in LIBRARIES and FLOORS[room] < LIBRARIES[library]:
            found.append(f"{module} ({FLOORS[room]}) imports {library}")
    return found


def test_there_is_something_to_hold() -> None:
    rooms = {room_of(module_of(path)) for path in sources()}
    assert {
        "reallm_formats",
        "reallm_compiler.planning",
        "reallm_compiler.codecs",
        "reallm_cli",
    } <= (rooms)


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
