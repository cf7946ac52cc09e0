"""vLLM runs the folders of `reallm export --to hf`: from codes, or decoded when they are loaded.

    vllm serve DIR --load-format reallm
    vllm serve DIR --load-format reallm --quantization reallm-decoded

vLLM finds `register` by the entry point `vllm.general_plugins` and calls it in each of its
processes. A linear layer of vLLM may be several of the model's (queries, keys and values; gate and
up): each part is a packed matrix of its own, whose sections are collected as they are loaded.
Embeddings, heads, experts and what else is coded are decoded on the way. Only vLLM imports this
file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import ModelConfig, get_current_vllm_config
from vllm.config.load import LoadConfig
from vllm.model_executor.layers.linear import (
    LinearBase,
    LinearMethodBase,
    UnquantizedLinearMethod,
)
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from reallm_compiler.codecs.sections import stored_dtype, stored_shape
from reallm_compiler.integrations.hf import METHOD, packed_weight, section_name
from reallm_compiler.integrations.hf import ReallmConfig as Folder
from reallm_compiler.kernels.packed import PackedForm, check_packed, parse_form
from reallm_compiler.runtime.pieces import Piece

DECODED = "reallm-decoded"
"""Name of the method that decodes all weights when they are loaded."""

SHARDS = {"q": 0, "k": 1, "v": 2}
"""Parts of a layer of vLLM by the names that its loaders give them; others are numbers."""

ALIGNMENT = 8
"""Bytes at a multiple of which sections begin in memory."""


def register() -> None:
    """Nothing more: methods and loader were registered when this file was imported."""


@register_quantization_config(METHOD)
class PackedConfig(QuantizationConfig):  # type: ignore[misc]
    """What vLLM knows of a folder's codes.

    Args:
        folder: its `quantization_config`.

    Attributes:
        folder: as given.
        packed: names in the folder of the tensors that layers take packed.
    """

    method = METHOD

    def __init__(self, folder: Folder) -> None:
        super().__init__()
        self.folder = folder
        self.packed: set[str] = set()
        self._names = {name: name for name in folder.tensors}  # vLLM's names, the folder's

    def get_name(self) -> str:
        """Name of the method."""
        return self.method

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """Types of activations."""
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """Any device: forms and devices without kernels go the plain way."""
        return -1

    @staticmethod
    def get_config_filenames() -> list[str]:
        """None but `config.json`."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PackedConfig:
        """Of the `quantization_config` of a folder.

        Raises:
            ValueError: it is of a newer reallm.
        """
        return cls(Folder(**config))

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:  # noqa: ANN401
        """Names as vLLM's model has them."""
        self._names = hf_to_vllm_mapper.apply_dict(self._names)

    def get_quant_method(self, layer: nn.Module, prefix: str) -> LinearMethodBase | None:
        """How a layer computes; None for what is no linear layer.

        Raises:
            ValueError: some parts of the layer are coded and others are not, or vLLM loads the
                folder in another way.
        """
        if get_current_vllm_config().load_config.load_format != METHOD:
            raise ValueError(f"this folder is packed by reallm: give --load-format {METHOD}")
        if not isinstance(layer, LinearBase):
            return None
        owner, _, leaf = prefix.rpartition(".")
        parts = self.packed_modules_mapping.get(leaf, [leaf])
        names = [self._names.get(f"{owner}.{part}.weight".removeprefix(".")) for part in parts]
        coded = [name for name in names if name is not None]
        if not coded:
            return UnquantizedLinearMethod()
        if len(coded) < len(parts):
            raise ValueError(
                f"{prefix}: of {', '.join(parts)} some are coded and some are not, and vLLM has "
                f"them in one layer; load with --quantization {DECODED}"
            )
        self.packed.update(coded)
        return PackedLinear(prefix, [form for name in coded for form in self.folder.parts(name)])


@register_quantization_config(DECODED)
class DecodedConfig(PackedConfig):
    """The same folders, decoded when they are loaded."""

    method = DECODED

    @classmethod
    def override_quantization_method(
        cls,
        hf_quant_cfg: dict[str, Any],
        user_quant: str | None,
        hf_config: Any = None,  # noqa: ANN401
    ) -> str | None:
        """This method, where the user asks for it."""
        ours = hf_quant_cfg.get("quant_method") == METHOD and user_quant == DECODED
        return DECODED if ours else None

    def get_quant_method(self, layer: nn.Module, prefix: str) -> LinearMethodBase | None:
        """As vLLM computes itself."""
        return UnquantizedLinearMethod() if isinstance(layer, LinearBase) else None


@register_model_loader(METHOD)
class FolderLoader(DefaultModelLoader):  # type: ignore[misc]
    """vLLM's own way to load a folder, and coded tensors that no layer takes packed are decoded."""

    def __init__(self, load_config: LoadConfig) -> None:
        super().__init__(dataclasses.replace(load_config, load_format="safetensors"))

    def get_all_weights(
        self, model_config: ModelConfig, model: nn.Module
    ) -> Iterator[tuple[str, Tensor]]:
        """Tensors by name."""
        config = get_current_vllm_config().quant_config
        stored = super().get_all_weights(model_config, model)
        if not isinstance(config, PackedConfig):
            raise ValueError(
                f"{model_config.model}: this is no folder of `reallm export --to hf`, which "
                f"--load-format {METHOD} is for"
            )
        return decoded(stored, config.folder, config.packed, model_config.dtype)


def decoded(
    stored: Iterable[tuple[str, Tensor]], folder: Folder, packed: set[str], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a folder, its coded ones decoded but for those of `packed`."""
    owner: dict[str, tuple[str, str]] = {}
    missing: dict[str, int] = {}
    for name in folder.tensors.keys() - packed:
        roles = {spec.role: None for part in folder.parts(name) for spec in parse_form(part).specs}
        attribute = name.rpartition(".")[2]
        path = name.removesuffix(attribute)
        keys = [section_name(attribute, role, roles) for role in roles]
        owner |= {path + key: (name, key) for key in keys}
        missing[name] = len(keys)
    holders: dict[str, nn.Module] = {}
    for name, tensor in stored:
        if name not in owner:
            yield name, tensor
            continue
        whole, key = owner[name]
        holder = holders.setdefault(whole, nn.Module())
        holder.register_parameter(key, nn.Parameter(aligned(tensor), requires_grad=False))
        missing[whole] -= 1
        if not missing[whole]:
            weight: Any = packed_weight(
                holders.pop(whole),
                whole.rpartition(".")[2],
                folder.parts(whole),
                dtype,
                transposed=whole in folder.transposed,
            )
            yield whole, weight.dequantize()


def aligned(data: Tensor) -> Tensor:
    """Bytes that begin where numbers may."""
    return data.clone() if data.data_ptr() % ALIGNMENT else data


class PackedLinear(LinearMethodBase):  # type: ignore[misc]
    """A linear layer of packed matrices, one below the other.

    Args:
        name: of the layer.
        forms: of the matrices, as text, in their order.
    """

    def __init__(self, name: str, forms: Sequence[str]) -> None:
        self._name = name
        self._texts = list(forms)
        self._forms: list[PackedForm] = [parse_form(form) for form in forms]
        self._found: list[dict[str, Tensor]] = [{} for _ in forms]

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **others: Any,  # noqa: ANN401
    ) -> None:
        """Parameters that take sections as vLLM loads them.

        Raises:
            ValueError: the layer is divided among devices, or has other extents.
        """
        own = (sum(output_partition_sizes), input_size_per_partition)
        if own != (output_size, input_size):
            raise ValueError(
                f"{self._name}: packed matrices are not divided among devices (tensor "
                f"parallelism); --quantization {DECODED} divides decoded ones"
            )
        shapes = [form.shape for form in self._forms]
        if sum(p for p, _ in shapes) != output_size or any(q != input_size for _, q in shapes):
            raise ValueError(
                f"{self._name}: vLLM's layer is {output_size} x {input_size}, and its packed "
                f"matrices are {', '.join(f'{p} x {q}' for p, q in shapes)}"
            )
        for name in {name for form in self._forms for name in _names(form)}:
            parameter = nn.Parameter(torch.empty(0, dtype=torch.uint8), requires_grad=False)
            parameter.weight_loader = self._loader(name)  # type: ignore[attr-defined]
            layer.register_parameter(name, parameter)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """The sections become packed matrices, on the layer's device.

        Raises:
            FormatError: a section is missing, or holds what it cannot mean.
        """
        device = next(layer.parameters()).device
        for name in {name for form in self._forms for name in _names(form)}:
            delattr(layer, name)
        pieces = []
        for form, text, found in zip(self._forms, self._texts, self._found, strict=True):
            sections = [
                found[name].view(stored_dtype(spec)).view(stored_shape(spec)).to(device)
                for name, spec in zip(_names(form), form.specs, strict=True)
                if name in found
            ]
            check_packed(form.with_sections(sections))
            pieces.append(Piece(tuple(sections), text))
        self._found = [{} for _ in self._forms]
        layer.reallm_pieces = pieces  # type: ignore[assignment]

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Outputs [..., rows of all matrices] for inputs [..., columns]."""
        pieces: Any = layer.reallm_pieces
        # By the operators themselves, which vLLM's compiler keeps in its graphs.
        found: list[Tensor] = [
            torch.ops.reallm.linear(x, list(piece.sections), piece.form, None) for piece in pieces
        ]
        y = found[0] if len(found) == 1 else torch.cat(found, dim=-1)
        return y if bias is None else y + bias

    def _loader(self, name: str) -> Any:  # noqa: ANN401
        def load(parameter: Tensor, loaded: Tensor, shard: int | str | None = None) -> None:
            shard = getattr(loaded, "shard_id", None) if shard is None else shard
            part = SHARDS[shard] if isinstance(shard, str) else shard or 0
            self._found[part][name] = aligned(loaded.detach())

        return load


def _names(form: PackedForm) -> list[str]:
    """Names of a matrix's sections in its layer, in order."""
    roles: Mapping[str, None] = {spec.role: None for spec in form.specs}
    return [section_name("weight", role, roles) for role in roles]
