"""Writes what can be generated of the recipe's documentation from the models of the language.

    python docs/recipe_reference.py           says what is out of date
    python docs/recipe_reference.py --write   brings it up to date

Files: `recipe.schema.json`, and in `recipe.md`, `allocate.md` and `finetune.md` each part between
`<!-- generated: NAME -->` and `<!-- end -->`. NAME is a stage, `plan` (the fields of a plan that
are no stages), `rule`, `recipe`, a section of one (`allocate`, `kv_cache`, `finetune`), or a group
of settings.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from reallm_compiler.recipe import json_schema
from reallm_compiler.recipe.allocation import AllocateForm
from reallm_compiler.recipe.model import RecipeForm
from reallm_compiler.recipe.rule import RuleForm
from reallm_compiler.recipe.tuning import GROUPS, FinetuneOptions
from reallm_compiler.recipe.vocabulary import literals, members, stages
from reallm_compiler.stages import (
    FIT_KINDS,
    PREPARE_KINDS,
    CachedKeys,
    CachedValues,
    KvCache,
    MatrixPlan,
    kind_name,
)

DOCS = Path(__file__).resolve().parent
_PART = re.compile(r"(<!-- generated: (?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_VALUES = {
    "match": "pattern, or list of patterns",
    "role": "`linear`, `embedding`, `head`, `router`, or a list of these",
    "min_fraction": "fraction",
    "except_": "pattern, or list of patterns",
    "layers": "integer, range, or list of these",
    "keep": "`source`, `bfloat16` (`bf16`), `float16` (`fp16`), `float32` (`fp32`)",
    "set": "part of a plan",
    "finetune": "settings of tuning",
    "allocate": "candidates and a target",
    "bytes": "integer, or text such as `3.2GB`",
    "candidates": "list of names, paths, parts of plans or rules with `set`",
    "groups": "list of lists of patterns",
    "lock": "pattern, or list of patterns",
    "kv_cache": "settings of a cache, or `null`",
    "keys": "map, see below",
    "values": "map, see below",
    "scales": "a kind of `scales`",
    "quantizer": "a kind of `quantizer`",
    "prepare": "list of kinds",
    "fit": "a kind",
    "defaults": "plan, or part of one",
    "rules": "list of rules",
    "model": "path or id, or `{shapes: ...}`",
    "output": "path",
    "extends": "name or path",
    "share": "name",
    "note": "text",
    "stages": "list of `block`, `e2e`",
}
_TYPES: dict[Any, str] = {
    int: "integer",
    Fraction: "fraction",
    bool: "`true`, `false`",
    float: "number",
    str: "text",
}


def values(name: str, info: FieldInfo) -> str:
    """What a field takes, in words."""
    if name in _VALUES:
        return _VALUES[name]
    if isinstance(info.default, BaseModel):
        return "map, see below"
    words = [f"`{word}`" for word in literals(info.annotation)]
    types = [_TYPES[kind] for kind in members(info.annotation) if kind in _TYPES]
    lists = [kind for kind in members(info.annotation) if get_origin(kind) is tuple]
    low = next((f"{m.ge} to" for m in info.metadata if hasattr(m, "ge")), None)
    low = next((f"above {m.gt}, up to" for m in info.metadata if hasattr(m, "gt")), low)
    high = next((str(m.le) for m in info.metadata if hasattr(m, "le")), None)
    high = next((f"below {m.lt}" for m in info.metadata if hasattr(m, "lt")), high)
    if low and high:
        high = "2^63 - 1" if high == str(2**63 - 1) else high
        types = [f"{kind} {low} {high}" for kind in types]
    for kind in lists:
        entries = get_args(kind)
        word = "numbers" if float in members(entries[0]) else "integers"
        types.append(f"list of {len(entries)} {word}")
    if type(None) in members(info.annotation):
        types.append("`null`")
    return " or ".join([*types, ", ".join(words)] if words else types)


def default(info: FieldInfo) -> str:
    """A field's default as YAML; `required` without one."""
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return ""
    if value is None:
        return ""
    if isinstance(value, Fraction):
        value = f"{value.numerator}/{value.denominator}"
    return f"`{json.dumps(value) if not isinstance(value, str) else value}`"


def rows(model: type[BaseModel]) -> Iterator[str]:
    """A table row for each field of a model but its kind."""
    for name, info in model.model_fields.items():
        if name != "kind" and (model is not MatrixPlan or name not in stages()):
            cells = (f"`{info.alias or name}`", values(name, info), default(info), info.description)
            yield f"| {' | '.join(cell or '' for cell in cells)} |"


def table(model: type[BaseModel]) -> str:
    """The table of a model's fields; empty if it has none."""
    lines = list(rows(model))
    head = ["| key | values | default | meaning |", "|---|---|---|---|"]
    return "\n".join([*head, *lines, ""]) if lines else ""


def part(name: str) -> str:
    """The generated text of a part."""
    whole: dict[str, type[BaseModel]] = {**GROUPS, "plan": MatrixPlan}
    whole |= {"rule": RuleForm, "recipe": RecipeForm}
    whole["finetune"] = FinetuneOptions
    whole["allocate"] = AllocateForm
    whole |= {"kv_cache": KvCache, "keys": CachedKeys, "values": CachedValues}
    if name in whole:
        return table(whole[name])
    texts = []
    of_model = {
        key: {kind_name(model): model for model in found}
        for key, found in (("prepare", PREPARE_KINDS), ("fit", FIT_KINDS))
    }
    for kind, model in {**stages(), **of_model}[name].items():
        sentence = " ".join((model.__doc__ or "").split())
        texts.append(
            "\n".join(text for text in (f"**`{kind}`**: {sentence}\n", table(model)) if text)
        )
    return "\n".join(texts)


def generated() -> dict[Path, str]:
    """Each file that holds generated text, as it should be."""
    files = {DOCS / "recipe.schema.json": json.dumps(json_schema(), indent=2) + "\n"}
    for page in (DOCS / "recipe.md", DOCS / "allocate.md", DOCS / "finetune.md"):
        text = page.read_text(encoding="utf-8")
        files[page] = _PART.sub(
            lambda found: f"{found[1]}\n{part(found['name'])}\n{found[3]}", text
        )
    return files


def main() -> int:
    """Writes the files, or says which are out of date."""
    stale = 0
    for path, text in generated().items():
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if "--write" in sys.argv[1:]:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.name}")
        else:
            stale += 1
            print(f"{path.name} is out of date; run: python docs/recipe_reference.py --write")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
