"""The frozen weights of the blocks sharded among the processes (torch's FSDP2).

Each process keeps a part of every frozen tensor; a block's tensors are gathered when the block is
run, forward or back, and given back afterwards. What is tuned stays whole in every process, and
its gradients are added up by `processes`. Gathering changes no number, so no byte of the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reallm_compiler.errors import FinetuneError
from reallm_compiler.finetune.processes import Processes
from reallm_compiler.models.blocks import Block
from reallm_compiler.runtime.tunable import TunableModel


class Shards:
    """The blocks of a model, sharded or not.

    Args:
        tunable: the model.
        blocks: its blocks.
        processes: of the run.
        wanted: shard them; with one process nothing is.
    """

    def __init__(
        self,
        tunable: TunableModel,
        blocks: Sequence[Block],
        processes: Processes,
        *,
        wanted: bool = False,
    ) -> None:
        self._tunable = tunable
        self._processes = processes
        self._blocks = list(blocks) if wanted and processes.count > 1 else []
        self.active = bool(self._blocks)

    def shard(self, teacher: Any = None) -> None:  # noqa: ANN401 (transformers has no types)
        """Shard the blocks, and those of the original beside the model.

        Raises:
            FinetuneError: this torch cannot.
        """
        for block in self._blocks:
            for name in block.layers:
                layer = self._tunable.layers[name]
                if isinstance(layer.coded, Tensor):  # a buffer is never sharded
                    layer.coded = nn.Parameter(layer.coded, requires_grad=False)
            _shard(block.module, self._processes)
            if teacher is not None:
                _shard(teacher.get_submodule(block.path), self._processes)

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """The parts of all tuned layers (`TunedLinear.parts`), in storage order."""
        layers = self._tunable.layers
        found = {}
        for block in self._blocks:
            module: Any = block.module
            module.unshard()
            found.update(_parts(self._tunable, block.layers))
            module.reshard()
        found.update(_parts(self._tunable, [name for name in layers if name not in found]))
        return {name: found[name] for name in layers}


def _parts(tunable: TunableModel, names: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    return {name: tunable.layers[name].parts() for name in names}


def _shard(module: nn.Module, processes: Processes) -> None:
    """Shard what is frozen of a module."""
    from torch.distributed.device_mesh import init_device_mesh

    try:
        from torch.distributed.fsdp import fully_shard

        tuned = {value for value in module.parameters() if value.requires_grad}
        mesh = init_device_mesh(processes.device.type, (processes.count,))
        fully_shard(module, mesh=mesh, ignored_params=tuned)
    except (ImportError, TypeError) as error:
        raise FinetuneError(
            f"torch {torch.__version__} cannot shard the frozen weights alone",
            note=str(error),
            hint="install a newer torch, or leave out `--shard`",
        ) from error
