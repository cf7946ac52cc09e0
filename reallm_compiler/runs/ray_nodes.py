"""The nodes of a Ray cluster: which of them do tasks, and that they are alike."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from reallm_compiler.errors import CompileError, ReallmError
from reallm_compiler.runs.attempts import TRIES
from reallm_compiler.runs.devices import HINT
from reallm_compiler.runs.identity import machine_fields
from reallm_compiler.runs.ray_worker import check_fields, describe

PROBE_SECONDS = 300.0
"""Seconds in which each node must answer at first; Python and torch start in them."""

UNKNOWN_SECONDS = 2.0
"""Seconds until a node is asked again that Ray did not know."""

Node = dict[str, Any]
"""A node as `ray.nodes` describes it."""


def choose_nodes(
    nodes: Sequence[Node], device: str, error: type[ReallmError]
) -> tuple[str, list[Node]]:
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


def describe_nodes(
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
        fields, title, gpu_bytes = described(ray, reference, partial(submit, node), name, end)
        memory.append(gpu_bytes)
        if wanted is None:
            wanted = fields
            check_software(fields, name)
        check_fields(fields, wanted, name)
    assert wanted is not None  # there are nodes
    return wanted, title, min(memory)


def described(
    ray: Any,  # noqa: ANN401
    reference: Any,  # noqa: ANN401
    submit: Callable[[], Any],
    name: str,
    end: float,
) -> tuple[dict[str, str], str, int]:
    """What a node is like; it is asked again where its worker was killed, or Ray knew no such node.

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
            # So says Ray of a node that is gone, and for a moment of one that has just come.
            unknown = isinstance(error, exceptions.TaskUnschedulableError)
            if (killed or unknown) and number + 1 < TRIES:
                time.sleep(UNKNOWN_SECONDS if unknown else 0.0)
                reference = submit()
                continue
            hint = "install the same version of reallm on all nodes, with the same Python"
            if killed:
                hint = "free memory there, or start fewer tasks on it: `ray start --num-cpus N`"
            elif unknown:
                hint = "run the same command again once `ray status` shows the nodes that there are"
            raise CompileError(
                f"the node {name} cannot do tasks",
                location=name,
                note=(str(error).strip().splitlines() or ["no reason is given"])[-1][:300],
                hint=hint,
            ) from error
        else:
            return found
    raise AssertionError("the last try returns or raises")


def check_software(fields: dict[str, str], node: str) -> None:
    """A node has the software of this process.

    Raises:
        CompileError: it has not.
    """
    own = {**machine_fields(torch.device("cpu")), "python": platform.python_version()}
    check_fields(fields, {key: own[key] for key in ("reallm", "torch", "python")}, node)


def slots_of(resources: dict[str, float], memory_bytes: int, gpus: float) -> int:
    """Tasks of one processor and so much else that fit on a node at once."""
    counts = [int(resources.get("CPU", 0))]
    if memory_bytes:
        counts.append(int(resources.get("memory", 0) // memory_bytes))
    if gpus:
        # Two tasks of 0.6 of a GPU do not fit on two halves.
        counts.append(int(resources.get("GPU", 0)) * int(1 / gpus + 1e-9))
    return min(counts)
