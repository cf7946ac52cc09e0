"""Writes LLVM's language for compiled kernels, and compiles it for this processor.

llvmlite's builder knows instructions; here are loops, variables and vectors on top of it. No
fast-math flags are set, so a product and a sum are never fused, and a kernel's results are those
of the same operations in torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeAlias

Value: TypeAlias = Any
"""A value, a type or a function of llvmlite, which has no type information."""

LEAST_LLVM = 20
"""The oldest LLVM whose language is written here."""


@cache
def available() -> bool:
    """Whether llvmlite is installed, loads and is new enough."""
    try:
        import llvmlite.binding as llvm
    except (ImportError, OSError):  # its import loads LLVM, which may not fit the system
        return False
    if llvm.llvm_version_info[0] < LEAST_LLVM:
        return False
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return True


def processor_has(feature: str) -> bool:
    """Whether this processor has a feature, by LLVM's name; `available` must be true."""
    import llvmlite.binding as llvm

    return bool(llvm.get_host_cpu_features().get(feature))


class Function:
    """A function that is being written.

    Args:
        module: the module that it belongs to.
        name: its name.
        arguments: types of its arguments.
    """

    def __init__(self, module: Value, name: str, arguments: list[Value]) -> None:
        from llvmlite import ir

        self.ir = ir
        kind = ir.FunctionType(ir.VoidType(), arguments)
        self.function = ir.Function(module, kind, name)
        self.entry = self.function.append_basic_block("entry")
        self.build = ir.IRBuilder(self.function.append_basic_block("start"))
        self.arguments = self.function.args

    def finish(self) -> Value:
        """Ends the function."""
        self.build.ret_void()
        self.ir.IRBuilder(self.entry).branch(self.function.basic_blocks[1])
        return self.function

    # ---- values

    def integer(self, value: int, bits: int = 64) -> Value:
        """A constant integer."""
        return self.ir.Constant(self.ir.IntType(bits), value)

    def number(self, value: float) -> Value:
        """A constant of float32."""
        return self.ir.Constant(self.ir.FloatType(), value)

    def splat(self, value: Value, lanes: int) -> Value:
        """A vector of equal lanes."""
        ir, build = self.ir, self.build
        kind = ir.VectorType(value.type, lanes)
        one = build.insert_element(ir.Constant(kind, ir.Undefined), value, self.integer(0, 32))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
        return build.shuffle_vector(one, one, zeros)

    def variable(self, initial: Value) -> Variable:
        """A variable that holds a value of the type of `initial`."""
        build = self.ir.IRBuilder(self.entry)
        return Variable(self, build.alloca(initial.type), initial)

    # ---- memory

    def at(self, pointer: Value, index: Value) -> Value:
        """The address of an element."""
        return self.build.gep(pointer, [index], inbounds=True)

    def load(self, pointer: Value, index: Value) -> Value:
        """An element."""
        return self.build.load(self.at(pointer, index))

    def store(self, value: Value, pointer: Value, index: Value) -> None:
        """Writes an element."""
        self.build.store(value, self.at(pointer, index))

    def load_vector(self, pointer: Value, index: Value, lanes: int) -> Value:
        """Consecutive elements."""
        return self.build.load(self._vector(pointer, index, lanes), align=4)

    def store_vector(self, value: Value, pointer: Value, index: Value) -> None:
        """Writes consecutive elements."""
        self.build.store(value, self._vector(pointer, index, value.type.count), align=4)

    def _vector(self, pointer: Value, index: Value, lanes: int) -> Value:
        kind = self.ir.VectorType(pointer.type.pointee, lanes).as_pointer()
        return self.build.bitcast(self.at(pointer, index), kind)

    # ---- control

    @contextmanager
    def loop(self, first: Value, last: Value, step: int = 1) -> Iterator[Value]:
        """The body for each index from `first` below `last`."""
        index = self.variable(first)
        with self.loop_while(lambda: self.build.icmp_signed("<", index.value, last)):
            yield index.value
            index.value = self.build.add(index.value, self.ir.Constant(first.type, step))

    @contextmanager
    def loop_while(self, condition: Value) -> Iterator[None]:
        """The body as long as `condition()` writes a true value."""
        function = self.function
        head = function.append_basic_block("head")
        body = function.append_basic_block("body")
        after = function.append_basic_block("after")
        self.build.branch(head)
        self.build.position_at_end(head)
        self.build.cbranch(condition(), body, after)
        self.build.position_at_end(body)
        yield
        self.build.branch(head)
        self.build.position_at_end(after)


class Variable:
    """A variable of a function; LLVM keeps it in a register."""

    def __init__(self, function: Function, address: Value, initial: Value) -> None:
        self._function = function
        self._address = address
        self.value = initial

    @property
    def value(self) -> Value:
        """What it holds now."""
        return self._function.build.load(self._address)

    @value.setter
    def value(self, value: Value) -> None:
        self._function.build.store(value, self._address)


class Program:
    """Compiled functions; it owns their code.

    Args:
        text: a module in LLVM's language.
        optimize: run LLVM's passes first; without them the processor's code is that of the text as
            it stands.
        processor: LLVM's name of the processor to compile for; None for this one.
    """

    def __init__(self, text: str, *, optimize: bool = True, processor: str | None = None) -> None:
        if not available():
            raise RuntimeError("llvmlite is not installed, or too old")
        import llvmlite.binding as llvm

        features = "" if processor else llvm.get_host_cpu_features().flatten()
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=processor or llvm.get_host_cpu_name(), features=features, opt=3
        )
        module = llvm.parse_assembly(text)
        if optimize:
            options = llvm.create_pipeline_tuning_options(speed_level=2)
            passes = llvm.create_pass_builder(machine, options)
            passes.getModulePassManager().run(module, passes)
        self.module = module
        self._machine = machine
        self._engine = llvm.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()

    def address(self, name: str) -> int:
        """The address of a function."""
        return int(self._engine.get_function_address(name))
