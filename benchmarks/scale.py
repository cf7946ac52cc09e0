"""A large checkpoint: memory stays within its bound, and the speed is printed.

    python benchmarks/scale.py                        4 GB of bf16, as written below
    python benchmarks/scale.py --gigabytes 0.5 --workers 2
    python benchmarks/scale.py --vocabulary 262144    with a kept embedding, larger than any matrix
    python benchmarks/scale.py --recipe reallm-2bit-tunable    all matrices share a codebook
    python benchmarks/scale.py --budget               sizes of many matrices, without weights
    python benchmarks/scale.py --profile              where the time goes, one matrix

A sharded checkpoint with the shapes of Llama-2-7B (random numbers, written as they are drawn) is
compiled with `paper-2bit` by the command line in processes of its own. Their anonymous memory is
sampled; each process that codes must stay under

    an interpreter with torch + 6 x the largest matrix in float32 + 200 MB

and all of them under what the preflight has stated. Kept tensors count nothing in either.

Then the archive is verified. Prints the figures; ends with 1 if the bound is broken. The machine
is usually busy with something else too, so seconds of the processor are told beside the clock's.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import reallm_compiler.codecs
from benchmarks.processes import anonymous_bytes
from benchmarks.timing import Timer
from reallm_compiler import plan
from reallm_compiler.execute.preflight import INTERPRETER_BYTES, worker_bytes

MB = 10**6
SIZES = {"BF16": 2, "F32": 4}
EMBEDDING = "model.embed_tokens.weight"
KEPT = """
reallm: 1
extends: {recipe}
rules: [{{match: "*embed_tokens", keep: bf16}}]
"""
SAMPLE_SECONDS = 0.1
CODECS = Path(reallm_compiler.codecs.__file__).parent
LEAST_SHARE = 0.01
"""Of the time that a function takes, to be shown."""

LAYERS = 56
"""Of the largest plan."""

FORMS: dict[str, tuple[str, ...]] = {"table": (), "json": ("--json",)}
"""Of a budget."""

COMMAND = [sys.executable, "-c", "from reallm_cli.main import run; run()"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}

LLAMA_70B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
}


def shapes_of_layer(hidden: int, inner: int) -> dict[str, tuple[int, int]]:
    """Matrices of a layer of Llama."""
    attention = {f"self_attn.{letter}_proj": (hidden, hidden) for letter in "qkvo"}
    return {
        **attention,
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


def write_checkpoint(
    folder: Path, *, weights: int, hidden: int, inner: int, vocabulary: int = 0
) -> int:
    """Layers of Llama up to so many weights, one shard each; the number of weights written.

    An embedding of so many rows comes with them, in float32 and of zeros.
    """
    folder.mkdir(parents=True)
    layer = shapes_of_layer(hidden, inner)
    size = sum(p * q for p, q in layer.values())
    # The last shard may hold a part of a layer, so that small checkpoints are possible.
    named = [
        (index, f"model.layers.{index}.{name}.weight", shape)
        for index in range(-(-weights // size))
        for name, shape in layer.items()
    ]
    left = weights
    shards: dict[str, dict[str, tuple[int, int]]] = {}
    for index, name, shape in named:
        if left <= 0:
            break
        shards.setdefault(f"model-{index:05d}.safetensors", {})[name] = shape
        left -= shape[0] * shape[1]
    generator = torch.Generator().manual_seed(0)
    for shard, tensors in shards.items():
        write_shard(folder / shard, tensors, generator)
    if vocabulary:
        shards["embedding.safetensors"] = {EMBEDDING: (vocabulary, hidden)}
        write_shard(folder / "embedding.safetensors", shards["embedding.safetensors"], None, "F32")
    weight_map = {name: shard for shard, tensors in shards.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = {"model_type": "llama", "tie_word_embeddings": False, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    return weights - left


def write_shard(
    path: Path,
    tensors: dict[str, tuple[int, int]],
    generator: torch.Generator | None,
    dtype: str = "BF16",
) -> None:
    """A safetensors file of bf16 matrices; a hole of zeros, of any type, without a generator."""
    header, offset = {}, 0
    for name, (p, q) in tensors.items():
        end = offset + SIZES[dtype] * p * q
        header[name] = {"dtype": dtype, "shape": [p, q], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for p, q in tensors.values() if generator is not None else ():
            for count in pieces(p * q):
                values = torch.randn(count, generator=generator) * 0.02
                file.write(values.to(torch.bfloat16).view(torch.uint8).numpy().data)
        file.truncate(8 + len(text) + offset)


def pieces(count: int, size: int = 1 << 22) -> Iterator[int]:
    for first in range(0, count, size):
        yield min(size, count - first)


def family(pid: int) -> list[int]:
    """A process and its children."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [pid, *map(int, found)]


def interpreter_bytes() -> int:
    """Anonymous memory of an interpreter with torch."""
    code = (
        "import torch; torch.ones(64, 64) @ torch.ones(64, 64)\n"
        "print([l.split()[1] for l in open('/proc/self/status') if l.startswith('RssAnon')][0])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return int(result.stdout) * 1024


def watched(args: list[str]) -> tuple[dict[int, int], float, float]:
    """Run the command line: peak anonymous bytes by process, seconds, processor seconds."""
    peaks: dict[int, int] = {}

    def sampled() -> int:
        process = subprocess.Popen([*COMMAND, *args], env=ENVIRONMENT, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            for pid in family(process.pid):
                peaks[pid] = max(peaks.get(pid, 0), anonymous_bytes(pid))
            time.sleep(SAMPLE_SECONDS)
        return process.returncode

    timer = Timer()
    if code := timer.run("compile", sampled):
        sys.exit(code)
    return peaks, timer.median("compile", "wall"), timer.median("compile", "cpu")


def study(given: argparse.Namespace, folder: Path) -> bool:
    """Write, compile, measure, verify."""
    wanted = int(given.gigabytes * 1e9 / 2)
    model, output = folder / "model", folder / "out.reallm"
    began = time.monotonic()
    weights = write_checkpoint(
        model,
        weights=wanted,
        hidden=given.hidden,
        inner=given.inner,
        vocabulary=given.vocabulary,
    )
    recipe = given.recipe
    if given.vocabulary:
        recipe = str(folder / "keep.yaml")
        Path(recipe).write_text(KEPT.format(recipe=given.recipe))
    shards = len(list(model.glob("*.safetensors")))
    print(
        f"checkpoint  {2 * weights / 1e9:.3f} GB of bf16 to code in {shards} shards, written in "
        f"{time.monotonic() - began:.0f} s",
        flush=True,
    )
    args = ["compile", recipe, "--model", str(model), "-o", str(output)]
    args += ["--device", "cpu", "--workers", str(given.workers)]
    peaks, seconds, used = watched(args)
    largest = max(p * q for p, q in shapes_of_layer(given.hidden, given.inner).values())
    interpreter = interpreter_bytes()
    limit = interpreter + 6 * 4 * largest + 200 * MB
    stated = worker_bytes(plan(recipe, model=model)) + INTERPRETER_BYTES
    print(f"file        {output.stat().st_size:,} bytes")
    print(f"time        {seconds:.0f} s, {weights / seconds:,.0f} weights/s")
    print(f"processor   {used:.0f} s, {weights / used:,.0f} weights/s of one core")
    print(
        f"limit       {limit / MB:,.0f} MB = interpreter {interpreter / MB:,.0f} "
        f"+ 6 x {4 * largest / MB:,.0f} + 200"
    )
    print(f"stated      {stated / MB:,.0f} MB by the preflight")
    for index, peak in enumerate(sorted(peaks.values(), reverse=True)):
        print(f"process {index}   {peak / MB:,.0f} MB at most")
    good = max(peaks.values()) < min(limit, stated)
    verified = subprocess.run([*COMMAND, "verify", str(output)], env=ENVIRONMENT, check=False)
    return good and verified.returncode == 0


def budgets(given: argparse.Namespace, folder: Path) -> bool:
    """`budget` on many matrices, rules and layers, as a table and as JSON."""
    indices = range(1000)
    layers = {f"model.layers.{index}.mlp.up_proj.weight": (64, 64) for index in indices}
    equal = {f"w{index}": (64, 64) for index in indices}
    shapes = {f"w{index}": (64 + 8 * (index % 50), 128 + 8 * (index // 50)) for index in indices}
    models = []
    for name, title, tensors in (
        ("layers", "1,000 matrices of one kind", layers),
        ("equal", "1,000 matrices of 1,000 names", equal),
        ("shapes", "1,000 matrices of 1,000 shapes", shapes),
    ):
        (folder / name).mkdir()
        write_shard(folder / name / "model.safetensors", tensors, None)
        models.append((title, folder / name, 1.0))
    (folder / "layers" / "config.json").write_text('{"model_type": "llama"}')
    config = {**LLAMA_70B, "num_hidden_layers": given.layers}
    (folder / "70b.json").write_text(json.dumps(config))
    models.append(("config of Llama-2-70B", folder / "70b.json", 10.0))
    start = timed_budget(None)[1]
    many = folder / "many.json"
    many.write_text(json.dumps({"shapes": experts(given.matrices), "dtype": "bfloat16"}))
    models.append((f"{given.matrices:,} matrices", many, 5.0))
    rules = folder / "rules.json"
    rules.write_text(json.dumps(expert_rules(given.rules)))
    models.append((f"{given.matrices:,} matrices by {given.rules:,} rules", many, 5.0))
    good = True
    for title, model, limit in models:
        recipe = str(rules) if title.endswith("rules") else "paper-2bit"
        for form in (FORMS[name] for name in given.forms):
            seconds, used, modules = timed_budget(model, *form, recipe=recipe)
            fits = used < limit and ("torch" not in modules or model.name == "70b.json")
            print(
                f"budget{' --json' if form else ''} of {title}: {used:.2f} s of the processor "
                f"(limit {limit:.0f}), of which {start:.2f} start the interpreter; {seconds:.2f} "
                f"s by the clock; torch {'imported' if 'torch' in modules else 'not imported'}",
                flush=True,
            )
            good &= fits
    return good


def experts(matrices: int) -> dict[str, list[int]]:
    """Shapes of a mixture of so many matrices, of widths as DeepSeek-R1 has them."""
    kinds = {"gate_proj": [2048, 7168], "up_proj": [2048, 7168], "down_proj": [7168, 2048]}
    return {
        f"model.layers.{layer}.mlp.experts.{expert}.{kind}.weight": shape
        for layer in range(LAYERS)
        for expert in range(matrices // LAYERS // len(kinds))
        for kind, shape in kinds.items()
    }


def expert_rules(rules: int) -> dict[str, Any]:
    """A recipe with a rule for each of so many experts."""
    return {
        "reallm": 1,
        "extends": "rtn-4bit",
        "rules": [
            {
                "match": f"*layers.{index % LAYERS}.mlp.experts.{index // LAYERS}.*_proj",
                "set": {"quantizer": {"kind": "uniform", "bits": 2 + index % 7}},
            }
            for index in range(rules)
        ],
    }


def timed_budget(
    model: Path | None, *form: str, recipe: str = "paper-2bit"
) -> tuple[float, float, list[str]]:
    """Seconds and processor seconds of a `budget` process, and the modules it imported.

    Without a model: of an interpreter that does nothing.
    """
    argv = ["budget", recipe, "--model", str(model), *form]
    code = (
        "import sys\nfrom reallm_cli.main import main\n"
        f"code = main({argv!r})\n"
        "print(' '.join(sys.modules), file=sys.stderr)\nsys.exit(code)"
    )
    args = [sys.executable, "-c", code if model is not None else "pass"]
    timer = Timer()
    done = timer.run(
        "budget",
        lambda: subprocess.run(args, env=ENVIRONMENT, capture_output=True, check=True, text=True),
    )
    return timer.median("budget", "wall"), timer.median("budget", "cpu"), done.stderr.split()


def profile(given: argparse.Namespace) -> None:
    """Functions of the codecs that take most of the time of one matrix, calls included."""
    from reallm_compiler.codecs import encode_matrix
    from reallm_compiler.recipe import Candidate, load_recipe, resolve

    name = "model.layers.0.mlp.down_proj"
    candidate = Candidate(name=name, layer=0, is_matrix=True, coded_by_default=True)
    plan = resolve(load_recipe(given.recipe), [candidate])[name].plan
    assert plan is not None
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(given.hidden, given.inner, generator=generator).to(torch.bfloat16)
    profiler = cProfile.Profile(time.process_time)
    profiler.runcall(encode_matrix, plan, weight, seed=0, source_dtype="bf16")
    found = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    rows = [
        (together, f"{Path(file).relative_to(CODECS)}: {function}")
        for (file, _, function), (_, _, _, together, _) in found.items()
        if Path(file).is_relative_to(CODECS)
    ]
    whole = max(rows)[0]
    for together, title in sorted(rows, reverse=True):
        if together >= LEAST_SHARE * whole:
            print(f"{together:7.2f} s of the processor  {title}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--inner", type=int, default=11008)
    parser.add_argument("--vocabulary", type=int, default=0, help="rows of a kept embedding")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--recipe", default="paper-2bit")
    parser.add_argument("--budget", action="store_true")
    parser.add_argument("--matrices", type=int, default=99_960, help="of the largest budget")
    parser.add_argument("--rules", type=int, default=1_400, help="of the largest budget")
    parser.add_argument("--layers", type=int, default=80, help="of the budget of Llama-2-70B")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    if given.profile:
        profile(given)
        return 0
    with tempfile.TemporaryDirectory(prefix="scale-") as name:
        good = (budgets if given.budget else study)(given, Path(name))
    print("within the bound" if good else "FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
