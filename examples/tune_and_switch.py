"""Tune the low-rank part of an archive, and switch adapters without decoding again.

python examples/tune_and_switch.py [--steps N]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import reallm_compiler as reallm
from reallm_compiler.demo import find_demo
from reallm_compiler.evaluate import evaluate, read_text

RECIPE = """\
reallm: 1
extends: rtn-2bit
defaults:
  residual: {kind: low_rank, rank: 8}
finetune:
  stages: [e2e]
  window: 128
  e2e: {loss: distill, lr: 1e-3, batch: 4, accumulation: 1, checks: 2}
"""


def main() -> None:
    """Compile with factors, tune them, compare with and without the adapter."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40, help="steps of tuning")
    steps = parser.parse_args().steps
    bundled = find_demo()
    # Only for this demonstration: real tuning uses text that is not evaluated on.
    lines = read_text(bundled.heldout).splitlines(keepends=True)
    middle = len(lines) // 2
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        recipe, archive, adapter = (folder / name for name in ("r.yaml", "m.reallm", "t.adapter"))
        recipe.write_text(RECIPE, encoding="utf-8")
        (folder / "train.txt").write_text("".join(lines[:middle]), encoding="utf-8")
        reallm.compile(recipe, model=bundled.model, output=archive)
        reallm.tune(
            archive,
            model=bundled.model,
            text=[folder / "train.txt"],
            output=adapter,
            options={"e2e": {"steps": steps}},
        )
        _, tokenizer = reallm.load(archive)
        tunable = reallm.open_tunable(archive)  # the coded parts are decoded once
        held_out = "".join(lines[middle:])
        for name, chosen in (("as compiled", None), ("tuned", adapter), ("as compiled", None)):
            tunable.use(chosen)  # other factors; nothing is decoded again
            result = evaluate(tunable.model, tokenizer, held_out, window=128)
            print(f"{name:12} perplexity {result.perplexity:.4f}")


if __name__ == "__main__":
    main()
