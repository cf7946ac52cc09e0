"""The events of a calibration, and its report: plain values, no printing."""

from __future__ import annotations

from dataclasses import dataclass

from reallm_compiler.runs.events import Checked, TaskDone, TriedAgain

__all__ = [
    "CalibrateReport",
    "Checked",
    "ChunkDone",
    "Event",
    "Sampled",
    "Started",
    "TaskDone",
    "TriedAgain",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """What is known before the first pass.

    Attributes:
        matrices: matrices that are measured.
        left_out: matrices that the text does not reach or that are no parameters of the model.
        sequences, tokens: of the text; predicted tokens.
        blocks: blocks of the model; 0 if it is run as a whole.
        file_bytes: length that the file will have.
        disk_bytes: bytes on disk at the peak, with hidden states.
        disk_free_bytes: free bytes where the file is written.
        memory_bytes: estimated peak memory.
        memory_free_bytes: memory that is free on the machine, or None if that is unknown.
        device: `cpu`, or the name of the GPU.
        workers: threads that run chunks of tokens at once.
        tasks, tasks_done: passes in all, and those that an interrupted run has finished.
        notes: what the user should know.
    """

    matrices: int
    left_out: tuple[str, ...]
    sequences: int
    tokens: int
    blocks: int
    file_bytes: int
    disk_bytes: int
    disk_free_bytes: int
    memory_bytes: int
    memory_free_bytes: int | None
    device: str
    workers: int
    tasks: int
    tasks_done: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampled:
    """So many tokens of the model's own text are drawn, of so many."""

    tokens_done: int
    tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkDone:
    """One more chunk of sequences went through one more pass: so many steps of so many are done."""

    steps_done: int
    steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrateReport:
    """What a calibration made.

    Attributes:
        path: the file.
        file_bytes: its length.
        matrices: matrices that were measured.
        sequences, tokens: of the text; predicted tokens.
        left_out: matrices that are not in the file.
        unreached: matrices that no token reached.
        few: matrices that fewer tokens reached than they have inputs, with the tokens.
        not_finite: matrices of which tokens were left out, with their number.
        dead: matrices with inputs that were always zero, with their number.
        seconds: wall time of this run.
        tasks_resumed: passes that an interrupted run had finished.
    """

    path: str
    file_bytes: int
    matrices: int
    sequences: int
    tokens: int
    left_out: tuple[str, ...]
    unreached: tuple[str, ...]
    few: dict[str, int]
    not_finite: dict[str, int]
    dead: dict[str, int]
    seconds: float
    tasks_resumed: int


Event = Started | Sampled | Checked | ChunkDone | TaskDone | TriedAgain
