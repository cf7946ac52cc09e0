"""The same numbers each time: settings of torch, fixed for a while and then put back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"

_Setting = TypeVar("_Setting")


def fixed_thread_pool(workers: int, threads: int) -> ThreadPoolExecutor:
    """A pool of threads in each of which torch has so many threads.

    OpenMP keeps that number for each thread by itself: in a new one it is that of the machine,
    whatever `fixed_numerics` has set, and sums would depend on it.
    """
    return ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads,))


@contextmanager
def fixed_numerics(threads: int, device: torch.device) -> Iterator[None]:
    """Make results depend on nothing but data, software and processor.

    Args:
        threads: of torch in this process, since sums depend on how threads split them.
        device: where the work runs.
    """
    torch_mode: Any = torch.utils.deterministic  # its one attribute is made at run time
    old_threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch_mode.fill_uninitialized_memory
    benchmark = torch.backends.cudnn.benchmark
    workspace = os.environ.get(CUBLAS_WORKSPACE)
    with _full_float32():
        try:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(True)
            # Otherwise torch fills every tensor that will be overwritten anyway.
            torch_mode.fill_uninitialized_memory = False
            torch.backends.cudnn.benchmark = False
            if device.type == "cuda":
                os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")
            yield
        finally:
            torch.set_num_threads(old_threads)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            torch_mode.fill_uninitialized_memory = filled
            torch.backends.cudnn.benchmark = benchmark
            if workspace is None:
                os.environ.pop(CUBLAS_WORKSPACE, None)


@contextmanager
def _full_float32() -> Iterator[None]:
    """No float32 product in TF32 or bfloat16.

    torch has two ways to set this since 2.9, and refuses to read the older one where the caller has
    used the newer: then the older one has its default.
    """
    backends: Any = torch.backends
    settings: list[Any] = [
        setting
        for backend in (backends.cuda, backends.cudnn, backends.mkldnn)
        for setting in (getattr(backend, name, None) for name in ("matmul", "conv", "rnn"))
        if hasattr(setting, "fp32_precision")
    ]
    old = [setting.fp32_precision for setting in settings]
    matmul = _read(torch.get_float32_matmul_precision, "highest")
    cudnn_tf32 = _read(lambda: bool(backends.cudnn.allow_tf32), True)
    try:
        torch.set_float32_matmul_precision("highest")
        backends.cudnn.allow_tf32 = False
        for setting in settings:
            setting.fp32_precision = "ieee"
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        backends.cudnn.allow_tf32 = cudnn_tf32
        for setting, value in zip(settings, old, strict=True):
            setting.fp32_precision = "none"  # what `torch.backends.fp32_precision` says
            if setting.fp32_precision != value:
                setting.fp32_precision = value


def _read(read: Callable[[], _Setting], default: _Setting) -> _Setting:
    try:
        return read()
    except RuntimeError:
        return default
