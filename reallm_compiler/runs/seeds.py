"""Random numbers that depend on the recipe's seed and a name, and on nothing else.

So a matrix is coded alike whatever the order, the workers, or the number of restarts.
"""

from __future__ import annotations

import hashlib


def seed_for(seed: int, name: str) -> int:
    """A seed below 2^63 for what `name` names."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
