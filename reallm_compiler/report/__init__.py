"""Reports: one HTML file about archives, and what differs between two of them.

`write_report` writes the file; `elements.py` alone makes markup, and escapes whatever is not an
element yet. The figures are those of `reallm inspect --json`.
"""

from __future__ import annotations

from reallm_compiler.report.write import WrittenReport, write_report

__all__ = ["WrittenReport", "write_report"]
