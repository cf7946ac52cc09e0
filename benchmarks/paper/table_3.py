"""Table 3: zero-shot accuracy through lm-eval (extra `tasks`), from a folder of local task files.

python benchmarks/paper/table_3.py --tasks-folder DIR [--task arc_challenge ...] [--tuned]

The folder holds the YAML files of the tasks with data that is at hand. Accuracy is `acc`, as in
the paper, not `acc_norm`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from common import Study, exact_bits, options, reallm_recipe, table

TASKS = ["arc_challenge", "arc_easy", "piqa", "winogrande"]
# method, size, bits, accuracies of TASKS and their mean in the paper
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


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--tasks-folder", type=Path, required=True)
    parser.add_argument("--task", action="append", help=f"default: {', '.join(TASKS)}")
    parser.add_argument("--limit", type=int, help="questions of each task at most")
    parser.add_argument("--tuned", action="store_true", help="tune before the questions")
    given = parser.parse_args()
    if importlib.util.find_spec("lm_eval") is None:
        raise SystemExit("lm-eval is not installed: pip install 'reallm[tasks]'")
    if not given.tasks_folder.is_dir():
        raise SystemExit(f"there is no folder of tasks at {given.tasks_folder}")
    from reallm_compiler.errors import ReallmError
    from reallm_compiler.evaluate.zero_shot import zero_shot

    tasks = given.task or TASKS
    study = Study(given)
    rows = []
    for name, size, bits, scores in PAPER if tasks == TASKS else []:
        rows.append([f"{name} (paper)", size, str(bits), *(f"{score:.2f}" for score in scores)])
    for name, bits, dim in [("original", 16, 0), ("ReALLM", 2, 4), ("ReALLM", 3, 2)]:
        model, stored = given.model, "16"
        if dim:
            model = study.compiled(f"reallm-{bits}", reallm_recipe(bits, dim, given.rank))
            if given.tuned:
                model = study.tuned(study.tuned(model, "block"), "e2e")
            stored = f"{bits} ({exact_bits(model)} exact)"
        try:
            found = zero_shot(model, tasks, folder=given.tasks_folder, limit=given.limit)
        except ReallmError as error:
            raise SystemExit(f"{error}") from None
        scores = [100 * found.scores[task]["acc"] for task in tasks]
        scores.append(sum(scores) / len(scores))
        rows.append([f"{name} (ours)", "", stored, *(f"{score:.2f}" for score in scores)])
    table(
        ["method", "size", "bits", *tasks, "average"],
        rows,
        [
            *(study.notes() if given.tuned else study.notes()[:1]),
            f"lm-eval {found.version}, {found.shots} shots, tasks of local files"
            + (f", {given.limit} questions of each at most" if given.limit else ""),
            "ReALLM is tuned as above" if given.tuned else "ReALLM is not tuned (--tuned does)",
        ],
    )


if __name__ == "__main__":
    main()
