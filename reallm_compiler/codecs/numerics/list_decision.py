"""Decisions of the list search, in LLVM's language: codes that the best path has settled."""

from __future__ import annotations

from reallm_compiler.codecs.numerics import emit
from reallm_compiler.codecs.numerics.emit import Value
from reallm_compiler.codecs.numerics.list_search import DECIDED, LANES
from reallm_compiler.codecs.numerics.list_writer import ListWriter
from reallm_compiler.storage.trellis import WINDOW


class DecisionWriter(ListWriter):
    """Writes the functions `decide`, `trace` and `add_decided_n`."""

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
