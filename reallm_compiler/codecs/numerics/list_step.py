"""One column of one row of the list search, in LLVM's language: every path is extended."""

from __future__ import annotations

import math

from reallm_compiler.codecs.numerics import emit
from reallm_compiler.codecs.numerics.emit import Value
from reallm_compiler.codecs.numerics.list_search import LANES
from reallm_compiler.codecs.numerics.list_writer import ListWriter
from reallm_compiler.storage.trellis import WINDOW

LARGEST = 0x7F7FFFFF
"""The bits of float32's largest number."""


class StepWriter(ListWriter):
    """Writes the functions `step_k`."""

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
