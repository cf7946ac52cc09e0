"""`reallm budget --time`: what the steps take in hours, memory, bytes and money on some nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from reallm_cli.exit_codes import ExitCode
from reallm_cli.mistakes import CommandLineError
from reallm_cli.tables import Sheet, show_sheet
from reallm_cli.terminal import Terminal
from reallm_compiler.estimates.nodes import Machine
from reallm_compiler.numbers import size_text
from reallm_compiler.planning.model import Plan

if TYPE_CHECKING:
    from reallm_compiler.estimates.steps import Step

NODES = (1, 8, 64)
UNKNOWN = "not measured"
DEFAULT = Machine()


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """What was asked of the time.

    Attributes:
        wanted: `--time`.
        nodes: numbers of nodes.
        machine: each of them.
    """

    wanted: bool
    nodes: tuple[int, ...]
    machine: Machine


def time_options(command: Callable[..., int]) -> Callable[..., int]:
    """The options of `--time`, given to the command as `timing`."""

    @click.option("--time", "wanted", is_flag=True, help="Show hours, memory, bytes and money.")
    @click.option(
        "--nodes",
        multiple=True,
        type=click.IntRange(1, 4096),
        metavar="N",
        help="With --time: on so many nodes; repeatable; 1, 8 and 64 if not given.",
    )
    @click.option(
        "--cores",
        type=click.IntRange(1, 4096),
        default=DEFAULT.cores,
        show_default=True,
        metavar="N",
        help="With --time: cores of a node.",
    )
    @click.option(
        "--memory",
        type=click.FloatRange(min=0, min_open=True),
        default=DEFAULT.memory / 1e9,
        show_default=True,
        metavar="GB",
        help="With --time: memory of a node.",
    )
    @click.option(
        "--price-cpu",
        type=click.FloatRange(min=0),
        default=DEFAULT.core_price,
        show_default=True,
        metavar="DOLLARS",
        help="With --time: for a core and an hour.",
    )
    @click.option(
        "--price-gpu",
        type=click.FloatRange(min=0),
        default=DEFAULT.gpu_price,
        show_default=True,
        metavar="DOLLARS",
        help="With --time: for a GPU and an hour.",
    )
    @click.option(
        "--assume-gpu",
        type=click.FloatRange(min=0, min_open=True),
        metavar="TFLOPS",
        help="With --time: what a GPU is assumed to do, since none was measured.",
    )
    @wraps(command)
    def run(
        *args: Any,  # noqa: ANN401
        wanted: bool,
        nodes: tuple[int, ...],
        cores: int,
        memory: float,
        price_cpu: float,
        price_gpu: float,
        assume_gpu: float | None,
        **kwargs: Any,  # noqa: ANN401
    ) -> int:
        for option, given in (("--nodes", nodes), ("--assume-gpu", assume_gpu)):
            if given and not wanted:
                raise CommandLineError(
                    f"`{option}` is about time, which is not asked for", hint="add `--time`"
                )
        machine = Machine(
            cores=cores,
            memory=int(memory * 1e9),
            core_price=price_cpu,
            gpu_price=price_gpu,
            gpu_flops=None if assume_gpu is None else assume_gpu * 1e12,
        )
        timing = Timing(wanted=wanted, nodes=nodes or NODES, machine=machine)
        return command(*args, timing=timing, **kwargs)

    return run


def show_time(
    terminal: Terminal,
    plan: Plan,
    config: Mapping[str, Any] | None,
    timing: Timing,
    *,
    as_json: bool,
) -> int:
    """The table of the steps, and what it rests on."""
    from reallm_compiler.estimates.rates import measured_rates
    from reallm_compiler.estimates.steps import steps

    rates, machine = measured_rates(), timing.machine
    found = steps(plan, config, timing.nodes, machine, rates)
    if as_json:
        terminal.json(
            {
                "steps": [step.to_json() for step in found],
                "machine": {**asdict(machine), "measured_on": rates.machine},
                "points": len(rates.points),
            }
        )
        return ExitCode.OK
    columns = [
        *("<step", "nodes", "workers", "core hours", "hours", "GPU hours", "memory of a node"),
        *("disk", "network", "dollars"),
    ]
    if machine.gpu_flops is not None:
        columns.append("GPU dollars")
    show_sheet(
        terminal, Sheet(columns=columns, rows=[row_of(step)[: len(columns)] for step in found])
    )
    for line in basis(found, timing, rates.machine, len(rates.points)):
        terminal.data(line)
    if config is None:
        terminal.data("this model has no config: what runs it is not counted, a compile alone is")
    return ExitCode.OK


def row_of(step: Step) -> tuple[str, ...]:
    """A step as a row of the table."""
    return (
        step.name,
        str(step.nodes),
        f"{step.workers:,}",
        amount(step.cpu_hours),
        amount(step.hours),
        amount(step.gpu_hours),
        memory_text(step),
        size_text(step.disk_bytes),
        size_text(step.network_bytes) if step.network_bytes else "0",
        amount(step.dollars),
        amount(step.gpu_dollars),
    )


def memory_text(step: Step) -> str:
    """The memory of a node, with a mark where it has less."""
    return size_text(step.memory_bytes) + ("" if step.fits else " (too much)")


def amount(value: float | None) -> str:
    """A number with three digits that count; a word where nothing was measured."""
    if value is None:
        return UNKNOWN
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def basis(found: list[Step], timing: Timing, measured_on: str, points: int) -> list[str]:
    """What the numbers rest on."""
    machine = timing.machine
    lines = [
        f"rates of one core from {points} timings ({measured_on}); at larger sizes they are "
        "extrapolated by the operations of each kind",
        f"a node: {machine.cores} cores, {size_text(machine.memory)}; a core and an hour: "
        f"{machine.core_price:g} dollars, idle ones too (prices are assumptions: give your own)",
    ]
    if machine.gpu_flops is None:
        lines.append(
            "GPU hours: no GPU was measured; `--assume-gpu TFLOPS` reckons what runs the model"
        )
    else:
        lines.append(
            f"GPU hours: an assumption of {machine.gpu_flops / 1e12:g} TFLOPS, not measured, at "
            f"{machine.gpu_price:g} dollars an hour, for what runs the model; coding on a GPU: "
            f"{UNKNOWN}"
        )
    missing = sorted({name for step in found for name in step.unmeasured})
    if missing:
        lines.append(f"{UNKNOWN}: {', '.join(missing)}")
    return lines
