"""Size law of rounding with feedback: nothing is stored, and its matrices take memory."""

from __future__ import annotations

from reallm_compiler.stages import FeedbackRounding
from reallm_compiler.storage.base import Context, Cost, Shape, SizeLaw
from reallm_compiler.storage.work import COLUMNS, DOUBLE_PRODUCTS, PRODUCTS, SWEEPS, Work


class FeedbackLaw(SizeLaw[FeedbackRounding]):
    """The memory of the metric, its factors, and the errors of all rows."""

    def cost(self, params: FeedbackRounding, shape: Shape, context: Context) -> Cost:
        """Four matrices [q, q] and [p, p] in float64, and the latent twice in float32, with sweeps
        five times.
        """
        p, q = shape
        outputs = p * p if params.sides == "both" else 0
        latents = 5 if params.sweeps else 2
        return Cost(host_bytes=4 * 8 * (q * q + outputs) + latents * 4 * p * q)

    def work(self, params: FeedbackRounding, shape: Shape, context: Context) -> Work:
        """The factors of the metric, errors carried along rows and columns, and sweeps."""
        p, q = shape
        both = params.sides == "both"
        return {
            COLUMNS: p * q,
            PRODUCTS: (p * q * q + (p * p * q if both else 0)) // 2,
            DOUBLE_PRODUCTS: q**3 + (p**3 if both else 0),
            SWEEPS: params.sweeps * p * q * q,
        }
