"""The processes of one tuning run, as torchrun starts them, each with a part of every batch.

A step's batch is cut into pieces, the batches of gradient accumulation; piece m is computed by
process m mod N.

An error in one process ends all: the first to fail reports it, and the others, which lose their
peer or fail alike, report nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from reallm_compiler.errors import FinetuneError
from reallm_compiler.runs.identity import TITLES
from reallm_compiler.units import ceil_div

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets in the environment of each process."""

FAILED = "reallm/failed"
"""Key that counts the processes that failed."""

T = TypeVar("T")


class ElsewhereError(FinetuneError):
    """This process ends because another one failed, which says why."""


def world_size() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if all(map(os.environ.get, VARIABLES)) else 1


def is_main() -> bool:
    """Whether this process writes and reports: the first one, or the only one."""
    return world_size() == 1 or os.environ["RANK"] == "0"


def local_device(name: str) -> str:
    """The device that is meant by a name: with several GPUs each process has its own."""
    if world_size() > 1 and (name == "cuda" or (name == "auto" and torch.cuda.is_available())):
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return name


class Processes:
    """The processes of a run; one by itself unless made by `connected_processes`.

    Attributes:
        rank: number of this process, from 0.
        count: how many there are.
    """

    def __init__(self, rank: int = 0, count: int = 1, device: torch.device | str = "cpu") -> None:
        self.rank = rank
        self.count = count
        self.device = torch.device(device)

    @property
    def is_main(self) -> bool:
        """Whether this one writes and reports."""
        return self.rank == 0

    def check_pieces(self, pieces: int, setting: str, *, evenly: bool = False) -> None:
        """Every process has a piece of each batch.

        Args:
            pieces: of a batch.
            setting: the setting that says how many.
            evenly: every process has as many, since all must run the model as often.

        Raises:
            FinetuneError: there are fewer pieces than processes, or not a multiple of them.
        """
        if evenly and pieces % self.count:
            raise FinetuneError(
                f"{self.count} processes share the weights and run the model together, and a step "
                f"has {pieces} batches, which is no multiple",
                location=setting,
                hint=f"give `--set {setting}={self.count * ceil_div(pieces, self.count)}`, or "
                "leave out `--shard`",
            )
        if pieces < self.count:
            raise FinetuneError(
                f"{self.count} processes, and {pieces} batches to a step: each process computes "
                "whole batches",
                location=setting,
                hint=f"give `--set {setting}={self.count}` and divide the batch by as much, or "
                "start fewer processes",
            )

    def own_pieces(self, pieces: int) -> range:
        """The pieces that this process computes."""
        return range(self.rank, pieces, self.count)

    def turns(self, pieces: int) -> Iterator[tuple[int, bool]]:
        """As many pieces in every process, and whether it is this one that computes the piece."""
        for first in range(0, pieces, self.count):
            piece = first + self.rank
            yield min(piece, pieces - 1), piece < pieces

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, in all of them."""
        made: list[Any] = [make() if self.is_main else None]
        if self.count > 1:
            with lost_to_error():
                dist.broadcast_object_list(made, src=0, device=self.device)
        found: T = made[0]
        return found

    def tensors_from_first(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the first process, on the CPU, in all of them."""
        if self.count == 1:
            return dict(tensors)
        facts = self.from_first(lambda: [(k, v.shape, v.dtype) for k, v in tensors.items()])
        found = {}
        for name, shape, dtype in facts:
            empty = torch.empty(shape, dtype=dtype, device=self.device)
            whole = tensors[name].to(self.device) if self.is_main else empty
            with lost_to_error():
                dist.broadcast(whole, src=0)
            found[name] = whole.cpu()
        return found

    def gathered(self, values: Mapping[int, float], pieces: int) -> list[float]:
        """The numbers of all pieces, of which each process gives those that it has computed."""
        if self.count == 1:
            return [values[piece] for piece in range(pieces)]
        found = torch.zeros(pieces, dtype=torch.float64)
        for piece, value in values.items():
            found[piece] = value
        found = found.to(self.device)
        with lost_to_error():
            dist.all_reduce(found)  # one number and zeros: exact
        return [float(value) for value in found.tolist()]

    def complete(self, whole: Tensor, parts: Sequence[slice]) -> None:
        """Fill in the rows of a tensor on the CPU that other processes have computed.

        Args:
            whole: [n, ...]; part m of its rows was computed by process m mod N.
            parts: the rows of each part.
        """
        if self.count == 1:
            return
        for number, rows in enumerate(parts):
            part = whole[rows].to(self.device)
            with lost_to_error():
                dist.broadcast(part, src=number % self.count)
            whole[rows] = part.to(whole.device)

    def any(self, wish: bool) -> bool:
        """Whether any process wishes so."""
        return any(self.gathered({self.rank: float(wish)}, self.count))

    def check_same(self, facts: Mapping[str, Any]) -> None:
        """All processes tune the same with the same.

        Raises:
            FinetuneError: this one differs from the first; names what differs.
        """
        first = self.from_first(lambda: dict(facts))
        wrong = [TITLES.get(key, key) for key in facts if facts[key] != first.get(key)]
        if wrong:
            raise FinetuneError(
                f"process {self.rank} differs from process 0 in {' and in '.join(wrong)}",
                hint="give all machines the same files, software and devices",
            )


@contextmanager
def connected_processes(device: Callable[[], torch.device]) -> Iterator[Processes]:
    """The processes that torchrun started, connected for as long as this lasts.

    Args:
        device: chooses the device of this process.

    Raises:
        FinetuneError: they cannot be connected, or one of them was lost.
        ElsewhereError: another one failed.
    """
    if world_size() == 1:
        yield Processes(device=device())
        return
    if dist.is_initialized():
        raise FinetuneError(
            "this process has a process group already",
            hint="let `finetune` make it: do not call `init_process_group`",
        )
    try:
        store, rank, count = next(iter(rendezvous("env://")))
    except (RuntimeError, ValueError) as error:
        raise FinetuneError(
            "the processes of this run cannot be connected", note=str(error).splitlines()[0]
        ) from error
    try:
        chosen = device()
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        with lost_to_error():
            dist.init_process_group(backend, store=store, rank=rank, world_size=count)
        yield Processes(rank, count, chosen)
    except BaseException as error:
        _first_or_silent(store, error)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _first_or_silent(store: Any, error: BaseException) -> NoReturn:  # noqa: ANN401
    """Raise the error in the process that failed first, and nothing to be shown in the others."""
    try:
        first = int(store.add(FAILED, 1)) == 1
    except RuntimeError:  # whoever kept the store is gone, and has said why
        first = False
    if not first:
        raise ElsewhereError("another process of this run failed") from error
    raise error


@contextmanager
def lost_to_error() -> Iterator[None]:
    """Say of a broken connection what it means."""
    try:
        yield
    except RuntimeError as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FinetuneError(
            "the connection to another process of this run is lost",
            note=first,
            hint="start all processes again: they go on where the state was saved",
        ) from error
