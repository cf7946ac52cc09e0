"""Zero-shot tasks through lm-eval (the extra `tasks`), on folders and archives.

The harness scores; here a model is loaded as `reallm eval` loads it, and handed over. Tasks are the
harness's own names, or those of YAML files in a local folder, so that nothing need be downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reallm_compiler.distribution import install_command
from reallm_compiler.errors import EvaluationError
from reallm_compiler.evaluate.models import load_for_evaluation
from reallm_compiler.progress import Progress
from reallm_compiler.runs.devices import choose_device
from reallm_compiler.runtime.mapped import Mode


@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroShot:
    """Scores of tasks.

    Attributes:
        scores: for each task each metric, such as `acc` and `acc_norm`, and its standard error
            under the name with `_stderr`.
        questions: for each task how many were asked; of a group, of all its tasks.
        shots: solved examples before each question.
        version: of the harness.
    """

    scores: Mapping[str, Mapping[str, float]]
    questions: Mapping[str, int]
    shots: int
    version: str

    def to_json(self) -> dict[str, Any]:
        """Plain data under stable keys."""
        return {
            "tasks": {task: dict(metrics) for task, metrics in self.scores.items()},
            "questions": dict(self.questions),
            "shots": self.shots,
            "lm_eval": self.version,
        }


def zero_shot(
    model: str | os.PathLike[str],
    tasks: Sequence[str],
    *,
    mode: Mode = "dense",
    folder: str | os.PathLike[str] | None = None,
    adapter: str | os.PathLike[str] | None = None,
    decoder: str | os.PathLike[str] | None = None,
    allow_cost: bool = False,
    shots: int = 0,
    limit: int | None = None,
    batch: int = 1,
    device: str = "cpu",
    dtype: str | None = None,
    bars: bool = False,
    progress: Progress = False,
) -> ZeroShot:
    """Score a model on tasks.

    Args:
        model: a folder, a hub id or an archive.
        tasks: names that lm-eval or the files in `folder` give.
        mode: `dense`, or `packed`: run an archive from its codes, as for `load`.
        folder: YAML files of local tasks.
        adapter, decoder: an adapter of the archive, and where its trained decoders are.
        allow_cost: decode it whatever its plan costs to decode; see `open_archive`.
        shots: solved examples before each question.
        limit: questions of each task at most.
        batch: questions at once.
        device, dtype: as for `load_for_evaluation`.
        bars: let the harness show how far it is on stderr.
        progress: of loading the model; as for `load_for_evaluation`.

    Raises:
        EvaluationError: lm-eval is not installed, a task is not known, or none is named.
        SourceError, FormatError, AdapterError: the model cannot be loaded.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise EvaluationError(
            "tasks need lm-eval, which is not installed",
            note=str(error),
            hint=install_command("tasks"),
        ) from None
    if folder is not None and not Path(folder).is_dir():
        raise EvaluationError("there is no such folder of tasks", location=str(folder))
    manager = None
    unknown = list(tasks)
    if folder is not None:  # alone at first: the harness's own files are many
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        unknown = [task for task in tasks if task not in set(manager.all_tasks)]
    if unknown:
        manager = TaskManager(include_path=str(folder) if folder is not None else None)
        unknown = [task for task in tasks if task not in set(manager.all_tasks)]
    if unknown or not tasks:
        raise EvaluationError(
            f"no task is called `{unknown[0]}`" if unknown else "no task is given",
            hint="`--task-folder DIR` adds the tasks of local YAML files",
        )
    chosen = choose_device(device, EvaluationError)
    loaded, tokenizer = load_for_evaluation(
        model,
        mode=mode,
        device=chosen,
        dtype=dtype,
        adapter=adapter,
        decoder=decoder,
        allow_cost=allow_cost,
        progress=progress,
    )

    class Handed(HFLM):  # type: ignore[misc]
        """The model as the harness wants it, with its progress bars or without."""

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:  # noqa: ANN401
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm or not bars)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:  # noqa: ANN401
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm or not bars)

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:  # noqa: ANN401
            return super().generate_until(requests, disable_tqdm=disable_tqdm or not bars)

    handed = Handed(
        pretrained=loaded, tokenizer=tokenizer, batch_size=batch, trust_remote_code=False
    )
    found = lm_eval.simple_evaluate(
        model=handed,
        tasks=list(tasks),
        task_manager=manager,
        num_fewshot=shots,
        limit=limit,
        bootstrap_iters=0,
        log_samples=False,
    )
    scores = {
        task: {
            name.removesuffix(",none"): float(value)
            for name, value in metrics.items()
            if isinstance(value, int | float) and name.endswith(",none")
        }
        for task, metrics in found["results"].items()
    }
    asked = {task: int(count["effective"]) for task, count in found["n-samples"].items()}
    groups = found.get("group_subtasks", {})
    return ZeroShot(
        scores=scores,
        questions={task: _questions(task, asked, groups) for task in scores},
        shots=shots,
        version=str(lm_eval.__version__),
    )


def _questions(task: str, asked: Mapping[str, int], groups: Mapping[str, Sequence[str]]) -> int:
    """Questions of a task, or of all tasks of a group, which has a score of its own."""
    if task in asked:
        return asked[task]
    return sum(_questions(part, asked, groups) for part in groups.get(task, ()))
