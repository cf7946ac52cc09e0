"""A whole linear layer as one call: inputs prepared, lines shared among threads, results finished.

Threads are torch's own, reached through `GOMP_parallel` where that is there; its address and those
of the functions that say which thread this is come with the job.
"""

from __future__ import annotations

from collections.abc import Sequence

from reallm_compiler.kernels.form import Form
from reallm_compiler.kernels.llvm_text import Text
from reallm_compiler.kernels.llvm_text_orders import each_group

LINES = 64
"""Lines whose codes stay in cache while all tokens meet them; threads get multiples of so many."""


def write_call(text: Text, form: Form, planes: bool, groups: Sequence[int]) -> None:
    """The functions `sums(job, first line, last line)` and `linear(job)`.

    Args:
        text: where it is written; all other functions are there.
        form: of the codes.
        planes: whether integers are two planes of int8.
        groups: numbers of sets of integers that there are `sums<tokens>` for, ending with 1,
            descending.
    """
    with text.function("sums", "i64 %first", "i64 %last"):
        if form.orders:
            with each_group(text, form, planes) as (first, last, job):
                _write_lines(text, groups, first, last, job)
        else:
            _write_lines(text, groups, "%first", "%last", "%job")
    with text.function("share"):
        number = text.let(f"call i32 {text.pointer('thread_number')}()")
        count = text.let(f"call i32 {text.pointer('thread_count')}()")
        number, count = (text.let(f"sext i32 {one} to i64") for one in (number, count))
        every = text.slot("lines")
        pieces = text.let(f"add i64 {every}, {LINES - 1}")
        pieces = text.let(f"udiv i64 {pieces}, {LINES}")
        ends = []
        for part in (number, text.let(f"add i64 {number}, 1")):
            end = text.let(f"mul i64 {pieces}, {part}")
            end = text.let(f"udiv i64 {end}, {count}")
            end = text.let(f"mul i64 {end}, {LINES}")
            ends.append(text.call("i64", "llvm.smin.i64", f"i64 {end}", f"i64 {every}"))
        text.do(f"call void @sums(ptr %job, i64 {ends[0]}, i64 {ends[1]})")
    with text.function("linear"):
        text.do("call void @prepare(ptr %job)")
        text.do("call void @inner(ptr %job)")
        threads = text.slot("threads")
        several = text.let(f"icmp sgt i64 {threads}, 1")
        with text.when(several):
            wanted = text.let(f"trunc i64 {threads} to i32")
            parallel = text.pointer("parallel")
            text.do(f"call void {parallel}(ptr @share, ptr %job, i32 {wanted}, i32 0)")
        with text.when(text.let(f"xor i1 {several}, true")):
            text.do(f"call void @sums(ptr %job, i64 0, i64 {text.slot('lines')})")
        text.do("call void @finish(ptr %job)")


def _write_lines(text: Text, groups: Sequence[int], first: str, last: str, job: str) -> None:
    """The sums of lines for all sets of integers, `LINES` at a time."""
    tokens = text.slot("integers")
    with text.loop(first, last, LINES) as lines:
        end = text.let(f"add i64 {lines.index}, {LINES}")
        end = text.call("i64", "llvm.smin.i64", f"i64 {end}", f"i64 {last}")
        done = "0"
        for group in groups:
            left = text.let(f"sub i64 {tokens}, {done}")
            rest = text.let(f"srem i64 {left}, {group}")
            until = text.let(f"sub i64 {tokens}, {rest}")
            with text.loop(done, until, group) as token:
                text.do(
                    f"call void @sums{group}(ptr {job}, i64 {lines.index}, i64 {end}, "
                    f"i64 {token.index})"
                )
            done = until
