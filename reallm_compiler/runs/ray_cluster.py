"""A Ray cluster: how it is reached, which nodes it has, and that they are alike.

The process that holds the output and the journal is Ray's driver. Ray ends a driver some time
after the cluster is lost, without an error: `Watch` looks at the cluster all the time, so that the
run ends before, as an error that says how to go on.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch

from reallm_compiler.errors import CompileError, ReallmError
from reallm_compiler.runs.attempts import TRIES
from reallm_compiler.runs.cluster import ClusterOptions
from reallm_compiler.runs.devices import HINT
from reallm_compiler.runs.machines import Memory, Slots, unknown_memory
from reallm_compiler.runs.parcels import ReservedFile
from reallm_compiler.runs.ray_backend import RayBackend
from reallm_compiler.runs.ray_worker import check_fields, describe
from reallm_compiler.runs.stop import SIGNALS
from reallm_compiler.system import cores

PROBE_SECONDS = 300.0
"""Seconds in which each node must answer at first; Python and torch start in them."""

WATCH_SECONDS = 2.0
"""Seconds between two looks at the cluster."""

LOST_SECONDS = 25.0
"""Seconds without an answer after which the cluster is lost; Ray itself gives up after 60."""

Node = dict[str, Any]
"""A node as `ray.nodes` describes it."""


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
    watch = None
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        chosen, usable = _choose(nodes, device, error)
        fields, title, gpu_bytes = _probe(ray, usable, chosen)
        watch = Watch(ray.nodes, ray.get_runtime_context().get_node_id())
        yield RayCluster(
            ray, options, torch.device(chosen), title, fields, gpu_bytes=gpu_bytes, watch=watch
        )
    finally:
        if watch is not None:
            watch.end()
        if ours:
            _leave(ray, lost=watch is not None and watch.lost is not None)


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


def _choose(nodes: Sequence[Node], device: str, error: type[ReallmError]) -> tuple[str, list[Node]]:
    """The device type, and the nodes that do tasks."""
    with_gpu = [node for node in nodes if node["Resources"].get("GPU", 0) > 0]
    if device == "cuda" and not with_gpu:
        raise error("the cluster has no node with a GPU", hint=HINT)
    chosen = "cuda" if with_gpu and device != "cpu" else "cpu"
    among = with_gpu if chosen == "cuda" else nodes
    usable = [node for node in among if node["Resources"].get("CPU", 0) >= 1]
    if not usable:
        raise CompileError(
            "the cluster has no node that does tasks",
            note=f"{len(nodes)} nodes, none of which offers a processor",
            hint="add nodes with `ray start --address HOST:PORT`",
        )
    return chosen, usable


def _probe(
    ray: Any,  # noqa: ANN401
    nodes: Sequence[Node],
    device: str,
) -> tuple[dict[str, str], str, int]:
    """What the nodes are like, all of them; the device's name, and the least memory of a GPU."""
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    remote = ray.remote(max_retries=0, num_cpus=0)(describe)
    gpus = {"num_gpus": 0.001} if device == "cuda" else {}

    def submit(node: Node) -> Any:  # noqa: ANN401
        there = strategy(node["NodeID"], soft=False)
        return remote.options(scheduling_strategy=there, **gpus).remote(device)

    references = [submit(node) for node in nodes]
    wanted: dict[str, str] | None = None
    title, memory = device, []
    end = time.monotonic() + PROBE_SECONDS
    for node, reference in zip(nodes, references, strict=True):
        name = node["NodeManagerHostname"] or node["NodeManagerAddress"]
        fields, title, gpu_bytes = _described(ray, reference, partial(submit, node), name, end)
        memory.append(gpu_bytes)
        if wanted is None:
            wanted = fields
            check_software(fields, name)
        check_fields(fields, wanted, name)
    assert wanted is not None  # there are nodes
    return wanted, title, min(memory)


def _described(
    ray: Any,  # noqa: ANN401
    reference: Any,  # noqa: ANN401
    submit: Callable[[], Any],
    name: str,
    end: float,
) -> tuple[dict[str, str], str, int]:
    """What a node is like; it is asked again where its worker was killed.

    Raises:
        CompileError: it does not answer in time, or cannot.
    """
    exceptions = ray.exceptions
    for number in range(TRIES):
        try:
            found: tuple[dict[str, str], str, int] = ray.get(
                reference, timeout=max(0.0, end - time.monotonic())
            )
        except exceptions.GetTimeoutError as error:
            raise CompileError(
                f"the node {name} does not answer",
                location=name,
                hint="look at `ray status`, and at what else runs there",
            ) from error
        except exceptions.RayError as error:
            killed = isinstance(error, exceptions.WorkerCrashedError | exceptions.OutOfMemoryError)
            if killed and number + 1 < TRIES:
                reference = submit()
                continue
            raise CompileError(
                f"the node {name} cannot do tasks",
                location=name,
                note=(str(error).strip().splitlines() or ["no reason is given"])[-1][:300],
                hint="free memory there, or start fewer tasks on it: `ray start --num-cpus N`"
                if killed
                else "install the same version of reallm on all nodes, with the same Python",
            ) from error
        else:
            return found
    raise AssertionError("the last try returns or raises")


def check_software(fields: dict[str, str], node: str) -> None:
    """A node has the software of this process.

    Raises:
        CompileError: it has not.
    """
    from reallm_compiler.runs.identity import machine_fields

    own = {**machine_fields(torch.device("cpu")), "python": platform.python_version()}
    check_fields(fields, {key: own[key] for key in ("reallm", "torch", "python")}, node)


class Watch:
    """Looks at a cluster all the time.

    Args:
        look: gives the nodes; does not return while the cluster's head is gone.
        own: id of this process's node.

    Attributes:
        nodes: those that were alive at the last look.
    """

    def __init__(self, look: Callable[[], list[Node]], own: str) -> None:
        self._look = look
        self._own = own
        self._end = threading.Event()
        self._seen = time.monotonic()
        self._own_is_gone = False
        self.nodes = [node for node in look() if node["Alive"]]
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def lost(self) -> CompileError | None:
        """The error of a cluster that does not answer any more; None while it does."""
        silent = time.monotonic() - self._seen > LOST_SECONDS
        if not silent and not self._own_is_gone:
            return None
        return CompileError(
            "the cluster is lost",
            note=f"its head has not answered for {LOST_SECONDS:.0f} seconds"
            if silent
            else "the node of this process is gone",
            hint="start the cluster again, then run the same command again to resume",
        )

    def end(self) -> None:
        """Look no more."""
        self._end.set()

    def _watch(self) -> None:
        while not self._end.wait(WATCH_SECONDS):
            # Whatever goes wrong, time passes without an answer.
            with suppress(Exception):
                nodes = [node for node in self._look() if node["Alive"]]
                self._own_is_gone = all(node["NodeID"] != self._own for node in nodes)
                self.nodes = nodes
                self._seen = time.monotonic()


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
        watch: Watch,
    ) -> None:
        self.ray = ray
        self.options = options
        self.device = device
        self.title = title
        self.node_fields = fields
        self.fields = {key: value for key, value in fields.items() if key != "python"}
        self._watch = watch
        self._gpu_bytes = gpu_bytes

    @property
    def lost(self) -> CompileError | None:
        """See `Watch`."""
        return self._watch.lost

    def slots(self, memory_bytes: int, device_bytes: int) -> Slots:
        """See `Machines`."""
        nodes = self._watch.nodes
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


def slots_of(resources: dict[str, float], memory_bytes: int, gpus: float) -> int:
    """Tasks of one processor and so much else that fit on a node at once."""
    counts = [int(resources.get("CPU", 0))]
    if memory_bytes:
        counts.append(int(resources.get("memory", 0) // memory_bytes))
    if gpus:
        # Two tasks of 0.6 of a GPU do not fit on two halves.
        counts.append(int(resources.get("GPU", 0)) * int(1 / gpus + 1e-9))
    return min(counts)
