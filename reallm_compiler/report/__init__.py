"""Reports: one HTML page about archives, and what differs between two of them.

`write_report` writes the page, `diff` compares. `elements.py` alone makes markup, and escapes
whatever is not an element yet. The figures are those of `reallm inspect --json`.
"""

from __future__ import annotations

from reallm_compiler.report.difference import Difference, diff
from reallm_compiler.report.write import WrittenReport, write_report

__all__ = ["Difference", "WrittenReport", "diff", "write_report"]
