"""Writes functions in LLVM's language: names, constants, loops, and the job that they work on.

Every function takes a pointer to a job, an array of 64-bit slots: addresses, and integers. Text is
kept instead of llvmlite's builder because vectors of constants and intrinsics of processors are
most of these kernels, and stand in text as they stand in LLVM's manual.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

SLOTS = (
    # What every call brings.
    *("x", "out", "tokens", "integers", "threads"),
    # The matrix.
    *("columns", "rows", "lines", "line_bytes", "line_codes", "periods"),
    *("codes", "tables", "row_scales", "row_shifts"),
    *("block_scales", "block_supers", "block_offset"),
    *("block_zeros", "zero_supers", "zero_offset", "row_blocks", "numbers"),
    *("group_orders", "group_lines"),
    *("in_factors", "order", "order_factors", "out_factors", "gain"),
    *("l1", "l2", "rank_scales", "rank"),
    # Where intermediate numbers lie.
    *("kept", "mixed", "ordered", "high", "low", "plane_stride", "scales", "totals"),
    *("block_sums", "inner", "y", "y_stride", "rows_up"),
    # torch's threads.
    *("parallel", "thread_number", "thread_count"),
)
"""Slots of a job by name, in their order."""


ALIGNED = '!0 = !{!"llvm.loop.align", i32 64}'
"""Loops begin with a line of the cache: short ones that cross one took a third longer."""


class Loop:
    """A loop that is being written.

    Attributes:
        index: the value that counts.
        values: the carried values, at the start of a turn and after the loop.
        next: their values at the end of a turn, to be set within it.
    """

    def __init__(self, index: str, values: list[str]) -> None:
        self.index = index
        self.values = values
        self.next: list[str] = list(values)


class Text:
    """A module that is being written."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._declared: dict[str, None] = {}
        self._count = 0
        self._loops = 0
        self._label = ""

    def __str__(self) -> str:
        loops = [f"!{n} = distinct !{{!{n}, !0}}" for n in range(1, self._loops + 1)]
        return "\n".join([*self._declared, *self._lines, ALIGNED, *loops]) + "\n"

    # ---- values

    def name(self) -> str:
        """A name that is not in use."""
        self._count += 1
        return f"%v{self._count}"

    def let(self, expression: str) -> str:
        """The value of an instruction."""
        name = self.name()
        self._lines.append(f"  {name} = {expression}")
        return name

    def do(self, instruction: str) -> None:
        """An instruction without a value."""
        self._lines.append(f"  {instruction}")

    def call(self, result: str, function: str, *arguments: str) -> str:
        """The value of a function, declared here; arguments are written `type value`."""
        kinds = ", ".join(_type_of(argument) for argument in arguments)
        self._declared[f"declare {result} @{function}({kinds})"] = None
        call = f"call {result} @{function}({', '.join(arguments)})"
        if result == "void":
            self.do(call)
            return ""
        return self.let(call)

    def at(self, pointer: str, index: str | int, kind: str = "i8") -> str:
        """The address of an element."""
        return self.let(f"getelementptr {kind}, ptr {pointer}, i64 {index}")

    def load(self, kind: str, pointer: str, index: str | int = 0, of: str = "i8") -> str:
        """A value of type `kind` at an element of type `of`, wherever it lies."""
        place = pointer if index == 0 else self.at(pointer, index, of)
        return self.let(f"load {kind}, ptr {place}, align 1")

    def store(
        self, kind: str, value: str, pointer: str, index: str | int = 0, of: str = "i8"
    ) -> None:
        """Writes a value of type `kind` at an element of type `of`."""
        place = pointer if index == 0 else self.at(pointer, index, of)
        self.do(f"store {kind} {value}, ptr {place}, align 1")

    def slot(self, name: str) -> str:
        """An integer of the job."""
        return self.load("i64", "%job", SLOTS.index(name), "i64")

    def pointer(self, name: str) -> str:
        """An address of the job."""
        return self.load("ptr", "%job", SLOTS.index(name), "i64")

    def shuffle(
        self, kind: str, count: int, a: str, lanes: Sequence[int], b: str = "poison"
    ) -> str:
        """Lanes of two vectors of `count` elements."""
        vector = f"<{count} x {kind}>"
        picked = f"<{len(lanes)} x i32> {constants('i32', lanes)}"
        return self.let(f"shufflevector {vector} {a}, {vector} {b}, {picked}")

    def spread(self, kind: str, count: int, value: str) -> str:
        """A vector of equal lanes."""
        one = self.let(f"insertelement <{count} x {kind}> poison, {kind} {value}, i64 0")
        return self.shuffle(kind, count, one, [0] * count)

    # ---- functions and loops

    @contextmanager
    def function(self, name: str, *arguments: str) -> Iterator[None]:
        """A function of a job; further arguments are written `type %name`."""
        given = ", ".join(("ptr %job", *arguments))
        self._lines.append(f"define void @{name}({given}) {{")
        self._begin("entry")
        yield
        self.do("ret void")
        self._lines.append("}")

    @contextmanager
    def loop(
        self,
        first: str | int,
        last: str | int,
        step: int = 1,
        carried: Sequence[tuple[str, str]] = (),
    ) -> Iterator[Loop]:
        """The body for each index from `first` below `last`.

        Args:
            first, last: integers of 64 bits.
            step: what is added to the index.
            carried: (type, first value) of values that one turn hands to the next.
        """
        self._count += 1
        head, body, after = (f"{part}{self._count}" for part in ("head", "body", "after"))
        before = self._label
        self.do(f"br label %{head}")
        self._begin(head)
        place = len(self._lines)
        loop = Loop(self.name(), [self.name() for _ in carried])
        following = self.name()
        more = self.let(f"icmp slt i64 {loop.index}, {last}")
        self.do(f"br i1 {more}, label %{body}, label %{after}")
        self._begin(body)
        yield loop
        self.do(f"{following} = add i64 {loop.index}, {step}")
        latch = self._label
        self._loops += 1
        self.do(f"br label %{head}, !llvm.loop !{self._loops}")
        phis = [("i64", loop.index, str(first), following)]
        for (kind, start), value, end in zip(carried, loop.values, loop.next, strict=True):
            phis.append((kind, value, start, end))
        self._lines[place:place] = [
            f"  {value} = phi {kind} [ {start}, %{before} ], [ {end}, %{latch} ]"
            for kind, value, start, end in phis
        ]
        self._begin(after)

    @contextmanager
    def when(self, condition: str) -> Iterator[None]:
        """The body if a condition of type i1 holds."""
        self._count += 1
        body, after = f"then{self._count}", f"done{self._count}"
        self.do(f"br i1 {condition}, label %{body}, label %{after}")
        self._begin(body)
        yield
        self.do(f"br label %{after}")
        self._begin(after)

    def _begin(self, label: str) -> None:
        self._lines.append(f"{label}:")
        self._label = label


def constants(kind: str, values: Sequence[object]) -> str:
    """A constant vector."""
    return "<" + ", ".join(f"{kind} {value}" for value in values) + ">"


def number(value: float) -> str:
    """A constant of float32, exactly as it is rounded."""
    import struct

    rounded = struct.unpack("f", struct.pack("f", value))[0]
    return "0x" + struct.pack(">d", rounded).hex().upper()


def _type_of(argument: str) -> str:
    """The type of an argument that is written `type value`."""
    end = argument.rindex("> %") + 1 if "> %" in argument else argument.index(" ")
    if argument.startswith("<") and "> %" not in argument:  # a constant vector
        end = argument.index("> <") + 1 if "> <" in argument else argument.rindex("> ") + 1
    return argument[:end]
