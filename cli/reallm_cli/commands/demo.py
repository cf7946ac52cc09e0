"""`reallm demo`: the main job from end to end on the model that comes with reallm."""

from __future__ import annotations

import tempfile
import textwrap
from fractions import Fraction
from pathlib import Path
from typing import Any

import click

from reallm_cli.commands.calibrate import CalibrateReporter, report_lines
from reallm_cli.commands.compile import CompileReporter
from reallm_cli.exit_codes import ExitCode
from reallm_cli.help import ExampleCommand
from reallm_cli.libraries import quiet_libraries
from reallm_cli.mistakes import check_recipe_path
from reallm_cli.opened import open_facts
from reallm_cli.progress import ProgressBar
from reallm_cli.tables import Sheet, show_sheet
from reallm_cli.terminal import Terminal
from reallm_cli.views import differences, show_sizes
from reallm_compiler.numbers import bits_text, counted, duration_text, grouped
from reallm_compiler.planning.opened import Opened
from reallm_formats import BITS

RECIPE = "reallm-2bit"
SAMPLES = 128
WINDOW = 256
"""Sequences that statistics are measured on, and tokens of each."""

NEW_TOKENS = 64
PROMPT_WORDS = 24
"""Words of the prompt, at least: its last line is whole."""

SHOWN_WIDTH = 96


@click.command(
    "demo",
    cls=ExampleCommand,
    short_help="Compile, verify and measure the bundled model.",
    examples=[
        ("reallm demo", "calibrate, compile, verify, measure and try the bundled model"),
        ("reallm demo --recipe reallm-2bit-data-free", "the same bits without statistics"),
        ("reallm demo -o demo.reallm", "keep the archive, to `inspect` it afterwards"),
    ],
)
@click.option(
    "--recipe", default=RECIPE, show_default=True, metavar="RECIPE", help="Shipped name or file."
)
@click.option("-o", "--output", metavar="FILE", help="Keep the archive here.")
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@click.pass_obj
def demo(terminal: Terminal, recipe: str, output: str | None, force: bool) -> int:
    """Compile the bundled model, verify the file, and show what it lost.

    A recipe that needs statistics gets them from text that the model writes itself. Prints the
    budget beside the stored bytes, the perplexity on held-out text before and after, and a few
    lines that the original and the compressed model write. Takes about a minute.
    """
    check_recipe_path(recipe)
    from reallm_compiler.demo import find_demo

    bundled = find_demo()
    model = str(bundled.model)
    with tempfile.TemporaryDirectory(prefix="reallm-demo-", ignore_cleanup_errors=True) as folder:
        archive = output if output is not None else str(Path(folder) / "demo.reallm")
        statistics = _calibrate(terminal, recipe, model, Path(folder) / "demo.stats")
        terminal.log(f"compiling the bundled model with `{recipe}`")
        if _compile_and_check(terminal, recipe, model, archive, statistics, force=force):
            return ExitCode.DAMAGED
        _measure(terminal, model, archive, bundled.heldout)
        if output is not None:
            terminal.log()
            terminal.log(f"the archive is `{output}`; next: `reallm inspect {output}`")
        else:
            terminal.log()
            terminal.log("next: `reallm demo -o demo.reallm`, then `reallm inspect demo.reallm`")
    return ExitCode.OK


def _calibrate(terminal: Terminal, recipe: str, model: str, output: Path) -> Path | None:
    """The statistics that a recipe needs, on the model's own text; None if it needs none."""
    from reallm_compiler.recipe import load_recipe

    if load_recipe(recipe).statistics != "required":
        return None
    from reallm_compiler.calibration.run import calibrate

    quiet_libraries()
    terminal.log("measuring the bundled model's statistics on text that it writes itself")
    with CalibrateReporter(terminal) as reporter:
        report = calibrate(
            model,
            output=output,
            own_text=True,
            samples=SAMPLES,
            window=WINDOW,
            on_event=reporter.on_event,
        )
    for line in report_lines(report):
        terminal.data(line)
    terminal.log(f"measured in {duration_text(report.seconds)}")
    return output


def _compile_and_check(
    terminal: Terminal,
    recipe: str,
    model: str,
    archive: str,
    statistics: Path | None,
    *,
    force: bool,
) -> bool:
    """Compile and verify; whether the file is damaged."""
    from reallm_compiler.execute.run import compile_model
    from reallm_compiler.reader.verify import verify

    with CompileReporter(terminal) as reporter:
        report = compile_model(
            recipe,
            model=model,
            output=archive,
            statistics=statistics,
            force=force,
            on_event=reporter.on_event,
        )
    terminal.log(f"compiled in {duration_text(report.seconds)}")
    damages = verify(archive)
    for damage in damages:
        terminal.data(terminal.text(f"damaged: {damage.location}: {damage.message}"))
    if damages:
        return True
    opened = open_facts(archive)
    sizes = opened.plan.budget()
    show_sizes(terminal, opened.plan, sizes, errors=opened.errors, stored=opened.stored)
    found = differences(sizes, opened.stored)
    for line in found or ["planned and stored bytes agree"]:
        terminal.data(line)
    sections = counted(len(opened.manifest.sections), "section")
    terminal.data(f"intact: {sections}, {counted(opened.stored.file, 'byte')}")
    original = sum(path.stat().st_size for path in Path(model).iterdir() if path.is_file())
    terminal.data(
        f"the original's folder has {grouped(original)} bytes; the coded weights went from "
        f"{_source_bits(opened)} to {bits_text(sizes.totals.exact_bits)} bits each"
    )
    return bool(found)


def _source_bits(opened: Opened) -> str:
    """Bits per weight that the coded matrices had in the checkpoint."""
    bits = sum(matrix.numel * BITS[matrix.dtype] for matrix in opened.plan.matrices)
    return bits_text(Fraction(bits, sum(matrix.numel for matrix in opened.plan.matrices)))


def _measure(terminal: Terminal, model: str, archive: str, heldout: Path) -> None:
    """Perplexity before and after, and a few lines of each."""
    from reallm_compiler.evaluate import evaluate, load_for_evaluation, read_text

    quiet_libraries()
    text = read_text(heldout)
    before, tokenizer = load_for_evaluation(model)
    after, _ = load_for_evaluation(archive)
    bar = ProgressBar(terminal, "eval", total=1, unit="windows", work=1)
    with bar:
        result = evaluate(after, tokenizer, text, reference=before, progress=bar.retarget)
    sheet = Sheet(
        columns=["<held-out text", "perplexity", "KL to the original"],
        rows=[
            ("original", f"{result.reference_perplexity:.4f}", ""),
            ("compressed", f"{result.perplexity:.4f}", f"{result.kl:.4f} nats per token"),
        ],
    )
    terminal.data()
    show_sheet(terminal, sheet)
    prompt = demo_prompt(text)
    terminal.data()
    _show_text(terminal, "prompt", prompt)
    _show_text(terminal, "original continuation", _continue(before, tokenizer, prompt))
    _show_text(terminal, "compressed continuation", _continue(after, tokenizer, prompt))


def demo_prompt(text: str) -> str:
    """A fixed beginning from the text: the first lines of its first story."""
    chosen: list[str] = []
    for line in text.strip().splitlines():
        chosen.append(line)
        if sum(len(part.split()) for part in chosen) >= PROMPT_WORDS:
            break
    return "\n".join(chosen)


def _continue(model: Any, tokenizer: Any, prompt: str) -> str:  # noqa: ANN401
    """What the model writes next, always its likeliest token."""
    inputs = tokenizer(prompt, return_tensors="pt")
    written = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=tokenizer.eos_token_id,
    )
    fresh = written[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(fresh, skip_special_tokens=True))


def _show_text(terminal: Terminal, title: str, text: str) -> None:
    terminal.data(terminal.text(title, style="bold"))
    for line in text.strip().splitlines():
        for part in textwrap.wrap(line, SHOWN_WIDTH) or [""]:
            terminal.data(terminal.text(f"  {part}"))
