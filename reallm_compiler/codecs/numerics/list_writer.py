"""What the functions of the list search are written with: the arrays of a row, sums of lanes."""

from __future__ import annotations

from reallm_compiler.codecs.numerics import emit
from reallm_compiler.codecs.numerics.emit import Value
from reallm_compiler.codecs.numerics.list_memory import RowMemory, Shape, SharedMemory
from reallm_compiler.codecs.numerics.list_search import LANES


class ListWriter:
    """Writes functions of the program of one shape."""

    def __init__(self, ir: Value, shape: Shape) -> None:
        self.ir = ir
        self.shape = shape
        self.row = RowMemory(shape, 0)
        self.scratch = SharedMemory(shape)
        self.module = ir.Module("list_search")
        self.i8, self.i16, self.i32, self.i64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
        self.f32 = ir.FloatType()
        self.lanes = ir.VectorType(self.f32, LANES)

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

    # ---- lanes

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
