"""Size law of the trained autoencoder: a quantized decoder, and the level of each matrix."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from reallm_compiler.stages import Hnerv
from reallm_compiler.storage import hnerv_costs as costs
from reallm_compiler.storage import hnerv_structure as structure
from reallm_compiler.storage.base import AutoencoderLaw, Context, Cost, SectionSpec, Shape
from reallm_compiler.storage.values import Finite
from reallm_compiler.storage.work import TRAINING, Work


class HnervLaw(AutoencoderLaw[Hnerv]):
    """A decoder, own or shared, and two numbers for each matrix."""

    def sections(self, params: Hnerv, shape: Shape, context: Context) -> list[SectionSpec]:
        """The decoder, and the level and deviation of a matrix [p, q].

        A trained decoder that is used as it is stands in an archive of its own.
        """
        # Mean and deviation, so that a network always sees and makes numbers around 1.
        level = SectionSpec(role="level", dtype="f32", shape=(2,), term="scales", values=Finite())
        if params.decoder is not None:
            return [level]
        width = structure.decoder_width(params, shape, shared=context.shared)
        return [*structure.decoder_sections(params, width, shared=context.shared), level]

    def reused_sections(self, params: Hnerv, shape: Shape) -> list[SectionSpec]:
        """The decoder that is used as it is."""
        if params.decoder is None:
            return []
        width = structure.decoder_width(params, shape, shared=True)
        return structure.decoder_sections(params, width, shared=True)

    def latent_shape(self, params: Hnerv, shape: Shape) -> Shape:
        """All latents of a matrix in one matrix."""
        return structure.latent_shape(params, shape)

    def paper_bits(self, params: Hnerv, shape: Shape, context: Context) -> dict[str, Fraction]:
        """c x b_phi / m, the decoder as the paper's Table 5 counts it."""
        return {"decoder": Fraction(_nominal_bits(params), context.sharers)}

    def cost(self, params: Hnerv, shape: Shape, context: Context) -> Cost:
        """Decoding, training, and the memory of both."""
        shared = context.shared
        return Cost(
            decode_macs=costs.decode_macs(params, shape, shared=shared),
            decode_bytes=costs.decode_bytes(params, shape, shared=shared),
            training_operations=costs.training_operations(params, shape, shared=shared),
            group_operations=costs.joint_operations(params, shape, shared=True) if shared else 0,
            host_bytes=costs.working_bytes(params, shape, shared=shared),
            device_bytes=costs.decode_blocks(params, shape, shared=shared),
        )

    def work(self, params: Hnerv, shape: Shape, context: Context) -> Work:
        """The training of the matrix alone."""
        cost = self.cost(params, shape, context)
        return {TRAINING: cost.training_operations - cost.group_operations}

    def learning_work(self, params: Hnerv, shapes: Sequence[Shape]) -> Work:
        """The training of a decoder that several matrices share; that of one is its own work."""
        if len(shapes) == 1 or params.decoder is not None:
            return {}
        return {TRAINING: sum(costs.joint_operations(params, one, shared=True) for one in shapes)}

    def refusal(self, params: Hnerv, shape: Shape, context: Context) -> str | None:
        """Why no decoder of this size exists for a matrix [p, q]; None if one does."""
        if params.width is not None or params.decoder_params is None:
            return None
        latents = 0 if context.shared else structure.latent_parameters(params, shape)
        if structure.solved_width(params, params.decoder_params - latents) >= 1:
            return None
        return (
            f"decoder_params counts the latents, {latents} for a matrix of {shape[0]} x "
            f"{shape[1]}, and {params.decoder_params} leaves too few for a decoder"
        )

    def group_bytes(self, params: Hnerv, shapes: Sequence[Shape]) -> int:
        """All patches, and where they lie, in float32."""
        return sum(8 * p * q for p, q in shapes)


def _nominal_bits(params: Hnerv) -> int:
    """c x b_phi; 0 for a decoder that stands elsewhere."""
    if params.decoder is not None:
        return 0
    c = params.decoder_params
    if c is None:
        assert params.width is not None  # the schema wants one of the two
        c = structure.decoder_parameters(params, params.width)
    return c * params.decoder_bits
