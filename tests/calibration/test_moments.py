"""What is stored is what autograd says, token by token."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import reallm_compiler as reallm
from reallm_compiler.calibration.labels import draw
from reallm_compiler.calibration.moments import Gradients, Inputs, MatrixSums
from reallm_compiler.calibration.options import CalibrateOptions
from reallm_compiler.calibration.text import draw_sequences
from reallm_compiler.codecs import statistics_file
from reallm_compiler.codecs.statistics_file import StatisticsFile
from reallm_formats import StatisticsEntry


def sequences_of(model: Path, words: Path, settings: dict[str, Any]) -> list[list[int]]:
    _, tokenizer = reallm.load(model)
    options = CalibrateOptions(samples=settings["samples"], window=settings["window"])
    return draw_sequences(tokenizer, [words.read_text()], settings["window"], options)


def by_hand(model: Path, sequences: list[list[int]]) -> dict[str, dict[str, Any]]:
    """Means over single tokens: x from a hook, g by autograd, in float64."""
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    layers = {
        name: module for name, module in net.named_modules() if isinstance(module, torch.nn.Linear)
    }
    found: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {name: [] for name in layers}
    for number, sequence in enumerate(sequences):
        seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        hooks = [
            layer.register_forward_hook(
                lambda module, args, output, name=name, seen=seen: seen.__setitem__(
                    name, (args[0], output)
                )
            )
            for name, layer in layers.items()
        ]
        logits = net(torch.tensor([sequence[:-1]])).logits[0]
        labels = draw(torch.softmax(logits.detach(), -1), 0, f"labels/{number}")
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        outputs = [output for _, output in seen.values()]
        gradients = torch.autograd.grad(loss, outputs)
        for (name, (x, _)), g in zip(seen.items(), gradients, strict=True):
            found[name].append((x[0].detach().double(), g[0].double()))
        for hook in hooks:
            hook.remove()
    means = {}
    for name, pairs in found.items():
        tokens = [(x, g) for xs, gs in pairs for x, g in zip(xs, gs, strict=True)]
        count = len(tokens)
        means[name] = {
            "inputs": sum(torch.outer(x, x) for x, _ in tokens) / count,
            "weighted_inputs": sum(g @ g * torch.outer(x, x) for x, g in tokens) / count,
            "outputs": sum(torch.outer(g, g) for _, g in tokens) / count,
            "weighted_outputs": sum(x @ x * torch.outer(g, g) for x, g in tokens) / count,
            "energy": sum((x @ x) * (g @ g) for x, g in tokens) / count,
            "mean_abs": sum(x.abs() for x, _ in tokens) / count,
            "count": count,
        }
    return means


def close(one: Any, other: Any) -> bool:
    one, other = torch.as_tensor(one).double(), torch.as_tensor(other).double()
    return float((one - other).norm()) <= 2e-5 * float(other.norm())


def test_every_moment_is_that_of_autograd(
    tiny_llama: Path, words: Path, settings: dict[str, Any], measured: Path
) -> None:
    wanted = by_hand(tiny_llama, sequences_of(tiny_llama, words, settings))
    with StatisticsFile(measured) as file:
        assert file.document.tokens == 5 * 11
        for name in file.rows:
            found = file.read(name)
            # The head is tied to the embeddings, under whose name its weights are coded.
            means = wanted["lm_head" if name == "model.embed_tokens" else name]
            assert found.count == means["count"]
            assert close(found.inputs, means["inputs"])
            assert close(found.mean_abs, means["mean_abs"])
            if name == "model.embed_tokens":
                assert found.outputs is None
                continue
            for moment in ("weighted_inputs", "outputs", "weighted_outputs", "energy"):
                assert close(getattr(found, moment), means[moment]), (name, moment)
        assert len(file.rows) == len(wanted)


def test_shared_inputs_are_stored_once(measured: Path) -> None:
    with StatisticsFile(measured) as file:
        owners = {name: row.inputs for name, row in file.rows.items()}
        layer = "model.layers.0.self_attn."
        assert {owners[f"{layer}{one}_proj"] for one in "qkv"} == {f"{layer}k_proj"}
        assert owners["model.layers.1.mlp.up_proj"] == "model.layers.1.mlp.gate_proj"
        shared = file.read(f"{layer}q_proj"), file.read(f"{layer}v_proj")
        assert torch.equal(shared[0].inputs, shared[1].inputs)
        assert not torch.equal(shared[0].weighted_inputs, shared[1].weighted_inputs)


def test_text_settings_and_software_are_told(
    words: Path, settings: dict[str, Any], measured: Path
) -> None:
    data = words.read_bytes()
    digest = hashlib.sha256(len(data).to_bytes(8, "little") + data).digest()
    with StatisticsFile(measured) as file:
        provenance, told = file.document.provenance, file.document.settings
        assert provenance["text"] == digest
        assert str(provenance["torch"]).strip() == torch.__version__
        assert told["window"] == settings["window"]
        assert told["sequences"] == settings["samples"]
        assert told["seed"] == 0
        assert (told["separator"], told["diagonal"]) == (None, None)
        assert (told["gradients"], told["own_text"]) == (True, False)


def test_without_gradients_only_inputs_are_there(
    tiny_llama: Path, settings: dict[str, Any], measured: Path, tmp_path: Path
) -> None:
    path = tmp_path / "inputs.stats"
    reallm.calibrate(tiny_llama, output=path, gradients=False, **settings)
    with StatisticsFile(path) as file, StatisticsFile(measured) as whole:
        for name in file.rows:
            found, other = file.read(name), whole.read(name)
            assert found.outputs is None
            assert found.energy is None
            assert torch.equal(found.inputs, other.inputs)
            assert torch.equal(found.mean_abs, other.mean_abs)
            assert found.count == other.count


@pytest.mark.parametrize("diagonal", [0, 64])
def test_diagonals_are_those_of_the_whole(
    tiny_llama: Path, settings: dict[str, Any], measured: Path, tmp_path: Path, diagonal: int
) -> None:
    path = tmp_path / "diagonal.stats"
    reallm.calibrate(tiny_llama, output=path, diagonal=diagonal, **settings)
    with StatisticsFile(path) as file, StatisticsFile(measured) as whole:
        assert path.stat().st_size < measured.stat().st_size
        for name, row in file.rows.items():
            found, other = file.read(name), whole.read(name)
            for moment, extent in (("weighted_inputs", row.shape[1]), ("outputs", row.shape[0])):
                one, all_of_it = getattr(found, moment), getattr(other, moment)
                if one is None:
                    continue
                if extent > diagonal:
                    assert torch.allclose(one, all_of_it.diagonal(), rtol=1e-5)
                else:
                    assert torch.equal(one, all_of_it)


def test_the_same_labels_whatever_the_order() -> None:
    probabilities = torch.softmax(torch.randn(40, 7, generator=torch.Generator()), -1)
    first = draw(probabilities, 3, "labels/2")
    assert torch.equal(first, draw(probabilities, 3, "labels/2"))
    assert not torch.equal(first, draw(probabilities, 3, "labels/1"))
    assert not torch.equal(first, draw(probabilities, 4, "labels/2"))


def test_labels_have_the_frequencies_of_the_prediction() -> None:
    wanted = torch.tensor([0.5, 0.0, 0.2, 0.3])
    drawn = draw(wanted.expand(20_000, 4).contiguous(), 0, "labels/0")
    found = torch.bincount(drawn, minlength=4) / 20_000
    assert found[1] == 0
    assert torch.allclose(found, wanted, atol=0.02)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_bytes_do_not_depend_on_the_workers(
    tiny_llama: Path, settings: dict[str, Any], measured: Path, tmp_path: Path, workers: int
) -> None:
    path = tmp_path / "out.stats"
    reallm.calibrate(tiny_llama, output=path, workers=workers, **settings)
    assert path.read_bytes() == measured.read_bytes()


def test_tokens_that_are_not_finite_are_left_out_and_counted() -> None:
    row = StatisticsEntry(
        name="w",
        shape=(2, 3),
        sha256=bytes(32),
        inputs="w",
        input_form="full",
        output_form="full",
    )
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(6, n, generator=generator) for n in (3, 2))
    good = [0, 2, 5]
    x[1, 0], g[3, 1], x[4, 2] = float("nan"), float("inf"), 1e20
    sums = MatrixSums(row, torch.device("cpu"))
    for job in sums.jobs_of_inputs([Inputs.of(x)]):
        job()
    for job in sums.jobs_of_gradients([Gradients.of(x, g)]):
        job()
    (outputs,) = sums.parts("weighted_outputs", 1)
    x, g = x[good].double(), g[good].double()
    wanted = (g * x.square().sum(1, keepdim=True)).T @ g
    assert torch.allclose(statistics_file.symmetric(outputs, 2).double(), wanted, rtol=1e-5)
    (counts,) = sums.parts("counts", 1)
    assert counts.view(torch.int64).tolist() == [0, 3]


@pytest.mark.parametrize("gradients", [True, False])
def test_a_model_of_infinities_is_no_failure(
    tiny_llama: Path, settings: dict[str, Any], tmp_path: Path, gradients: bool
) -> None:
    model, path = tmp_path / "m", tmp_path / "o.stats"
    shutil.copytree(tiny_llama, model)
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3] = float("inf")
    tensors["model.layers.0.mlp.up_proj.weight"][5] = 0
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    report = reallm.calibrate(model, output=path, gradients=gradients, **settings)
    assert report.not_finite["model.layers.1.mlp.down_proj"] == 55
    assert report.dead["model.layers.0.mlp.down_proj"] == 1
    assert reallm.verify(path) == []
