"""What the benchmarks that code one matrix have in common: its plan, and made-up statistics."""

from __future__ import annotations

from typing import Any

import torch

from reallm_compiler.codecs.statistics import MatrixStatistics
from reallm_compiler.recipe import load_recipe


def plan_of(recipe: Any) -> Any:
    # A shared codebook becomes the matrix's own, so that it is learned in the time.
    return load_recipe(recipe).plan.model_copy(update={"share": None})


def made_statistics(p: int, q: int, generator: torch.Generator) -> MatrixStatistics:
    def gram(n: int) -> torch.Tensor:
        values = torch.randn(n + 64, n, generator=generator)
        values *= torch.linspace(0.2, 2, n)
        return values.t() @ values / len(values)

    inputs, outputs = gram(q), gram(p)
    return MatrixStatistics(
        inputs=inputs,
        weighted_inputs=inputs,
        outputs=outputs,
        weighted_outputs=outputs,
        energy=1.0,
        mean_abs=inputs.diagonal().sqrt(),
        count=4096,
    )
