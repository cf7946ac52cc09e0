"""A whole run: what it changes and what it never does, killed, resumed, and gone wrong."""

from __future__ import annotations

import gc
import shutil
import signal
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import reallm_compiler as reallm
from reallm_compiler.errors import FinetuneError, OutputError, ResumeError
from reallm_compiler.finetune import (
    BlockDone,
    Started,
    StepDone,
    blockwise,
    finetune,
    loss,
    state,
)
from reallm_compiler.finetune.options import options_from
from reallm_compiler.finetune.original import Original
from reallm_compiler.reader.adapter import open_adapter
from reallm_compiler.reader.verify import verify
from reallm_compiler.runs.stop import Interrupted
from reallm_formats import Archive


@pytest.fixture
def run(base: Path, tiny_llama: Path, prose: Path, options: dict, tmp_path: Path) -> Any:
    """Tune, with other settings than usual."""

    def call(name: str = "out.adapter", changes: dict | None = None, **more: Any) -> Any:
        return finetune(
            base,
            model=more.pop("model", tiny_llama),
            text=more.pop("text", [prose]),
            output=tmp_path / name,
            options={**options, **(changes or {})},
            **more,
        )

    return call


def test_each_stage_lowers_the_held_out_loss(run: Any, adapter: Path, tmp_path: Path) -> None:
    events: list[Any] = []
    report = run(on_event=events.append)
    blocks = [event for event in events if isinstance(event, BlockDone)]
    assert [event.block for event in blocks] == [0, 1]
    assert all(event.after < event.before for event in blocks)
    assert report.after < report.before
    assert [event.step for event in events if isinstance(event, StepDone)] == [1, 2, 3, 4]
    assert report.file_bytes == (tmp_path / "out.adapter").stat().st_size
    assert (tmp_path / "out.adapter").read_bytes() == adapter.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["out.adapter"]


def test_over_a_packed_base(run: Any, adapter: Path, tmp_path: Path) -> None:
    """Tuned over codes that are never decoded whole: nearly the adapter of the decoded base."""
    report = run("packed.adapter", mode="packed")
    assert report.after < report.before
    with open_adapter(adapter) as one, open_adapter(tmp_path / "packed.adapter") as other:
        assert one.names == other.names
        for name in one.names:
            for part, value in one.parts(name).items():
                found = other.parts(name)[part]
                assert float((found - value).norm()) < 0.05 * float(value.norm()), (name, part)


def test_no_coded_byte_changes(run: Any, base: Path, tmp_path: Path) -> None:
    before = base.read_bytes()
    run("new.reallm", {"stages": ["e2e"]}, into=True)
    assert base.read_bytes() == before
    assert verify(tmp_path / "new.reallm") == []
    with Archive.open(base) as old, Archive.open(tmp_path / "new.reallm") as new:
        assert list(old.sections) == list(new.sections)
        changed = {name for name in old.sections if bytes(old.read(name)) != bytes(new.read(name))}
    roles = {name.rpartition("/")[2] for name in changed}
    assert roles == {"l1", "l2", "gain"}


def test_a_new_archive_is_the_adapted_one(
    run: Any, base: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    run("one.adapter", {"stages": ["e2e"]})
    run("one.reallm", {"stages": ["e2e"]}, into=True)
    with reallm.open(tmp_path / "one.reallm") as new, reallm.open(base) as old:
        old.use(open_adapter(tmp_path / "one.adapter"))
        for name in new.names:
            assert torch.equal(new.matrix(name), old.matrix(name))
        assert new.errors != old.errors
        source = load_file(tiny_llama / "model.safetensors")
        for name in new.names:
            weight = source[name + ".weight"].double()
            error = float((weight - new.matrix(name, dtype=torch.float64)).norm() / weight.norm())
            assert new.errors[name] == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("count", [2, 3, 5, 6], ids=lambda count: f"after-event-{count}")
def test_a_stopped_run_ends_with_the_same_bytes(
    run: Any, adapter: Path, tmp_path: Path, count: int
) -> None:
    events = []

    def stop(event: Any) -> None:
        events.append(event)
        if len(events) == count:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(on_event=stop)
    assert (tmp_path / "out.adapter.tuning").exists()
    assert not (tmp_path / "out.adapter").exists()
    again = []
    run(on_event=again.append, resume="required")
    assert next(event for event in again if hasattr(event, "resumed")).resumed is not None
    assert (tmp_path / "out.adapter").read_bytes() == adapter.read_bytes()
    assert not (tmp_path / "out.adapter.tuning").exists()


def test_a_run_killed_within_a_block_ends_with_the_same_bytes(
    run: Any, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is written after each pass here, and the process dies in the next one."""
    monkeypatch.setattr(state, "SECONDS", 0.0)
    original, calls = state.State.save, []

    def dying(self: state.State, position: Any, tensors: Any) -> None:
        original(self, position, tensors)
        calls.append(position)
        if position.get("epoch") == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(state.State, "save", dying)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert calls[-1]["block"] == 0
    run()
    assert (tmp_path / "out.adapter").read_bytes() == adapter.read_bytes()


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({"seed": 1}, {}, "the settings"),
        ({}, {"text": "other"}, "the text"),
    ],
    ids=["settings", "text"],
)
def test_other_inputs_do_not_go_on(
    run: Any, tmp_path: Path, changes: dict, more: dict, message: str
) -> None:
    def stop(event: Any) -> None:
        if isinstance(event, Started):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        run(on_event=stop)
    if "text" in more:
        other = tmp_path / "other.txt"
        other.write_text("Tom has two apples and no table. " * 60)
        more = {"text": [other]}
    with pytest.raises(ResumeError, match=message):
        run(changes=changes, **more)


@pytest.mark.parametrize("change", ["a weight", "the config"])
def test_an_original_that_changed_meanwhile(
    run: Any,
    tiny_llama: Path,
    tmp_path: Path,
    write_unnoticed: Callable[[Path, bytes], None],
    negate: Callable[[Path, str], None],
    change: str,
) -> None:
    """Under the same length and time: weights are known by digests of what was read."""
    model = shutil.copytree(tiny_llama, tmp_path / "model")

    def stop(event: Any) -> None:
        if isinstance(event, BlockDone):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        run(model=model, on_event=stop)
    name, config = "model.layers.0.mlp.up_proj.weight", model / "config.json"
    if change == "a weight":
        negate(model, name)
    else:
        write_unnoticed(config, config.read_bytes().replace(b"1e-06", b"1e-05"))
    with pytest.raises(ResumeError, match=name if change == "a weight" else "the original"):
        run(model=model)


def test_resume_required_needs_something(run: Any) -> None:
    with pytest.raises(ResumeError, match="no interrupted run"):
        run(resume="required")


@pytest.mark.parametrize(
    ("module", "name", "message"),
    [
        (blockwise, "_squared", r"the loss is nan in block 0, pass 0, step 2"),
        (loss, "_summed", r"the loss is nan at step 0 of 4"),
    ],
    ids=["block", "e2e"],
)
def test_a_loss_that_is_not_a_number_stops(
    run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    message: str,
) -> None:
    original, calls = getattr(module, name), []

    def broken(*args: Any) -> Any:
        result = original(*args)
        if result.requires_grad:
            calls.append(1)
        return result * float("nan") if len(calls) == (3 if module is blockwise else 2) else result

    monkeypatch.setattr(module, name, broken)
    with pytest.raises(FinetuneError, match=message) as caught:
        run()
    assert "last good state" in str(caught.value.note)
    kept = state.State(tmp_path / "out.adapter", {}, dict, None)  # type: ignore[arg-type]
    assert all(torch.isfinite(value).all() for value in load_file(kept.path).values())


def test_a_held_out_loss_that_diverges_ends_the_steps(run: Any, tmp_path: Path) -> None:
    """What was best is kept: here the numbers of the archive, as no step made them better."""
    events: list[Any] = []
    e2e = {"lr": 1.0, "loss": "distill", "batch": 2, "accumulation": 1, "steps": 8, "checks": 4}
    report = run(changes={"stages": ["e2e"], "e2e": e2e}, on_event=events.append)
    assert report.diverged == 2
    assert report.after == report.before
    assert max(event.step for event in events if isinstance(event, StepDone)) == 2
    assert (tmp_path / "out.adapter").exists()


def test_a_run_stopped_where_it_diverged_makes_no_more_steps(run: Any, tmp_path: Path) -> None:
    e2e = {"lr": 1.0, "loss": "distill", "batch": 2, "accumulation": 1, "steps": 8, "checks": 4}
    changes = {"stages": ["e2e"], "e2e": e2e}

    def stop(event: Any) -> None:
        if isinstance(event, StepDone) and event.held_out is not None:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(changes=changes, on_event=stop)
    events: list[Any] = []
    report = run(changes=changes, on_event=events.append, resume="required")
    assert report.diverged == 2
    assert not any(isinstance(event, StepDone) for event in events)
    run("whole.adapter", changes=changes)
    assert (tmp_path / "out.adapter").read_bytes() == (tmp_path / "whole.adapter").read_bytes()


def test_never_two_blocks_of_the_original(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[torch.nn.Module]] = []
    most = []
    original = Original.block

    def recorded(self: Original, *args: Any) -> torch.nn.Module:
        gc.collect()
        most.append(sum(ref() is not None for ref in alive))
        module = original(self, *args)
        alive.append(weakref.ref(module))
        return module

    monkeypatch.setattr(Original, "block", recorded)
    run(changes={"stages": ["block"]})
    assert most == [0, 0]


def test_distillation_checkpointing_and_bfloat16(run: Any) -> None:
    e2e = {"lr": 1e-2, "batch": 4, "accumulation": 1, "steps": 4, "loss": "distill"}
    plain = run("plain.adapter", {"stages": ["e2e"], "e2e": e2e})
    assert plain.after < plain.before
    again = run("again.adapter", {"stages": ["e2e"], "e2e": e2e, "checkpointing": True})
    assert again.after == pytest.approx(plain.after, rel=1e-5)
    half = run("half.adapter", {"stages": ["e2e"], "e2e": e2e, "precision": "bfloat16"})
    assert half.after < half.before
    assert half.after == pytest.approx(plain.after, rel=0.2)


def test_documents_by_a_separator(run: Any, tmp_path: Path) -> None:
    stories = tmp_path / "stories.txt"
    stories.write_text("<end>".join(f"Tom gives Anna {n} apples today." for n in range(40)))
    changes = {"separator": "<end>", "window": 32}
    report = run(changes=changes, text=[stories])
    assert report.after < report.before


def test_factors_in_8_bits_bring_an_error_that_is_reported(run: Any, tmp_path: Path) -> None:
    exact = run("exact.adapter", {"stages": ["e2e"], "factors": "float32"})
    rough = run("rough.adapter", {"stages": ["e2e"], "factors": "int8"})
    assert exact.rounding_error == 0
    assert 1e-4 < rough.rounding_error < 0.05
    assert rough.file_bytes < exact.file_bytes
    with (
        open_adapter(tmp_path / "rough.adapter") as opened,
        open_adapter(tmp_path / "exact.adapter") as full,
    ):
        for name, row in opened.rows.items():
            parts, whole = opened.parts(name), full.parts(name)
            product = whole["l1"] @ whole["l2"]
            wrong = float((parts["l1"] @ parts["l2"] - product).norm() / product.norm())
            assert row.rounding_error == pytest.approx(wrong, rel=1e-2)


def test_another_original_is_refused(run: Any, tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(tiny_llama, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FinetuneError, match=r"model\.norm\.weight"):
        run(model=folder)


def test_nothing_to_tune(tiny_llama: Path, prose: Path, options: dict, tmp_path: Path) -> None:
    path = tmp_path / "bare.reallm"
    reallm.compile("rtn-4bit", model=tiny_llama, output=path, device="cpu", workers=1)
    with pytest.raises(FinetuneError, match="nothing can be tuned"):
        finetune(path, model=tiny_llama, text=[prose], output=tmp_path / "a", options=options)


@pytest.fixture(scope="module")
def with_settings(
    tiny_llama: Path, tiny_recipe: Path, options: dict, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The archive `base` from a recipe that says how it is tuned."""
    folder = tmp_path_factory.mktemp("with-settings")
    recipe = {"reallm": 1, "extends": str(tiny_recipe), "finetune": options}
    reallm.compile(recipe, model=tiny_llama, output=folder / "a", device="cpu", workers=1)
    return folder / "a"


def test_the_recipe_of_the_archive_says_how(
    with_settings: Path, base: Path, tiny_llama: Path, prose: Path, adapter: Path, tmp_path: Path
) -> None:
    with reallm.open(with_settings) as new, reallm.open(base) as old:
        assert "finetune" not in old.plan.recipe
        for entry in old.manifest.sections:
            assert bytes(new.section(entry.name)) == bytes(old.section(entry.name))
    finetune(with_settings, model=tiny_llama, text=[prose], output=tmp_path / "a")
    with open_adapter(tmp_path / "a") as one, open_adapter(adapter) as other:
        assert one.settings == other.settings
        for name in other.rows:
            for part, value in other.parts(name).items():
                assert torch.equal(one.parts(name)[part], value)


def test_settings_of_a_run_win_over_the_recipe(
    with_settings: Path, tiny_llama: Path, prose: Path, options: dict, tmp_path: Path
) -> None:
    given = {"stages": ["e2e"], "e2e": {"steps": 1, "checks": 0}}
    path = tmp_path / "a"
    finetune(with_settings, model=tiny_llama, text=[prose], output=path, options=given, into=True)
    with reallm.open(path) as new:
        assert new.plan.recipe["finetune"]["e2e"] == options["e2e"]
    finetune(with_settings, model=tiny_llama, text=[prose], output=path, options=given, force=True)
    with open_adapter(path) as made:
        settings = dict(made.settings)
    assert settings["stages"] == ["e2e"]
    assert settings["window"] == options["window"]
    assert settings["e2e"]["steps"] == 1
    assert settings["e2e"]["lr"] == options["e2e"]["lr"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ([], "the recipe's `finetune`: expected a map"),
        ({"e2e": 3}, "the recipe's `finetune`: e2e: expected a map, got `3`"),
        ({"lr": 3}, r"lr: unknown key `lr` \(it belongs under `finetune.block` or"),
    ],
    ids=["list", "number", "unknown"],
)
def test_a_hostile_archive_sets_nothing_wrong(section: object, message: str) -> None:
    with pytest.raises(FinetuneError, match=message):
        options_from({}, {"finetune": section})


@pytest.mark.parametrize(
    ("given", "lr"),
    [
        ({}, 2e-5),
        ({"learn": ["gains", "scales"]}, 2e-5),
        ({"learn": ["scales", "rows"]}, 2e-3),
        ({"learn": ["scales"], "e2e": {"lr": 1e-4}}, 1e-4),
    ],
)
def test_the_learning_rate_goes_with_what_is_learned(given: dict[str, Any], lr: float) -> None:
    assert options_from(given).plain()["e2e"]["lr"] == lr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": {"learning": 1}}, r"block\.learning"),
        ({"e2e": {"lr": 0}}, r"e2e\.lr"),
        ({"stages": []}, "give `block`"),
        ({"window": 4096}, "longer than the model"),
        ({"separator": "nowhere"}, "does not occur"),
        ({"window": 100, "held_out": 1}, None),
    ],
    ids=["unknown", "range", "no-stage", "window", "separator", "fits"],
)
def test_settings_that_do_not_fit(run: Any, changes: dict, message: str | None) -> None:
    if message is None:
        run(changes={**changes, "stages": ["e2e"]})
        return
    with pytest.raises(FinetuneError, match=message):
        run(changes=changes)


def test_a_second_run_of_one_output_is_refused(
    run: Any, adapter: Path, tiny_recipe: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    path = tmp_path / "out.adapter"
    met = []

    def compiled() -> None:
        reallm.compile(tiny_recipe, model=tiny_llama, output=path, device="cpu", workers=1)

    def meanwhile(event: Any) -> None:
        if not met:
            for other in (run, compiled, lambda: run(resume="never", force=True)):
                with pytest.raises(OutputError, match="another run") as caught:
                    other()
                assert caught.value.location == str(path)
                met.append(caught.value)

    run(on_event=meanwhile)
    assert len(met) == 3
    assert path.read_bytes() == adapter.read_bytes()
    assert [one.name for one in tmp_path.iterdir()] == ["out.adapter"]


def test_an_interrupted_compile_is_not_overwritten(
    run: Any, tiny_recipe: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    events: list[Any] = []

    def stop(event: Any) -> None:
        events.append(event)
        if len(events) == 2:
            signal.raise_signal(signal.SIGINT)

    settings = {"model": tiny_llama, "output": tmp_path / "o", "device": "cpu", "workers": 1}
    with pytest.raises(Interrupted):
        reallm.compile(tiny_recipe, **settings, on_event=stop)
    before = (tmp_path / "o.partial").read_bytes()
    with pytest.raises(OutputError, match="interrupted compile of this output"):
        run("o")
    assert (tmp_path / "o.partial").read_bytes() == before
    reallm.compile(tiny_recipe, **settings, resume="required")
    assert verify(tmp_path / "o") == []


def test_a_compile_goes_on_with_the_same_section_alone(
    with_settings: Path, tiny_recipe: Path, tiny_llama: Path, options: dict, tmp_path: Path
) -> None:
    recipe = {"reallm": 1, "extends": str(tiny_recipe), "finetune": options}
    settings = {"model": tiny_llama, "output": tmp_path / "o", "device": "cpu", "workers": 1}
    events: list[Any] = []

    def stop(event: Any) -> None:
        events.append(event)
        if len(events) == 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        reallm.compile(recipe, **settings, on_event=stop)
    with pytest.raises(ResumeError, match="the recipe"):
        reallm.compile({**recipe, "finetune": {"window": 9}}, **settings)
    reallm.compile(recipe, **settings, resume="required")
    assert (tmp_path / "o").read_bytes() == with_settings.read_bytes()


def test_an_output_is_not_replaced_without_force(run: Any, tmp_path: Path) -> None:
    (tmp_path / "out.adapter").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        run()
    run(force=True, changes={"stages": ["e2e"]})
    assert verify(tmp_path / "out.adapter") == []


@pytest.mark.parametrize("text", [[], ["missing.txt"]], ids=["none", "missing"])
def test_texts_that_are_not_there(run: Any, text: list[str]) -> None:
    with pytest.raises(FinetuneError):
        run(text=text)
