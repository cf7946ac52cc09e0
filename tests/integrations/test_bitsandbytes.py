"""NF4 in bitsandbytes' layout: by the format's definition, and by the library where it is there."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file

import reallm_compiler as reallm

LEVELS = (
    "-1 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635 "
    "-0.18477343022823334 -0.09105003625154495 0 0.07958029955625534 0.16093020141124725 "
    "0.24611230194568634 0.33791524171829224 0.44070982933044434 0.5626170039176941 "
    "0.7229568362236023 1"
)


@pytest.fixture(scope="module")
def folder(archive_of, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "nf4"
    report = reallm.export(archive_of("nf4"), path, to="bitsandbytes", progress=False)
    assert (report.path, report.dense) == (path, ())
    return path


def test_the_layout_by_its_definition(archive_of, folder):
    tensors = load_file(folder / "model.safetensors")
    levels = torch.tensor([float(level) for level in LEVELS.split()])
    with reallm.open(archive_of("nf4")) as archive:
        assert len(archive.names) == 14
        for name in archive.names:
            packed = tensors[f"{name}.weight"].view(-1)
            codes = torch.stack([packed // 16, packed % 16], dim=1).view(-1, 64)
            values = levels[codes.long()] * tensors[f"{name}.weight.absmax"][:, None]
            weight = archive.matrix(name)
            assert torch.equal(values.bfloat16().view(weight.shape), weight)
            state = bytes(tensors[f"{name}.weight.quant_state.bitsandbytes__nf4"].tolist())
            assert json.loads(state) == {
                "quant_type": "nf4",
                "blocksize": 64,
                "dtype": "bfloat16",
                "shape": list(weight.shape),
            }
            assert torch.equal(tensors[f"{name}.weight.quant_map"], levels)
        for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
            assert torch.equal(tensors[name], archive.tensor(name))
    stated = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert stated["llm_int8_skip_modules"] == ["lm_head"]


def test_the_library_loads_the_same_weights(archive_of, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bitsandbytes = pytest.importorskip(
            "bitsandbytes", reason="bitsandbytes is not installed (extra `comparisons`)"
        )
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder)
    with reallm.open(archive_of("nf4")) as archive:
        for name in archive.names:
            weight = model.get_submodule(name).weight
            assert isinstance(weight, bitsandbytes.nn.Params4bit)
            theirs = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
            assert torch.equal(theirs, archive.matrix(name))
    dense, _ = reallm.load(archive_of("nf4"))
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, dense(ids).logits, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (
            {"scales": {"kind": "absmax", "block": 32}},
            "32 weights share a scale: use blocks of 64, 128",
        ),
        (
            {"scales": {"kind": "absmax", "block": 128}},
            "groups of 128 weights do not divide its rows of 192",
        ),
        ({"quantizer": {"kind": "uniform", "bits": 4}}, "its levels are not those of NF4"),
        ({"residual": {"kind": "low_rank", "rank": 2}}, "`residual: low_rank` is part of it"),
        ({"transform": [{"kind": "hadamard"}]}, "`transform: hadamard` is part of it"),
        ({"scales": {"kind": "absmax", "per": "column"}}, "gives no scales to groups of a row"),
        (
            {"scales": {"kind": "none"}, "quantizer": {"kind": "none"}},
            "`quantizer: none` has no code of its own for each weight",
        ),
        ({"dora": True}, "gains of rows (`dora`) are part of it"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value.partition(" ")[0],
)
def test_what_does_not_fit_is_refused_with_the_reason(archive_of, tmp_path, plan, reason):
    base = {
        "scales": {"kind": "absmax", "block": 64},
        "quantizer": {"kind": "normal_float", "bits": 4},
    }
    archive = archive_of(reason, base | plan)
    with pytest.raises(reallm.ExportError, match="bitsandbytes cannot hold") as caught:
        reallm.export(archive, tmp_path / "out", to="bitsandbytes", progress=False)
    assert reason in caught.value.note
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_is_refused(archive_of, tmp_path):
    with pytest.raises(reallm.ExportError) as caught:
        reallm.export(archive_of("nf4"), tmp_path / "out", to="bitsandbyte", progress=False)
    assert caught.value.hint == "did you mean `bitsandbytes`?"
