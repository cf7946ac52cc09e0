"""The same bytes for any number of workers and after kills, of every shipped recipe.

    python studies/byte_identity.py                           the demo model, all shipped recipes
    python studies/byte_identity.py --recipe nf4 --kills 3
    python studies/byte_identity.py --model DIR model.stats   its calibrated recipes too
    python studies/byte_identity.py --text FILE               and those that learn from a text
    python studies/byte_identity.py --model DIR --write before.json
    python studies/byte_identity.py --model DIR --compare before.json

Each recipe is compiled with 1 worker, with 2, and with 2 whose compile is killed `--kills` times
and goes on with the same command. SIGKILL comes when the journal has grown by a share of the tasks;
a recipe whose blocks learn, whose journal grows late, is killed after a share of the time that the
compile with 2 workers took. All files must be equal byte by byte. `--write` keeps the digest of
every section; `--compare` holds the sections of today against those of an earlier version, whose
documents may have had other keys. Recipes that train for more than `--most-training` operations, or
need statistics or a text that is not given, are left out, and said to be. Prints a line for each
recipe and model; ends with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import reallm_compiler as reallm
from reallm_compiler.errors import ReallmError
from reallm_compiler.recipe import list_shipped, load_recipe
from reallm_formats import Archive

DEMO = Path(__file__).resolve().parents[1] / "demo" / "model"
COMMAND = [sys.executable, "-c", "from reallm_cli.main import run; run()"]
WORKERS = (1, 2)
MOST_TRAINING = 10**12


@dataclass(frozen=True)
class Case:
    """A recipe, a checkpoint folder, and the statistics and the text that the recipe needs."""

    recipe: str
    model: Path
    statistics: Path | None
    text: Path | None

    @property
    def key(self) -> str:
        """The last two parts of the folder's path, and the recipe."""
        return f"{name_of(self.model)} {self.recipe}"


def start(case: Case, output: Path, workers: int) -> subprocess.Popen[bytes]:
    """A compile as a process of its own."""
    arguments = ["compile", case.recipe, "--model", str(case.model), "-o", str(output)]
    if case.statistics is not None:
        arguments += ["--stats", str(case.statistics)]
    if case.text is not None:
        arguments += ["--text", str(case.text)]
    return subprocess.Popen(
        [*COMMAND, *arguments, "--device", "cpu", "--workers", str(workers)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for a compile that must succeed."""
    _, text = process.communicate()
    if process.returncode:
        raise RuntimeError(text.decode(errors="replace"))


def records(output: Path) -> int:
    """Lines of the journal."""
    try:
        return output.with_name(output.name + ".journal").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def killed(case: Case, output: Path, kills: int, tasks: int, seconds: float) -> int:
    """Compile with two workers and kill so often; how many kills met a compile at work.

    `seconds` is the time of a compile that nothing stops.
    """
    struck = 0
    for number in range(1, kills + 1):
        process, began = start(case, output, WORKERS[-1]), time.monotonic()
        share = number / (kills + 1)
        while process.poll() is None:
            if case.text is not None:
                due = time.monotonic() - began >= share * seconds
            else:
                due = records(output) >= 1 + int(tasks * share)
            if due:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        struck += process.returncode == -signal.SIGKILL
    if not output.exists():
        finish(start(case, output, WORKERS[-1]))
    return struck


def sections_of(path: Path) -> dict[str, str]:
    """The digest of each section."""
    with Archive.open(path) as archive:
        return {entry.name: entry.sha256.hex() for entry in archive.manifest.sections}


def differences(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Sections that are not the same in both."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def study(case: Case, kills: int, folder: Path) -> tuple[list[str], dict[str, str]]:
    """What differs between the runs of a recipe, and the sections of the first."""
    outputs = {f"{workers} workers": folder / f"{workers}.reallm" for workers in WORKERS}
    for workers, output in zip(WORKERS, outputs.values(), strict=True):
        began = time.monotonic()
        finish(start(case, output, workers))
        seconds = time.monotonic() - began
    outputs[f"{kills} kills"] = folder / "killed.reallm"
    tasks = len(reallm.plan(case.recipe, model=case.model).matrices)
    struck = killed(case, folder / "killed.reallm", kills, tasks, seconds)
    wrong = [] if struck == kills else [f"only {struck} of {kills} kills met a compile at work"]
    digests = {hashlib.sha256(path.read_bytes()).digest() for path in outputs.values()}
    first = sections_of(folder / f"{WORKERS[0]}.reallm")
    if len(digests) > 1:
        for title, path in outputs.items():
            names = differences(first, sections_of(path))
            wrong.append(f"{title}: {', '.join(names[:5]) or 'same sections, other documents'}")
    return wrong, first


def name_of(model: Path) -> str:
    """The last two parts of a folder's path."""
    return "/".join(model.resolve().parts[-2:])


def cases(given: argparse.Namespace) -> Iterator[Case]:
    """Models and recipes that are compiled; says which are not."""
    recipes: Sequence[str] = given.recipe or list_shipped()
    for model, *rest in given.model or [[DEMO]]:
        for recipe in recipes:
            loaded = load_recipe(recipe)
            statistics = rest[0] if rest and loaded.statistics == "required" else None
            text = given.text if loaded.fit is not None else None
            reason = None
            if loaded.fit is not None and text is None:
                reason = "learns from a text"
            elif loaded.statistics == "required" and statistics is None:
                reason = "needs statistics"
            else:
                try:
                    totals = reallm.plan(recipe, model=model).budget().totals
                    if totals.training_operations > given.most_training:
                        reason = f"trains {totals.training_operations:.1e} operations"
                except ReallmError as error:
                    reason = error.message
            case = Case(recipe, model, statistics, text)
            if reason is None:
                yield case
            else:
                print(f"{name_of(model):14} {recipe:24} left out: {reason}", flush=True)


def main() -> int:
    """Run and print; 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model",
        type=Path,
        action="append",
        nargs="+",
        metavar=("DIR", "STATS"),
        help="a checkpoint folder, and what `reallm calibrate` measured on it",
    )
    parser.add_argument("--recipe", action="append", help="a shipped recipe or a file")
    parser.add_argument("--text", type=Path, help="a text, for recipes whose blocks learn")
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--most-training", type=float, default=MOST_TRAINING)
    parser.add_argument("--write", type=Path, help="keep the digests in a file")
    parser.add_argument("--compare", type=Path, help="digests of an earlier version")
    given = parser.parse_args()
    earlier = json.loads(given.compare.read_text()) if given.compare else {}
    kept: dict[str, dict[str, str]] = {}
    failed = 0
    for case in cases(given):
        key, began = case.key, time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            wrong, kept[key] = study(case, given.kills, Path(folder))
        if given.compare:
            if key not in earlier:
                wrong.append(f"not in {given.compare}")
            elif names := differences(earlier[key], kept[key]):
                wrong.append(f"{len(names)} sections are not as before: {', '.join(names[:5])}")
        failed += bool(wrong)
        result = "; ".join(wrong) or "equal"
        seconds = time.monotonic() - began
        title = f"{name_of(case.model):14} {case.recipe:24} {len(kept[key]):4} sections"
        print(f"{title} {seconds:6.1f} s  {result}", flush=True)
    if given.write:
        given.write.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    print("FAILED" if failed else "all equal")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
