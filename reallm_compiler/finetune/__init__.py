"""Tuning the low-rank part: block by block, then end to end; the coded part never changes.

`finetune` runs it all, and so does the package when it is called; `estimate` gives the memory
before; `peft_layout` exchanges adapters with peft. Nothing is printed here.
"""

from reallm_compiler.finetune.events import (
    BatchDone,
    BlockDone,
    Event,
    FinetuneReport,
    MatricesWritten,
    Started,
    StepDone,
    TensorsRead,
)
from reallm_compiler.finetune.memory import MemoryEstimate, estimate
from reallm_compiler.finetune.options import BlockOptions, EndToEndOptions, FinetuneOptions
from reallm_compiler.finetune.run import finetune

__all__ = [
    "BatchDone",
    "BlockDone",
    "BlockOptions",
    "EndToEndOptions",
    "Event",
    "FinetuneOptions",
    "FinetuneReport",
    "MatricesWritten",
    "MemoryEstimate",
    "Started",
    "StepDone",
    "TensorsRead",
    "estimate",
    "finetune",
]
