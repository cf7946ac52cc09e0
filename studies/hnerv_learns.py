"""Can the trained autoencoder learn? A matrix that a random decoder of its own shape has made.

    python studies/hnerv_learns.py                 about a minute on one core
    python studies/hnerv_learns.py --large         a matrix of eight times as many weights

The matrix has mean 0 and deviation 1, so that a constant scores 1.0. Three questions:

1. does training fit it to a relative error under 0.1 at 8-bit weights and 16-bit latents?
2. at fewer bits, does training with quantized weights (QAT) beat rounding after it (PTQ)?
3. does a decoder of a group serve its members, and one that is reused as it is a new one?

Prints one line per result and exits with 1 if the first answer is no, or the second for any width
of 4 bits or less. On a CPU (AVX-512) it printed, less the seconds:

    question  setting   weights  exact_bits  error
    learns    8 bit     2048     56.30       0.0360
    qat       8 bit     2048     56.30       0.0360
    ptq       8 bit     2048     56.30       0.0363
    qat       6 bit     2048     43.96       0.0380
    ptq       6 bit     2048     43.96       0.0446
    qat       4 bit     2048     31.62       0.0529
    ptq       4 bit     2048     31.62       0.1145
    qat       3 bit     2048     25.45       0.0750
    ptq       3 bit     2048     25.45       0.2004
    qat       2 bit     2048     19.28       0.1220
    ptq       2 bit     2048     19.28       0.3377
    shared    member 0  1024     108.59      0.0418
    shared    member 1  1024     108.59      0.0430
    reused    unseen    1024     108.59      0.6385

The answers: yes; yes, at every width; and the members of a group are served as well, while a
decoder that has learned on 8 patches says little of others.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reallm_compiler.codecs import encode_matrix, fit_shared
from reallm_compiler.codecs.autoencoders import hnerv
from reallm_compiler.codecs.autoencoders.hnerv_weights import Decoder
from reallm_compiler.stages import Hnerv, MatrixPlan
from reallm_compiler.storage.matrix import layout_of

STAGE = {
    "kind": "hnerv",
    "patch": 16,
    "latent": [4, 4, 4],
    "width": 16,
    "min_width": 8,
    "kernel_min": 3,
    "kernel_max": 3,
    "encoder_width": 16,
    "decoder_bits": 8,
    "lr": 1e-2,
    "batch": 8,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the answers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--epochs", type=int, default=150)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    grid = (8, 8) if options.large else (2, 4)
    matrix = decoded_by_chance(grid, seed=1)
    print("question", "setting", "weights", "exact_bits", "error", "seconds", sep="\t")
    learns = show("learns", "8 bit", matrix, epochs=options.epochs) < 0.1
    better = True
    for bits in (8, 6, 4, 3, 2):
        errors = {
            name: show(
                name, f"{bits} bit", matrix, epochs=options.epochs, decoder_bits=bits, qat=qat
            )
            for name, qat in (("qat", True), ("ptq", False))
        }
        better = better and (bits > 4 or errors["qat"] < errors["ptq"])
    half = matrix.shape[1] // 2
    group = [matrix[:, :half].contiguous(), matrix[:, half:].contiguous()]
    plan = planned(share="g", epochs=options.epochs)
    shared = fit_shared([plan] * len(group), group, seed=1)
    for index, member in enumerate(group):
        show("shared", f"member {index}", member, shared=shared, plan=plan)
    # Made by the same random decoder from other latents: the group's decoder has not seen it.
    fresh = decoded_by_chance(grid, seed=1, latents=2)
    show("reused", "unseen", fresh[:, :half].contiguous(), shared=shared, plan=plan)
    return 0 if learns and better else 1


def show(
    question: str,
    setting: str,
    matrix: Tensor,
    *,
    plan: MatrixPlan | None = None,
    shared: dict[str, Tensor] | None = None,
    **fields: Any,
) -> float:
    """Encode a matrix, print a row, and return the error."""
    plan = plan or planned(**fields)
    began = time.monotonic()
    coded = encode_matrix(plan, matrix, seed=1, source_dtype="f32", shared=shared)
    seconds = time.monotonic() - began
    specs = layout_of(plan, (matrix.shape[0], matrix.shape[1]), "f32").sections
    bits = 8 * sum(spec.nbytes for spec in specs) / matrix.numel()
    row = [question, setting, matrix.numel(), f"{bits:.2f}", f"{coded.relative_error:.4f}"]
    print(*row, f"{seconds:.1f}", sep="\t", flush=True)
    return coded.relative_error


def planned(share: str | None = None, **fields: Any) -> MatrixPlan:
    """The plan with some parameters of its autoencoder changed."""
    return MatrixPlan.model_validate(
        {
            "autoencoder": {**STAGE, **fields},
            "quantizer": {"kind": "none", "dtype": "float16"},
            "share": share,
        }
    )


def decoded_by_chance(grid: tuple[int, int], *, seed: int, latents: int | None = None) -> Tensor:
    """A matrix of `grid` patches that a random decoder makes of random latents."""
    params = planned(qat=False).autoencoder
    assert isinstance(params, Hnerv)
    assert params.width is not None
    generator = torch.Generator().manual_seed(seed)
    decoder = Decoder(params, params.width, generator)
    if latents is not None:
        generator = torch.Generator().manual_seed(latents)
    with torch.no_grad():
        values = torch.randn(grid[0] * grid[1], *params.latent, generator=generator)
        matrix = hnerv.from_patches(grid, decoder(values))
    return (matrix - matrix.mean()) / matrix.std(correction=0)


if __name__ == "__main__":
    sys.exit(main())
