"""Where the tasks of a run are done: on this machine, or on those of a Ray cluster."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from reallm_compiler.errors import ReallmError
from reallm_compiler.runs.cluster import ClusterOptions
from reallm_compiler.runs.devices import choose_device
from reallm_compiler.runs.machines import Machines, ThisMachine
from reallm_compiler.runs.ray_cluster import connected


@contextmanager
def open_machines(
    device: str,
    error: type[ReallmError],
    *,
    types: Collection[str],
    cluster: ClusterOptions | None = None,
) -> Iterator[Machines]:
    """The machines of a run; a cluster is left when the block ends.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        error: the class of an error about the device.
        types: the device types that are supported.
        cluster: a cluster; this machine when None.

    Raises:
        ReallmError: of class `error`; the device is not there.
        CompileError: the cluster cannot be used.
    """
    if cluster is None:
        yield ThisMachine(choose_device(device, error, types=types))
        return
    with connected(cluster, device, error) as machines:
        yield machines
