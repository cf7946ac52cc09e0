"""The trained autoencoder against vector and scalar quantisation, at equal exact bits.

    python benchmarks/hnerv_study.py FOLDER --match '*.q_proj' --epochs 300
    python benchmarks/hnerv_study.py --epochs 200            synthetic matrices alone

For each matrix of the folder that matches (and for two made here: a smooth one like an image, and
white noise) the relative error of

    nf         normal_float with 64-weight absmax blocks, two-level scales
    vq         k-means vectors with the same scales
    hnerv      a decoder of its own, as wide as fits into the bytes of vq
    hnerv ptq  the same decoder rounded after training: what QAT brings (Table 4)
    shared     one decoder for all matrices of one shape, as wide as fits into the same bytes
    hnerv vq   latents through the quantiser of vq, four times as many of them

Each row tells the exact bits of what is stored. hnerv never gets more bytes than vq. One line per
result on stdout, tab-separated; times are of this machine. Seeds and steps are fixed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reallm_compiler.codecs import encode_matrix, fit_shared
from reallm_compiler.execute.weights import Weights
from reallm_compiler.layouts import matrix as law
from reallm_compiler.recipe.stages import MatrixPlan
from reallm_compiler.sources import open_source

SOURCE = "f16"
SCALES = {"kind": "absmax", "per": "block", "block": 64, "bits": 8, "superblock": 256}
WIDEST = 512
METHODS = ["nf", "hnerv", "hnerv ptq", "shared", "hnerv vq"]


@dataclass(frozen=True)
class Matrix:
    """A matrix by name."""

    name: str
    values: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """p and q."""
        return self.values.shape[0], self.values.shape[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study and print its table."""
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    matrices = [*synthetic(options.crop or 256)] if options.synthetic else []
    if options.folder is not None:
        matrices += loaded(options.folder, options.match, options.crop)
    print("matrix", "shape", "method", "width", "exact_bits", "error", "seconds", sep="\t")
    for matrix in matrices:
        own(matrix, options)
    groups: dict[tuple[int, int], list[Matrix]] = {}
    for matrix in matrices:
        if not matrix.name.startswith("synthetic"):
            groups.setdefault(matrix.shape, []).append(matrix)
    for members in groups.values():
        if len(members) > 1 and "shared" in options.methods:
            together(members, options)
    return 0


def own(matrix: Matrix, options: argparse.Namespace) -> None:
    """The methods that code one matrix by itself."""
    quantizer = {"kind": "vq", "bits": options.bits, "dim": options.dim}
    vq = _plan(quantizer=quantizer, scales=SCALES)
    if options.bits.isdecimal() and "nf" in options.methods:
        number = {"kind": "normal_float", "bits": int(options.bits)}
        show(matrix, "nf", _plan(quantizer=number, scales=SCALES))
    show(matrix, "vq", vq)
    size = stored_bytes(vq, matrix.shape)
    for name, fields, rest in (
        ("hnerv", {}, {}),
        ("hnerv ptq", {"qat": False}, {}),
        ("hnerv vq", {"latent": _more(options.latent)}, {"quantizer": quantizer, "scales": SCALES}),
    ):
        if name not in options.methods:
            continue
        plan = widest(options, matrix.shape, size, fields, rest)
        if plan is None:
            print(matrix.name, "-", name, "does not fit", sep="\t", flush=True)
        else:
            show(matrix, name, plan)


def together(members: Sequence[Matrix], options: argparse.Namespace) -> None:
    """One decoder for all of `members`."""
    shape = members[0].shape
    vq = _plan(quantizer={"kind": "vq", "bits": options.bits, "dim": options.dim}, scales=SCALES)
    size = stored_bytes(vq, shape)
    plan = widest(options, shape, size, {}, {"share": "all"}, sharers=len(members))
    if plan is None:
        return
    began = time.monotonic()
    shared = fit_shared(plan, [member.values for member in members], seed=1)
    seconds = (time.monotonic() - began) / len(members)
    for member in members:
        show(member, "shared", plan, shared=shared, sharers=len(members), seconds=seconds)


def show(
    matrix: Matrix,
    method: str,
    plan: MatrixPlan,
    *,
    shared: dict[str, Tensor] | None = None,
    sharers: int = 1,
    seconds: float = 0.0,
) -> None:
    """Encode a matrix and print its row."""
    began = time.monotonic()
    coded = encode_matrix(plan, matrix.values, seed=1, source_dtype=SOURCE, shared=shared)
    seconds += time.monotonic() - began
    bits = 8 * stored_bytes(plan, matrix.shape, sharers) / matrix.values.numel()
    width = getattr(plan.autoencoder, "width", "-")
    shape = "x".join(map(str, matrix.shape))
    row = [matrix.name, shape, method, width, f"{bits:.4f}", f"{coded.relative_error:.4f}"]
    print(*row, f"{seconds:.1f}", sep="\t", flush=True)


def stored_bytes(plan: MatrixPlan, shape: tuple[int, int], sharers: int = 1) -> float:
    """Bytes of a matrix with its part of what is shared."""
    specs = law.sections(plan, shape, SOURCE)
    return sum(spec.bytes / (sharers if spec.shared else 1) for spec in specs)


def widest(
    options: argparse.Namespace,
    shape: tuple[int, int],
    size: float,
    fields: dict[str, Any],
    rest: dict[str, Any],
    sharers: int = 1,
) -> MatrixPlan | None:
    """The plan with the widest decoder that takes at most `size` bytes; None if none does."""
    best = None
    for width in range(1, WIDEST):
        words = {
            "kind": "hnerv",
            "patch": options.patch,
            "latent": options.latent,
            "width": width,
            "decoder_bits": options.decoder_bits,
            "min_width": 4,
            "encoder_width": options.encoder_width,
            "epochs": options.epochs,
            "lr": options.lr,
            "batch": options.batch,
            **fields,
        }
        plain = {"quantizer": {"kind": "none", "dtype": "float16"}}
        plan = _plan(autoencoder=words, **{**plain, **rest})
        if stored_bytes(plan, shape, sharers) > size:
            break
        best = plan
    return best


def synthetic(size: int) -> Iterable[Matrix]:
    """A matrix like an image (a few smooth waves and an edge), and white noise."""
    generator = torch.Generator().manual_seed(5)
    x = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(x, x, indexing="ij")
    image = torch.zeros(size, size)
    for _ in range(12):
        a, b, phase, power = torch.rand(4, generator=generator).tolist()
        image += (0.2 + power) * torch.sin(20 * (a - 0.5) * x + 20 * (b - 0.5) * y + 6.3 * phase)
    image += 2.0 * (x.square() + y.square() < 0.4)
    yield Matrix("synthetic image", image / image.std())
    yield Matrix("synthetic noise", torch.randn(size, size, generator=generator))


def loaded(folder: Path, pattern: str, crop: int | None) -> list[Matrix]:
    """Matrices of a checkpoint whose names match, perhaps only their upper left corner."""
    inventory = open_source(folder)
    weights = Weights(inventory)
    matrices = []
    for fact in inventory.matrices():
        if not fnmatchcase(fact.name, pattern):
            continue
        values = weights.matrix(fact.tensor, fact.index, transposed=fact.transposed).float()
        matrices.append(Matrix(fact.name, values[:crop, :crop].contiguous()))
    return matrices


def _plan(**words: Any) -> MatrixPlan:
    return MatrixPlan.model_validate(words)


def _more(latent: list[int]) -> list[int]:
    return [4 * latent[0], latent[1], latent[2]]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="checkpoint or bare safetensors")
    parser.add_argument("--match", default="*", help="glob on matrix names")
    parser.add_argument("--no-synthetic", dest="synthetic", action="store_false")
    parser.add_argument("--crop", type=int, help="take only so many rows and columns")
    parser.add_argument("--bits", default="2", help="of nf and vq; vq takes 1/2 as well")
    parser.add_argument(
        "--methods", nargs="+", default=METHODS, choices=METHODS, help="what stands beside vq"
    )
    parser.add_argument("--dim", type=int, default=2, help="of vq")
    parser.add_argument("--decoder-bits", type=int, default=6)
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--latent", type=int, nargs=3, default=[4, 4, 4])
    parser.add_argument("--encoder-width", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
