"""What a CUDA device does: the same errors as the processor, and how fast.

    python benchmarks/gpu.py                 all of it; needs a CUDA device
    python benchmarks/gpu.py --gigabytes 0.2 --workers 2

1. k-means, column order and whole matrices on cuda and on the cpu: errors side by side, and twice
   on cuda, which must give the same bytes.
2. A random checkpoint of a billion parameters (2 GB of bf16, Llama's shapes) compiled with
   `reallm-2bit` on cuda by several workers: weights per second, and the share of the time in which
   the device was at work, as `nvidia-smi` samples it.
3. The same checkpoint again with other workers: the same bytes.

Ends with 1 if errors differ by more than 1 % or bytes differ.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

# Before the first context: cuBLAS reads it once.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from scale import write_checkpoint

import reallm_compiler as reallm
from reallm_compiler.codecs import encode_matrix, k_means, nearest
from reallm_compiler.codecs.assignment import assign
from reallm_compiler.codecs.vectors import DenseVectors
from reallm_compiler.execute.encode import fix_numerics
from reallm_compiler.execute.events import Event, Preflight
from reallm_compiler.recipe import Candidate, load_recipe, resolve
from reallm_compiler.recipe.stages import NearestPermutation

TOLERANCE = 0.01


def report(title: str, on_cpu: float, on_cuda: float, seconds: tuple[float, float]) -> bool:
    """Print a row; whether the two errors are the same within the tolerance."""
    same = abs(on_cuda - on_cpu) <= TOLERANCE * on_cpu
    print(
        f"{title:28} cpu {on_cpu:.6f} in {seconds[0]:7.2f} s   cuda {on_cuda:.6f} in "
        f"{seconds[1]:7.2f} s   {'same' if same else 'DIFFERENT'}",
        flush=True,
    )
    return same


def timed(function, device: str):
    """The result of a function of the device, and its seconds with the device's queue empty."""
    function(device)  # the first call pays for kernels and contexts
    torch.cuda.synchronize()
    began = time.monotonic()
    result = function(device)
    torch.cuda.synchronize()
    return result, time.monotonic() - began


def codebook_error(device: str) -> float:
    """Mean squared error of 256 words of dimension 4 for a million vectors."""
    values = torch.randn(1 << 20, 4, generator=torch.Generator().manual_seed(1)).to(device)
    vectors = DenseVectors(values=values)
    words = k_means.fit(vectors, 256, 50, torch.Generator().manual_seed(2))
    codes = assign(values, None, words)
    return float((values - words[codes]).double().square().mean())


def order_length(device: str) -> float:
    """Mean distance of neighbouring columns after ordering 2048 x 4096."""
    latent = torch.randn(2048, 4096, generator=torch.Generator().manual_seed(3)).to(device)
    params = NearestPermutation(kind="nearest", rows=128)
    _, places = nearest.encode(params, latent)
    ordered = nearest.permute(params, latent, places)
    return float((ordered[:, 1:] - ordered[:, :-1]).double().square().mean().sqrt())


def matrix_error(recipe: str, device: str) -> float:
    """Relative error of a random 2048 x 4096 matrix by a shipped recipe."""
    candidate = Candidate(name="m", layer=0, is_matrix=True, coded_by_default=True)
    plan = resolve(load_recipe(recipe), [candidate])["m"].plan
    assert plan is not None
    weight = torch.randn(2048, 4096, generator=torch.Generator().manual_seed(4)).to(device)
    return encode_matrix(plan, weight, seed=5, source_dtype="bf16").relative_error


def compare() -> bool:
    """Part 1."""
    studies = {"k-means, 256 words of 4": codebook_error, "column order": order_length}
    for recipe in ("rtn-4bit", "nf4", "lq-lora", "reallm-2bit"):
        studies[recipe] = lambda device, recipe=recipe: matrix_error(recipe, device)
    good = True
    for title, function in studies.items():
        on_cpu, slow = timed(function, "cpu")
        on_cuda, fast = timed(function, "cuda")
        good &= report(title, on_cpu, on_cuda, (slow, fast))
        if function("cuda") != on_cuda:
            print(f"{title}: two runs on cuda DIFFER")
            good = False
    return good


class Watch:
    """Samples how busy the device is while it is entered."""

    def __enter__(self) -> Watch:
        self.samples: list[int] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        words = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not self._done.wait(0.5):
            told = subprocess.run(words, capture_output=True, text=True, check=False).stdout
            numbers = [int(line) for line in told.split() if line.isdigit()]
            self.samples += numbers[:1]

    @property
    def share(self) -> str:
        """Mean of the samples in percent."""
        if not self.samples:
            return "unknown (no nvidia-smi)"
        return f"{sum(self.samples) / len(self.samples):.0f} %"


def large(given: argparse.Namespace, folder: Path) -> bool:
    """Parts 2 and 3."""
    wanted = int(given.gigabytes * 1e9 / 2)
    weights = write_checkpoint(folder / "model", weights=wanted, hidden=4096, inner=11008)
    print(f"checkpoint of {weights:,} weights", flush=True)
    digests = set()
    for workers in given.workers:
        output = folder / f"{workers}.reallm"
        began: list[float] = []

        def hear(event: Event, began: list[float] = began) -> None:
            if isinstance(event, Preflight):
                began.append(time.monotonic())

        with Watch() as watch:
            reallm.compile(
                given.recipe,
                model=folder / "model",
                output=output,
                device="cuda",
                workers=workers,
                on_event=hear,
            )
        seconds = time.monotonic() - began[0]
        digests.add(hashlib.sha256(output.read_bytes()).hexdigest())
        print(
            f"workers {workers}: {seconds:.1f} s, {weights / seconds:,.0f} weights/s, "
            f"device busy {watch.share}",
            flush=True,
        )
    print("same bytes" if len(digests) == 1 else "DIFFERENT BYTES")
    return len(digests) == 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--recipe", default="reallm-2bit")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "no CUDA device: torch reports none on this machine (driver missing, or a CPU build "
            "of torch). Run this command on a machine with one.",
            file=sys.stderr,
        )
        return 2
    print(f"device {torch.cuda.get_device_name()}, torch {torch.__version__}")
    fix_numerics(torch.device("cuda"))
    with tempfile.TemporaryDirectory(prefix="gpu-") as name:
        good = compare()
        good &= large(given, Path(name))
    print("all as on the cpu" if good else "FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
