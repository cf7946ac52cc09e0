"""`reallm calibrate` beside plain passes of torch, and its memory beside what it says.

    python -m benchmarks.calibrate MODEL --text FILE [--samples 256] [--window 256] [--rounds 1]
    python -m benchmarks.calibrate MODEL --text FILE --wide 4096 --inner 11008 --samples 2

The first times statistics in terms of one pass forward and one backward of the cross-entropy over
the same sequences, eight at a time, in turns; ends with 1 if they take more than four such passes.
With few sequences it is the file, and the digests of the weights, that take the time.
The second measures a made Llama of that width with MODEL's tokenizer, and holds the peak of
anonymous memory against the estimate that stands before the run; ends with 1 if it is above.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch

import reallm_compiler as reallm
from benchmarks import timing
from benchmarks.processes import anonymous_bytes
from reallm_compiler.calibration.events import Started
from reallm_compiler.calibration.options import CalibrateOptions
from reallm_compiler.calibration.text import draw_sequences
from reallm_compiler.evaluate import load_for_evaluation

BATCH = 8
MOST_PASSES = 4
SAMPLE_SECONDS = 0.02
MB = 10**6


def settings(given: argparse.Namespace) -> dict[str, Any]:
    """What `calibrate` is called with."""
    return {
        "text": given.text,
        "samples": given.samples,
        "window": given.window,
        "device": "cpu",
        "workers": 1,
        "resume": "never",
        "force": True,
    }


def time_passes(given: argparse.Namespace, output: Path) -> bool:
    """Statistics beside plain passes, in turns."""
    model, tokenizer = load_for_evaluation(given.model)
    options = CalibrateOptions(samples=given.samples, window=given.window)
    texts = [given.text.read_text(encoding="utf-8")]
    ids = torch.tensor(draw_sequences(tokenizer, texts, given.window, options))  # [samples, window]

    def plain() -> None:
        for batch in ids.split(BATCH):
            model.zero_grad()
            with torch.enable_grad():
                model(input_ids=batch, labels=batch).loss.backward()

    def statistics() -> None:
        reallm.calibrate(given.model, output=output, progress=False, **settings(given))

    model.requires_grad_(True)
    timer = timing.interleaved({"statistics": statistics, "plain": plain}, given.rounds)
    ratio = timer.ratio("statistics", "plain")
    print(timing.conditions(given))
    print(f"{len(ids)} sequences of {given.window} tokens")
    for name in ("statistics", "plain"):
        print(f"{name:<12}{timer.median(name):.2f} s of the processor")
    print(f"statistics take as long as {ratio:.2f} plain passes (at most {MOST_PASSES})")
    return ratio <= MOST_PASSES


def write_wide(folder: Path, given: argparse.Namespace) -> None:
    """A Llama of random weights, with the tokenizer of the given model."""
    from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source = AutoConfig.from_pretrained(given.model, trust_remote_code=False)
    config = LlamaConfig(
        vocab_size=source.get_text_config().vocab_size,
        hidden_size=given.wide,
        intermediate_size=given.inner or given.wide,
        num_hidden_layers=given.layers,
        num_attention_heads=max(1, given.wide // 128),
        max_position_embeddings=given.window,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    AutoTokenizer.from_pretrained(given.model, trust_remote_code=False).save_pretrained(folder)


def hold_memory(given: argparse.Namespace, output: Path) -> bool:
    """The peak of memory beside the estimate."""
    folder = output.with_suffix("")
    writer = multiprocessing.get_context("spawn").Process(target=write_wide, args=(folder, given))
    writer.start()  # a process of its own, so that this one has not held the model
    writer.join()
    peak, estimate, ended = 0, 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(SAMPLE_SECONDS):
            peak = max(peak, anonymous_bytes("self"))

    def note(event: object) -> None:
        nonlocal estimate
        if isinstance(event, Started):
            estimate = event.memory_bytes

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        reallm.calibrate(folder, output=output, on_event=note, **settings(given))
    finally:
        ended.set()
        watcher.join()
    print(
        f"{given.layers} layers of {given.wide}: {estimate / MB:,.0f} MB stated with Python and "
        f"torch, {peak / MB:,.0f} MB at the peak, a file of {output.stat().st_size / MB:,.0f} MB"
    )
    return peak <= estimate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--wide", type=int, help="hidden size of a made model")
    parser.add_argument("--inner", type=int, help="of its MLP (default: the same)")
    parser.add_argument("--layers", type=int, default=2)
    timing.add_options(parser, rounds=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as scratch:
        run = hold_memory if given.wide else time_passes
        good = run(given, Path(scratch) / "made.stats")
    sys.exit(not good)


if __name__ == "__main__":
    main()
