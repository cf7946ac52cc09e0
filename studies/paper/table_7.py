"""Table 7: Table 1 on LLaMA2-13B: ReALLM at 3 bits untuned and tuned, at 2 bits untuned.

python studies/paper/table_7.py [--model FOLDER] [--long]
"""

from __future__ import annotations

from studies.paper.common import Study, options, table
from studies.paper.table_1 import DIFFERENT, HEADER, rows_of

# bits, rank at 4096, d, and the paper's figures on LLaMA2-13B: C4 / WikiText-2
CASES = [
    (3, 64, 2, {"": "6.91 / 5.27", "e2e": "6.69 / 5.14"}),
    (2, 64, 4, {"": "10.36 / 8.15"}),
]


def main() -> None:
    study = Study(options(__doc__).parse_args())
    rows = rows_of(study, CASES)
    rows.insert(
        0,
        ["original", "16", "", "", "6.46 / 4.48", study.perplexities(study.given.model), "16", ""],
    )
    paper = "the paper's tuned row is of 30 % of the training; the original's figures: Table 2"
    table(HEADER, rows, [*study.notes(), paper, *DIFFERENT])


if __name__ == "__main__":
    main()
