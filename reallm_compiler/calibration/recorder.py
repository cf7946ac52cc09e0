"""What goes through the matrices while one chunk is run, kept until it is summed.

Several chunks are run at once, each by a thread with a recorder of its own; then their records are
summed chunk by chunk, so the sums do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor

from reallm_compiler.calibration.moments import Gradients, Inputs, Job, MatrixSums
from reallm_compiler.calibration.products import Memory, Product, Products
from reallm_compiler.errors import CalibrateError


class Recorder:
    """The record of one chunk.

    Args:
        memory: where the matrices lie.
        sums: the matrices to record, by name.
        gradients: whether gradients are recorded.
    """

    def __init__(self, memory: Memory, sums: Mapping[str, MatrixSums], *, gradients: bool) -> None:
        self._memory = memory
        self._wanted = sums
        self._gradients = gradients
        self.reached: dict[str, int] = {}
        self.inputs: dict[str, list[Inputs]] = {}
        self.gradients: dict[str, list[Gradients]] = {}

    def products(self) -> Products:
        """A context in which the products of this thread are recorded."""
        return Products(self._memory, self._on_products, gradients=self._gradients)

    def _on_products(self, products: Sequence[Product]) -> None:
        for one in products:
            sums = self._wanted.get(one.name)
            if sums is None:
                continue
            self.reached[one.name] = self.reached.get(one.name, 0) + len(one.inputs)
            if sums.owns_inputs or not sums.has_gradients:
                self.inputs.setdefault(one.name, []).append(Inputs.of(one.inputs))
            if sums.has_gradients and self._gradients and one.output.requires_grad:
                hook = self._hook(one, one.inputs._version)
                one.output.register_hook(hook)  # type: ignore[no-untyped-call]

    def _hook(self, product: Product, version: int) -> Callable[[Tensor], None]:
        """Records the gradient at a product's output once it is there."""
        name, inputs, part = product.name, product.inputs, product.part

        def hook(gradient: Tensor) -> None:
            if inputs._version != version:
                raise CalibrateError(
                    "the model changes the inputs of a matrix in place before their gradients are "
                    "known",
                    location=name,
                    hint="measure the inputs alone with `--no-gradients`",
                )
            self.gradients.setdefault(name, []).append(Gradients.of(inputs, part(gradient)))

        return hook


def jobs(sums: Mapping[str, MatrixSums], records: Sequence[Recorder]) -> Iterator[Job]:
    """What sums the records of some chunks, in their order."""
    for name, one in sums.items():
        one.reached += sum(record.reached.get(name, 0) for record in records)
        inputs = [tokens for record in records for tokens in record.inputs.get(name, [])]
        yield from one.jobs_of_inputs(inputs)
        found = [tokens for record in records for tokens in record.gradients.get(name, [])]
        yield from one.jobs_of_gradients(found)
