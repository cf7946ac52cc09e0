"""The transform `normalize`: the matrix divided by scales of its own blocks.

The same arithmetic as the scales of a latent (`codecs.scales`), with what a reader will decode.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from reallm_compiler.codecs import scales
from reallm_compiler.codecs.scales import ScaleField
from reallm_compiler.codecs.sections import Sections
from reallm_compiler.stages import Normalize
from reallm_compiler.storage.normalize import ROLE, as_scales

_LATENT_ROLE = "scales"
"""What the array is called among the scales of a latent."""


def encode(params: Normalize, target: Tensor) -> tuple[Sections, Tensor]:
    """Sections of the scales of a matrix [p, q], and the matrix divided by them, in its place."""
    made = scales.encode(as_scales(params), target)
    sections = {ROLE + role.removeprefix(_LATENT_ROLE): values for role, values in made.items()}
    shape = (target.shape[0], target.shape[1])
    return sections, reader(params, shape, sections, target.dtype).normalise_(target)


def reader(
    params: Normalize,
    shape: tuple[int, int],
    sections: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> ScaleField:
    """The scales of a matrix [p, q]: `restore_` undoes the transform on decoded rows."""
    own = {
        _LATENT_ROLE + role.removeprefix(ROLE): values
        for role, values in sections.items()
        if role == ROLE or role.startswith(f"{ROLE}_")
    }
    field = scales.decode(as_scales(params), shape, own, dtype)
    assert field is not None  # only the stage `none` has no scales
    return field
