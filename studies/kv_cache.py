"""Caches of keys and values beside those of transformers: loss, bytes held, greedy tokens, time.

    python studies/kv_cache.py --write docs/kv_cache.md --rows rows.jsonl \\
        --model my-model PATH/TO/FOLDER PATH/TO/text.txt window=1024 bytes=20000 step=16

`--model` takes what `studies/results.py` takes, and `step=N`: all caches read the same windows, N
tokens at a time, one by default, and each prediction is compared with that of the model without a
cache. Bytes are those of the tensors that the cache holds, the mean over all steps, for one
sequence; numbers that are no codes count 2 bytes, as in a model of 16 bits, in whichever type they
were computed here. The caches of transformers quantize through optimum-quanto and hqq, which must
be installed, in groups of 64 and with each choice of axes; the best is shown. Their tokens wait in
a window that is emptied when it is full: it has so many tokens that they hold as many bytes as ours
in the mean, or more. With `--rows FILE` each row is kept as soon as it is measured, and the same
command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from reallm_compiler.errors import ReallmError
from reallm_compiler.evaluate import evaluate, load_for_evaluation
from reallm_compiler.runtime.kv_cache import PagedLayer, kv_cache, new_cache
from reallm_compiler.runtime.kv_settings import kv_settings
from reallm_compiler.stages import KvCache
from reallm_compiler.storage.kv_cache import HeadShape, layer_bytes
from studies.pages import keep_row, read_rows, write_part
from studies.results import Subject

BITS: dict[int, tuple[str, dict[str, list[tuple[int, int]]]]] = {
    8: ("kv-8bit", {"hqq": [(1, 1), (1, 0), (0, 1), (0, 0)]}),
    4: (
        "kv-4bit",
        {
            "quanto": [(-1, 0), (-1, -1), (0, 0), (0, -1)],
            "hqq": [(1, 1), (1, 0), (0, 0), (0, 1)],
        },
    ),
    3: ("kv-3bit", {"hqq": [(0, 0), (0, 1), (1, 0), (1, 1)]}),
    2: (
        "kv-2bit",
        {
            "quanto": [(0, 0), (0, -1), (-1, 0), (-1, -1)],
            "hqq": [(1, 1), (1, 0), (0, 1), (0, 0)],
        },
    ),
}
"""By bits: our recipe, and the rivals with the axes of keys and values, promising ones first."""

GROUP = 64
"""Numbers of a rival's group."""

PROMPT, ANSWER = 160, 64
"""Tokens of a prompt, and greedy tokens after it."""


@dataclass(frozen=True)
class Row:
    """One cache, measured; `held` are mean bytes of one sequence."""

    bits: int
    cache: str
    how: str
    window: int
    step: int
    tokens: int
    perplexity: float
    kl: float
    held: float
    greedy: float
    seconds: float


@dataclass(frozen=True)
class Rival:
    """A cache to measure.

    Attributes:
        bits: of a code.
        cache: whose it is.
        how: its settings, in words.
        make: gives an empty one for a model.
    """

    bits: int
    cache: str
    how: str
    make: Callable[[Any], Any]


def rivals(window: int, step: int, *, all_axes: bool) -> list[Rival]:
    """All caches for windows read in such steps, those without which a table says little first."""
    first = [Rival(16, "none", "", lambda model: kv_cache(model, "none"))]
    then: list[Rival] = []
    for bits, (name, others) in BITS.items():
        params = kv_settings(name)
        assert params is not None
        first.append(Rival(bits, name, "", partial(new_cache, params=params)))
        plain = params.model_dump(mode="json")
        after = kv_settings({**plain, "keys": {**plain["keys"], "rotary": "after"}})
        assert after is not None
        how = "keys after the rotary embedding"
        then.insert(0, Rival(bits, name, how, partial(new_cache, params=after)))
        room = room_for(params, bits, window, step)
        for backend, pairs in others.items():
            found = [
                Rival(
                    bits, backend, f"axes {pair[0]}, {pair[1]}", _other(backend, bits, pair, room)
                )
                for pair in pairs
            ]
            first += found[:1]
            then += found[1:] if all_axes else []
    return [*first, *then]


def room_for(params: KvCache, bits: int, window: int, step: int) -> int:
    """Tokens of a rival's window with which it holds as many bytes as ours in the mean, or more."""
    number = 16  # bits of what is kept, and of a scale and a zero point
    codes = 3.2 if bits == 3 else bits  # hqq packs ten codes of 3 bits in 32
    rate = codes + 2 * number / GROUP
    ends = range(step, window + 1, step)
    shape = HeadShape(heads=2, keys=64, values=64)
    ours = [8 * layer_bytes(params, shape, t, number // 8).total / 256 for t in ends]
    for room in range(step, window, 8):
        theirs, kept = 0.0, 0
        for t in ends:
            kept = 0 if t == step or kept + step >= room else kept + step
            theirs += kept * number + (t - kept) * rate
        if theirs >= sum(ours):
            return room
    raise SystemExit(f"no room makes {bits} bits as large")


def _other(backend: str, bits: int, axes: tuple[int, int], room: int) -> Callable[[Any], Any]:
    def make(model: Any) -> Any:
        from transformers import QuantizedCache

        return QuantizedCache(
            backend=backend,
            config=model.config,
            nbits=bits,
            axis_key=axes[0],
            axis_value=axes[1],
            q_group_size=GROUP,
            residual_length=room,
        )

    return make


def held(cache: Any) -> int:
    """Bytes of all tensors of a cache, numbers at 2 bytes each."""
    return sum(
        tensor.numel() * (2 if tensor.is_floating_point() else tensor.element_size())
        for layer in cache.layers
        for tensor in _tensors(layer)
    )


def _tensors(layer: Any) -> Iterator[torch.Tensor]:
    if isinstance(layer, PagedLayer):
        yield from layer.tensors
        return
    for part in (layer.keys, layer.values):
        if part is not None:
            yield part
    for name in ("_quantized_keys", "_quantized_values"):
        coded = getattr(layer, name, None)
        if isinstance(coded, tuple):  # hqq: codes, and what belongs to them
            yield coded[0]
            yield from (coded[1][key] for key in ("scale", "zero"))
        elif coded is not None:  # quanto: a tensor of its own kind
            yield coded._data._data
            yield from (coded._scale, coded._shift)


class Meter:
    """Gives caches, and adds up what they hold after each call of the model."""

    def __init__(self, model: Any, rival: Rival) -> None:
        self._model, self._rival = model, rival
        self.sizes: list[float] = []
        self._hook: Any = None

    def __call__(self) -> Any:
        """An empty cache."""
        cache = self._rival.make(self._model)

        def look(_: Any, args: Any, kwargs: Any, output: Any) -> None:
            if kwargs.get("past_key_values") is cache:
                self.sizes.append(held(cache) / len(output.logits))

        if self._hook is not None:
            self._hook.remove()
        self._hook = self._model.register_forward_hook(look, with_kwargs=True)
        return cache

    def close(self) -> None:
        """Look no more."""
        if self._hook is not None:
            self._hook.remove()


class Measuring:
    """The rows of one model, those of an earlier run taken as they are."""

    def __init__(self, subject: Subject, step: int, rows: Path | None, *, new: bool) -> None:
        self.subject, self.step, self._path, self._new = subject, step, rows, new
        self.model: Any
        self.model, self.tokenizer = load_for_evaluation(subject.folder)
        self._known = {
            (row["cache"], row["how"], row["bits"], row["window"], row["step"]): row
            for row in read_rows(rows, subject.inputs)
        }
        self._greedy: torch.Tensor | None = None

    def row(self, rival: Rival) -> Row | None:
        """What is measured of a cache; None if it fails on this model, or is not measured."""
        key = (rival.cache, rival.how, rival.bits, self.subject.window, self.step)
        if key in self._known:
            return Row(**self._known[key])
        if not self._new:
            return None
        meter = Meter(self.model, rival)
        began = time.process_time()
        try:
            found = evaluate(
                self.model,
                self.tokenizer,
                self.subject.text,
                window=self.subject.window,
                reference=self.model,
                new_cache=meter,
                kv_step=self.step,
                batch=4,
            )
            seconds = time.process_time() - began
            greedy = self._same_tokens(rival)
        except (ReallmError, RuntimeError, ValueError, ImportError, AttributeError) as error:
            print(f"{rival.cache} {rival.how} at {rival.bits} bits: {error}", file=sys.stderr)
            return None
        finally:
            meter.close()
        assert found.kl is not None
        row = Row(
            bits=rival.bits,
            cache=rival.cache,
            how=rival.how,
            window=found.window,
            step=self.step,
            tokens=found.tokens,
            perplexity=found.perplexity,
            kl=found.kl,
            held=sum(meter.sizes) / len(meter.sizes),
            greedy=greedy,
            seconds=seconds,
        )
        keep_row(asdict(row), self.subject.inputs, self._path)
        return row

    def _same_tokens(self, rival: Rival) -> float:
        """The share of greedy tokens, up to the first that differs in each of 4 answers."""
        ids = self.tokenizer(self.subject.text, return_tensors="pt")["input_ids"][0]
        prompts = ids[: 4 * PROMPT].view(4, PROMPT)
        options: dict[str, Any] = {
            "attention_mask": torch.ones_like(prompts),
            "max_new_tokens": ANSWER,
            "min_new_tokens": ANSWER,
            "do_sample": False,
            "pad_token_id": 0,
        }
        if self._greedy is None:
            self._greedy = self.model.generate(prompts, **options)
        found = self.model.generate(prompts, past_key_values=rival.make(self.model), **options)
        same = (found == self._greedy)[:, PROMPT:].to(torch.int64).cumprod(1)
        return float(same.float().mean())


def best(rows: list[Row]) -> list[Row]:
    """Of the rows of one rival at so many bits the one that loses least."""
    chosen: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = (row.bits, row.cache, row.how if row.cache.startswith("kv-") else "")
        if key not in chosen or row.kl < chosen[key].kl:
            chosen[key] = row
    return [*chosen.values()]


def table(name: str, rows: list[Row]) -> list[str]:
    """The rows as a table."""
    plain = next(row for row in rows if row.bits == 16)
    lines = []
    for row in best(rows):
        shown = f"`{row.cache}`" if row.cache.startswith("kv-") else row.cache
        how = f", {row.how}" if row.how else ""
        lines.append(
            f"| {row.bits} | {shown}{how} | {row.held:,.0f} | {100 * row.held / plain.held:.1f} % "
            f"| {row.perplexity:.3f} | {row.kl:.5f} | {100 * row.greedy:.1f} % "
            f"| {row.seconds:.0f} |"
        )
    return [
        f"### {name}, windows of {plain.window:,}, {plain.step} at a time",
        "",
        f"{plain.tokens:,} predicted tokens.",
        "",
        "| bits | cache | bytes held | of 16 bits | perplexity | KL (nats) | same greedy tokens "
        "| processor (s) |",
        "|---|---|---|---|---|---|---|---|",
        *lines,
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", action="append", required=True)
    parser.add_argument("--rows", type=Path, help="keep each row here, and take those there")
    parser.add_argument("--write", type=Path, help="put the tables into this page as well")
    parser.add_argument("--promising", action="store_true", help="one choice of axes alone")
    parser.add_argument("--kept", action="store_true", help="measure nothing: the rows as they are")
    given = parser.parse_args()
    torch.manual_seed(0)
    text = [
        "## Measured",
        "",
        "Printed by `python studies/kv_cache.py` (its first lines say how to call it). KL is that "
        "of the model without a cache from the model with one. Bytes are the mean over all steps "
        "of what one sequence holds, window included, at 2 bytes for numbers that are no codes. "
        "`hqq` and `quanto` are transformers' own caches, in groups of 64, with the axes that were "
        "best for each in two windows. Greedy tokens count up to the first that differs in each of "
        f"4 answers of {ANSWER} tokens; times are of a machine that did other work too.",
        "",
    ]
    for words in given.model:
        step = next((int(word[5:]) for word in words if word.startswith("step=")), 1)
        subject = Subject.parse([word for word in words if not word.startswith("step=")])
        measuring = Measuring(subject, step, given.rows, new=not given.kept)
        found = rivals(subject.window or 0, step, all_axes=not given.promising)
        rows = [row for rival in found if (row := measuring.row(rival)) is not None]
        rows.sort(key=lambda row: (-row.bits, not row.cache.startswith("kv-"), row.how != ""))
        text += table(measuring.subject.name, rows)
    page = "\n".join(text).rstrip() + "\n"
    print(page)
    if given.write:
        write_part(given.write, "kv_cache", page)


if __name__ == "__main__":
    main()
