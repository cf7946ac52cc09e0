"""Table 3: zero-shot accuracy through lm-eval (extra `tasks`), from a folder of local task files.

python studies/paper/table_3.py --tasks-folder DIR [--task arc_easy_local ...] [--tuned] \\
    [--archive "nf4=nf4.reallm" ...]

The folder holds YAML files of tasks with data that is at hand; docs/paper-tables.md shows two. All
of its tasks are run unless some are named. A task whose name begins with one of the paper's
(`arc_easy_local`) stands beside the paper's figures. Accuracy is `acc`, as in the paper, not
`acc_norm`. Each --archive is a further row.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

from reallm_compiler.distribution import install_command
from studies.paper.common import Study, exact_bits, options, reallm_recipe, table

COLUMNS = ["arc_challenge", "arc_easy", "piqa", "winogrande"]
# method, size, bits, accuracies of COLUMNS and their mean in the paper
PAPER = [
    ("LLaMA-2", "7B", 16, [43.52, 76.26, 78.07, 69.22, 66.77]),
    ("AQLM", "7B", 2, [33.55, 62.79, 73.54, 64.61, 58.62]),
    ("Quip#", "7B", 2, [34.63, 64.60, 75.12, 64.89, 59.81]),
    ("ReALLM", "7B", 2, [35.15, 68.56, 75.73, 66.46, 61.47]),
    ("LLaMA-2", "13B", 16, [48.32, 78.48, 80.01, 72.13, 69.74]),
    ("AQLM", "13B", 3, [43.63, 73.51, 77.78, 67.56, 65.62]),
    ("Quip#", "13B", 3, [44.02, 72.45, 78.40, 69.13, 66.00]),
    ("ReALLM", "13B", 3, [47.01, 75.96, 78.67, 70.96, 68.15]),
]
OURS = [("ReALLM", 2, 4), ("ReALLM", 3, 2)]


def local_tasks(folder: Path) -> list[str]:
    """The tasks of the YAML files in a folder, by file name."""
    found = []
    for path in sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")]):
        found += re.findall(r"^task:\s*([\w.-]+)\s*$", path.read_text("utf-8"), re.MULTILINE)
    return found


def column_of(task: str) -> str | None:
    """The paper's task that a local one stands for, by the beginning of its name."""
    return next((column for column in COLUMNS if task.startswith(column)), None)


def paper_rows(tasks: list[str]) -> list[list[str]]:
    """The paper's rows under our tasks; its mean only where all four of its tasks are."""
    columns = [column_of(task) for task in tasks]
    if not any(columns):
        return []
    whole = sorted(filter(None, columns)) == sorted(COLUMNS)
    rows = []
    for name, size, bits, scores in PAPER:
        named = dict(zip(COLUMNS, scores, strict=False))
        cells = [f"{named[column]:.2f}" if column else "" for column in columns]
        rows.append(
            [f"{name} (paper)", size, str(bits), *cells, f"{scores[-1]:.2f}" if whole else ""]
        )
    return rows


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--tasks-folder", type=Path, required=True)
    parser.add_argument("--task", action="append", help="default: all of the folder")
    parser.add_argument("--archive", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--limit", type=int, help="questions of each task at most")
    parser.add_argument("--batch", type=int, default=16, help="questions at once")
    parser.add_argument("--tuned", action="store_true", help="tune before the questions")
    parser.add_argument("--given", action="store_true", help="the archives alone, no ReALLM rows")
    given = parser.parse_args()
    if importlib.util.find_spec("lm_eval") is None:
        raise SystemExit(f"lm-eval is not installed: {install_command('tasks')}")
    if not given.tasks_folder.is_dir():
        raise SystemExit(f"there is no folder of tasks at {given.tasks_folder}")
    from reallm_compiler.errors import ReallmError
    from reallm_compiler.evaluate.zero_shot import zero_shot

    tasks = given.task or local_tasks(given.tasks_folder)
    study = Study(given)
    rows = paper_rows(tasks)

    def row(name: str, model: Path, stored: str) -> None:
        try:
            found = zero_shot(
                model, tasks, folder=given.tasks_folder, limit=given.limit, batch=given.batch
            )
        except ReallmError as error:
            raise SystemExit(f"{error}") from None
        scores = [100 * found.scores[task]["acc"] for task in tasks]
        asked.update(found.questions)
        scores.append(sum(scores) / len(scores))
        rows.append([f"{name} (ours)", "", stored, *(f"{score:.2f}" for score in scores)])
        print(rows[-1], file=sys.stderr, flush=True)
        versions.append(found.version)

    asked: dict[str, int] = {}
    versions: list[str] = []
    row("original", given.model, "16")
    for name, bits, dim in [] if given.given else OURS:
        model = study.compiled(f"reallm-{bits}", reallm_recipe(bits, dim, given.rank))
        if given.tuned:
            model = study.tuned(study.tuned(model, "block"), "e2e")
        row(name, model, f"{bits} ({exact_bits(model)} exact)")
    for word in given.archive:
        name, _, path = word.partition("=")
        row(name, Path(path), f"{exact_bits(Path(path))} exact")
    tuned = "ReALLM is tuned as above" if given.tuned else "ReALLM is not tuned (--tuned does)"
    table(
        ["method", "size", "bits", *tasks, "average"],
        rows,
        [
            *(study.notes() if given.tuned else study.notes()[:1]),
            f"lm-eval {versions[0]}, 0 shots, tasks of local files: "
            + ", ".join(f"{asked[task]:,} questions of {task}" for task in tasks),
            *([] if given.given else [tuned]),
        ],
    )


if __name__ == "__main__":
    main()
