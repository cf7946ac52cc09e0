"""A matrix to its sections, and a group's matrices to what they share.

No method has a path of its own: the registry says which codec a kind has. The relative error of a
matrix is measured on what a reader will decode.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from reallm_compiler.codecs.callback import NoCallback, TrainingCallback
from reallm_compiler.codecs.contract import PANEL, Coding
from reallm_compiler.codecs.decode import deviation, work_dtype
from reallm_compiler.codecs.latent_coder import fit_tables
from reallm_compiler.codecs.matrix_encoder import MatrixEncoder
from reallm_compiler.codecs.registry import codec_of
from reallm_compiler.codecs.sections import Sections, check_sections
from reallm_compiler.codecs.statistics import MatrixStatistics
from reallm_compiler.errors import CodecError
from reallm_compiler.stages import MatrixPlan
from reallm_compiler.storage.matrix import MatrixLayout, layout_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """A coded matrix.

    Attributes:
        sections: section tensors by role, in storage order, without those of its share group.
        relative_error: ||W - W^|| / ||W|| by Frobenius, with W^ as decoded; 0 if W is zero.
        shrink: <W - W^, W> / ||W||^2, the share of W by which W^ is smaller; 0 if W is zero.
    """

    sections: Sections
    relative_error: float
    shrink: float


def encode_matrix(
    plan: MatrixPlan,
    weight: Tensor,
    *,
    seed: int,
    source_dtype: str,
    shared: Mapping[str, Tensor] | None = None,
    callback: TrainingCallback | None = None,
    first_row: int = 0,
    statistics: MatrixStatistics | None = None,
    layout: MatrixLayout | None = None,
) -> Encoded:
    """Encodes a matrix by its plan.

    Args:
        plan: what to do.
        weight: [p, q], of any floating type, on any device; it is not changed.
        seed: of the matrix's own generator, from 0 to 2^63 - 1.
        source_dtype: type of the checkpoint's tensor, a name of the container.
        shared: sections of the plan's share group, as `fit_shared` made them, or of the decoder
            that it reuses.
        callback: called while an autoencoder is trained.
        first_row: number of the first row in messages, where `weight` is a part of a matrix.
        statistics: of the matrix, for a plan that needs them.
        layout: of the matrix under the plan, where it was made before.

    Returns:
        the sections of the matrix's layout, less the shared ones, on the device of `weight`; and
        how what they decode to differs from the weight.

    Raises:
        CodecError: the weight is not a finite matrix, a stored type is too narrow for what it
            holds, or the sections are not those of the size law.
    """
    _check_weight(weight, first_row)
    if layout is None:
        layout = layout_of(plan, (weight.shape[0], weight.shape[1]), source_dtype)
    work = weight.detach().to(work_dtype(source_dtype)).contiguous()
    common = dict(shared or {})
    if plan.needs_statistics and statistics is None:
        raise CodecError("the plan needs the statistics of the matrix's inputs and outputs")
    if plan.share is not None and not common:
        raise CodecError(f"the sections of share group `{plan.share}` are missing")
    if plan.share is None:
        check_sections(common, layout.reused_sections)
    encoder = MatrixEncoder(
        layout,
        work,
        generator=torch.Generator().manual_seed(seed),
        seed=seed,
        shared=common,
        callback=callback or NoCallback(),
        statistics=statistics if plan.needs_statistics else None,
    )
    sections = encoder.fit()
    if plan.dora:
        sections["gain"] = encoder.gains(sections)
    check_sections(sections, layout.own_sections)
    sections = {spec.role: sections[spec.role] for spec in layout.own_sections}
    found = deviation(work, encoder.decoder(sections))
    return Encoded(sections=sections, relative_error=found.error, shrink=found.shrink)


def fit_shared(
    plans: Sequence[MatrixPlan],
    weights: Iterable[Tensor],
    *,
    seed: int,
    callback: TrainingCallback | None = None,
) -> Sections:
    """Learns the sections that the matrices of a share group store once.

    Args:
        plans: of the group's matrices; they differ in nothing but DoRA and what the quantizer
            names in `per_matrix`.
        weights: the matrices, in the same order; each is let go before the next one is taken.
        seed: of the group's generator.
        callback: called while a decoder is trained.

    Raises:
        CodecError: the plan shares nothing, or a weight is not a finite matrix.
    """
    if not plans or plans[0].share is None:
        raise CodecError("a share group needs a plan with `share` and at least one matrix")
    generator = torch.Generator().manual_seed(seed)
    # No frame in between holds a matrix while the codec has it, or while the next one is read.
    members = map(partial(_member, generator, seed, callback or NoCallback()), plans, weights)
    autoencoder = plans[0].autoencoder
    learn = partial(fit_tables, plans[0].quantizer)
    sections: Sections = codec_of(autoencoder).fit_group(
        autoencoder, members, len(plans), generator, learn
    )
    return sections


def _member(
    generator: torch.Generator,
    seed: int,
    callback: TrainingCallback,
    plan: MatrixPlan,
    weight: Tensor,
) -> tuple[Coding, Tensor]:
    """What the autoencoder of one matrix of a group is given."""
    _check_weight(weight)
    source_dtype = "f64" if weight.dtype == torch.float64 else "f32"
    work = weight.detach().to(work_dtype(source_dtype)).contiguous()
    layout = layout_of(plan, (work.shape[0], work.shape[1]), source_dtype)
    encoder = MatrixEncoder(
        layout, work, generator=generator, seed=seed, shared={}, callback=callback
    )
    return encoder.coding, encoder.target()


def _check_weight(weight: Tensor, first_row: int = 0) -> None:
    if weight.dim() != 2 or not weight.numel():
        raise CodecError(f"expected a matrix, got a tensor of shape {list(weight.shape)}")
    if not weight.is_floating_point():
        raise CodecError(f"expected floating-point weights, got {weight.dtype}")
    step = max(1, PANEL // weight.shape[1])
    for first in range(0, weight.shape[0], step):
        rows = weight[first : first + step]
        if rows.element_size() == 1:
            rows = rows.to(torch.float32)
        finite = torch.isfinite(rows)
        if not finite.all():
            row, column = (~finite).nonzero()[0].tolist()
            raise CodecError(
                f"the weight at row {first_row + first + row}, column {column} is "
                f"{float(rows[row, column])}",
                note="the error of a matrix with NaN or infinite values cannot be minimised",
                hint="repair the checkpoint, or `keep` this tensor",
            )
