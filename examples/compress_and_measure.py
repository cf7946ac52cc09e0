"""Compress a model to a size that is known first, and measure what that cost.

python examples/compress_and_measure.py [--recipe NAME] [--model FOLDER --text FILE]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import reallm_compiler as reallm
from reallm_compiler.demo import find_demo
from reallm_compiler.evaluate import evaluate_files
from reallm_compiler.reader.verify import verify


def main() -> None:
    """Plan, calibrate, compile, verify, read, measure."""
    arguments = parse_arguments()
    bundled = find_demo()
    model = arguments.model or bundled.model
    text = arguments.text or bundled.heldout
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(arguments.output or scratch) / "model.reallm"

        # The exact size needs the shapes alone: no weight has been read yet.
        planned = reallm.plan(arguments.recipe, model=model).budget().totals.file_bytes
        print(f"planned: {planned:,} bytes")

        # What errors cost the model, measured on text that it writes itself.
        statistics = None
        if reallm.load_recipe(arguments.recipe).statistics == "required":
            statistics = Path(scratch) / "model.stats"
            reallm.calibrate(model, output=statistics, own_text=True, samples=128, window=256)

        reallm.compile(arguments.recipe, model=model, output=archive, statistics=statistics)
        print(f"written: {archive.stat().st_size:,} bytes")
        print(f"damages: {len(verify(archive))}")

        # One matrix, decoded without touching the others.
        with reallm.open(archive) as opened:
            name = opened.names[0]
            print(f"{name}: {list(opened.matrix(name).shape)}")

        result = evaluate_files(archive, text, reference=model, window=256)
        print(f"perplexity: {result.reference_perplexity:.4f} -> {result.perplexity:.4f}")
        print(f"KL to the original: {result.kl:.4f} nats per token")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="reallm-2bit", help="shipped name or YAML file")
    parser.add_argument("--model", type=Path, help="a Hugging Face folder; the bundled model")
    parser.add_argument("--text", type=Path, help="a UTF-8 file that the model never saw")
    parser.add_argument("--output", type=Path, help="folder for the archive; a temporary one")
    return parser.parse_args()


if __name__ == "__main__":
    main()
