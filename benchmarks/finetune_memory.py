"""Does tuning take the memory that `finetune --dry-run` says?

    python benchmarks/finetune_memory.py --model demo demo/model demo/heldout.txt --window 256

Each row is a process of its own that tunes an archive of the model (recipe `reallm-2bit-tunable`)
for two steps or passes, on the CPU with one thread. Its anonymous memory is sampled every few
milliseconds; the peak, less what the same process held after all imports and a first small
backward pass, stands beside the estimate. On the CPU the host's share (inputs and targets of the
blocks) is part of both.

The C library keeps memory that was freed, above all tensors of less than 32 MB. So each case runs
twice: once told to give it back at once, so that the peak is of what is in use, which is what the
estimate adds up; and once as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.processes import anonymous_bytes

MB = 10**6
SAMPLE_SECONDS = 0.003
CASES: dict[str, dict[str, Any]] = {
    "block by block": {"stages": ["block"]},
    "end to end": {"stages": ["e2e"]},
    "end to end, activations again": {"stages": ["e2e"], "checkpointing": True},
    "end to end, distilled": {"stages": ["e2e"], "e2e": {"loss": "distill"}},
    "end to end, distilled, activations again": {
        "stages": ["e2e"],
        "checkpointing": True,
        "e2e": {"loss": "distill"},
    },
}
TRIM = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def warm_up() -> None:
    """Everything that costs memory once, whatever the model: imports and a backward pass."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import reallm_compiler.finetune
    import reallm_compiler.runtime.opening  # noqa: F401

    torch.set_num_threads(1)
    small: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "vocab_size": 16,
    }
    model = LlamaForCausalLM(LlamaConfig(**small, num_attention_heads=2, vocab_size=16))
    ids = torch.arange(16)[None]
    model(input_ids=ids, labels=ids).loss.backward()


def child(args: list[str]) -> None:
    """One run, in a process of its own; tells its memory before and the estimate."""
    archive, folder, text, output, settings = args
    warm_up()
    from reallm_compiler.finetune import Started, finetune

    print(json.dumps({"base": anonymous_bytes("self")}), flush=True)

    def tell(event: object) -> None:
        if isinstance(event, Started):
            print(json.dumps({"memory": event.memory.to_json()}), flush=True)

    finetune(
        archive,
        model=folder,
        text=[text],
        output=output,
        options=json.loads(settings),
        on_event=tell,
    )


def measured(args: list[str], *, trim: bool) -> tuple[int, int, dict[str, Any]]:
    """Run a child: bytes before, bytes at the peak, and the estimate."""
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, __file__, "--child", *args],
        env={**environment, **(TRIM if trim else {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(SAMPLE_SECONDS)
    assert process.stdout is not None
    lines = [json.loads(line) for line in process.stdout.read().splitlines()]
    if process.returncode:
        sys.exit(process.returncode)
    return lines[0]["base"], peak, lines[1]["memory"]


def settings_of(given: argparse.Namespace, case: dict[str, Any]) -> dict[str, Any]:
    """The settings of a case: two passes, or two steps."""
    return {
        **case,
        "window": given.window,
        "held_out": 8,
        "block": {"batch": given.batch, "sequences": given.sequences, "epochs": 2},
        "e2e": {
            "batch": max(1, given.batch // 4),
            "accumulation": 2,
            "steps": 2,
            "checks": 1,
            **case.get("e2e", {}),
        },
    }


def rows(given: argparse.Namespace, args: list[str], work: Path) -> list[str]:
    """The rows of one model."""
    import reallm_compiler as reallm

    name, folder, text = args
    archive = work / f"{name}.reallm"
    reallm.compile(given.recipe, model=folder, output=archive, device="cpu", workers=1)
    lines = []
    for title, case in CASES.items():
        output = work / "out.adapter"
        settings = json.dumps(settings_of(given, case))
        found = []
        for trim in (True, False):
            base, peak, memory = measured(
                [str(archive), folder, text, str(output), settings], trim=trim
            )
            output.unlink()
            found.append(peak - base)
        estimated = memory["peak_bytes"] + memory["host_bytes"]
        lines.append(
            f"| {name} | {title} | {estimated / MB:.0f} | {found[0] / MB:.0f} | "
            f"{100 * (estimated / found[0] - 1):+.0f} % | {found[1] / MB:.0f} |"
        )
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", action="append", nargs=3, metavar=("NAME", "FOLDER", "TEXT"), required=True
    )
    parser.add_argument("--recipe", default="reallm-2bit-tunable")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32, help="of blocks; a quarter end to end")
    parser.add_argument("--sequences", type=int, default=64)
    given = parser.parse_args()
    print(
        f"window {given.window}, {given.batch} sequences of a step block by block and "
        f"{max(1, given.batch // 4)} of a backward pass end to end, {given.sequences} in all\n"
    )
    print("| model | stage | estimate, MB | in use, MB | estimate off by | as it is, MB |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="memory-") as work:
        for args in given.model:
            print("\n".join(rows(given, args, Path(work))), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
    else:
        main()
