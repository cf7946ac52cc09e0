"""peft's `adapter_config.json`, as far as our adapters can represent it.

Each field is honoured, or known to change nothing in the factors that were saved, or refused by
name. An unknown field is refused where it is switched on.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from reallm_compiler.errors import AdapterError

CONFIG = "adapter_config.json"

_HONOURED = frozenset(
    {"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"}
    | {"init_lora_weights", "ensure_weight_tying"}
)
_WITHOUT_EFFECT = frozenset(
    # The names of the tensors give the adapted modules.
    {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}
    # Factors and magnitudes are the same whichever way the base stores its weight.
    | {"fan_in_fan_out"}
    # Training, or where the base was.
    | {"lora_dropout", "inference_mode", "task_type", "auto_mapping", "peft_version", "revision"}
    | {"base_model_name_or_path", "megatron_core", "runtime_config"}
    # Settings of how the factors began, and of features that are refused by their own switch.
    | {"eva_config", "qalora_group_size"}
)
_INITIAL = frozenset({"gaussian", "orthogonal", "eva", "mica"})
"""Beginnings that leave the base as it is, beside true and false."""
_CONVERTED = ("pissa", "olora", "corda", "lora_ga")
"""Beginnings that change the base, of which peft can make a plain adapter on saving."""


class PeftConfig:
    """An `adapter_config.json` whose every field is known to be honoured.

    Args:
        content: its content.
        location: the file, for messages.

    Attributes:
        dora: each adapted module has magnitudes.
        tied: what is adapted in one of several modules that share a weight holds for all.

    Raises:
        AdapterError: it is none of LoRA, or uses what an adapter of ours has not.
    """

    def __init__(self, content: Any, location: str) -> None:  # noqa: ANN401
        self._location = location
        if not isinstance(content, dict) or content.get("peft_type") != "LORA":
            raise AdapterError("this is not a LoRA adapter", location=location)
        self._content: Mapping[str, Any] = content
        self.dora = bool(content.get("use_dora"))
        self.tied = bool(content.get("ensure_weight_tying"))
        self._check_initial(content.get("init_lora_weights", True))
        used = sorted(
            key
            for key, value in content.items()
            if key not in _HONOURED | _WITHOUT_EFFECT and value and value != "none"
        )
        if used:
            raise AdapterError(
                f"the adapter uses `{used[0]}`, which a reallm adapter cannot represent",
                location=location,
                note="a reallm adapter holds factors and magnitudes of linear layers and embeddings"
                + (f"; it uses also {', '.join(used[1:])}" if used[1:] else ""),
                hint="merge it into the model with peft, and compile that",
            )

    def scaling(self, module: str, rank: int) -> float:
        """What peft multiplies B A of a module by.

        Raises:
            AdapterError: the config says another rank than the factors have, or no number.
        """
        stated = self._value("rank_pattern", "r", module, rank)
        alpha = self._value("alpha_pattern", "lora_alpha", module, rank)
        if stated != rank:
            raise AdapterError(
                f"the factors of {module} have rank {rank}, and the config says {stated:g}",
                location=self._location,
            )
        return alpha / (math.sqrt(rank) if self._content.get("use_rslora") else rank)

    def _value(self, patterns: str, key: str, module: str, default: float) -> float:
        """A number for a module: that of the first pattern that fits its name, else of `key`."""
        value = self._content.get(key, default)
        found = self._content.get(patterns) or {}
        try:
            for pattern, one in found.items():
                if re.match(rf"(.*\.)?({pattern})$", module):
                    value = one
                    break
            return float(value)
        except (re.error, TypeError, ValueError, AttributeError) as error:
            raise AdapterError(
                f"`{patterns}` or `{key}` cannot be read: {error}", location=self._location
            ) from None

    def _check_initial(self, word: object) -> None:
        """Refuse factors that began as a part of the base, which peft then takes off the base."""
        if word is None or isinstance(word, bool) or word in _INITIAL:
            return
        convertible = str(word).lower().startswith(_CONVERTED)
        raise AdapterError(
            f"the adapter began with `init_lora_weights={word}`, which changes the base",
            location=self._location,
            note="the saved factors belong to the changed base, and would be wrong on this one",
            hint="save it as a plain adapter: `save_pretrained(..., "
            "path_initial_model_for_weight_conversion=...)`, as peft's documentation shows"
            if convertible
            else "train it again with `init_lora_weights=True`",
        )


def read_config(folder: Path) -> PeftConfig:
    """The config of a peft folder.

    Raises:
        AdapterError: there is none, it is none of LoRA, or uses what an adapter of ours has not.
    """
    path = folder / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(
            "this is not a PEFT adapter folder", location=str(folder), note=str(error)
        ) from None
    return PeftConfig(content, str(path))


def config_for(
    ranks: Mapping[str, int],
    modules: Collection[str],
    *,
    dora: bool,
    transposed: bool,
    causal: bool,
    base_folder: str,
) -> dict[str, Any]:
    """The config of an exported adapter, whose scaling is 1 everywhere.

    Args:
        ranks: rank of each adapted module.
        modules: all modules of the model.
        dora: all have magnitudes.
        transposed: the base stores all as [inputs, outputs].
        causal: the model generates text.
        base_folder: the base, or empty.
    """
    most = Counter(ranks.values()).most_common(1)[0][0]
    others = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != most}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if causal else None,
        "base_model_name_or_path": base_folder or None,
        "inference_mode": True,
        "r": most,
        "lora_alpha": most,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
        # peft takes a module whose name ends like one that is named: those are named here.
        "exclude_modules": [
            path for path in modules if path not in ranks and _ends_like(path, ranks)
        ]
        or None,
        "use_dora": dora,
        "fan_in_fan_out": transposed,
        "bias": "none",
        "lora_dropout": 0.0,
    }


def _ends_like(path: str, names: Collection[str]) -> bool:
    parts = path.split(".")
    return any(".".join(parts[start:]) in names for start in range(1, len(parts)))
