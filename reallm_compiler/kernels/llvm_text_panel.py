"""Panels of rows as numbers, and activations to multiply them by, for many tokens at once.

Rows are decoded as entries, without the factors of rows, which meet the results instead; scales of
blocks are applied. Both are written in the order in which columns are coded.
"""

from __future__ import annotations

from reallm_compiler.kernels.form import LANES, STEP, Form
from reallm_compiler.kernels.llvm_text import Text
from reallm_compiler.kernels.llvm_text_blocks import Blocks
from reallm_compiler.kernels.llvm_text_numbers import (
    SIZES,
    load_numbers,
    product_sum,
    store_numbers,
    store_pair,
)
from reallm_compiler.kernels.llvm_text_prepare import Inputs
from reallm_compiler.kernels.llvm_text_product import Lines, Steps, grouped


def write_panel(text: Text, form: Form, steps: Steps, inputs: Inputs) -> None:
    """The functions `mixed(job)` and `decode(job, first line, last line, panel)`.

    Args:
        text: where it is written; `mix` is there.
        form: of the codes.
        steps: of the processor.
        inputs: what is done to activations.
    """
    dtype = number_type(inputs)
    with text.function("mixed"):
        stride = text.slot("plane_stride")
        values = text.pointer("ordered" if inputs.ordered else "mixed")
        with text.loop(0, text.slot("tokens")) as token:
            text.do(f"call void @mix(ptr %job, i64 {token.index})")
            start = text.let(f"mul i64 {token.index}, {stride}")
            start = text.let(f"mul i64 {start}, {SIZES[dtype]}")
            out = text.at(text.pointer("high"), start)
            with text.loop(0, stride, LANES) as turn:
                value = load_numbers(text, "f32", values, turn.index)
                store_numbers(text, dtype, value, out, turn.index)
    with text.function("decode", "i64 %first", "i64 %last", "ptr %panel"):
        steps.begin()
        lines = Lines(text)
        stride = text.slot("plane_stride")
        blocks = None if form.blocks is None else Blocks(text, form, lines.periods)
        with text.loop("%first", "%last") as line:
            steps.line(lines.base(line.index))
            if blocks is not None:
                blocks.decode(line.index)
            row = text.let(f"sub i64 {line.index}, %first")
            row = text.let(f"mul i64 {row}, {form.line_rows}")
            start = text.let(f"mul i64 {row}, {stride}")
            with text.loop(0, lines.periods, carried=steps.carried()) as period:
                period.next = steps.turn(period.values)
                _period(text, form, steps, blocks, period.index, start, dtype)


def number_type(inputs: Inputs) -> str:
    """The type of the numbers: that of the activations, and float32 beside float16."""
    return "bf16" if inputs.dtype == "bf16" else "f32"


def _period(
    text: Text,
    form: Form,
    steps: Steps,
    blocks: Blocks | None,
    period: str,
    start: str,
    dtype: str,
) -> None:
    """Writes the numbers of a period of a line that begins at element `start` of the panel."""
    first = text.let(f"mul i64 {period}, {form.period}")
    exact = blocks is None and form.codes.planes == 1  # integers of 8 bits
    between = text.slot("plane_stride" if form.codes.axis == "rows" else "line_codes")
    for step in range(form.period // STEP):
        column = text.let(f"add i64 {first}, {STEP * step}")
        column = text.let(f"mul i64 {column}, {form.spread}")
        for dim, pieces in enumerate(steps.numbers(steps.entries(period, step))):
            offset = text.let(f"mul i64 {between}, {dim}")
            place = text.let(f"add i64 {column}, {offset}")
            place = text.let(f"add i64 {place}, {start}")
            if blocks is not None:
                for number, value in enumerate(pieces):
                    begin = text.let(f"add i64 {column}, {LANES * number}")
                    scale, shift = blocks.of(begin, dim)
                    pieces[number] = product_sum(text, shift, value, scale)
            for number, pair in enumerate(grouped(pieces, 2)):
                at = text.let(f"add i64 {place}, {2 * LANES * number}")
                store_pair(text, dtype, pair, "%panel", at, exact=exact)
