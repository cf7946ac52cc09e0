"""`reallm survey`: what the matrices of a model look like, and which recipe fits which."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from reallm_cli.commands.compile import CompileReporter
from reallm_cli.exit_codes import ExitCode
from reallm_cli.help import ExampleCommand
from reallm_cli.mistakes import check_recipe_path
from reallm_cli.options import cost_option
from reallm_cli.progress import ProgressBar
from reallm_cli.survey_view import show_survey
from reallm_cli.terminal import Terminal

if TYPE_CHECKING:
    from reallm_compiler.execute.events import Event


@click.command(
    "survey",
    cls=ExampleCommand,
    short_help="Show which recipe fits which matrix.",
    examples=[
        (
            "reallm survey path/to/model",
            "spectrum, outliers and structure of each matrix, and what fits it",
        ),
        (
            "reallm survey path/to/model --only '*.layers.0.*' --recipe nf3 --recipe mine.yaml",
            "the same for one layer, with the measured error of two recipes",
        ),
        (
            "reallm survey path/to/model --recipe reallm-2bit-data-free --plots pictures --json",
            "for scripts, with spectrum.png, structure.png and error.png in a folder",
        ),
    ],
)
@click.argument("model", metavar="MODEL")
@click.option(
    "--recipe",
    "recipes",
    multiple=True,
    metavar="RECIPE",
    help="Try this recipe too: its exact bits and its measured error. May be given many times.",
)
@click.option("--only", metavar="PATTERN", help="Only the matrices whose names match.")
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="DEVICE",
    help="Where the work is done: auto, cpu, cuda or cuda:N.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes that try a recipe.  [default: by size, cores and memory]",
)
@cost_option
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
@click.option("--plots", metavar="FOLDER", help="Draw the numbers as pictures into a folder.")
@click.pass_obj
def survey_command(
    terminal: Terminal,
    model: str,
    recipes: tuple[str, ...],
    only: str | None,
    device: str,
    workers: int | None,
    allow_cost: bool,
    as_json: bool,
    plots: str | None,
) -> int:
    """Look at the matrices of a model one by one, and try recipes on them.

    Each number stands beside what white noise, or the same rows in random order, would give.
    Recipes are compared at equal exact bits: `gap` is how many bits per weight a recipe takes
    more than the best coder of white noise needs for the same error; less is better. Nothing is
    written but the pictures.
    """
    for recipe in recipes:
        check_recipe_path(recipe)
    from reallm_compiler.evaluate.survey import survey_model

    if plots is not None:
        from reallm_compiler.evaluate.charts import check_charts

        check_charts(plots)  # before the work
    with _SurveyReporter(terminal) as reporter:
        survey = survey_model(
            model,
            recipes=recipes,
            only=only,
            device=device,
            workers=workers,
            progress=reporter.on_matrix,
            on_recipe=reporter.on_recipe,
            allow_cost=allow_cost,
        )
    if plots is not None:
        from reallm_compiler.evaluate.charts import draw_survey

        for path in draw_survey(plots, survey):
            terminal.log(f"drew `{path}`")
    if as_json:
        terminal.json(survey.to_json())
    else:
        show_survey(terminal, survey)
    return ExitCode.OK


class _SurveyReporter(ExitStack):
    """Shows the progress of a survey on stderr: recipe after recipe, then the matrices."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal
        self._bar: ProgressBar | None = None

    def on_recipe(self, recipe: str) -> Callable[[Event], None]:
        """The callback for the events of the trial of a recipe."""
        self.close()
        self._bar = None
        self._terminal.log(f"recipe  {recipe}")
        return self.enter_context(CompileReporter(self._terminal)).on_event

    def on_matrix(self, done: int, total: int) -> None:
        """Update the number of matrices that were measured."""
        if self._bar is None:
            self.close()
            bar = ProgressBar(self._terminal, "survey", total=total, unit="matrices", work=total)
            self._bar = self.enter_context(bar)
        self._bar.update(done, done)
