"""Products with sections between pages that may not be touched: `test_guarded` runs this.

python -m tests.kernels.guarded TARGET...

One line for each form, before its products; a read outside of a section ends the process.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from reallm_compiler.kernels.form import form_of
from reallm_compiler.kernels.packed import PackedMatrix
from reallm_compiler.kernels.targets import TARGETS
from tests.kernels.test_compiled import LONG, PLANS, SHAPES, activations, made, packed_of

PAGE = mmap.PAGESIZE
KEPT: list[mmap.mmap] = []


def between_guards(data: Tensor, *, last: bool) -> Tensor:
    """A copy of a tensor that begins with a page, or ends with one; pages beside it are guarded."""
    size = data.numel() * data.itemsize
    pages = -(-size // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    KEPT.append(memory)
    place = PAGE + (pages * PAGE - size if last else 0)
    copy = torch.frombuffer(memory, dtype=torch.uint8)[place : place + size]
    copy.copy_(data.contiguous().view(-1).view(torch.uint8))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for guard in (copy.data_ptr() - place, copy.data_ptr() - place + (pages + 1) * PAGE):
        assert protect(guard, PAGE, 0) == 0, ctypes.get_errno()
    return copy.view(data.dtype).view(data.shape)


def forms_once(target: str) -> Iterator[tuple[str, PackedMatrix]]:
    """A plan, and a matrix of it, for each form that a target has a kernel for."""
    seen = set()
    for name in PLANS:
        packed = packed_of(name, LONG.get(name, SHAPES[0]))
        form = form_of(packed.plan, packed.shape)
        if form is not None and form not in seen and TARGETS[target].fits(form):
            seen.add(form)
            yield name, packed


if __name__ == "__main__":
    for target in sys.argv[1:]:
        for name, packed in forms_once(target):
            for last in (False, True):
                print(target, name, "to the end" if last else "from the start", flush=True)
                sections = [
                    between_guards(one, last=last) if one.numel() else one
                    for one in packed.sections.values()
                ]
                product = made(packed.form.with_sections(sections), target)
                for tokens in (1, 13):
                    product.linear(activations(tokens, packed.shape[1]))
