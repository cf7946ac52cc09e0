"""The trained autoencoder against vector and scalar quantization, at equal exact bits.

    python studies/hnerv_study.py --work DIR --write docs/results.md \\
        --group NAME FOLDER '*.q_proj' --qat FOLDER NAME --block FOLDER TEXT 'layers.0.*' window=256

Three parts, each run as often as it is named:

`--group`: the matrices of a checkpoint whose names match, all of one shape. The mean relative error
(||W - W^|| / ||W||) of

    nf         normal_float with 64-weight absmax blocks, two-level scales
    vq         k-means vectors with the same scales
    hnerv      a decoder for each matrix, as wide as fits into the bytes of vq
    shared     one decoder for all of them, as wide as fits into the same bytes
    hnerv vq   as hnerv with a large latent, as many numbers as weights: they are coded by vq at
               1.5 bits, and the decoder is what the bytes leave

`--qat`: one matrix, decoders of 8 to 2 bits: trained with quantized weights, and rounded after
training, at equal size (Table 4).

`--block`: a model with the matrices that match coded by nf, vq or hnerv and the others as they
are: perplexity and divergence. Options as in `studies/results.py`.

`--group synthetic` are a smooth matrix like an image, and white noise, at one bit, where few words
are left for the shapes of smooth vectors. hnerv never gets more bytes than vq.

Finished rows are kept in `--work` and not made again; times are of this machine. Seeds and steps
are fixed. `--write` puts the study into a page beside what others print there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import reallm_compiler as reallm
from reallm_compiler.checkpoint import open_source
from reallm_compiler.codecs import encode_matrix, fit_shared
from reallm_compiler.evaluate import evaluate, load_for_evaluation
from reallm_compiler.stages import MatrixPlan
from reallm_compiler.storage.matrix import layout_of
from studies.matrices import Matrix, loaded, synthetic
from studies.pages import weights_digest, write_part
from studies.results import Subject

SOURCE = "f16"
SCALES = {"kind": "absmax", "per": "block", "block": 64, "bits": 8, "superblock": 256}
NF = {"quantizer": {"kind": "normal_float", "bits": 2}, "scales": SCALES}
VQ = {"quantizer": {"kind": "vq", "bits": 2, "dim": 4}, "scales": SCALES}
COARSE_VQ = {"quantizer": {"kind": "vq", "bits": 1, "dim": 4}}
LATENT_VQ = {"quantizer": {"kind": "vq", "bits": "3/2", "dim": 4}, "scales": SCALES}
PLAIN = {"quantizer": {"kind": "none", "dtype": "float16"}}
WIDEST = 512
LR_WIDTH = 32
"""Width of the first stage up to which decoders learn at `--lr`; wider ones diverge there, and
learn at a rate that falls as they widen."""
METHODS = ["nf", "vq", "hnerv", "shared", "hnerv vq"]


@dataclass(frozen=True)
class Row:
    """What a method made of a matrix."""

    width: int | None
    bits: float
    error: float
    seconds: float


class Study:
    """Rows that are made once."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.work: Path = options.work
        self.work.mkdir(parents=True, exist_ok=True)

    def coded(self, plan: MatrixPlan, members: Sequence[Matrix]) -> list[Row]:
        """Encode matrices by one plan, with one decoder if the plan shares."""
        facts = [plan.plain(), *(_digest(member.values) for member in members)]
        kept = self._kept(facts)
        if kept.exists():
            return [Row(**row) for row in json.loads(kept.read_text())]
        began, shared, sharers = time.process_time(), None, 1
        if plan.share is not None:
            weights = [member.values for member in members]
            shared = fit_shared([plan] * len(weights), weights, seed=1)
            sharers = len(members)
        rows = []
        for member in members:
            coded = encode_matrix(plan, member.values, seed=1, source_dtype=SOURCE, shared=shared)
            bits = 8 * stored_bytes(plan, member.shape, sharers) / member.values.numel()
            seconds = time.process_time() - began
            width = getattr(plan.autoencoder, "width", None)
            rows.append(Row(width, bits, coded.relative_error, seconds))
            print(member.name, plan.autoencoder, rows[-1], file=sys.stderr, flush=True)
            if plan.share is None:
                began = time.process_time()
        kept.write_text(json.dumps([row.__dict__ for row in rows]))
        return rows

    def model(self, name: str, rules: list[dict[str, Any]], subject: Subject) -> list[float]:
        """Exact bits, perplexity, divergence, seconds and the original's perplexity.

        Of a model whose matrices are coded by rules; the others are as they were.
        """
        words = [subject.text, subject.separator, subject.window]
        kept = self._kept([rules, weights_digest(subject.folder), *words])
        if not kept.exists():
            recipe = {"reallm": 1, "rules": [{"match": "*", "keep": "source"}, *rules]}
            path = self.work / f"{kept.stem}.reallm"
            began = time.monotonic()
            report = reallm.compile(
                recipe, model=subject.folder, output=path, device="cpu", workers=1, resume="auto"
            )
            seconds = time.monotonic() - began
            original, tokenizer = load_for_evaluation(subject.folder)
            found = evaluate(
                load_for_evaluation(path)[0],
                tokenizer,
                subject.text,
                window=subject.window,
                separator=subject.separator,
                reference=original,
            )
            bits = float(report.budget.totals.exact_bits)
            row = [bits, found.perplexity, found.kl, seconds, found.reference_perplexity]
            print(subject.name, name, row, file=sys.stderr, flush=True)
            kept.write_text(json.dumps(row))
        row = json.loads(kept.read_text())
        return list(row)

    def _kept(self, facts: Sequence[Any]) -> Path:
        text = json.dumps(facts, sort_keys=True, default=str)
        return self.work / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def group(
    study: Study,
    title: str,
    members: Sequence[Matrix],
    *,
    vq: dict[str, Any] = VQ,
    **changed: Any,
) -> list[str]:
    """The table of one group of matrices, by the study's options but for those `changed`."""
    p, q = members[0].shape
    plans = {"nf": _plan(**NF), "vq": _plan(**vq)}
    size = stored_bytes(plans["vq"], (p, q))
    options = argparse.Namespace(**{**vars(study.options), **changed})
    more = [options.latent_vq_channels, options.patch // 2, options.patch // 2]
    for name, sharers, latent, rest in (
        ("hnerv", 1, options.latent, PLAIN),
        ("shared", len(members), options.latent, {**PLAIN, "share": "all"}),
        ("hnerv vq", 1, more, LATENT_VQ),
    ):
        plan = widest(options, (p, q), size, latent, rest, sharers)
        if plan is not None and (sharers > 1 or name != "shared"):
            plans[name] = plan
    lines = [
        f"### {title}",
        "",
        f"{len(members)} {'matrix' if len(members) == 1 else 'matrices'} of {p} x {q}.",
        "",
        "| method | width | exact bits | mean error | least | most | s per matrix |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, plan in plans.items():
        if name not in options.methods:
            continue
        if plan.share is not None:
            rows = study.coded(plan, members)
        else:
            rows = [row for member in members for row in study.coded(plan, [member])]
        errors = [row.error for row in rows]
        seconds = rows[-1].seconds if plan.share is not None else sum(r.seconds for r in rows)
        lines.append(
            f"| {name} | {rows[0].width or ''} | {rows[0].bits:.4f} "
            f"| {sum(errors) / len(errors):.4f} | {min(errors):.4f} | {max(errors):.4f} "
            f"| {seconds / len(rows):.0f} |"
        )
    return [*lines, ""]


def qat(study: Study, title: str, matrix: Matrix) -> list[str]:
    """Quantized training against rounding afterwards, decoder by decoder of one size."""
    lines = [
        f"### Quantized training: {title}",
        "",
        "| decoder bits | width | exact bits | error, trained quantized | error, rounded after |",
        "|---|---|---|---|---|",
    ]
    options = study.options
    size = stored_bytes(_plan(**VQ), matrix.shape)
    for bits in options.qat_bits:
        chosen = argparse.Namespace(**{**vars(options), "decoder_bits": bits})
        plan = widest(chosen, matrix.shape, size, options.latent, PLAIN)
        if plan is None:
            continue
        words = plan.plain()["autoencoder"]
        rounded = _plan(autoencoder={**words, "qat": False}, **PLAIN)
        (one,), (other,) = study.coded(plan, [matrix]), study.coded(rounded, [matrix])
        lines.append(
            f"| {bits} | {one.width} | {one.bits:.4f} | {one.error:.4f} | {other.error:.4f} |"
        )
    return [*lines, ""]


def block(study: Study, subject: Subject, glob: str) -> list[str]:
    """A model with one block coded by each method."""
    inventory = open_source(subject.folder)
    shapes = {
        fact.name: fact.shape for fact in inventory.matrices() if fnmatchcase(fact.name, glob)
    }
    size = sum(stored_bytes(_plan(**VQ), shape) for shape in shapes.values())
    # One width for all matrices of the block, the widest that fits into the bytes of vq in all.
    best: dict[str, MatrixPlan] = {}
    for width in range(1, WIDEST):
        plans = {
            name: _hnerv(study.options, shape, study.options.latent, width, PLAIN)
            for name, shape in shapes.items()
        }
        if sum(stored_bytes(plan, shapes[name]) for name, plan in plans.items()) > size:
            break
        best = plans
    hnerv = [
        {"match": name, "set": {"autoencoder": plan.plain()["autoencoder"], **PLAIN}}
        for name, plan in best.items()
    ]
    methods = {"nf": [{"match": glob, "set": NF}], "vq": [{"match": glob, "set": VQ}]}
    lines, reference = [], 0.0
    for name, rules in {**methods, "hnerv": hnerv}.items():
        bits, perplexity, kl, seconds, reference = study.model(name, rules, subject)
        lines.append(f"| {name} | {bits:.4f} | {perplexity:.3f} | {kl:.4f} | {seconds:.0f} |")
    return [
        f"### {subject.name} with `{glob}` coded",
        "",
        f"{len(shapes)} matrices, {sum(map(math.prod, shapes.values())):,} weights; all others are "
        f"as they were. Original: perplexity {reference:.3f}.",
        "",
        "| method | exact bits | perplexity | KL (nats) | compile (s) |",
        "|---|---|---|---|---|",
        *lines,
        "",
    ]


def stored_bytes(plan: MatrixPlan, shape: tuple[int, int], sharers: int = 1) -> float:
    """Bytes of a matrix with its part of what is shared."""
    specs = layout_of(plan, shape, SOURCE).sections
    return sum(spec.nbytes / (sharers if spec.shared else 1) for spec in specs)


def widest(
    options: argparse.Namespace,
    shape: tuple[int, int],
    size: float,
    latent: Sequence[int],
    rest: dict[str, Any],
    sharers: int = 1,
) -> MatrixPlan | None:
    """The plan with the widest decoder that takes at most `size` bytes; None if none does."""
    best = None
    for width in range(1, WIDEST):
        plan = _hnerv(options, shape, latent, width, rest, sharers)
        if stored_bytes(plan, shape, sharers) > size:
            break
        best = plan
    return best


def whole(matrix: Matrix) -> dict[str, Any]:
    """What suits an image: one patch without inner edges, a small latent, finer weights."""
    return {
        "patch": matrix.shape[0],
        "latent": [2, 8, 8],
        "decoder_bits": 8,
        "batch": 1,
        "steps": 3200,
        "methods": ["vq", "hnerv"],
    }


def _hnerv(
    options: argparse.Namespace,
    shape: tuple[int, int],
    latent: Sequence[int],
    width: int,
    rest: dict[str, Any],
    sharers: int = 1,
) -> MatrixPlan:
    """A plan whose decoder sees about `options.steps` batches, of one matrix or of all sharers."""
    patches = math.prod(-(-extent // options.patch) for extent in shape) * sharers
    words = {
        "kind": "hnerv",
        "patch": options.patch,
        "latent": list(latent),
        "width": width,
        "decoder_bits": options.decoder_bits,
        "min_width": 4,
        "encoder_width": options.encoder_width,
        "epochs": max(1, round(options.steps * options.batch / patches)),
        "lr": options.lr * min(1, LR_WIDTH / width),
        "batch": options.batch,
    }
    return _plan(autoencoder=words, **rest)


def _plan(**words: Any) -> MatrixPlan:
    return MatrixPlan.model_validate(words)


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.contiguous().numpy().data).hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study and print its section."""
    options = _options(arguments)
    torch.set_num_threads(1)
    study, lines = Study(options), ["## The residual autoencoder", ""]
    for title, *rest in options.group:
        if title == "synthetic":
            for matrix in synthetic(options.crop or 256):
                lines += group(study, matrix.name, [matrix], vq=COARSE_VQ, **whole(matrix))
        else:
            lines += group(study, title, loaded(Path(rest[0]), rest[1], options.crop))
    for title, folder, name in options.qat:
        (matrix,) = loaded(Path(folder), name, options.crop)
        lines += qat(study, title, matrix)
    for name, folder, text, glob, *rest in options.block:
        lines += block(study, Subject.parse([name, folder, text, *rest]), glob)
    page = "\n".join(lines).rstrip() + "\n"
    print(page)
    if options.write:
        write_part(options.write, "hnerv_study", page)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--group", action="append", nargs="+", default=[], help="NAME FOLDER GLOB")
    parser.add_argument("--qat", action="append", nargs=3, default=[], help="NAME FOLDER MATRIX")
    parser.add_argument(
        "--block", action="append", nargs="+", default=[], help="NAME FOLDER TEXT GLOB [OPTION=...]"
    )
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--work", type=Path, required=True, help="folder for finished rows")
    parser.add_argument("--write", type=Path, help="put the section into this page")
    parser.add_argument("--crop", type=int, help="take only so many rows and columns")
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--latent", type=int, nargs=3, default=[4, 4, 4])
    parser.add_argument("--latent-vq-channels", type=int, default=4)
    parser.add_argument("--decoder-bits", type=int, default=3)
    parser.add_argument("--qat-bits", type=int, nargs="+", default=[8, 6, 4, 3, 2])
    parser.add_argument("--encoder-width", type=int, default=32)
    parser.add_argument("--steps", type=int, default=1600, help="of training, for each decoder")
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--batch", type=int, default=4)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
