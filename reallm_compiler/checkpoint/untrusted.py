"""What keeps untrusted files from running code, or from fetching anything, inside transformers.

Every call of `from_pretrained` and `from_config` says `trust_remote_code=False` (a test holds it):
without it the library asks on the terminal, and runs the code on a `y`. A config has two more ways
to code and to the network, which have no argument: it may name a kernel of the Hub as its attention
(`attn_implementation: ORG/NAME`), or a pretrained backbone, which is looked up while the config is
read. The first is taken off the config, the second is stopped by `offline`.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_LEFT_OUT = frozenset(
    {
        "auto_map",
        "trust_remote_code",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "experts_implementation",
        "_experts_implementation",
        "_experts_implementation_internal",
        "kernel_config",
        "use_kernels",
    }
)
_lock = threading.Lock()
_before: list[bool] = []


def without_code(config: Any) -> Any:  # noqa: ANN401 - JSON
    """A config, or a part of one, without the keys that lead to code, at any depth."""
    if isinstance(config, Mapping):
        return {k: without_code(value) for k, value in config.items() if k not in _LEFT_OUT}
    if isinstance(config, list):
        return [without_code(value) for value in config]
    return config


@contextmanager
def offline() -> Iterator[None]:
    """The Hub's client answers from its cache or not at all, whatever a config names."""
    try:
        constants: Any = importlib.import_module("huggingface_hub.constants")
    except ImportError:
        yield
        return
    with _lock:  # loads of several threads may overlap: the last one out puts the switch back
        _before.append(constants.HF_HUB_OFFLINE)
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        with _lock:
            found = _before.pop()
            if not _before:
                constants.HF_HUB_OFFLINE = found
