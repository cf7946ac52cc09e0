"""Table 1: ReALLM at 3 and 2 bits: untuned, after block-wise tuning, and after end-to-end tuning.

python studies/paper/table_1.py [--case 0 ...] [--long]

Perplexities stand as C4 / WikiText-2 in the paper's column, and one for each --text in ours.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from studies.paper.common import Study, exact_bits, options, reallm_recipe, table

# bits, rank at 4096, d, and the paper's figures on LLaMA2-7B: C4 / WikiText-2
CASES = [
    (3, 32, 2, {"": "7.78 / 6.21", "block": "7.56 / 6.01", "e2e": "7.29 / 5.79"}),
    (3, 64, 2, {"": "7.72 / 6.10", "block": "7.51 / 5.92", "e2e": "7.27 / 5.77"}),
    (2, 64, 2, {"": "45.96 / 51.74", "block": "10.11 / 8.31", "e2e": "8.47 / 6.91"}),
    (2, 64, 4, {"": "41.02 / 40.85", "block": "15.74 / 12.08", "e2e": "8.28 / 6.69"}),
]
STAGES = {"": "no fine-tuning", "block": "block-wise", "e2e": "block-wise, end to end"}


def rows_of(study: Study, cases: list[Any]) -> list[list[str]]:
    """A row for each stage that the paper has of each case."""
    rows = []
    for bits, rank, dim, figures in cases:
        share = study.given.rank * Fraction(rank, 64)
        path = study.compiled(f"{bits}-{rank}-{dim}", reallm_recipe(bits, dim, share))
        for stage, title in STAGES.items():
            if stage:
                path = study.tuned(path, stage)
            if stage in figures:
                rows.append(
                    [
                        f"ReALLM ({title})",
                        str(bits),
                        str(rank),
                        str(dim),
                        figures[stage],
                        study.perplexities(path),
                        exact_bits(path),
                        f"rank {share}",
                    ]
                )
    return rows


HEADER = ["method", "bits", "r", "d", "paper", "ours", "exact bits", "what differs"]
DIFFERENT = [
    "autoencoder: the identity; the paper does not say which matrices have a trained one",
    "exact bits count all that is stored, and a codebook for each matrix weighs much on a small "
    "model: 0.64 bits for 256 codewords of 4 on 160 x 160",
]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--case", type=int, action="append", choices=range(len(CASES)))
    given = parser.parse_args()
    study = Study(given)
    chosen = given.case or range(len(CASES))
    rows = rows_of(study, [CASES[index] for index in chosen])
    rows.insert(
        0, ["original", "16", "", "", "6.97 / 5.47", study.perplexities(given.model), "16", ""]
    )
    paper = (
        "the paper's rows of full training; block-wise at 2 bits: 200 epochs (d = 2), 50 (d = 4)"
    )
    table(HEADER, rows, [*study.notes(), paper, *DIFFERENT])


if __name__ == "__main__":
    main()
