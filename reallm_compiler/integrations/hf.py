"""reallm's codes as a quantization method of transformers: `from_pretrained` of exported folders.

    import reallm_compiler                                    # registers the method `reallm`
    model = AutoModelForCausalLM.from_pretrained("folder")    # packed, as `reallm.load` makes it

A folder holds each coded tensor in its sections, all of them bytes: `X.weight` are the codes, and
`X.weight_scales`, ... the rest. A process that knows no `reallm` finds bytes where it wants a
matrix, and refuses them. `config.json` says of each tensor how it is read (`PackedForm`).

Layers are changed twice: before the weights are read their parameters become the sections, without
memory; after that the sections become one packed weight.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

METHOD = "reallm"
VERSION = 1
CODES = "codes"


class ReallmConfig(QuantizationConfigMixin):
    """What `config.json` says of a folder of packed weights.

    Args:
        forms: forms of matrices as plain data, each once (`PackedForm.text`).
        tensors: for each coded tensor the number of its form; a list of them for experts.
        transposed: tensors that the class keeps as [q, p].
        version: of these statements.
        archive: digest of the archive that the folder was made of.
        quant_method: `reallm`.
        unknown: anything else, which is refused.

    Raises:
        ValueError: another version, or statements that are not known.
    """

    def __init__(
        self,
        forms: list[dict[str, Any]] | None = None,
        tensors: Mapping[str, int | list[int]] | None = None,
        transposed: list[str] | None = None,
        version: int = VERSION,
        archive: str = "",
        quant_method: str = METHOD,
        **unknown: Any,  # noqa: ANN401
    ) -> None:
        if version != VERSION or unknown:
            what = f"version {version}" if version != VERSION else f"{', '.join(unknown)}"
            raise ValueError(
                f"quantization_config of a newer reallm: {what} is not known; upgrade reallm"
            )
        self.quant_method: Any = METHOD
        self.version = version
        self.archive = archive
        self.forms = list(forms or [])
        self.tensors = dict(tensors or {})
        self.transposed = list(transposed or [])

    def parts(self, name: str) -> list[str]:
        """The forms of the matrices of a coded tensor, as text."""
        numbers = self.tensors[name]
        found = numbers if isinstance(numbers, list) else [numbers]
        return [json.dumps(self.forms[number], sort_keys=True) for number in found]


class ReallmQuantizer(HfQuantizer):
    """Loads, saves and decodes models with packed weights."""

    requires_calibration = True
    quantization_config: ReallmConfig

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Refuse what cannot be: weights on a disk.

        Raises:
            ValueError: the device map has a disk.
        """
        places = kwargs.get("device_map")
        if isinstance(places, Mapping) and "disk" in places.values():
            raise ValueError(
                "packed weights are not put on a disk: give a device_map without `disk`"
            )

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:  # noqa: ANN401
        from reallm_compiler.kernels.packed import parse_form

        for name, given in self._present(model):
            module, attribute = _owner(model, name)
            if module._parameters.get(attribute) is None:
                raise ValueError(f"`{name}` is coded in this folder, and is no parameter")
            sizes: dict[str, int] = {}
            for text in self.quantization_config.parts(given):
                for spec in parse_form(text).specs:
                    sizes[spec.role] = sizes.get(spec.role, 0) + spec.nbytes
            for role, size in sizes.items():
                empty = torch.empty(size, dtype=torch.uint8, device="meta")
                part = nn.Parameter(empty, requires_grad=False)
                module.register_parameter(section_name(attribute, role, sizes), part)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:  # noqa: ANN401
        from reallm_compiler.runtime.packed import pack_modules

        dtype: torch.dtype = model.dtype  # type: ignore[assignment]
        for name, given in list(self._present(model)):
            module, attribute = _owner(model, name)
            codes = module._parameters[attribute]
            weight = packed_weight(
                module,
                attribute,
                self.quantization_config.parts(given),
                dtype,
                transposed=given in self.quantization_config.transposed,
            )
            packed = nn.Parameter(weight, requires_grad=False)
            for other in model.modules():  # a tied layer has the same codes
                for key, value in other._parameters.items():
                    if value is codes:
                        other._parameters[key] = packed
        pack_modules(model)
        return model

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | str | None = None) -> nn.Module:
        from reallm_compiler.runtime.packed import unpack_modules

        # A config that was saved names its type.
        unpack_modules(model, getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        return model

    def get_state_dict_and_metadata(
        self, model: nn.Module
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors that a folder of the model holds, each once."""
        return dict(self._stored(model)), {}

    def _stored(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        from reallm_compiler.runtime.weight import PackedWeight

        seen: set[int] = set()
        for name, tensor in model.state_dict(keep_vars=True).items():
            if isinstance(tensor, PackedWeight):
                if id(tensor) not in seen:
                    yield from section_tensors(name, tensor)
                seen.add(id(tensor))
            else:
                yield name, tensor.detach()

    def _present(self, model: nn.Module) -> Iterator[tuple[str, str]]:
        """Coded tensors that the model has: by its own names, and by those of the folder.

        A model without head (`AutoModel`) lacks the prefix that a model with one has, and may
        lack tensors.
        """
        known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        given: Any = model
        prefix = f"{given.base_model_prefix}."
        for name in self.quantization_config.tensors:
            for own in (name, name.removeprefix(prefix), prefix + name):
                if own in known:
                    yield own, name
                    break

    def is_serializable(self) -> bool:
        """Yes: `save_pretrained` writes the sections again."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters are, over frozen codes."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Yes."""
        return True


def section_name(tensor: str, role: str, roles: Mapping[str, Any]) -> str:
    """The name under which a section of a tensor is stored; the codes have the tensor's own."""
    first = CODES if CODES in roles else next(iter(roles))
    return tensor if role == first else f"{tensor}_{role}"


def packed_weight(
    module: nn.Module,
    attribute: str,
    forms: list[str],
    dtype: torch.dtype,
    *,
    transposed: bool = False,
) -> Tensor:
    """The packed weight of the sections that a module holds, which it then has no more.

    Args:
        module: whose parameter it is.
        attribute: the parameter's name, under which the codes are.
        forms: of its matrices; experts are stacked.
        dtype: in which it decodes.
        transposed: the module keeps it as [q, p].

    Raises:
        FormatError: a form is none.
    """
    from reallm_compiler.codecs.sections import stored_dtype, stored_shape
    from reallm_compiler.kernels.packed import parse_form
    from reallm_compiler.runtime.weight import PackedWeight

    parsed = [parse_form(text) for text in forms]
    roles = {spec.role: spec for form in parsed for spec in form.specs}
    stored = {}
    for role in roles:
        key = section_name(attribute, role, roles)
        part = module._parameters[key] if key == attribute else module._parameters.pop(key)
        assert part is not None
        stored[role] = part.detach()
    taken = dict.fromkeys(roles, 0)
    weights = []
    for form in parsed:
        sections = []
        for spec in form.specs:
            start = taken[spec.role]
            taken[spec.role] = start + spec.nbytes
            data = stored[spec.role][start : start + spec.nbytes]
            size = stored_dtype(spec).itemsize
            if data.storage_offset() % size:  # sections of an expert may begin anywhere
                data = data.clone()
            sections.append(data.view(stored_dtype(spec)).view(stored_shape(spec)))
        weight = PackedWeight.of(form.with_sections(sections), dtype)
        weights.append(weight.t() if transposed else weight)
    return weights[0] if len(weights) == 1 else torch.stack(weights)


def section_tensors(name: str, weight: Any) -> Iterator[tuple[str, Tensor]]:  # noqa: ANN401
    """The sections of a packed weight as bytes, those of all its matrices joined.

    Raises:
        ValueError: something was written to the weight, so that it has no codes.
    """
    from reallm_compiler.kernels.packed import parse_form

    if not weight.packed:
        raise ValueError(
            f"`{name}` is no longer packed, as something was written to it: save the model after "
            "`model.dequantize()`"
        )
    joined: dict[str, list[Tensor]] = {}
    for piece in weight.value.pieces:
        for spec, section in zip(parse_form(piece.form).specs, piece.sections, strict=True):
            data = section.detach().contiguous().reshape(-1).view(torch.uint8)
            joined.setdefault(spec.role, []).append(data)
    for role, parts in joined.items():
        data = parts[0].clone() if len(parts) == 1 else torch.cat(parts)
        yield section_name(name, role, joined), data


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


def register() -> None:
    """Make the method `reallm` known to transformers."""
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(METHOD, ReallmConfig)
    auto.AUTO_QUANTIZER_MAPPING.setdefault(METHOD, ReallmQuantizer)
