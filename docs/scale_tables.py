"""Writes the tables of scale.md: what `reallm budget --time` says of models of three sizes.

    python docs/scale_tables.py           says whether they are out of date
    python docs/scale_tables.py --write   brings them up to date

In `scale.md` each part between `<!-- generated: NAME -->` and `<!-- end -->`. NAME is a model,
`rates` (what one core does) or `timings` (what the rates were fitted to).
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from reallm_cli.commands.budget_time import NODES, UNKNOWN, row_of
from reallm_compiler.estimates.nodes import Machine
from reallm_compiler.estimates.rates import measured_rates
from reallm_compiler.estimates.steps import Step, steps
from reallm_compiler.planning.build import plan

PAGE = Path(__file__).resolve().parent / "scale.md"
RECIPES = ("reallm-2bit", "reallm-2bit-tunable")
_PART = re.compile(r"(<!-- generated: (?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def llama(
    width: int, inner: int, layers: int, heads: int, groups: int, words: int
) -> dict[str, Any]:
    """The config of a Llama of this size."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": words,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


MODELS = {
    "llama_7b": llama(4096, 11008, 32, 32, 32, 32000),
    "llama_70b": llama(8192, 28672, 80, 64, 8, 32000),
    "llama_405b": llama(16384, 53248, 126, 128, 8, 128256),
}


def row(recipe: str, step: Step) -> str:
    """A line of a model's table."""
    *cells, _ = row_of(step)  # no GPU is assumed
    return f"| {' | '.join([recipe, *cells])} |"


def model_table(config: dict[str, Any]) -> str:
    """What the steps of both recipes take."""
    lines = [
        "| recipe | step | nodes | workers | core hours | hours | GPU hours | memory of a node "
        "| disk | network | dollars |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config))
        for recipe in RECIPES:
            found = steps(plan(recipe, model=path), config, NODES, Machine(), measured_rates())
            lines += [row(recipe, step) for step in found]
    return "\n".join([*lines, ""])


def rates_table() -> str:
    """What one core does in a second."""
    rates = measured_rates()
    lines = ["| operation | per second of one core |", "|---|---|"]
    for name, cost in rates.costs.items():
        lines.append(f"| {name} | {format(1 / cost, '.3g') if cost else 'nothing beside others'} |")
    return "\n".join([*lines, "", f"Measured on: {rates.machine}.", ""])


def timings_table() -> str:
    """The timings, and what the rates make of them."""
    rates = measured_rates()
    lines = ["| timed | seconds | predicted / measured |", "|---|---|---|"]
    for point in rates.points:
        found = rates.seconds(point.work)
        ratio = UNKNOWN if found is None else f"{found / point.seconds:.2f}"
        lines.append(f"| {point.title} | {point.seconds:.3g} | {ratio} |")
    return "\n".join([*lines, ""])


def part(name: str) -> str:
    """The generated text of a part."""
    if name in MODELS:
        return model_table(MODELS[name])
    return {"rates": rates_table, "timings": timings_table}[name]()


def generated() -> str:
    """The page as it should be."""
    text = PAGE.read_text(encoding="utf-8")
    return _PART.sub(lambda found: f"{found[1]}\n{part(found['name'])}\n{found[3]}", text)


def main() -> int:
    """Writes the page, or says that it is out of date."""
    text = generated()
    if PAGE.read_text(encoding="utf-8") == text:
        return 0
    if "--write" in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
        print(f"wrote {PAGE.name}")
        return 0
    print(f"{PAGE.name} is out of date; run: python docs/scale_tables.py --write")
    return 1


if __name__ == "__main__":
    sys.exit(main())
