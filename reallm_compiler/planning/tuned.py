"""How tuning went, as text in the provenance of what was tuned.

    tuned_blocks    `0.0123 0.0101, 0.023 0.019`: of each block the held-out error before and after
    tuned_losses    `0 3.2112, 40 3.1987`: steps made end to end, and the held-out loss after them

Numbers have six digits: they are there to be looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

BLOCKS = "tuned_blocks"
LOSSES = "tuned_losses"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuned:
    """How tuning went.

    Attributes:
        blocks: of each block the held-out mean squared error of its output before and after.
        losses: steps made end to end, and the held-out loss after them in nats per token.
    """

    blocks: tuple[tuple[float, float], ...]
    losses: tuple[tuple[int, float], ...]


def to_provenance(
    blocks: Iterable[tuple[float, float]], losses: Iterable[tuple[int, float]]
) -> dict[str, str]:
    """The entries of a provenance; a stage that was not run has none."""
    plain = {
        BLOCKS: ", ".join(f"{before:.6g} {after:.6g}" for before, after in blocks),
        LOSSES: ", ".join(f"{step} {loss:.6g}" for step, loss in losses),
    }
    return {key: value for key, value in plain.items() if value}


def without_record(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """A provenance without what an earlier tuning said."""
    return {key: value for key, value in provenance.items() if key not in (BLOCKS, LOSSES)}


def from_provenance(provenance: Mapping[str, object]) -> Tuned:
    """What a provenance says; nothing where it says nothing, or nothing that can be read."""
    return Tuned(
        blocks=tuple(_pairs(provenance.get(BLOCKS))),
        losses=tuple((int(step), loss) for step, loss in _pairs(provenance.get(LOSSES))),
    )


def _pairs(value: object) -> list[tuple[float, float]]:
    if not isinstance(value, str) or not value:
        return []
    try:
        split = [tuple(map(float, pair.split(" "))) for pair in value.split(", ")]
        return [(first, second) for first, second in split]
    except ValueError:  # written by something else
        return []
