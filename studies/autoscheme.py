"""AutoRound's AutoScheme at exact bits: what `reallm allocate` is held against.

    python studies/autoscheme.py --write docs/allocate.md --rows rows.jsonl --group 32 \\
        --model my-model PATH/TO/FOLDER PATH/TO/text.txt window=256 calibrate=calibration.txt

`--model` takes what `studies/results.py` takes; `calibrate=FILE` must be there. AutoScheme gives
each matrix 2, 3, 4 or 8 bits in groups of `--group` columns, by how much the loss changes, and
AutoRound then learns the rounding (`--iterations` steps a block, its default). Exact bits are those
that a file needs for these matrices: codes, and for each group a scale of 16 bits and a zero point
as wide as a code. Needs the package `auto-round`, which is run in this process.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from reallm_compiler.calibration.options import CalibrateOptions
from reallm_compiler.calibration.text import draw_sequences
from reallm_compiler.evaluate import evaluate, load_for_evaluation
from studies.pages import keep_row, read_rows, write_part
from studies.results import Subject

BITS = (2, 3, 4, 8)
SAMPLES = 128
BATCH = 8
SCALE_BITS = 16


def sequences_in(folder: Path, subject: Subject, tokenizer: Any, window: int) -> Path:
    """A file of texts of at least `window` tokens each, in the form that AutoRound reads."""
    assert subject.calibration is not None  # main() has seen to it
    options = CalibrateOptions(samples=SAMPLES, window=2 * window)  # tokens may merge when joined
    texts = [subject.calibration.read_text(encoding="utf-8")]
    drawn = draw_sequences(tokenizer, texts, 2 * window, options)
    path = folder / "texts.json"
    path.write_text(json.dumps([{"text": tokenizer.decode(tokens)} for tokens in drawn]))
    return path


def chosen(
    subject: Subject, average: float, group: int, iterations: int
) -> tuple[Any, Counter[int]]:
    """The model as AutoRound leaves it, and how many weights have how many bits."""
    from auto_round import AutoRound, AutoScheme
    from auto_round.schemes import QuantizationScheme
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        subject.folder, dtype=torch.float32, trust_remote_code=False
    )
    tokenizer = AutoTokenizer.from_pretrained(subject.folder, trust_remote_code=False)
    window = subject.window or 256
    numel = {
        name: module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {
            "dataset": str(sequences_in(Path(folder), subject, tokenizer, window)),
            "seqlen": window,
            "batch_size": BATCH,
            "enable_torch_compile": False,
        }
        options = [
            QuantizationScheme(bits=bits, group_size=group, sym=False, data_type="int", act_bits=16)
            for bits in BITS
        ]
        scheme = AutoScheme(
            avg_bits=average, options=options, nsamples=32, low_gpu_mem_usage=False, **common
        )
        program = AutoRound(
            model,
            tokenizer,
            scheme=scheme,
            iters=iterations,
            nsamples=SAMPLES,
            device_map="cpu",
            **common,
        )
        model, layers = program.quantize()
    counted: Counter[int] = Counter()
    for name, found in layers.items():
        if found.get("bits", 16) in BITS:
            counted[found["bits"]] += numel[name]
    return model.float(), counted


def exact_bits(counted: Counter[int], group: int) -> float:
    """Bits per weight: codes, scales and zero points."""
    total = sum(n * (bits + (SCALE_BITS + bits) / group) for bits, n in counted.items())
    return total / counted.total()


def measured(subject: Subject, average: float, group: int, iterations: int) -> dict[str, Any]:
    """The row of a target."""
    model, counted = chosen(subject, average, group, iterations)
    original, tokenizer = load_for_evaluation(subject.folder)
    result = evaluate(
        model,
        tokenizer,
        subject.text,
        window=subject.window,
        separator=subject.separator,
        reference=original,
    )
    return {
        "target": average,
        "bits": exact_bits(counted, group),
        "kl": result.kl,
        "perplexity": result.perplexity,
        "shares": {bits: n / counted.total() for bits, n in sorted(counted.items())},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", nargs="+", required=True)
    parser.add_argument("--target", action="append", type=float, help="average bits")
    parser.add_argument("--group", type=int, default=128, help="columns of a group")
    parser.add_argument("--iterations", type=int, default=200, help="steps of AutoRound a block")
    parser.add_argument("--rows", type=Path, help="keep each row here, and take those there")
    parser.add_argument("--write", type=Path, help="put the table into this page as well")
    given = parser.parse_args()
    subjects = [Subject.parse(words) for words in given.model]
    for subject in subjects:
        if subject.calibration is None:
            raise SystemExit(f"{subject.name}: AutoRound learns from a text: give calibrate=FILE")
    found: list[tuple[str, dict[str, Any]]] = []
    for subject in subjects:
        kept = read_rows(given.rows, subject.inputs)
        for target in given.target or []:
            if not any(row["target"] == target for row in kept):
                row = measured(subject, target, given.group, given.iterations)
                keep_row(row, subject.inputs, given.rows)
                kept.append(row)
        found += [(subject.name, row) for row in sorted(kept, key=lambda row: row["bits"])]
    lines = [
        "## AutoScheme",
        "",
        "Printed by `python studies/autoscheme.py` (its first lines say how to call it).",
        "",
        "| model | asked for | exact bits | 2, 3, 4, 8 bits | KL (nats) | perplexity |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found:
        shares = {int(bits): share for bits, share in row["shares"].items()}
        parts = ", ".join(f"{100 * shares.get(bits, 0):.0f}" for bits in BITS)
        lines.append(
            f"| {name} | {row['target']:g} | {row['bits']:.4f} | {parts} % "
            f"| {row['kl']:.4f} | {row['perplexity']:.3f} |"
        )
    text = "\n".join(lines) + "\n"
    print(text)
    if given.write:
        write_part(given.write, "autoscheme", text)


if __name__ == "__main__":
    main()
