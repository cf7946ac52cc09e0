"""What a packed model takes beside the decoded one: memory, time to load, time for a token.

    python benchmarks/packed_memory.py out.reallm ...
    python benchmarks/packed_memory.py --made 8x1024 --recipe nf4 --recipe rtn-2bit

Each row is an archive, or a random Llama of so many layers and so wide, compiled by a recipe. A
process of its own for each mode loads it, on the CPU with one thread, after it has loaded and run
a small model, so that libraries do not count. Own memory is what the process wrote (anonymous
and copied pages); pages of the file are shared by all processes that map it, and can be dropped
and read again. Loading is by `verify="later"` for the packed mode, which is its use; the best of
three, by the wall and with the file in the page cache. A token is one more at the end of a
prompt, by the processor's clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MB = 10**6
TOKENS = 16


def pages(key: str, file: str | None = None) -> int:
    """Bytes of this process's pages of a kind, such as `Private_Dirty`; of one file or of all."""
    total, inside = 0, file is None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = file is None or line.endswith(file)
        elif inside and line.startswith(key):
            total += int(line.split()[1]) << 10
    return total


def measure(path: str, small: str, mode: Any) -> dict[str, Any]:
    """Load and run an archive; bytes, seconds, the logits' file and the tokens."""
    import torch

    import reallm_compiler as reallm

    torch.set_num_threads(1)
    verify: Any = "later" if mode == "packed" else "now"

    def load(of: str) -> Any:
        began = time.perf_counter()
        model, _ = reallm.load(of, mode=mode, dtype="float32", verify=verify)
        seconds.append(time.perf_counter() - began)
        return model

    seconds: list[float] = []
    prompt = torch.arange(1, 33)[None]
    with torch.no_grad():
        load(small)(prompt)
        seconds.clear()
        before = pages("Private_Dirty")
        model = load(path)
        logits = model(prompt).logits
        own = pages("Private_Dirty") - before
        mapped = pages("Pss:", str(Path(path).resolve()))
        model(prompt)
        cache = model(prompt, use_cache=True).past_key_values
        steps = []
        for index in range(TOKENS):
            began = time.thread_time()
            model(prompt[:, index % 32 : index % 32 + 1], past_key_values=cache)
            steps.append(time.thread_time() - began)
        written = model.generate(prompt, max_new_tokens=TOKENS, do_sample=False, pad_token_id=0)
        del model
        for _ in range(2):
            load(path)
    return {
        "own": own,
        "mapped": mapped,
        "load": min(seconds),
        "token": statistics.median(steps),
        "logits": logits.double().flatten().tolist(),
        "tokens": written.tolist(),
    }


def made(sizes: str, folder: Path) -> Path:
    """A random Llama, such as `8x1024`: layers and width."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    layers, width = map(int, sizes.split("x"))
    config: Any = LlamaConfig(
        vocab_size=4096,
        hidden_size=width,
        intermediate_size=11 * width // 4 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def child(*args: str) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--child", *args]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(path: Path, name: str, small: Path) -> str:
    """The line of an archive."""
    packed, dense = (child(str(path), str(small), mode) for mode in ("packed", "dense"))
    size = path.stat().st_size
    total = (packed["own"] + packed["mapped"]) / size
    wrong = sum((a - b) ** 2 for a, b in zip(packed["logits"], dense["logits"], strict=True)) ** 0.5
    wrong /= sum(b * b for b in dense["logits"]) ** 0.5
    return (
        f"{name:24} {size / MB:8.1f} {packed['own'] / MB:8.1f} {dense['own'] / MB:8.1f} "
        f"{total:8.2f} {packed['load']:8.3f} {packed['load'] / dense['load']:8.3f} "
        f"{1000 * packed['token']:8.2f} {1000 * dense['token']:8.2f} {wrong:9.1e} "
        f"{'yes' if packed['tokens'] == dense['tokens'] else 'no'}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("archives", nargs="*", type=Path)
    parser.add_argument("--made", metavar="LAYERSxWIDTH")
    parser.add_argument("--recipe", action="append", default=[])
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(*given.child)))
        return
    import reallm_compiler as reallm

    print(
        f"{'':24} {'file':>8} {'own MB':>17} {'memory':>8} {'load s':>8} {'':>8} {'token ms':>17} "
        f"{'':>9} same\n{'':24} {'MB':>8} {'packed':>8} {'dense':>8} {'x file':>8} {'packed':>8} "
        f"{'x dense':>8} {'packed':>8} {'dense':>8} {'logits':>9} tokens"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = folder / "small.reallm"
        reallm.compile("nf4", model=made("1x64", folder / "small"), output=small, workers=1)
        for archive in given.archives:
            print(row(archive, archive.stem, small), flush=True)
        if given.made:
            model = made(given.made, folder / "model")
            for recipe in given.recipe:
                path = folder / f"{Path(recipe).stem}.reallm"
                reallm.compile(recipe, model=model, output=path, workers=1)
                print(row(path, f"{given.made} {Path(recipe).stem}", small), flush=True)


if __name__ == "__main__":
    main()
