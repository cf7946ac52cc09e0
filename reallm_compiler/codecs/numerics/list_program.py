"""The program of the list search, written in LLVM's language (`list_kernel`).

Functions of the program: `step_k` extends all paths of a row by a column with codes of k bits,
`decide` takes the oldest columns from the best path, `add_decided_n` moves what n rows decided into
the targets of later columns, `trace` takes what is left at the end, and `search` calls them all.
"""

from __future__ import annotations

import math
from functools import lru_cache

from reallm_compiler.codecs.numerics import emit
from reallm_compiler.codecs.numerics.emit import Value
from reallm_compiler.codecs.numerics.list_memory import RowMemory, Shape, SharedMemory
from reallm_compiler.codecs.numerics.list_search import DECIDED, LANES
from reallm_compiler.storage.trellis import WINDOW

TILE = 8
"""Rows whose targets are held in registers while decided errors are added."""

LARGEST = 0x7F7FFFFF
"""The bits of float32's largest number."""


@lru_cache(maxsize=32)
def source(shape: Shape) -> str:
    """The program in LLVM's language."""
    from llvmlite import ir

    return str(_Writer(ir, shape).write())


class _Writer:
    """Writes the program of one shape."""

    def __init__(self, ir: Value, shape: Shape) -> None:
        self.ir = ir
        self.shape = shape
        self.row = RowMemory(shape, 0)
        self.scratch = SharedMemory(shape)
        self.module = ir.Module("list_search")
        self.i8, self.i16, self.i32, self.i64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
        self.f32 = ir.FloatType()
        self.lanes = ir.VectorType(self.f32, LANES)

    def write(self) -> Value:
        """The module."""
        steps = [self._step(number, width) for number, width in enumerate(self.shape.widths)]
        decide = self._decide()
        trace = self._trace()
        add = {count: self._add_decided(count) for count in (1, TILE)} if self._feeds else {}
        self._search(steps, decide, trace, add)
        return self.module

    @property
    def _feeds(self) -> bool:
        return self.shape.feedback

    # ---- memory of a row

    def _array(self, f: emit.Function, memory: Value, offset: int, kind: Value) -> Value:
        return f.build.bitcast(f.at(memory, f.integer(offset)), kind.as_pointer())

    def _halves(
        self,
        f: emit.Function,
        memory: Value,
        offset: int,
        kind: Value,
        size: int,
        turn: Value,
    ) -> tuple[Value, Value]:
        """The array of paths before a column, and that after it; they change places."""
        array = self._array(f, memory, offset, kind)
        before = f.build.mul(turn, f.integer(size))
        after = f.build.sub(f.integer(size), before)
        return f.at(array, before), f.at(array, after)

    # ---- one column of one row

    def _step(self, number: int, width: int) -> Value:
        """The function that extends all paths of a row by one column of a width.

        Its arguments: memory of the row and of all rows; the column modulo 2; the number of
        undecided columns before it; the row's value, and that with decided errors; scale and
        importance; the tables; the column of U from the first undecided column on.
        """
        ir, shape, i32, i64, f32 = self.ir, self.shape, self.i32, self.i64, self.f32
        memory, floats = self.i8.as_pointer(), f32.as_pointer()
        kinds = [memory, memory, i64, i64, f32, f32, f32, f32, floats, floats]
        f = emit.Function(self.module, f"step_{width}", kinds)
        build = f.build
        row, scratch, turn, offset, value, moved, scale, importance, tables, feedback = f.arguments
        codes, stride = 1 << width, shape.stride
        older = shape.state_bits - width
        table = f.at(tables, f.integer(number << shape.state_bits))  # [2^older, codes]

        count_at = self._array(f, row, self.row.count, i64)
        count = f.load(count_at, f.integer(0))
        cost, new_cost = self._halves(f, row, self.row.cost, f32, stride, turn)
        state, new_state = self._halves(f, row, self.row.state, i32, stride, turn)
        error, new_error = self._halves(f, row, self.row.error, f32, stride * WINDOW, turn)
        parent = self._array(f, row, self.row.parent, self.i16)
        parent = f.at(parent, build.mul(offset, f.integer(stride)))
        code_of = self._array(f, row, self.row.code, self.i8)
        code_of = f.at(code_of, build.mul(offset, f.integer(stride)))
        candidate = self._array(f, scratch, self.scratch.cost, f32)

        # The target of every path, and the cost of each of its codes.
        parts = build.sdiv(build.add(offset, f.integer(LANES - 1)), f.integer(LANES))
        lanes = min(codes, LANES)
        with f.loop(f.integer(0), count) as path:
            target = moved
            if self._feeds:
                own = f.at(error, build.mul(path, f.integer(WINDOW)))
                target = build.fadd(target, self._dot(f, own, feedback, parts))
            older_bits = build.lshr(f.load(state, path), f.integer(width, 32))
            entry = build.mul(build.zext(older_bits, i64), f.integer(codes))
            for first in range(0, codes, lanes):
                level = f.load_vector(table, build.add(entry, f.integer(first)), lanes)
                level = build.fmul(level, f.splat(scale, lanes))
                distance = build.fsub(f.splat(target, lanes), level)
                square = build.fmul(build.fmul(distance, distance), f.splat(importance, lanes))
                total = build.fadd(f.splat(f.load(cost, path), lanes), square)
                most = f.splat(build.bitcast(f.integer(LARGEST, 32), f32), lanes)
                total = build.select(build.fcmp_ordered("<", total, most), total, most)
                at = build.add(build.mul(path, f.integer(codes)), f.integer(first))
                f.store_vector(total, candidate, at)
        candidates = build.mul(count, f.integer(codes))
        nothing = f.splat(f.number(math.inf), LANES)
        f.store_vector(nothing, candidate, candidates)
        least = self._least(f, candidate, candidates)
        limit, ties = self._limit(f, candidate, candidates, least)

        # The best survive, at most one for each state.
        clock_at = self._array(f, scratch, self.scratch.clock, i32)
        clock = build.add(f.load(clock_at, f.integer(0)), f.integer(1, 32))
        f.store(clock, clock_at, f.integer(0))
        stamp = self._array(f, scratch, self.scratch.stamp, i32)
        slot = self._array(f, scratch, self.scratch.slot, i32)
        kept = f.variable(f.integer(0))
        ties_left = f.variable(ties)
        vector = ir.VectorType(i32, LANES)
        with f.loop(f.integer(0), candidates, LANES) as first:
            bits = build.bitcast(f.load_vector(candidate, first, LANES), vector)
            below = build.icmp_signed("<=", bits, f.splat(limit, LANES))
            mask = f.variable(build.zext(build.bitcast(below, ir.IntType(LANES)), i32))
            with f.loop_while(lambda: build.icmp_signed("!=", mask.value, f.integer(0, 32))):
                lane = build.cttz(mask.value, ir.Constant(ir.IntType(1), 1))
                mask.value = build.and_(mask.value, build.sub(mask.value, f.integer(1, 32)))
                index = build.add(first, build.zext(lane, i64))
                own_cost = f.load(candidate, index)
                tied = build.icmp_signed("==", build.bitcast(own_cost, i32), limit)
                refused = build.and_(tied, build.icmp_signed("==", ties_left.value, f.integer(0)))
                ties_left.value = build.sub(ties_left.value, build.zext(tied, i64))
                ties_left.value = build.add(ties_left.value, build.zext(refused, i64))
                with build.if_then(build.not_(refused)):
                    path = build.lshr(index, f.integer(width))
                    code = build.and_(index, f.integer(codes - 1))
                    after = build.lshr(f.load(state, path), f.integer(width, 32))
                    high = build.shl(build.trunc(code, i32), f.integer(older, 32))
                    after = build.or_(after, high)
                    at_state = build.zext(after, i64)
                    known = build.icmp_signed("==", f.load(stamp, at_state), clock)
                    with build.if_else(known) as (same, other):
                        with same:
                            at = build.zext(f.load(slot, at_state), i64)
                            better = build.fcmp_ordered("<", own_cost, f.load(new_cost, at))
                            with build.if_then(better):
                                f.store(own_cost, new_cost, at)
                                f.store(build.trunc(path, self.i16), parent, at)
                                f.store(build.trunc(code, self.i8), code_of, at)
                        with other:
                            at = kept.value
                            f.store(clock, stamp, at_state)
                            f.store(build.trunc(at, i32), slot, at_state)
                            f.store(own_cost, new_cost, at)
                            f.store(after, new_state, at)
                            f.store(build.trunc(path, self.i16), parent, at)
                            f.store(build.trunc(code, self.i8), code_of, at)
                            kept.value = build.add(at, f.integer(1))
        count = kept.value
        f.store(count, count_at, f.integer(0))

        # Costs from the least one, and the errors of the paths.
        with f.loop(f.integer(0), count) as path:
            f.store(build.fsub(f.load(new_cost, path), least), new_cost, path)
            if self._feeds:
                before = build.zext(f.load(parent, path), i64)
                source = f.at(error, build.mul(before, f.integer(WINDOW)))
                target_at = f.at(new_error, build.mul(path, f.integer(WINDOW)))
                with f.loop(f.integer(0), build.mul(parts, f.integer(LANES)), LANES) as at:
                    f.store_vector(f.load_vector(source, at, LANES), target_at, at)
                fresh = build.icmp_signed(
                    "==", build.and_(offset, f.integer(LANES - 1)), f.integer(0)
                )
                with build.if_then(fresh):
                    f.store_vector(f.splat(f.number(0.0), LANES), target_at, offset)
                own_state = f.load(new_state, path)
                low = build.and_(own_state, f.integer((1 << older) - 1, 32))
                code = build.lshr(own_state, f.integer(older, 32))
                entry = build.add(build.mul(low, f.integer(codes, 32)), code)
                level = build.fmul(f.load(table, build.zext(entry, i64)), scale)
                f.store(build.fsub(value, level), target_at, offset)
        return f.finish()

    def _dot(self, f: emit.Function, left: Value, right: Value, parts: Value) -> Value:
        """The sum of products of `parts` vectors, in the order that `list_search` has."""
        build = f.build
        total = f.variable(f.splat(f.number(0.0), LANES))
        last = build.mul(parts, f.integer(LANES))
        with f.loop(f.integer(0), last, LANES) as at:
            product = build.fmul(f.load_vector(left, at, LANES), f.load_vector(right, at, LANES))
            total.value = build.fadd(total.value, product)
        return self._folded(f, total.value, build.fadd)

    def _folded(self, f: emit.Function, vector: Value, combine: Value) -> Value:
        """A vector's lanes combined, one half with the other until one is left."""
        ir, build = self.ir, f.build
        size = vector.type.count
        while size > 1:
            size //= 2
            low, high = (
                build.shuffle_vector(
                    vector,
                    vector,
                    ir.Constant(
                        ir.VectorType(self.i32, size), [half * size + n for n in range(size)]
                    ),
                )
                for half in (0, 1)
            )
            vector = combine(low, high)
        return build.extract_element(vector, f.integer(0, 32))

    def _least(self, f: emit.Function, costs: Value, count: Value) -> Value:
        """The least of `count` costs, which are padded with large ones."""
        build = f.build

        def smaller(a: Value, b: Value) -> Value:
            return build.select(build.fcmp_ordered("<", a, b), a, b)

        least = f.variable(f.load_vector(costs, f.integer(0), LANES))
        with f.loop(f.integer(LANES), count, LANES) as first:
            least.value = smaller(least.value, f.load_vector(costs, first, LANES))
        return self._folded(f, least.value, smaller)

    def _limit(
        self,
        f: emit.Function,
        costs: Value,
        count: Value,
        least: Value,
    ) -> tuple[Value, Value]:
        """The bits of the largest cost that is kept, and how many of exactly that cost.

        Floats above 0 are in the order of their bits. The number of costs up to a limit is made
        the number of paths, by turns by interpolation and by halves.
        """
        ir, build, i32, i64 = self.ir, f.build, self.i32, self.i64
        paths = f.integer(self.shape.paths)
        vector = ir.VectorType(i32, LANES)
        limit = f.variable(f.integer(LARGEST, 32))
        ties = f.variable(count)

        def up_to(bits: Value) -> Value:
            total = f.variable(f.integer(0))
            with f.loop(f.integer(0), count, LANES) as first:
                each = build.bitcast(f.load_vector(costs, first, LANES), vector)
                mask = build.icmp_signed("<=", each, f.splat(bits, LANES))
                number = build.ctpop(build.bitcast(mask, ir.IntType(LANES)))
                total.value = build.add(total.value, build.zext(number, i64))
            return total.value

        with build.if_then(build.icmp_signed(">", count, paths)):
            # Below `low` are fewer than `paths` costs, up to `high` more.
            low = f.variable(build.sub(build.bitcast(least, i32), f.integer(1, 32)))
            high = f.variable(f.integer(LARGEST, 32))
            below, above = f.variable(f.integer(0)), f.variable(count)
            guess = f.variable(build.bitcast(build.fadd(least, f.number(0.5)), i32))
            turn = f.variable(f.integer(0, 32))
            searching = f.variable(ir.Constant(ir.IntType(1), 1))
            with f.loop_while(lambda: searching.value):
                found = up_to(guess.value)
                with build.if_then(build.icmp_signed("<", found, paths)):
                    low.value, below.value = guess.value, found
                with build.if_then(build.icmp_signed(">=", found, paths)):
                    high.value, above.value = guess.value, found
                gap = build.sub(high.value, low.value)
                exact = build.icmp_signed("==", above.value, paths)
                adjacent = build.icmp_signed("<=", gap, f.integer(1, 32))
                done = build.or_(exact, adjacent)
                searching.value = build.not_(done)
                with build.if_then(build.not_(done)):
                    first, last = (
                        build.select(
                            build.icmp_signed("<", one, f.integer(0, 32)), f.integer(0, 32), one
                        )
                        for one in (low.value, high.value)
                    )
                    first, last = (build.bitcast(one, self.f32) for one in (first, last))
                    share = build.fdiv(
                        build.sitofp(build.sub(paths, below.value), self.f32),
                        build.sitofp(build.sub(above.value, below.value), self.f32),
                    )
                    halves = build.icmp_signed("!=", turn.value, f.integer(0, 32))
                    unknown = build.icmp_signed("==", high.value, f.integer(LARGEST, 32))
                    share = build.select(halves, f.number(0.5), share)
                    inner = build.fadd(first, build.fmul(build.fsub(last, first), share))
                    # Nothing above is known: twice as far from the least cost.
                    outer = build.fadd(first, build.fadd(build.fsub(first, least), f.number(0.5)))
                    inner = build.bitcast(build.select(unknown, outer, inner), i32)
                    lowest = build.add(low.value, f.integer(1, 32))
                    top = build.sub(high.value, f.integer(1, 32))
                    inner = build.select(build.icmp_signed("<", inner, lowest), lowest, inner)
                    inner = build.select(build.icmp_signed(">", inner, top), top, inner)
                    guess.value = inner
                    turn.value = build.xor(turn.value, f.integer(1, 32))
            limit.value = high.value
            ties.value = build.select(
                build.icmp_signed("==", above.value, paths), count, build.sub(paths, below.value)
            )
        return limit.value, ties.value

    # ---- every few columns of one row

    def _decide(self) -> Value:
        """The function that takes the oldest columns from the best path.

        Its arguments: memory of the row and of all rows; the last column modulo 2 plus 1; where
        the codes go.
        """
        shape, i16, i32, i64, f32 = self.shape, self.i16, self.i32, self.i64, self.f32
        memory = self.i8.as_pointer()
        f = emit.Function(self.module, "decide", [memory, memory, i64, memory])
        build = f.build
        row, scratch, turn, codes = f.arguments
        stride = shape.stride
        count_at = self._array(f, row, self.row.count, i64)
        count = f.load(count_at, f.integer(0))
        cost, _ = self._halves(f, row, self.row.cost, f32, stride, turn)
        state, _ = self._halves(f, row, self.row.state, i32, stride, turn)
        error, _ = self._halves(f, row, self.row.error, f32, stride * WINDOW, turn)
        parent = self._array(f, row, self.row.parent, i16)
        code = self._array(f, row, self.row.code, self.i8)
        ancestor = self._array(f, scratch, self.scratch.ancestor, i32)
        best = self._cheapest(f, cost, count)
        with f.loop(f.integer(0), count) as path:
            f.store(build.trunc(path, i32), ancestor, path)
        with f.loop(f.integer(0), f.integer(WINDOW - DECIDED)) as back:
            offset = build.sub(f.integer(WINDOW - 1), back)
            links = f.at(parent, build.mul(offset, f.integer(stride)))
            with f.loop(f.integer(0), count) as path:
                before = f.load(links, build.zext(f.load(ancestor, path), i64))
                f.store(build.zext(before, i32), ancestor, path)
        chosen = f.load(ancestor, best)
        self._take_codes(f, parent, code, build.zext(chosen, i64), f.integer(DECIDED), codes)
        if self._feeds:
            own = f.at(error, build.mul(best, f.integer(WINDOW)))
            decided = self._array(f, row, self.row.best, f32)
            for first in range(0, DECIDED, LANES):
                values = f.load_vector(own, f.integer(first), LANES)
                f.store_vector(values, decided, f.integer(first))
        kept = f.variable(f.integer(0))
        last_links = f.at(parent, f.integer((WINDOW - 1) * stride))
        last_codes = f.at(code, f.integer((WINDOW - 1) * stride))
        with f.loop(f.integer(0), count) as path:
            alive = build.icmp_signed("==", f.load(ancestor, path), chosen)
            with build.if_then(alive):
                at_path = kept.value
                for array in (cost, state, last_links, last_codes):
                    f.store(f.load(array, path), array, at_path)
                if self._feeds:
                    source = f.at(error, build.mul(path, f.integer(WINDOW)))
                    target = f.at(error, build.mul(at_path, f.integer(WINDOW)))
                    for first in range(DECIDED, WINDOW, LANES):
                        values = f.load_vector(source, f.integer(first), LANES)
                        f.store_vector(values, target, f.integer(first - DECIDED))
                kept.value = build.add(at_path, f.integer(1))
        f.store(kept.value, count_at, f.integer(0))
        moved = (WINDOW - DECIDED) * stride
        for array in (parent, code):
            with f.loop(f.integer(0), f.integer(moved), LANES) as first:
                values = f.load_vector(array, build.add(first, f.integer(DECIDED * stride)), LANES)
                f.store_vector(values, array, first)
        return f.finish()

    def _cheapest(self, f: emit.Function, cost: Value, count: Value) -> Value:
        """The path of least cost; of equal ones the first."""
        build = f.build
        best = f.variable(f.integer(0))
        with f.loop(f.integer(1), count) as path:
            better = build.fcmp_ordered("<", f.load(cost, path), f.load(cost, best.value))
            best.value = build.select(better, path, best.value)
        return best.value

    def _trace(self) -> Value:
        """The function that takes all undecided columns from the best path.

        Its arguments: memory of the row; the last column modulo 2 plus 1; the number of columns;
        where the codes go.
        """
        i64 = self.i64
        memory = self.i8.as_pointer()
        f = emit.Function(self.module, "trace", [memory, i64, i64, memory])
        row, turn, length, codes = f.arguments
        stride = self.shape.stride
        count = f.load(self._array(f, row, self.row.count, i64), f.integer(0))
        cost, _ = self._halves(f, row, self.row.cost, self.f32, stride, turn)
        parent = self._array(f, row, self.row.parent, self.i16)
        code = self._array(f, row, self.row.code, self.i8)
        best = self._cheapest(f, cost, count)
        self._take_codes(f, parent, code, best, length, codes)
        return f.finish()

    def _take_codes(
        self,
        f: emit.Function,
        parent: Value,
        code: Value,
        path: Value,
        length: Value,
        codes: Value,
    ) -> None:
        """Writes the codes of the oldest `length` columns along the past of a path."""
        build = f.build
        at = f.variable(path)
        with f.loop(f.integer(0), length) as back:
            offset = build.sub(build.sub(length, f.integer(1)), back)
            index = build.add(at.value, build.mul(offset, f.integer(self.shape.stride)))
            f.store(f.load(code, index), codes, offset)
            at.value = build.zext(f.load(parent, index), self.i64)

    def _add_decided(self, rows: int) -> Value:
        """The function that adds decided errors of some rows to the targets of later columns.

        Its arguments: memory of the rows and its size for one; the first row of U; its stride; the
        first and the last column.
        """
        i64, f32 = self.i64, self.f32
        memory = self.i8.as_pointer()
        kinds = [memory, i64, f32.as_pointer(), i64, i64, i64]
        f = emit.Function(self.module, f"add_decided_{rows}", kinds)
        build = f.build
        first_row, size, feedback, stride, first, last = f.arguments
        memories = [f.at(first_row, build.mul(size, f.integer(n))) for n in range(rows)]
        decided = [self._array(f, one, self.row.decided, f32) for one in memories]
        errors = [self._array(f, one, self.row.best, f32) for one in memories]
        with f.loop(first, last, LANES) as column:
            totals = [f.variable(f.load_vector(one, column, LANES)) for one in decided]
            with f.loop(f.integer(0), f.integer(DECIDED)) as offset:
                index = build.add(build.mul(offset, stride), column)
                part = f.load_vector(feedback, index, LANES)
                for total, error in zip(totals, errors, strict=True):
                    own = f.splat(f.load(error, offset), LANES)
                    total.value = build.fadd(total.value, build.fmul(own, part))
            for total, one in zip(totals, decided, strict=True):
                f.store_vector(total.value, one, column)
        return f.finish()

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
