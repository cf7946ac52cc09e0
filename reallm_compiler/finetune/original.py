"""The original model: one block at a time, or whole as a teacher.

A block is built empty from the config and filled from the checkpoint's files, so of the original
never more than one block is in memory while blocks are tuned.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reallm_compiler.checkpoint import Inventory, open_source
from reallm_compiler.checkpoint.identity import shard_facts
from reallm_compiler.errors import FinetuneError
from reallm_compiler.models.blocks import Block
from reallm_compiler.models.build import build_model
from reallm_compiler.models.names import parameter_names
from reallm_compiler.models.source import source_files
from reallm_compiler.models.weights import Weights
from reallm_compiler.planning.fit import fit_blocks
from reallm_compiler.planning.folding import recipe_folds
from reallm_compiler.prepare import changed_by, prepare_model, prepare_stages
from reallm_compiler.progress import Progress
from reallm_compiler.reader.archive import ModelArchive
from reallm_compiler.runs.sources import check_digests

CHECKED = 1 << 16
"""Weights of a kept tensor up to which it is compared with the archive's."""


class Original:
    """The checkpoint that an archive was compiled from.

    Args:
        model: its folder or hub id.
        archive: the archive; small kept tensors are compared, to find a wrong model at once. What
            its recipe prepared (`prepare`) is prepared here alike.

    Raises:
        SourceError: it cannot be read.
        FinetuneError: it is another model.
    """

    def __init__(self, model: str | os.PathLike[str], archive: ModelArchive) -> None:
        self.path = model
        self.inventory: Inventory = prepare_model(
            open_source(model), prepare_stages(archive.recipe)
        )
        if not self.inventory.complete:
            raise FinetuneError(
                "the original has no weights",
                location=str(model),
                hint="give the folder that the archive was compiled from, with its safetensors",
            )
        self.weights = Weights(self.inventory)
        self._check(archive)
        self._skeleton: Any = None
        self._tensor_of: dict[str, str] = {}

    def facts(self) -> dict[str, Any]:
        """Config, and length and header of each shard, by which a resumed run knows it."""
        config = json.dumps(self.inventory.config, sort_keys=True).encode()
        return {
            "config.json": hashlib.sha256(config).hexdigest(),
            **shard_facts(self.inventory),
        }

    def read(self) -> dict[str, str]:
        """Digests of the tensors that were read so far."""
        return dict(self.weights.digests)

    def check_read(self, wanted: Mapping[str, str]) -> None:
        """The tensors that an interrupted run read are as they were; reads them again.

        Raises:
            ResumeError: some have changed; names them.
        """
        for name in wanted:
            if name in self.weights.by_name:
                self.weights.read(name)
        check_digests(self.inventory.path, wanted, self.weights.digests, "run")

    def block(
        self,
        block: Block,
        model: Any,  # noqa: ANN401
        device: torch.device,
        dtype: torch.dtype,
    ) -> nn.Module:
        """The original of a block, frozen.

        Args:
            block: the block of `model`.
            model: the tuned model, of the same architecture.
            device: where it will run.
            dtype: type of its weights.
        """
        module: nn.Module = copy.deepcopy(self._empty(block, model))
        module.to_empty(device="cpu")
        ours = dict(block.module.named_buffers())
        sources = self._sources(block, model)
        with torch.no_grad():
            for name, values in _values(module):
                known = sources[name]
                values.copy_(ours[name] if known is None else self.weights.tensor(known, "f32"))
        return module.to(device, dtype).requires_grad_(False).eval()

    def check_blocks(self, blocks: Sequence[Block], model: Any) -> None:  # noqa: ANN401
        """See that the original of every block can be made; no weight is read.

        Raises:
            FinetuneError: the checkpoint has not all that a block of the model holds.
        """
        for block in blocks:
            self._sources(block, model)

    def _empty(self, block: Block, model: Any) -> nn.Module:  # noqa: ANN401
        """A block of the architecture without weights."""
        if self._skeleton is None:
            with torch.device("meta"):
                self._skeleton = type(model)(copy.deepcopy(model.config))
            names = parameter_names(self._skeleton, self.weights.by_name)
            self._tensor_of = {parameter: tensor for tensor, parameter in names.items()}
        module: nn.Module = self._skeleton.get_submodule(block.path)
        return module

    def _sources(self, block: Block, model: Any) -> dict[str, str | None]:  # noqa: ANN401
        """The checkpoint's tensor for each tensor of a block.

        None for a buffer that the architecture makes, such as a mask.
        """
        empty = self._empty(block, model)
        ours = dict(block.module.named_buffers())
        sources: dict[str, str | None] = {}
        for name, values in _values(empty):
            known = self._tensor_of.get(f"{block.path}.{name}")
            fits = known is None or self.weights.by_name[known].shape == tuple(values.shape)
            if not fits or (known is None and name not in ours):
                raise FinetuneError(
                    f"the original has no tensor {block.path}.{name} of shape {list(values.shape)}",
                    location=str(self.path),
                    note="the checkpoint stores this part joined with others, "
                    "or the model shares it with another block",
                    hint="tune end to end alone with `--stage e2e`",
                )
            sources[name] = known
        return sources

    def teacher(self, device: torch.device, dtype: torch.dtype, progress: Progress) -> Any:  # noqa: ANN401
        """The whole original, frozen."""
        for name in self.weights.by_name:
            self.weights.read(name)
        teacher = build_model(source_files(self.inventory, str(self.path)), dtype, progress)
        return teacher.to(device).requires_grad_(False).eval()

    def matrix(self, tensor: str, index: int | None, *, transposed: bool) -> Tensor:
        """A matrix [p, q] in the checkpoint's type."""
        return self.weights.matrix(tensor, index, transposed=transposed)

    def _check(self, archive: ModelArchive) -> None:
        for matrix in archive.plan.matrices:
            self._known(matrix.tensor)
        changed = {norm.name for block in fit_blocks(archive.plan) for norm in block.norms}
        if recipe_folds(archive.recipe):  # hidden states are the same, and that is what is followed
            changed |= changed_by(self.inventory)
        for tensor in archive.plan.tensors:
            spec = self._known(tensor.name)
            small = spec.count <= CHECKED and spec.dtype == tensor.dtype
            small = small and tensor.name not in changed
            if spec.shape != tensor.shape or (
                small
                and not torch.equal(
                    self.weights.tensor(tensor.name, tensor.dtype), archive.tensor(tensor.name)
                )
            ):
                raise FinetuneError(
                    f"{tensor.name} of the original is not what the archive keeps",
                    location=str(self.path),
                    note="the archive was compiled from another model",
                )

    def _known(self, name: str) -> Any:  # noqa: ANN401
        spec = self.weights.by_name.get(name)
        if spec is None:
            raise FinetuneError(
                f"the original has no tensor {name}, which the archive holds",
                location=str(self.path),
                note="the archive was compiled from another model",
            )
        return spec


def _values(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of a module, by name."""
    yield from module.named_parameters()
    yield from module.named_buffers()
