"""Blocks that learn while they are coded: what changes, what never does, kills, and no numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import reallm_compiler as reallm
from reallm_compiler.errors import CompileError, RecipeError, ResumeError
from reallm_compiler.execute.events import FellBack, TaskDone
from reallm_compiler.execute.fit import train
from reallm_compiler.finetune import finetune
from reallm_compiler.models.sequences import read_texts
from reallm_compiler.reader.verify import verify
from reallm_compiler.runs import training
from tests.conftest import copy_tokenizer

AFFINE = {"kind": "affine", "per": "block", "block": 32, "dtype": "float16", "code_bits": 2}
UNIFORM: dict[str, Any] = {"scales": AFFINE, "quantizer": {"kind": "uniform", "bits": 2}}
VQ = {
    "scales": {"kind": "rms", "per": "row"},
    "quantizer": {"kind": "vq", "bits": 2, "dim": 2, "iterations": 4, "dtype": "float32"},
    "dora": True,
}
MINMAX = {"kind": "minmax", "per": "block", "block": 32, "dtype": "float16"}
FACTORS = {"kind": "low_rank", "rank": 4, "fit": "zero", "dtype": "float16"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "norms": (UNIFORM, {"lr": 1e-2}),
    "scales": (UNIFORM, {"lr": 1e-2}),
    "clip": ({**UNIFORM, "scales": MINMAX}, {"lr": 1e-2}),
    "rounding": (UNIFORM, {"optimizer": "sign", "schedule": "linear", "lr": 0.05}),
    "factors": ({**UNIFORM, "residual": FACTORS}, {"lr": 1e-2}),
    "codebooks": (VQ, {"lr": 1e-2}),
    "magnitudes": (VQ, {"lr": 1e-2}),
}


class Killed(Exception):  # noqa: N818 - it stands for a kill, not an error
    pass


def fitted(defaults: dict[str, Any], learn: list[str], **changes: Any) -> dict[str, Any]:
    fit = {"kind": "block", "epochs": 4, "batch": 4, "samples": 12, "window": 16, **changes}
    return {"reallm": 1, "defaults": defaults, "fit": {**fit, "learn": learn}}


def compiled(recipe: dict[str, Any], model: Path, output: Path, **options: Any) -> Any:
    options = {"workers": 1, "device": "cpu", "progress": False, **options}
    return reallm.compile(recipe, model=model, output=output, **options)


def sections(path: Path) -> dict[str, bytes]:
    with reallm.open(path) as opened:
        names = [entry.name for entry in opened.manifest.sections]
        return {name: bytes(opened.section(name)) for name in names}


@pytest.mark.parametrize("word", CASES)
def test_each_word_lowers_the_error_and_changes_what_it_says(
    word: str, tiny_llama: Path, words: Path, tmp_path: Path, outcomes: list[train.Outcome]
) -> None:
    defaults, changes = CASES[word]
    plain, learned = tmp_path / "plain.reallm", tmp_path / "learned.reallm"
    compiled({"reallm": 1, "defaults": defaults}, tiny_llama, plain)
    compiled(fitted(defaults, [word], **changes), tiny_llama, learned, text=words)
    assert len(outcomes) == 2
    assert all(one.after < one.before for one in outcomes)
    assert verify(learned) == []
    before, after = sections(plain), sections(learned)
    changed = {name.rpartition("/")[2] for name in before if before[name] != after[name]}
    allowed = {
        "norms": {"tensor:model.layers"},
        "scales": {"scales"},
        "clip": {"scales", "zeros", "codes"},
        "rounding": {"codes"},
        "factors": {"l1", "l2"},
        "codebooks": {"codebook"},
        "magnitudes": {"gain"},
    }[word]
    if word == "norms":
        changed = {name[:19] for name in changed}
    assert changed
    assert changed <= allowed


def test_with_nothing_to_learn_nothing_changes(
    tiny_llama: Path, words: Path, tmp_path: Path
) -> None:
    plain, learned = tmp_path / "plain.reallm", tmp_path / "learned.reallm"
    compiled({"reallm": 1, "defaults": UNIFORM}, tiny_llama, plain)
    compiled(fitted(UNIFORM, []), tiny_llama, learned, text=words)
    assert sections(plain) == sections(learned)
    with reallm.open(learned) as opened:
        assert opened.provenance["text"] == read_texts([words], CompileError)[1].hex()


TOGETHER = fitted(
    {**UNIFORM, "residual": FACTORS}, ["rounding", "clip", "factors", "norms"], lr=0.01
)


@pytest.fixture(scope="module")
def whole(tiny_llama: Path, words: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of an undisturbed run."""
    path = tmp_path_factory.mktemp("whole") / "x.reallm"
    compiled(TOGETHER, tiny_llama, path, text=words)
    return path.read_bytes()


def test_a_kill_between_blocks(tiny_llama: Path, words: Path, tmp_path: Path, whole: bytes) -> None:
    """The hidden states are made again of what is stored."""
    output = tmp_path / "x.reallm"

    def stop(event: Any) -> None:
        if isinstance(event, TaskDone) and event.name == "block 0":
            raise Killed

    with pytest.raises(Killed):
        compiled(TOGETHER, tiny_llama, output, text=words, on_event=stop)
    assert compiled(TOGETHER, tiny_llama, output, text=words).tasks_resumed == 2
    assert output.read_bytes() == whole


@pytest.mark.parametrize("block", [0, 1])
def test_a_kill_inside_a_block(
    block: int,
    tiny_llama: Path,
    words: Path,
    tmp_path: Path,
    whole: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The training goes on at the epoch that was saved, and ends with the same bytes."""
    output = tmp_path / "x.reallm"
    epochs: list[int] = []
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    ended = training.TaskCallback.on_epoch_end

    def kill(self: Any, epoch: int, *given: Any) -> None:
        ended(self, epoch, *given)
        epochs.append(epoch)
        if len(epochs) == 4 * block + 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(training.TaskCallback, "on_epoch_end", kill)
        with pytest.raises(Killed):
            compiled(TOGETHER, tiny_llama, output, text=words)
        compiled(TOGETHER, tiny_llama, output, text=words)
    assert len(epochs) == 8  # none twice
    assert output.read_bytes() == whole


def test_an_archive_with_learned_norms_can_be_tuned(
    tiny_llama: Path, words: Path, tmp_path: Path, whole: bytes
) -> None:
    """Its norms are not the original's, by which a wrong original is told."""
    base = tmp_path / "base.reallm"
    base.write_bytes(whole)
    options = {"window": 16, "held_out": 2, "stages": ["block"], "block": {"epochs": 1}}
    adapter = tmp_path / "x.adapter"
    finetune(base, model=tiny_llama, text=[words], output=adapter, options=options)
    assert adapter.exists()


def test_another_text_is_another_run(tiny_llama: Path, words: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.reallm"

    def stop(event: Any) -> None:
        if isinstance(event, TaskDone):
            raise Killed

    with pytest.raises(Killed):
        compiled(TOGETHER, tiny_llama, output, text=words, on_event=stop)
    other = tmp_path / "other.txt"
    other.write_text(words.read_text() + "One more line.")
    with pytest.raises(ResumeError, match="the text"):
        compiled(TOGETHER, tiny_llama, output, text=other)


def test_an_error_that_is_no_number_falls_back_and_is_named(
    tiny_llama: Path, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, events = tmp_path / "x.reallm", []
    begin = train.Training.__init__
    calls = 0

    def spoilt(self: Any, fit: Any, learned: Any, made: Any, error: Any, **more: Any) -> None:
        def sometimes(indices: Any, weights: Any) -> Any:
            nonlocal calls
            calls += torch.is_grad_enabled()
            return error(indices, weights) * (math.nan if calls == 5 else 1.0)

        begin(self, fit, learned, made, sometimes, **more)

    monkeypatch.setattr(train.Training, "__init__", spoilt)
    compiled(TOGETHER, tiny_llama, output, text=words, on_event=events.append)
    (lost,) = [event for event in events if isinstance(event, FellBack)]
    assert (lost.name, lost.epoch, lost.step) == ("block 0", 2, 2)
    assert verify(output) == []


@pytest.mark.parametrize(
    ("defaults", "learn", "message"),
    [
        (VQ, "clip", "`clip` changes nothing here: no matrix of a block has scales of one level"),
        (VQ, "rounding", "an evenly spaced quantizer of single weights"),
        (UNIFORM, "factors", "a `low_rank` residual"),
        (UNIFORM, "magnitudes", "`dora: true`"),
        (UNIFORM, "channel_scale", "a transform that stores numbers"),
        (
            {**VQ, "autoencoder": {"kind": "hnerv", "width": 4}},
            "norms",
            "where a matrix has a trained",
        ),
    ],
)
def test_a_word_that_changes_nothing_is_refused(
    defaults: dict[str, Any], learn: str, message: str, tiny_llama: Path
) -> None:
    with pytest.raises(RecipeError) as caught:
        reallm.plan(fitted(defaults, [learn]), model=tiny_llama)
    assert message in str(caught.value)


def test_text_and_fit_belong_together(tiny_llama: Path, words: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.reallm"
    with pytest.raises(CompileError, match="learns by a text, and none is given") as caught:
        compiled(TOGETHER, tiny_llama, output)
    assert "--text FILE" in str(caught.value.hint)
    with pytest.raises(CompileError, match="nothing learns by the recipe"):
        compiled({"reallm": 1, "defaults": UNIFORM}, tiny_llama, output, text=words)
    with pytest.raises(CompileError, match="cannot be tried on single matrices"):
        compiled(TOGETHER, tiny_llama, output, text=words, only="*q_proj")


SMALL = {"vocab_size": 320, "bos_token_id": 0, "eos_token_id": 1, "dtype": "float32"}
OTHERS: dict[str, dict[str, Any]] = {
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "Mixtral": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 3,
        "max_position_embeddings": 64,
    },
}


@pytest.mark.parametrize("family", OTHERS)
def test_matrices_that_are_stored_otherwise_learn_as_well(
    family: str, tiny_llama: Path, words: Path, tmp_path: Path, outcomes: list[train.Outcome]
) -> None:
    """Transposed, and experts that the model joins in one parameter."""
    import transformers

    config = getattr(transformers, f"{family}Config")(**SMALL, **OTHERS[family])
    config.architectures = [f"{family}{'LMHeadModel' if family == 'GPT2' else 'ForCausalLM'}"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = getattr(transformers, config.architectures[0])(config)
    made.save_pretrained(tmp_path / "model")
    copy_tokenizer(tiny_llama, tmp_path / "model")
    recipe = fitted(UNIFORM, ["scales"], lr=1e-2, epochs=2)
    compiled(recipe, tmp_path / "model", tmp_path / "x.reallm", text=words)
    assert len(outcomes) == 2
    assert all(one.after < one.before for one in outcomes)


def test_a_prepared_model_learns_as_its_original(
    tiny_llama: Path, words: Path, tmp_path: Path, outcomes: list[train.Outcome]
) -> None:
    """The original's hidden states are those of the rotated stream: little is left to learn."""
    fine = {**UNIFORM, "quantizer": {"kind": "uniform", "bits": 8}}
    fine["scales"] = {**AFFINE, "code_bits": 8}
    recipe = fitted(fine, ["scales"], lr=1e-3, epochs=1)
    recipe["prepare"] = [{"kind": "fold_norms"}, {"kind": "rotate"}]
    compiled(recipe, tiny_llama, tmp_path / "x.reallm", text=words)
    assert all(0 < one.after <= one.before < 1e-6 for one in outcomes)
