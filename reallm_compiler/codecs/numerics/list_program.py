"""The program of the list search, written in LLVM's language (`list_kernel`).

Functions of the program: `step_k` extends all paths of a row by a column with codes of k bits,
`decide` takes the oldest columns from the best path, `add_decided_n` moves what n rows decided into
the targets of later columns, `trace` takes what is left at the end, and `search` calls them all.
"""

from __future__ import annotations

from functools import lru_cache

from reallm_compiler.codecs.numerics import emit
from reallm_compiler.codecs.numerics.emit import Value
from reallm_compiler.codecs.numerics.list_decision import DecisionWriter
from reallm_compiler.codecs.numerics.list_memory import Shape
from reallm_compiler.codecs.numerics.list_search import DECIDED, LANES
from reallm_compiler.codecs.numerics.list_step import StepWriter
from reallm_compiler.storage.trellis import WINDOW

TILE = 8
"""Rows whose targets are held in registers while decided errors are added."""


@lru_cache(maxsize=32)
def source(shape: Shape) -> str:
    """The program in LLVM's language."""
    from llvmlite import ir

    return str(_Writer(ir, shape).write())


class _Writer(StepWriter, DecisionWriter):
    """Writes the program of one shape."""

    def write(self) -> Value:
        """The module."""
        steps = [self._step(number, width) for number, width in enumerate(self.shape.widths)]
        decide = self._decide()
        trace = self._trace()
        add = {count: self._add_decided(count) for count in (1, TILE)} if self._feeds else {}
        self._search(steps, decide, trace, add)
        return self.module

    # ---- all columns of all rows

    def _search(
        self, steps: list[Value], decide: Value, trace: Value, add: dict[int, Value]
    ) -> None:
        """The function that `CompiledSearch` calls, with its arguments."""
        i64, f32 = self.i64, self.f32
        memory, floats = self.i8.as_pointer(), f32.as_pointer()
        kinds = [i64, i64, floats, floats, i64, floats, memory, floats, floats, floats, i64]
        kinds += [i64.as_pointer(), memory, memory, i64, memory]
        f = emit.Function(self.module, "search", kinds)
        build = f.build
        (rows, columns, values, scales, scale_stride, importance, width, tables) = f.arguments[:8]
        (by_target, by_source, stride, start_states, codes) = f.arguments[8:13]
        (row_memory, size, scratch) = f.arguments[13:]
        one = f.integer(1)

        def row_at(number: Value) -> Value:
            return f.at(row_memory, build.mul(number, size))

        with f.loop(f.integer(0), rows) as number:
            row = row_at(number)
            f.store(one, self._array(f, row, self.row.count, i64), f.integer(0))
            f.store(f.number(0.0), self._array(f, row, self.row.cost, f32), f.integer(0))
            state = build.trunc(f.load(start_states, number), self.i32)
            f.store(state, self._array(f, row, self.row.state, self.i32), f.integer(0))
            decided = self._array(f, row, self.row.decided, f32)
            with f.loop(f.integer(0), columns, LANES) as column:
                f.store_vector(f.splat(f.number(0.0), LANES), decided, column)
        base, begin = f.variable(f.integer(0)), f.variable(f.integer(0))
        with f.loop_while(lambda: build.icmp_signed("<", begin.value, columns)):
            last = build.add(base.value, f.integer(WINDOW))
            last = build.select(build.icmp_signed("<", last, columns), last, columns)
            going_on = build.icmp_signed("<", last, columns)
            turn = build.and_(last, one)
            with f.loop(f.integer(0), rows) as number:
                row = row_at(number)
                start = build.mul(number, columns)
                scale_start = build.mul(number, scale_stride)
                decided = self._array(f, row, self.row.decided, f32)
                with f.loop(begin.value, last) as column:
                    value = f.load(values, build.add(start, column))
                    moved = build.fadd(value, f.load(decided, column))
                    feedback = (
                        f.at(by_target, build.add(build.mul(column, stride), base.value))
                        if self._feeds
                        else by_target
                    )
                    arguments = [row, scratch, build.and_(column, one)]
                    arguments += [build.sub(column, base.value), value, moved]
                    arguments += [f.load(scales, build.add(scale_start, column))]
                    arguments += [f.load(importance, column), tables, feedback]
                    after = f.function.append_basic_block("after")
                    choice = build.switch(f.load(width, column), after)
                    for index, step in enumerate(steps):
                        block = f.function.append_basic_block(f"width_{index}")
                        choice.add_case(f.integer(index, 8), block)
                        build.position_at_end(block)
                        build.call(step, arguments)
                        build.branch(after)
                    build.position_at_end(after)
                with build.if_then(going_on):
                    own = f.at(codes, build.add(start, base.value))
                    build.call(decide, [row, scratch, turn, own])
            with build.if_then(going_on):
                if self._feeds:
                    source = f.at(by_source, build.mul(base.value, stride))
                    first = build.and_(last, f.integer(-LANES))
                    tiled = build.and_(rows, f.integer(-TILE))
                    for begin_row, end_row, count in (
                        (f.integer(0), tiled, TILE),
                        (tiled, rows, 1),
                    ):
                        with f.loop(begin_row, end_row, count) as number:
                            given = [row_at(number), size, source, stride, first, columns]
                            build.call(add[count], given)
                base.value = build.add(base.value, f.integer(DECIDED))
            begin.value = last
        with f.loop(f.integer(0), rows) as number:
            own = f.at(codes, build.add(build.mul(number, columns), base.value))
            length = build.sub(columns, base.value)
            build.call(trace, [row_at(number), build.and_(columns, one), length, own])
        f.finish()
