"""Table 2: methods that a recipe can say, beside the paper's figures for them.

python studies/paper/table_2.py [--long] [--method NAME ...]
"""

from __future__ import annotations

import sys
from fractions import Fraction
from typing import Any

from studies.paper.common import Study, exact_bits, options, reallm_recipe, table


def loftq(bits: int, rank: Fraction) -> dict[str, Any]:
    """LoftQ: NormalFloat and SVD in turn, the quantizer first, five times as in its code."""
    changes = {"residual": {"rank": str(rank)}, "quantizer": {"bits": bits}}
    return {"reallm": 1, "extends": "loftq", "defaults": changes}


def shipped(name: str) -> dict[str, Any]:
    """A shipped recipe as it is."""
    return {"reallm": 1, "extends": name}


def learned(name: str, bits: int, **defaults: Any) -> dict[str, Any]:
    """A shipped recipe by which ranges of groups learn, with codes of other bits."""
    changes = {"scales": {"code_bits": bits}, "quantizer": {"bits": bits}, **defaults}
    return {"reallm": 1, "extends": name, "defaults": changes}


def methods(rank: Fraction) -> list[tuple[Any, ...]]:
    """Name, bits, the paper's figures (C4 7B, 13B; WikiText-2 7B, 13B), recipe, tuned, differs."""
    factors = {"residual": {"rank": str(rank)}}
    lq_lora = {"reallm": 1, "extends": "lq-lora", "defaults": {"residual": {"rank": str(rank)}}}
    return [
        ("GPTQ", 3, "7.89, 7.00; 6.29, 5.42", shipped("gptq-3bit"), False, "groups of 128"),
        ("AWQ", 3, "7.84, 6.94; 6.24, 5.32", shipped("awq-3bit"), False, "groups of 128"),
        (
            *("Omniquant", 3, "7.75, 6.98; 6.03, 5.28"),
            *(learned("omniquant", 3), False, "groups of 64, learned clipping alone"),
        ),
        ("LQ-LoRA", 3, "7.88, -; 6.48, -", lq_lora, False, "untuned, one setting for all"),
        ("LoftQ", 3, "-, -; 5.63, 5.13", loftq(3, rank), True, "the paper's mixes 4 and 2 bits"),
        (
            *("ApiQ[PTQ]", 3, "7.84, 6.88; 6.19, 5.18"),
            *(learned("apiq", 3, **factors), False, "groups of 64"),
        ),
        ("Quip#", 3, "7.32, 6.72; 5.79, 5.10", shipped("quip-sharp-3bit"), False, "untuned"),
        ("QuaRot[A16W3]", 3, "-, -; 6.09, 5.37", shipped("quarot-3bit"), False, "groups of 128"),
        ("ReALLM", 3, "7.27, 6.69; 5.77, 5.14", reallm_recipe(3, 2, rank), True, "tuned, both"),
        ("LoftQ", 2, "-, -; 7.85, 7.69", loftq(2, rank), True, "tuned as ReALLM here"),
        ("ApiQ", 2, "-, -; 7.46, 6.29", learned("apiq", 2, **factors), False, "untuned afterwards"),
        ("Quip#", 2, "8.35, 7.45; 6.66, 5.74", shipped("quip-sharp-2bit"), False, "untuned"),
        ("AQLM", 2, "8.56, 7.51; 6.64, 5.65", shipped("aqlm-2x8"), False, "untuned"),
        ("ReALLM", 2, "8.28, 7.50; 6.69, 5.72", reallm_recipe(2, 4, rank), True, "tuned, both"),
    ]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--method", action="append", help="only these rows (default: all)")
    study = Study(parser.parse_args())
    original = study.perplexities(study.given.model)
    rows = [["original", "16", "6.97, 6.46; 5.47, 4.48", original, "", "16", ""]]
    for index, (name, bits, paper, recipe, tune, differs) in enumerate(methods(study.given.rank)):
        if study.given.method and name not in study.given.method:
            continue
        path = study.compiled(f"method-{index}", recipe)
        tuned = study.perplexities(study.tuned(study.tuned(path, "block"), "e2e")) if tune else ""
        found = study.perplexities(path)
        rows.append([name, str(bits), paper, found, tuned, exact_bits(path), differs])
        print(rows[-1], file=sys.stderr, flush=True)
    table(
        [
            "method",
            "bits",
            "paper: C4 7B, 13B; WikiText-2 7B, 13B",
            "ours, untuned",
            "ours, tuned",
            "exact bits",
            "what differs",
        ],
        rows,
        [*study.notes(), "a rank of 64 at 4096 x 4096 is a fraction of min(p, q) here"],
    )


if __name__ == "__main__":
    main()
