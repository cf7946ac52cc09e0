"""Adapters: bound to their base, switched without decoding, exchanged with peft."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import reallm_compiler as reallm
from reallm_compiler.errors import AdapterError, FormatError, OutputError
from reallm_compiler.finetune import finetune
from reallm_compiler.finetune.peft_layout import export_peft, import_peft
from reallm_compiler.reader.adapter import open_adapter
from reallm_compiler.reader.verify import verify
from reallm_compiler.runs.journal import Journal
from reallm_compiler.runtime import open_tunable
from tests.conftest import logits

# peft 0.21 asks transformers 5.23 by the old name.
OLD_NAME = "ignore:.*is_gradient_checkpointing:FutureWarning"


def test_loading_with_an_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    plain, _ = reallm.load(base)
    tuned, _ = reallm.load(base, adapter=adapter)
    assert not torch.allclose(logits(plain), logits(tuned), atol=1e-2)
    folder = reallm.reconstruct(base, tmp_path / "model", adapter=adapter)
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    assert torch.equal(logits(again), logits(tuned))


def test_switching_decodes_nothing(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {
        path: logits(reallm.load(base, adapter=path, dtype=torch.float32)[0])
        for path in (None, adapter)
    }
    tunable = open_tunable(base, dtype=torch.float32)
    monkeypatch.setattr(
        "reallm_compiler.reader.archive.decode_matrix", lambda *_, **__: pytest.fail("decoded")
    )
    for path in (None, adapter, None, adapter):
        tunable.use(path)
        assert torch.allclose(logits(tunable.model), wanted[path], atol=1e-4)
        assert (tunable.adapter is None) == (path is None)


def test_an_adapter_over_a_list_of_residuals(
    tiny_llama: Path, prose: Path, options: dict, tmp_path: Path
) -> None:
    """Factors are tuned; outliers and monarch products stay, and gains of columns reach them."""
    residual = [
        {"kind": "sparse", "fraction": "1/20"},
        {"kind": "low_rank", "rank": 2},
        {"kind": "monarch"},
    ]
    coded = {"scales": {"kind": "absmax"}, "quantizer": {"kind": "uniform", "bits": 3}}
    base = tmp_path / "base.reallm"
    recipe = {"reallm": 1, "defaults": {"residual": residual, **coded, "dora": True}}
    reallm.compile(recipe, model=tiny_llama, output=base, device="cpu", workers=1)
    assert verify(base) == []
    tuned = tmp_path / "one.adapter"
    finetune(base, model=tiny_llama, text=[prose], output=tuned, options=options)
    with reallm.open(base) as archive, open_adapter(tuned) as adapter:
        name = archive.names[0]
        fixed, own, gain = archive.coded(name), archive.factors(name), archive.gain(name)
        assert own is not None
        assert gain is not None
        whole = (fixed.float() + own[0] @ own[1]) * gain[:, None]
        torch.testing.assert_close(archive.matrix(name).float(), whole, rtol=1e-2, atol=1e-3)
        parts = adapter.parts(name)
        archive.use(adapter)
        found = archive.matrix(name, dtype=torch.float32)
        assert not torch.allclose(found, whole, atol=1e-3)
        columns = parts.get("column_gain", torch.ones(fixed.shape[1]))
        whole = (fixed.float() * columns + parts["l1"] @ parts["l2"]) * parts["gain"][:, None]
        torch.testing.assert_close(found, whole, rtol=1e-2, atol=1e-3)
    loaded, _ = reallm.load(base, adapter=tuned, dtype=torch.float32)
    tunable = open_tunable(base, dtype=torch.float32)
    tunable.use(tuned)
    assert torch.allclose(logits(tunable.model), logits(loaded), atol=1e-4)


def test_another_base_is_refused_by_both_digests(
    base: Path, adapter: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.reallm"
    with reallm.open(base) as archive:
        recipe = {**archive.recipe, "seed": 8}
        digest = archive.digest
    reallm.compile(recipe, model=tiny_llama, output=other, device="cpu", workers=1)
    with reallm.open(other) as archive:
        strange = archive.digest
    tunable = open_tunable(other)
    for attempt in (lambda: reallm.load(other, adapter=adapter), lambda: tunable.use(adapter)):
        with pytest.raises(AdapterError, match="another base") as caught:
            attempt()
        assert digest.hex() in str(caught.value.note)
        assert strange.hex() in str(caught.value.note)


def test_a_model_is_no_adapter(base: Path, adapter: Path) -> None:
    with pytest.raises(AdapterError, match="not an adapter"):
        open_adapter(base)
    with pytest.raises(FormatError, match="not a `model`"):
        reallm.open(adapter)


def test_damage_of_an_adapter_is_found(base: Path, adapter: Path, tmp_path: Path) -> None:
    assert verify(adapter) == []
    data = bytearray(adapter.read_bytes())
    data[-1] ^= 1
    path = tmp_path / "damaged.adapter"
    path.write_bytes(data)
    (damage,) = verify(path)
    assert "gain" in damage.location
    with pytest.raises(FormatError, match="damaged"):
        reallm.load(base, adapter=path)


@pytest.mark.filterwarnings(OLD_NAME)
def test_peft_gives_equal_logits(base: Path, adapter: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    frozen = reallm.reconstruct(base, tmp_path / "frozen", coded_only=True)
    for path in (adapter, None):
        folder = export_peft(base, tmp_path / f"peft-{path is None}", adapter=path)
        model = AutoModelForCausalLM.from_pretrained(frozen, dtype=torch.float32)
        tuned = peft.PeftModel.from_pretrained(model, folder).eval()
        # The base folder holds the coded part in the checkpoint's bfloat16.
        wanted, _ = reallm.load(base, adapter=path, dtype=torch.float32)
        exact = open_tunable(base, adapter=path, dtype=torch.float32)
        for name, layer in exact.layers.items():
            module = tuned.get_submodule(f"base_model.model.{name}").base_layer
            layer.coded = module.weight.detach()
        assert torch.allclose(logits(tuned), logits(exact.model), atol=1e-5)
        assert torch.allclose(logits(tuned), logits(wanted), atol=5e-2)


def test_peft_and_back(base: Path, adapter: Path, tmp_path: Path) -> None:
    folder = export_peft(base, tmp_path / "peft", adapter=adapter)
    with (
        Journal.open(tmp_path / "back.adapter.journal"),
        pytest.raises(OutputError, match="another run is writing this output"),
    ):
        import_peft(base, folder, tmp_path / "back.adapter")
    import_peft(base, folder, tmp_path / "back.adapter")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.adapter", "peft"]
    with open_adapter(adapter) as one, open_adapter(tmp_path / "back.adapter") as two:
        assert one.names == two.names
        assert one.base == two.base
        for name in one.names:
            first, second = one.parts(name), two.parts(name)
            assert first.keys() == second.keys()
            assert all(torch.equal(first[part], second[part]) for part in first)


@pytest.mark.filterwarnings(OLD_NAME)
def test_what_peft_trained_is_taken_up(base: Path, tmp_path: Path) -> None:
    """An adapter of peft's own: another rank, alpha, a few layers, no DoRA."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    frozen = reallm.reconstruct(base, tmp_path / "frozen", coded_only=True)
    model = AutoModelForCausalLM.from_pretrained(frozen, dtype=torch.float32)
    config = peft.LoraConfig(r=3, lora_alpha=12, target_modules=["q_proj", "down_proj"])
    made = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, value in made.named_parameters():
            if "lora_B" in name:
                value.normal_(generator=torch.Generator().manual_seed(3)).mul_(0.1)
    made.save_pretrained(tmp_path / "peft")
    import_peft(base, tmp_path / "peft", tmp_path / "in.adapter", factors="float32")
    tunable = open_tunable(base, adapter=tmp_path / "in.adapter", dtype=torch.float32)
    for name, layer in tunable.layers.items():
        module = made.get_submodule(f"base_model.model.{name}")
        layer.coded = getattr(module, "base_layer", module).weight.detach()
    assert torch.allclose(logits(made), logits(tunable.model), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config, tensors: config.update(peft_type="IA3"), "not a LoRA adapter"),
        (lambda config, tensors: config.update(bias="all"), "uses `bias`"),
        (
            lambda config, tensors: tensors.update(x=torch.zeros(1)),
            "matches no module of this base",
        ),
        (
            lambda config, tensors: tensors.update(
                {name: value[:, :5] for name, value in tensors.items() if "q_proj.lora_A" in name}
            ),
            "the factors of",
        ),
    ],
    ids=["kind", "bias", "strange", "shape"],
)
def test_what_does_not_fit_is_refused(
    base: Path, adapter: Path, tmp_path: Path, change: object, message: str
) -> None:
    folder = export_peft(base, tmp_path / "peft", adapter=adapter)
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    change(config, tensors)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=message):
        import_peft(base, folder, tmp_path / "in.adapter")


def test_no_folder_of_peft(base: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="not a PEFT adapter folder"):
        import_peft(base, tmp_path, tmp_path / "in.adapter")
