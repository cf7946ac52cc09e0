"""What a CUDA device does: the same errors as the processor, and how fast.

    python benchmarks/gpu.py                 all of it; needs a CUDA device
    python benchmarks/gpu.py --gigabytes 0.2 --workers 2
    python benchmarks/gpu.py --products      products from codes alone; needs triton

0. Products of matrices of 4096 x 4096 and 11008 x 4096 with 1 to 8 inputs (a token for each of so
   many sequences) and with 512 (a prompt), from codes and from bfloat16 by torch: microseconds, and
   how far the results are from the dense decode.
1. k-means, column order and whole matrices on cuda and on the cpu: errors side by side; and again
   on cuda, which must give the same bytes.
2. A small random checkpoint compiled on both: the errors of each of its matrices side by side.
3. A random checkpoint of a billion parameters (2 GB of bf16, Llama's shapes) compiled with
   `paper-2bit` on cuda by several workers: weights per second, and the share of the time in which
   the device was at work, as `nvidia-smi` samples it.
4. The same checkpoint again with other workers: the same bytes.

Ends with 1 if errors differ by more than 1 % or bytes differ.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

# Before the first context: cuBLAS reads it once.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from torch.nn import functional

import reallm_compiler as reallm
from benchmarks.scale import write_checkpoint
from benchmarks.timing import Timer
from reallm_compiler.codecs import encode_matrix, nearest
from reallm_compiler.codecs.numerics import k_means
from reallm_compiler.codecs.numerics.assignment import assign
from reallm_compiler.codecs.numerics.vectors import DenseVectors
from reallm_compiler.codecs.orders import StoredOrder
from reallm_compiler.codecs.sections import stored_shape
from reallm_compiler.execute.events import Event, Preflight
from reallm_compiler.execute.runner import THREADS
from reallm_compiler.kernels.choose import only_plain, product_for
from reallm_compiler.kernels.packed import PackedForm
from reallm_compiler.kernels.triton_product import TritonProduct
from reallm_compiler.recipe import Candidate, load_recipe, resolve
from reallm_compiler.runs.numerics import fixed_numerics
from reallm_compiler.stages import MatrixPlan, NearestPermutation
from reallm_compiler.storage.matrix import layout_of

TOLERANCE = 0.01

PRODUCTS = ("reallm-2bit-data-free", "reallm-2bit-tunable", "paper-2bit", "rtn-4bit", "nf4")
"""Recipes whose products are timed: trellis, vectors of 4 with and without orders, 4 bits."""

SHAPES = ((4096, 4096), (11008, 4096))
INPUTS = (1, 2, 4, 8, 512)

CALLS = 20
"""Products in a row, of as many copies of a matrix as no cache holds."""


def report(title: str, on_cpu: float, on_cuda: float, seconds: tuple[float, float]) -> bool:
    """Print a row; whether the two errors are the same within the tolerance."""
    same = abs(on_cuda - on_cpu) <= TOLERANCE * on_cpu
    print(
        f"{title:28} cpu {on_cpu:.6f} in {seconds[0]:7.2f} s   cuda {on_cuda:.6f} in "
        f"{seconds[1]:7.2f} s   {'same' if same else 'DIFFERENT'}",
        flush=True,
    )
    return same


Made = tuple[float, bytes]
"""The error of what a codec made, and its bytes."""


def bytes_of(*tensors: torch.Tensor) -> bytes:
    """Their values, one after the other."""
    return b"".join(
        t.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() for t in tensors
    )


def timed(function: Callable[[str], Made], device: str) -> tuple[Made, float]:
    """What a function made on the device, and its seconds with the device's queue empty."""

    def call() -> Made:
        result = function(device)
        torch.cuda.synchronize()
        return result

    call()  # the first call pays for kernels and contexts
    timer = Timer("wall")
    return timer.run(device, call), timer.median(device)


def codebook(device: str) -> Made:
    """256 words of dimension 4 for a million vectors, and their mean squared error."""
    values = torch.randn(1 << 20, 4, generator=torch.Generator().manual_seed(1)).to(device)
    vectors = DenseVectors(values=values)
    words = k_means.fit(vectors, 256, 50, torch.Generator().manual_seed(2))
    codes = assign(values, None, words)
    return float((values - words[codes]).double().square().mean()), bytes_of(words, codes)


def order(device: str) -> Made:
    """Orders of the columns of 2048 x 4096, and the mean distance of neighbours after it."""
    latent = torch.randn(2048, 4096, generator=torch.Generator().manual_seed(3)).to(device)
    params = NearestPermutation(kind="nearest", rows=128)
    positions = nearest.find_order(params, latent)
    ordered = StoredOrder(params.rows, columns=positions).permute(latent)
    length = (ordered[:, 1:] - ordered[:, :-1]).double().square().mean().sqrt()
    return float(length), bytes_of(positions)


def plan_of(recipe: str) -> MatrixPlan:
    """The plan of a shipped recipe for a matrix of a layer."""
    candidate = Candidate(name="m", layer=0, is_matrix=True, coded_by_default=True)
    plan = resolve(load_recipe(recipe), [candidate])["m"].plan
    assert plan is not None
    return plan


def random_sections(plan: MatrixPlan, form: PackedForm, device: torch.device) -> list[torch.Tensor]:
    """Sections of a matrix of no meaning: what a product costs does not depend on it.

    Codes are random bits; scales, factors and tables small numbers; orders and masks come from a
    matrix of fewer rows, which is truly coded.
    """
    rows = min(form.shape[0], 256)
    weight = torch.randn(rows, form.shape[1], generator=torch.Generator().manual_seed(4))
    quick = plan.quantizer.model_copy(
        update={
            name: value
            for name, value in (("paths", 2), ("iterations", 1))
            if hasattr(plan.quantizer, name)
        }
    )
    small = plan.model_copy(update={"quantizer": quick, "share": None})
    coded = encode_matrix(small, weight.to(device), seed=5, source_dtype="bf16").sections
    sections = []
    for spec in form.specs:
        like = coded[spec.role].cpu().reshape(-1)
        count = math.prod(stored_shape(spec))
        times = -(-count // like.numel())
        sections.append(like.repeat(times)[:count].view(stored_shape(spec)).to(device))
    return sections


def products() -> bool:
    """Part 0."""
    good, device = True, torch.device("cuda")
    for recipe in PRODUCTS:
        plan = plan_of(recipe)
        for shape in SHAPES:
            layout = layout_of(plan.model_copy(update={"share": None}), shape, "bf16")
            form = PackedForm(layout=layout)
            sections = random_sections(plan, form, device)
            count = max(2, (256 << 20) // sum(section.nbytes for section in sections))
            copies = [form.with_sections([one.clone() for one in sections]) for _ in range(count)]
            packed = [product_for(copy, device, torch.bfloat16) for copy in copies]
            with only_plain():
                plain = product_for(copies[0], device, torch.bfloat16)
            dense = [plain.rows(range(shape[0])) for _ in range(4)]  # 32 MB each and more
            if not isinstance(packed[0], TritonProduct):
                print(f"{recipe}: no kernel (is triton installed?)")
                return False
            for n in INPUTS:
                x = torch.randn(n, shape[1], device=device, dtype=torch.bfloat16)
                found, wanted = packed[0].linear(x).float(), x.float() @ dense[0].float().t()
                apart = float((found - wanted).norm() / wanted.norm())
                ours = microseconds([partial(one.linear, x) for one in packed])
                theirs = microseconds([partial(functional.linear, x, one) for one in dense])
                good &= apart < TOLERANCE
                print(
                    f"{recipe:24} {shape[0]:5} x {shape[1]}, {n:3} inputs: {ours:8.1f} us, "
                    f"bf16 {theirs:8.1f} us, {ours / theirs:5.2f} of it; {apart:.1e} apart",
                    flush=True,
                )
    return good


def microseconds(calls: list[Callable[[], object]]) -> float:
    """Of one of the calls on the device, as part of a CUDA graph of `CALLS` of them in turn."""
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for call in calls:
            call()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(CALLS):
            calls[index % len(calls)]()
    times: list[float] = []
    for _ in range(20):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / CALLS * 1000)
    return statistics.median(times)


def matrix(recipe: str, device: str) -> Made:
    """A random 2048 x 4096 matrix by a shipped recipe: relative error and sections."""
    plan = plan_of(recipe)
    weight = torch.randn(2048, 4096, generator=torch.Generator().manual_seed(4)).to(device)
    coded = encode_matrix(plan, weight, seed=5, source_dtype="bf16")
    return coded.relative_error, bytes_of(*coded.sections.values())


def compare() -> bool:
    """Part 1."""
    studies = {"k-means, 256 words of 4": codebook, "column order": order}
    for recipe in ("rtn-4bit", "nf4", "lq-lora", "paper-2bit"):
        studies[recipe] = partial(matrix, recipe)
    good = True
    for title, function in studies.items():
        (on_cpu, _), slow = timed(function, "cpu")
        (on_cuda, first), fast = timed(function, "cuda")
        good &= report(title, on_cpu, on_cuda, (slow, fast))
        if function("cuda")[1] != first:
            print(f"{title}: two runs on cuda DIFFER")
            good = False
    return good


def small(recipe: str, folder: Path) -> bool:
    """Part 2."""
    write_checkpoint(folder / "small", weights=30_000_000, hidden=1024, inner=2752)
    errors, seconds = {}, {}
    for device in ("cpu", "cuda"):
        report = reallm.compile(
            recipe, model=folder / "small", output=folder / f"{device}.reallm", device=device
        )
        errors[device], seconds[device] = report.errors, report.seconds
    on_cpu, on_cuda = errors["cpu"], errors["cuda"]
    apart = max(abs(on_cuda[name] / on_cpu[name] - 1) for name in on_cpu)
    print(
        f"compile of {len(on_cpu)} matrices: cpu {seconds['cpu']:.1f} s, cuda "
        f"{seconds['cuda']:.1f} s, errors of a matrix at most {apart:.2%} apart",
        flush=True,
    )
    return apart <= TOLERANCE


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
        while shutil.which(words[0]) and not self._done.wait(0.5):
            report = subprocess.run(words, capture_output=True, text=True, check=False).stdout
            numbers = [int(line) for line in report.split() if line.isdigit()]
            self.samples += numbers[:1]

    @property
    def share(self) -> str:
        """Mean of the samples in percent."""
        if not self.samples:
            return "unknown (no nvidia-smi)"
        return f"{sum(self.samples) / len(self.samples):.0f} %"


def large(given: argparse.Namespace, folder: Path) -> bool:
    """Parts 3 and 4."""
    wanted = int(given.gigabytes * 1e9 / 2)
    weights = write_checkpoint(folder / "model", weights=wanted, hidden=4096, inner=11008)
    print(f"checkpoint of {weights:,} weights", flush=True)
    digests = set()
    for workers in given.workers:
        output = folder / f"{workers}.reallm"
        began: list[float] = []

        def on_event(event: Event, began: list[float] = began) -> None:
            if isinstance(event, Preflight):
                began.append(time.monotonic())

        with Watch() as watch:
            reallm.compile(
                given.recipe,
                model=folder / "model",
                output=output,
                device="cuda",
                workers=workers,
                on_event=on_event,
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
    parser.add_argument("--recipe", default="paper-2bit")
    parser.add_argument("--products", action="store_true", help="part 0 alone")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "no CUDA device: torch reports none on this machine (driver missing, or a CPU build "
            "of torch). Run this command on a machine with one.",
            file=sys.stderr,
        )
        return 2
    print(f"device {torch.cuda.get_device_name()}, torch {torch.__version__}")
    with (
        fixed_numerics(THREADS, torch.device("cuda")),
        tempfile.TemporaryDirectory(prefix="gpu-") as name,
    ):
        good = products()
        if given.products:
            return 0 if good else 1
        good &= compare()
        good &= small(given.recipe, Path(name))
        good &= large(given, Path(name))
    print("all as on the cpu" if good else "FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
