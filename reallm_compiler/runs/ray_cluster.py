"""A Ray cluster: how it is reached, and what it offers to tasks.

The process that holds the output and the journal is Ray's driver.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from reallm_compiler.errors import CompileError, ReallmError
from reallm_compiler.runs.cluster import ClusterOptions
from reallm_compiler.runs.machines import Memory, Slots, unknown_memory
from reallm_compiler.runs.parcels import ReservedFile
from reallm_compiler.runs.ray_backend import RayBackend
from reallm_compiler.runs.ray_monitor import ClusterMonitor
from reallm_compiler.runs.ray_nodes import choose_nodes, describe_nodes, slots_of
from reallm_compiler.runs.stop import SIGNALS
from reallm_compiler.system import cores


@contextmanager
def connected(
    options: ClusterOptions, device: str, error: type[ReallmError]
) -> Iterator[RayCluster]:
    """A cluster that was reached and is of one kind; it is left when the block ends.

    Args:
        options: the cluster.
        device: `auto`, `cpu` or `cuda`.
        error: the class of an error about the device.

    Raises:
        ReallmError: of class `error`; the cluster has no such device.
        CompileError: Ray is not installed, there is no such cluster, or its nodes differ.
    """
    ray = imported()
    if device not in ("auto", "cpu", "cuda"):
        raise error(
            f"the device `{device}` cannot be named on a cluster",
            note="Ray gives each task a device of its node",
            hint="use `auto`, `cpu` or `cuda`",
        )
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, options)
    monitor = None
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        chosen, usable = choose_nodes(nodes, device, error)
        fields, title, gpu_bytes = describe_nodes(ray, usable, chosen)
        monitor = ClusterMonitor(ray.nodes, ray.get_runtime_context().get_node_id())
        yield RayCluster(
            ray, options, torch.device(chosen), title, fields, gpu_bytes=gpu_bytes, monitor=monitor
        )
    finally:
        if monitor is not None:
            monitor.end()
        if ours:
            _leave(ray, lost=monitor is not None and monitor.lost is not None)


def imported() -> Any:  # noqa: ANN401
    """The library.

    Raises:
        CompileError: it is not installed.
    """
    # Nobody has asked for reports on how Ray is used.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Or each use warns of what later versions do with tasks that take no GPU.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise CompileError(
            "a cluster needs the library ray, which is not installed",
            hint="install `reallm-compiler[ray]`, on this machine and on all nodes",
        ) from error
    return ray


def _connect(ray: Any, options: ClusterOptions) -> None:  # noqa: ANN401
    address = options.address
    if "://" in address:
        raise CompileError(
            f"`{address}` is no address of a cluster's head",
            note="the process that writes the output must run on a node of the cluster",
            hint="run this command on a node, with `--ray auto` or `--ray HOST:PORT`",
        )
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address == "local":
        settings |= {"num_cpus": cores(), "include_dashboard": False}
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        ray.init(address=address, **settings)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        mismatch = "mismatch" in str(error).lower()
        raise CompileError(
            f"cannot use the Ray cluster `{address}`",
            note=" ".join(str(error).split())[:300] if mismatch else first[:300],
            hint="use the Python and the Ray of the cluster here"
            if mismatch
            else "start one with `ray start --head` and give its address, or use `--ray local`",
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)  # Ray has set its own
    _quiet(ray)


def _quiet(ray: Any) -> None:  # noqa: ANN401
    """Ray shows the nodes' messages on stdout, which carries data here."""
    module = ray._private.worker
    if hasattr(module, "_worker_logs_enabled"):
        module._worker_logs_enabled = False


def _leave(ray: Any, *, lost: bool) -> None:  # noqa: ANN401
    """Leave the cluster; one that is lost does not answer, and is not waited for."""
    thread = threading.Thread(target=ray.shutdown, daemon=True)
    thread.start()
    thread.join(1.0 if lost else 30.0)


class RayCluster:
    """The nodes of a cluster (`machines.Machines`); made by `connected`."""

    def __init__(
        self,
        ray: Any,  # noqa: ANN401
        options: ClusterOptions,
        device: torch.device,
        title: str,
        fields: dict[str, str],
        *,
        gpu_bytes: int,
        monitor: ClusterMonitor,
    ) -> None:
        self.ray = ray
        self.options = options
        self.device = device
        self.title = title
        self.node_fields = fields
        self.fields = {key: value for key, value in fields.items() if key != "python"}
        self._monitor = monitor
        self._gpu_bytes = gpu_bytes

    @property
    def lost(self) -> CompileError | None:
        """See `ClusterMonitor`."""
        return self._monitor.lost

    def slots(self, memory_bytes: int, device_bytes: int) -> Slots:
        """See `Machines`."""
        nodes = self._monitor.nodes
        memory = [int(node["Resources"].get("memory", 0)) for node in nodes]
        gpus = self.gpus(device_bytes)
        return Slots(
            count=sum(slots_of(node["Resources"], memory_bytes, gpus) for node in nodes),
            memory_bytes=sum(memory),
            largest_bytes=max(memory, default=0),
        )

    def gpus(self, device_bytes: int) -> float:
        """The part of a GPU that a task takes, in hundredths; 0 without GPUs."""
        if self.device.type != "cuda":
            return 0.0
        part = -(-100 * device_bytes // max(1, self._gpu_bytes))
        return min(100, max(1, part)) / 100

    def backend(
        self,
        workers: int,
        *,
        memory: Memory = unknown_memory,
        device_bytes: int = 0,
        output: ReservedFile | None = None,
    ) -> RayBackend:
        """See `Machines`."""
        return RayBackend(self, workers, memory, device_bytes, output)
