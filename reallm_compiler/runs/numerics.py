"""The same numbers each time: settings of torch, fixed for a while and then put back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def fixed_numerics(threads: int, device: torch.device) -> Iterator[None]:
    """Make results depend on nothing but data, software and processor.

    Args:
        threads: of torch in this process, since sums depend on how threads split them.
        device: where the work runs.
    """
    torch_mode: Any = torch.utils.deterministic  # its one attribute is made at run time
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    old_threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch_mode.fill_uninitialized_memory
    precision = torch.get_float32_matmul_precision()
    flags = cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    workspace = os.environ.get(CUBLAS_WORKSPACE)
    try:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True)
        # Otherwise torch fills every tensor that will be overwritten anyway.
        torch_mode.fill_uninitialized_memory = False
        torch.set_float32_matmul_precision("highest")
        if device.type == "cuda":
            os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")
            cuda.allow_tf32 = cudnn.allow_tf32 = cudnn.benchmark = False
        yield
    finally:
        torch.set_num_threads(old_threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch_mode.fill_uninitialized_memory = filled
        cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = flags
        torch.set_float32_matmul_precision(precision)
        if workspace is None:
            os.environ.pop(CUBLAS_WORKSPACE, None)
        else:
            os.environ[CUBLAS_WORKSPACE] = workspace
