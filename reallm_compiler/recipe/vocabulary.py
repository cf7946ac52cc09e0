"""The vocabulary of the recipe language, read off the models of the stages.

Which kinds a stage has, which parameters a kind has, which words a field takes: all of it comes
from `reallm_compiler.stages`, so a new kind is known here as soon as it is registered there. From
the same source come the hints: the nearest valid word, or where in a plan a word would be valid.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from reallm_compiler import hints
from reallm_compiler.stages import KINDS, MatrixPlan, Stage, kinds

SYNONYMS = {
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "fp32": "float32",
    "f32": "float32",
    "float": "float32",
    "yes": "true",
    "on": "true",
    "no": "false",
    "off": "false",
    "columns": "cols",
    "column": "cols",
    "row": "rows",
    "nf": "normal_float",
    "nf3": "normal_float",
    "nf4": "normal_float",
    "int": "uniform",
    "rtn": "uniform",
    "kmeans": "vq",
    "k-means": "vq",
    "tcq": "trellis",
    "e8": "e8p",
    "aqlm": "additive",
    "quip-sharp": "e8p",
    "qtip": "trellis",
    "rotation": "hadamard",
    "rotate": "hadamard",
    "quip": "hadamard",
    "lora": "low_rank",
    "lowrank": "low_rank",
    "outliers": "sparse",
    "butterfly": "monarch",
    "spqr": "sparse",
    "max": "absmax",
    "group": "block",
    "group_size": "block",
    "codebook": "vq",
    "quantizer": "quantizer",
    "exclude": "except",
}
"""Words of other tools and common slips; used for hints only, and only where the word is valid."""


def nearest(word: object, valid: Iterable[str]) -> str | None:
    """The valid word that `word` was most likely meant to be, if there is one."""
    options = list(valid)
    text = str(word).lower()
    if SYNONYMS.get(text) in options:
        return SYNONYMS[text]
    close = hints.nearest(text, options, 1)
    if close:
        return close[0]
    other = difflib.get_close_matches(text, SYNONYMS, n=1, cutoff=0.7)
    return SYNONYMS[other[0]] if other and SYNONYMS[other[0]] in options else None


def suggestion(word: object, valid: Sequence[str]) -> str:
    """A hint: the nearest valid word, or all of them where none is near."""
    near = nearest(word, valid)
    return f"did you mean `{near}`?" if near else f"valid here: {listed(valid)}"


def listed(words: Iterable[object]) -> str:
    """Words in back-ticks with commas between them."""
    return ", ".join(f"`{word}`" for word in words)


def members(annotation: Any) -> list[Any]:  # noqa: ANN401 - any annotation
    """The alternatives of a type: a union's members, a list's elements, without `Annotated`."""
    origin = get_origin(annotation)
    if origin is Annotated or (origin is tuple and get_args(annotation)[1:] == (...,)):
        return members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [part for member in get_args(annotation) for part in members(member)]
    return [annotation]


def literals(annotation: Any) -> list[Any]:  # noqa: ANN401
    """The words that a field takes, if it takes words."""
    return [
        word
        for member in members(annotation)
        if get_origin(member) is Literal
        for word in get_args(member)
    ]


def stages() -> dict[str, Mapping[str, type[Stage]]]:
    """Each stage of a matrix plan with its kinds and their models."""
    return {name: kinds(name) for name in KINDS}


def keys_of(model: type[BaseModel]) -> list[str]:
    """The keys that a model takes, as they are written in a recipe."""
    return [info.alias or name for name, info in model.model_fields.items()]


def owners(stage: str, key: str) -> list[str]:
    """The kinds of a stage that have a parameter `key`."""
    return [kind for kind, model in stages()[stage].items() if key in model.model_fields]


def homes(key: str) -> list[str]:
    """Where in a matrix plan a key is at home: `residual (low_rank)`, or the plan itself."""
    found = ["a matrix plan"] if key in MatrixPlan.model_fields else []
    for stage, models in stages().items():
        with_key = [kind for kind in models if key in models[kind].model_fields]
        if with_key and key != "kind":
            found.append(f"`{stage}` (kind {listed(with_key)})")
    return found
