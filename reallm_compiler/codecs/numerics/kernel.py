"""The compiled way to decode codes of 1 to 4 bits into 16-bit numbers, where llvmlite is there.

torch decodes such codes in four passes: codes to indices, indices to levels, times the scale, to
bfloat16. But all weights of a scale share the few numbers that they can become. So torch makes a
table of these numbers for each scale, scaled and rounded as everywhere else, and the kernel only
looks codes up in it: it does no arithmetic, so its results cannot differ from torch's by a bit.

The kernel is text in LLVM's language and knows no processor. It takes 16 codes a step; LLVM makes
one permutation of a register of the 16 look-ups, where the processor has one (AVX2, AVX-512).
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import CFUNCTYPE, c_int64, c_void_p
from functools import lru_cache

import torch
from torch import Tensor

from reallm_compiler.codecs.numerics import emit

LANES = 16
"""Codes of a step, and entries of a table: enough for the widest codes."""

MOST_BITS = 4
"""The widest codes."""

LEAST = 1 << 22
"""Weights of the least matrix that is decoded so. To load and compile takes some 45 ms once, which
a few matrices of four million weights earn back."""

RESULTS = (torch.bfloat16, torch.float16)
"""Types of results."""

_KERNEL = """
define void @look_up(ptr noalias %tables, ptr noalias %codes, ptr noalias %out,
                     i64 %groups, i64 %steps) {{
entry:
  br label %group

group:
  %g = phi i64 [ 0, %entry ], [ %g.next, %end ]
  %g.next = add i64 %g, 1
  %table.at = getelementptr <16 x i16>, ptr %tables, i64 %g
  %table = load <16 x i16>, ptr %table.at, align 2
  %first = mul i64 %g, %steps
  %last = mul i64 %g.next, %steps
  br label %step

step:
  %i = phi i64 [ %first, %group ], [ %i.next, %step ]
  %codes.at = getelementptr [{size} x i8], ptr %codes, i64 %i
  %bytes = load <{size} x i8>, ptr %codes.at, align 1
  ; Each lane takes the two bytes that its code lies in, and from them the code.
  %pairs = shufflevector <{size} x i8> %bytes, <{size} x i8> zeroinitializer, <32 x i32> <{pairs}>
  %words = bitcast <32 x i8> %pairs to <16 x i16>
  %shifted = lshr <16 x i16> %words, <{shifts}>
  %places = and <16 x i16> %shifted, <{masks}>
{look_ups}
  %out.at = getelementptr <16 x i16>, ptr %out, i64 %i
  store <16 x i16> %row.16, ptr %out.at, align 2
  %i.next = add i64 %i, 1
  %more = icmp ult i64 %i.next, %last
  br i1 %more, label %step, label %end

end:
  %further = icmp ult i64 %g.next, %groups
  br i1 %further, label %group, label %done

done:
  ret void
}}
"""

_LOOK_UP = """\
  %place.{lane} = extractelement <16 x i16> %places, i64 {lane}
  %entry.{lane} = extractelement <16 x i16> %table, i16 %place.{lane}
  %row.{next} = insertelement <16 x i16> %row.{lane}, i16 %entry.{lane}, i64 {lane}"""


def source(bits: int) -> str:
    """The kernel for codes of a width, in LLVM's language."""
    size = LANES * bits // 8  # bytes of a step's codes
    starts = [bits * lane for lane in range(LANES)]
    # Byte `size` is a zero: no code reaches into it.
    pairs = [min(start // 8 + half, size) for start in starts for half in (0, 1)]
    look_ups = [_LOOK_UP.format(lane=lane, next=lane + 1) for lane in range(LANES)]
    look_ups[0] = look_ups[0].replace("%row.0,", "poison,")
    return _KERNEL.format(
        size=size,
        pairs=", ".join(f"i32 {index}" for index in pairs),
        shifts=", ".join(f"i16 {start % 8}" for start in starts),
        masks=", ".join([f"i16 {2**bits - 1}"] * LANES),
        look_ups="\n".join(look_ups),
    )


@lru_cache(maxsize=MOST_BITS)
def compiled(bits: int) -> Callable[[int, int, int, int, int], None] | None:
    """The kernel (addresses of tables, codes and results, groups, steps of a group); None if
    llvmlite is missing, does not load or is too old, or the processor has no fitting permutation.
    """
    if not emit.available() or not emit.processor_has("avx2"):
        return None
    program = emit.Program(source(bits), optimize=False)
    kind = CFUNCTYPE(None, c_void_p, c_void_p, c_void_p, c_int64, c_int64)
    function = kind(program.address("look_up"))

    def run(tables: int, codes: int, out: int, groups: int, steps: int) -> None:
        assert program is not None  # it owns the code
        function(tables, codes, out, groups, steps)

    return run


def fits(bits: int, group: int, out: Tensor) -> bool:
    """Whether `look_up` can do it; the kernel is loaded and compiled if so.

    Args:
        bits: width of the codes.
        group: consecutive codes that share a table.
        out: the results.
    """
    return (
        bits <= MOST_BITS
        and group % LANES == 0
        and out.dtype in RESULTS
        and out.device.type == "cpu"
        and out.is_contiguous()
        and compiled(bits) is not None
    )


def look_up(tables: Tensor, codes: Tensor, bits: int, out: Tensor) -> None:
    """out[g, i] = tables[g, code i of group g].

    Args:
        tables: [groups, at most 16], of the type of `out`: what the codes of each group stand for.
        codes: the packed codes uint8 [bytes] of all groups, one after the other, contiguous.
        bits: width of a code.
        out: [groups x a number of codes that `fits`], of any shape, contiguous; it is filled.
    """
    run = compiled(bits)
    assert run is not None
    groups, entries = tables.shape
    steps = out.numel() // groups // LANES
    assert codes.is_contiguous()
    assert codes.numel() * 8 >= groups * steps * LANES * bits
    if entries < LANES:
        tables = torch.nn.functional.pad(tables, (0, LANES - entries))
    tables = tables.contiguous()
    run(tables.data_ptr(), codes.data_ptr(), out.data_ptr(), groups, steps)
