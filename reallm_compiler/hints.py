"""Hints for a name that is not known: the nearest names that are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def nearest(name: str, names: Iterable[str], count: int = 3, *, cutoff: float = 0.6) -> list[str]:
    """The names most like `name`, best first; one that contains it counts as like it.

    Args:
        name: what was written, in any case.
        names: the known ones.
        count: how many at most.
        cutoff: least similarity, from 0 to 1 (`difflib.get_close_matches`).
    """
    by_lower = {known.lower(): known for known in names}
    lower = name.lower()
    found = difflib.get_close_matches(lower, by_lower, n=count, cutoff=cutoff)
    if len(found) < count and len(lower) >= 3:
        found += [known for known in by_lower if lower in known and known not in found]
    return [by_lower[known] for known in found[:count]]


def did_you_mean(names: Sequence[str]) -> str | None:
    """A hint that names them, or None when there are none."""
    if not names:
        return None
    quoted = [f"`{name}`" for name in names]
    if len(quoted) == 1:
        return f"did you mean {quoted[0]}?"
    return f"did you mean {', '.join(quoted[:-1])} or {quoted[-1]}?"
