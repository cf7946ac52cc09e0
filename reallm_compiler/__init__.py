"""reallm: compress language models to an exact size, and get them back.

    import reallm_compiler as reallm

    plan = reallm.plan("reallm-2bit", model="path/to/checkpoint")
    print(plan.budget().totals.file_bytes)
    reallm.compile("reallm-2bit", model="path/to/checkpoint", output="out.reallm")
    model, tokenizer = reallm.load("out.reallm")

Commands of the command line have their functions: `calibrate`, `compile`, `verify`,
`reconstruct`, `eval`, `survey`, `tune` (for `finetune`). All mistakes are raised as `ReallmError`.

Importing this package imports neither torch nor transformers: each name brings what it needs
when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from reallm_compiler import distribution
from reallm_compiler.system import check_system

if TYPE_CHECKING:
    from reallm_compiler.calibration.run import calibrate
    from reallm_compiler.errors import ReallmError
    from reallm_compiler.evaluate.models import evaluate_files as eval
    from reallm_compiler.evaluate.survey import survey_model as survey
    from reallm_compiler.execute.run import compile_model as compile
    from reallm_compiler.finetune.run import finetune as tune
    from reallm_compiler.planning.build import plan
    from reallm_compiler.reader.archive import open_archive as open
    from reallm_compiler.reader.reconstruct import reconstruct
    from reallm_compiler.reader.verify import verify
    from reallm_compiler.recipe import load_recipe
    from reallm_compiler.runtime import load, open_tunable

__version__ = distribution.VERSION

__all__ = [
    "ReallmError",
    "__version__",
    "calibrate",
    "compile",
    "eval",
    "load",
    "load_recipe",
    "open",
    "open_tunable",
    "plan",
    "reconstruct",
    "survey",
    "tune",
    "verify",
]

_HOMES = {
    "ReallmError": ("reallm_compiler.errors", "ReallmError"),
    "calibrate": ("reallm_compiler.calibration.run", "calibrate"),
    "compile": ("reallm_compiler.execute.run", "compile_model"),
    "eval": ("reallm_compiler.evaluate.models", "evaluate_files"),
    "load": ("reallm_compiler.runtime.models", "load"),
    "load_recipe": ("reallm_compiler.recipe", "load_recipe"),
    "open": ("reallm_compiler.reader.archive", "open_archive"),
    "open_tunable": ("reallm_compiler.runtime.tunable", "open_tunable"),
    "plan": ("reallm_compiler.planning.build", "plan"),
    "reconstruct": ("reallm_compiler.reader.reconstruct", "reconstruct"),
    "survey": ("reallm_compiler.evaluate.survey", "survey_model"),
    "tune": ("reallm_compiler.finetune.run", "finetune"),
    "verify": ("reallm_compiler.reader.verify", "verify"),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check_system()
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    """The public names, and those that every module has."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
