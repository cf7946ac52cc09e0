"""reallm: compress language models to an exact size, and get them back.

    import reallm_compiler as reallm

    plan = reallm.plan("reallm-2bit", model="path/to/checkpoint")
    print(plan.budget().totals.file_bytes)
    reallm.compile("reallm-2bit", model="path/to/checkpoint", output="out.reallm")
    model, tokenizer = reallm.load("out.reallm")

Importing this package imports neither torch nor transformers: each name brings what it needs
when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from reallm_compiler.system import check_system

if TYPE_CHECKING:
    from reallm_compiler.execute.run import compile_model as compile
    from reallm_compiler.finetune.run import finetune as tune
    from reallm_compiler.plan.build import plan
    from reallm_compiler.reader.archive import open_archive as open
    from reallm_compiler.reader.reconstruct import reconstruct
    from reallm_compiler.recipe import load_recipe
    from reallm_compiler.runtime import load, open_tunable

__all__ = [
    "compile",
    "load",
    "load_recipe",
    "open",
    "open_tunable",
    "plan",
    "reconstruct",
    "tune",
]

_HOMES = {
    "compile": ("reallm_compiler.execute.run", "compile_model"),
    "load": ("reallm_compiler.runtime.models", "load"),
    "load_recipe": ("reallm_compiler.recipe", "load_recipe"),
    "open": ("reallm_compiler.reader.archive", "open_archive"),
    "open_tunable": ("reallm_compiler.runtime.tunable", "open_tunable"),
    "reconstruct": ("reallm_compiler.reader.reconstruct", "reconstruct"),
    "tune": ("reallm_compiler.finetune.run", "finetune"),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name == "plan":  # a room that can be called, so that both meanings of the name hold
        return importlib.import_module("reallm_compiler.plan")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check_system()
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)
