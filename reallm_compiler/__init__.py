"""reallm: compress language models to an exact size, and get them back.

    import reallm_compiler as reallm

    source = "path/to/checkpoint"
    print(reallm.plan("reallm-2bit", model=source).budget().totals.file_bytes)
    reallm.calibrate(source, text="text.txt", output="model.stats")
    reallm.compile("reallm-2bit", model=source, statistics="model.stats", output="out.reallm")
    model, tokenizer = reallm.load("out.reallm")

Commands of the command line have their functions: `allocate`, `calibrate`, `compile`, `verify`,
`reconstruct`, `export`, `serve`, `eval`, `survey`, `tune` (for `finetune`), `write_report` (for
`report`), `diff`. What they return, what they raise (always a `ReallmError`) and the events that
they report have their names here too.

Importing this package imports neither torch nor transformers: each name brings what it needs
when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from reallm_compiler import distribution
from reallm_compiler.on_import import when_imported
from reallm_compiler.system import check_system

if TYPE_CHECKING:
    from reallm_compiler.calibration.events import CalibrateReport, ChunkDone, Sampled
    from reallm_compiler.calibration.events import Event as CalibrateEvent
    from reallm_compiler.calibration.events import Started as CalibrateStarted
    from reallm_compiler.calibration.run import calibrate
    from reallm_compiler.errors import (
        AdapterError,
        AllocateError,
        CalibrateError,
        CodecError,
        CompileError,
        EvaluationError,
        ExportError,
        FinetuneError,
        FormatError,
        OutputError,
        Problem,
        ReallmError,
        RecipeError,
        RegistryError,
        ResumeError,
        SourceError,
    )
    from reallm_compiler.evaluate.models import evaluate_files as eval
    from reallm_compiler.evaluate.perplexity import Evaluation
    from reallm_compiler.evaluate.survey import survey_model as survey
    from reallm_compiler.evaluate.survey_report import Survey
    from reallm_compiler.execute.events import Checked, CompileReport, FellBack, Preflight
    from reallm_compiler.execute.events import Event as CompileEvent
    from reallm_compiler.execute.run import compile_model as compile
    from reallm_compiler.finetune.events import (
        BatchDone,
        BlockDone,
        FinetuneReport,
        MatricesWritten,
        StepDone,
        TensorsRead,
    )
    from reallm_compiler.finetune.events import Event as FinetuneEvent
    from reallm_compiler.finetune.events import Started as FinetuneStarted
    from reallm_compiler.finetune.options import FinetuneOptions
    from reallm_compiler.finetune.run import finetune as tune
    from reallm_compiler.integrations.export import ExportReport, export
    from reallm_compiler.integrations.serve import Server, serve
    from reallm_compiler.planning.budget import Budget, MatrixBudget, Totals
    from reallm_compiler.planning.build import plan
    from reallm_compiler.planning.model import Plan
    from reallm_compiler.progress import OnProgress, Progress
    from reallm_compiler.reader.archive import ModelArchive
    from reallm_compiler.reader.archive import open_archive as open
    from reallm_compiler.reader.reconstruct import reconstruct
    from reallm_compiler.reader.verify import verify
    from reallm_compiler.recipe.load import load_recipe
    from reallm_compiler.recipe.model import Recipe
    from reallm_compiler.report.difference import Difference, diff
    from reallm_compiler.report.write import WrittenReport, write_report
    from reallm_compiler.runs.events import TaskDone, Training, TriedAgain
    from reallm_compiler.runs.stop import Interrupted
    from reallm_compiler.runtime.kv_cache import kv_cache
    from reallm_compiler.runtime.models import load
    from reallm_compiler.runtime.opening import open_tunable
    from reallm_compiler.runtime.tunable import TunableModel
    from reallm_compiler.search.report import AllocateReport
    from reallm_compiler.search.run import allocate
    from reallm_formats import Damage

__version__ = distribution.VERSION

__all__ = [
    "AdapterError",
    "AllocateError",
    "AllocateReport",
    "BatchDone",
    "BlockDone",
    "Budget",
    "CalibrateError",
    "CalibrateEvent",
    "CalibrateReport",
    "CalibrateStarted",
    "Checked",
    "ChunkDone",
    "CodecError",
    "CompileError",
    "CompileEvent",
    "CompileReport",
    "Damage",
    "Difference",
    "Evaluation",
    "EvaluationError",
    "ExportError",
    "ExportReport",
    "FellBack",
    "FinetuneError",
    "FinetuneEvent",
    "FinetuneOptions",
    "FinetuneReport",
    "FinetuneStarted",
    "FormatError",
    "Interrupted",
    "MatricesWritten",
    "MatrixBudget",
    "ModelArchive",
    "OnProgress",
    "OutputError",
    "Plan",
    "Preflight",
    "Problem",
    "Progress",
    "ReallmError",
    "Recipe",
    "RecipeError",
    "RegistryError",
    "ResumeError",
    "Sampled",
    "Server",
    "SourceError",
    "StepDone",
    "Survey",
    "TaskDone",
    "TensorsRead",
    "Totals",
    "Training",
    "TriedAgain",
    "TunableModel",
    "WrittenReport",
    "__version__",
    "allocate",
    "calibrate",
    "compile",
    "diff",
    "eval",
    "export",
    "kv_cache",
    "load",
    "load_recipe",
    "open",
    "open_tunable",
    "plan",
    "reconstruct",
    "serve",
    "survey",
    "tune",
    "verify",
    "write_report",
]

_HOMES = {
    "AdapterError": ("reallm_compiler.errors", "AdapterError"),
    "AllocateError": ("reallm_compiler.errors", "AllocateError"),
    "AllocateReport": ("reallm_compiler.search.report", "AllocateReport"),
    "BatchDone": ("reallm_compiler.finetune.events", "BatchDone"),
    "BlockDone": ("reallm_compiler.finetune.events", "BlockDone"),
    "Budget": ("reallm_compiler.planning.budget", "Budget"),
    "CalibrateError": ("reallm_compiler.errors", "CalibrateError"),
    "CalibrateEvent": ("reallm_compiler.calibration.events", "Event"),
    "CalibrateReport": ("reallm_compiler.calibration.events", "CalibrateReport"),
    "CalibrateStarted": ("reallm_compiler.calibration.events", "Started"),
    "Checked": ("reallm_compiler.execute.events", "Checked"),
    "ChunkDone": ("reallm_compiler.calibration.events", "ChunkDone"),
    "CodecError": ("reallm_compiler.errors", "CodecError"),
    "CompileError": ("reallm_compiler.errors", "CompileError"),
    "CompileEvent": ("reallm_compiler.execute.events", "Event"),
    "CompileReport": ("reallm_compiler.execute.events", "CompileReport"),
    "Damage": ("reallm_formats", "Damage"),
    "Difference": ("reallm_compiler.report.difference", "Difference"),
    "Evaluation": ("reallm_compiler.evaluate.perplexity", "Evaluation"),
    "EvaluationError": ("reallm_compiler.errors", "EvaluationError"),
    "ExportError": ("reallm_compiler.errors", "ExportError"),
    "ExportReport": ("reallm_compiler.integrations.export", "ExportReport"),
    "FinetuneError": ("reallm_compiler.errors", "FinetuneError"),
    "FinetuneEvent": ("reallm_compiler.finetune.events", "Event"),
    "FinetuneOptions": ("reallm_compiler.finetune.options", "FinetuneOptions"),
    "FinetuneReport": ("reallm_compiler.finetune.events", "FinetuneReport"),
    "FinetuneStarted": ("reallm_compiler.finetune.events", "Started"),
    "FormatError": ("reallm_compiler.errors", "FormatError"),
    "Interrupted": ("reallm_compiler.runs.stop", "Interrupted"),
    "MatricesWritten": ("reallm_compiler.finetune.events", "MatricesWritten"),
    "MatrixBudget": ("reallm_compiler.planning.budget", "MatrixBudget"),
    "ModelArchive": ("reallm_compiler.reader.archive", "ModelArchive"),
    "OnProgress": ("reallm_compiler.progress", "OnProgress"),
    "OutputError": ("reallm_compiler.errors", "OutputError"),
    "Plan": ("reallm_compiler.planning.model", "Plan"),
    "FellBack": ("reallm_compiler.execute.events", "FellBack"),
    "Preflight": ("reallm_compiler.execute.events", "Preflight"),
    "Problem": ("reallm_compiler.errors", "Problem"),
    "Progress": ("reallm_compiler.progress", "Progress"),
    "ReallmError": ("reallm_compiler.errors", "ReallmError"),
    "Recipe": ("reallm_compiler.recipe.model", "Recipe"),
    "RecipeError": ("reallm_compiler.errors", "RecipeError"),
    "RegistryError": ("reallm_compiler.errors", "RegistryError"),
    "ResumeError": ("reallm_compiler.errors", "ResumeError"),
    "Sampled": ("reallm_compiler.calibration.events", "Sampled"),
    "Server": ("reallm_compiler.integrations.serve", "Server"),
    "SourceError": ("reallm_compiler.errors", "SourceError"),
    "StepDone": ("reallm_compiler.finetune.events", "StepDone"),
    "Survey": ("reallm_compiler.evaluate.survey_report", "Survey"),
    "TaskDone": ("reallm_compiler.runs.events", "TaskDone"),
    "TensorsRead": ("reallm_compiler.finetune.events", "TensorsRead"),
    "Totals": ("reallm_compiler.planning.budget", "Totals"),
    "Training": ("reallm_compiler.runs.events", "Training"),
    "TriedAgain": ("reallm_compiler.runs.events", "TriedAgain"),
    "TunableModel": ("reallm_compiler.runtime.tunable", "TunableModel"),
    "WrittenReport": ("reallm_compiler.report.write", "WrittenReport"),
    "allocate": ("reallm_compiler.search.run", "allocate"),
    "calibrate": ("reallm_compiler.calibration.run", "calibrate"),
    "compile": ("reallm_compiler.execute.run", "compile_model"),
    "diff": ("reallm_compiler.report.difference", "diff"),
    "eval": ("reallm_compiler.evaluate.models", "evaluate_files"),
    "export": ("reallm_compiler.integrations.export", "export"),
    "kv_cache": ("reallm_compiler.runtime.kv_cache", "kv_cache"),
    "load": ("reallm_compiler.runtime.models", "load"),
    "load_recipe": ("reallm_compiler.recipe.load", "load_recipe"),
    "open": ("reallm_compiler.reader.archive", "open_archive"),
    "open_tunable": ("reallm_compiler.runtime.opening", "open_tunable"),
    "plan": ("reallm_compiler.planning.build", "plan"),
    "reconstruct": ("reallm_compiler.reader.reconstruct", "reconstruct"),
    "serve": ("reallm_compiler.integrations.serve", "serve"),
    "survey": ("reallm_compiler.evaluate.survey", "survey_model"),
    "tune": ("reallm_compiler.finetune.run", "finetune"),
    "verify": ("reallm_compiler.reader.verify", "verify"),
    "write_report": ("reallm_compiler.report.write", "write_report"),
}
"""Where each name is: a module, and the name there."""


def _register_with_transformers() -> None:
    """Let `from_pretrained` read what `reallm export --to hf` writes."""
    from reallm_compiler.integrations.hf import register

    register()


when_imported("transformers.quantizers.auto", _register_with_transformers)


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check_system()
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    """The public names, and those that every module has."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
