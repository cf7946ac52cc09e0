"""GGUF files: blocks by their definition, the file by the libraries `gguf` and transformers."""

from __future__ import annotations

import json

import pytest
import torch

import reallm_compiler as reallm
from reallm_compiler.errors import ExportError
from reallm_compiler.integrations.gguf_blocks import packed
from reallm_compiler.integrations.gguf_model import GgufModel
from reallm_compiler.integrations.gguf_tokenizer import CUTS, tokenizer_metadata
from reallm_compiler.integrations.grids import Grid

SIZES = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q8_0": 34}


def unpacked(kind, data):
    """Weights [p, q] in float32 from bytes [p, n], as the format defines them."""
    blocks = data.view(-1, SIZES[kind])
    d = blocks[:, :2].contiguous().view(torch.float16).float()
    if kind == "Q8_0":
        return (d * blocks[:, 2:].contiguous().view(torch.int8).float()).view(len(data), -1)
    low = blocks[:, -16:]
    codes = torch.cat([low & 15, low >> 4], dim=1).float()
    if kind == "Q4_0":
        return (d * (codes - 8)).view(len(data), -1)
    if kind == "Q4_1":
        m = blocks[:, 2:4].contiguous().view(torch.float16).float()
        return (d * codes + m).view(len(data), -1)
    bits = blocks[:, 2:6].contiguous().view(torch.int32)
    high = (bits >> torch.arange(32)) & 1
    return (d * (codes + 16 * high - 16)).view(len(data), -1)


def grid(bits, zero, scale, group=32, p=3, q=64):
    codes = torch.randint(0, 2**bits, (p, q), generator=torch.Generator().manual_seed(bits))
    scales = torch.full((p * q // group,), scale) * (1 + torch.arange(p * q // group) / 8)
    return Grid(
        codes=codes.to(torch.uint8),
        bits=bits,
        levels=torch.arange(2.0**bits),
        scale=scales,
        offset=-scales * zero,
        group=group,
        dtype=torch.bfloat16,
    )


@pytest.mark.parametrize(
    ("bits", "zero", "kind"),
    [
        (4, 8, "Q4_0"),
        (3, 4, "Q4_0"),
        (2, 2, "Q4_0"),
        (4, 4, "Q4_1"),
        (5, 16, "Q5_0"),
        (8, 128, "Q8_0"),
        (6, 20, "Q8_0"),
    ],
)
@pytest.mark.parametrize("group", [32, 64])
def test_the_smallest_type_that_is_exact(bits, zero, kind, group):
    given = grid(bits, zero, 0.125, group)
    found, data = packed(given)
    assert found == kind
    wide = given.wide(given.scale)
    assert torch.equal(unpacked(kind, data), wide * (given.codes.float() - zero))


def test_an_offset_that_float16_does_not_hold_takes_a_wider_type():
    given = grid(4, 11, 1 + 2**-6)  # 11 x 65 / 64 x 13 / 8 has 14 bits
    found, data = packed(given)
    assert found == "Q5_0"
    assert torch.equal(unpacked(found, data), given.wide(given.scale) * (given.codes.float() - 11))


@pytest.fixture(scope="module", params=["symmetric", "asymmetric", "nf4"])
def exported(request, archive_of, tmp_path_factory):
    pytest.importorskip("gguf", reason="gguf is not installed (extra `exports`)")
    path = tmp_path_factory.mktemp("exported") / "model.gguf"
    report = reallm.export(archive_of(request.param), path, to="gguf", progress=False)
    return request.param, report


def test_the_library_reads_the_same_weights(archive_of, exported):
    import gguf

    name, report = exported
    reader = gguf.GGUFReader(report.path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    kind = "Q4_0" if name == "symmetric" else "BF16"
    with reallm.open(archive_of(name)) as archive:
        assert len(report.dense) == (0 if name == "symmetric" else len(archive.names))
        assert len(tensors) == len(archive.tensor_names)
        for layer, theirs, heads in (
            ("model.layers.0.self_attn.q_proj", "blk.0.attn_q", 4),
            ("model.layers.1.self_attn.k_proj", "blk.1.attn_k", 2),
            ("model.layers.1.self_attn.v_proj", "blk.1.attn_v", None),
            ("model.layers.1.mlp.down_proj", "blk.1.ffn_down", None),
        ):
            tensor = tensors[f"{theirs}.weight"]
            assert tensor.tensor_type.name == kind
            read = gguf.dequantize(tensor.data, tensor.tensor_type)
            ours = archive.matrix(layer, dtype=torch.float32 if kind == "Q4_0" else None).float()
            if heads:  # their halves are interleaved there
                p, q = ours.shape
                ours = ours.view(heads, 2, -1, q).transpose(1, 2).reshape(p, q)
            assert torch.equal(torch.from_numpy(read.copy()).view(ours.shape), ours)
    assert reader.fields["general.architecture"].contents() == "llama"
    assert reader.fields["llama.attention.head_count_kv"].contents() == 2
    assert reader.fields["tokenizer.ggml.pre"].contents() == "gpt-2"


def test_transformers_loads_the_same_model(archive_of, exported, model_folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name, report = exported
    folder = report.path.parent
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=report.path.name, dtype=torch.float32
    )
    dense, tokenizer = reallm.load(archive_of(name), dtype=torch.float32)
    text = "Anna has three red apples."
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        if name == "symmetric":
            assert torch.equal(model(ids).logits, dense(ids).logits)
        else:  # weights were rounded to bfloat16
            torch.testing.assert_close(model(ids).logits, dense(ids).logits, rtol=0.05, atol=0.05)
    theirs = AutoTokenizer.from_pretrained(folder, gguf_file=report.path.name)
    assert theirs(text).input_ids == tokenizer(text).input_ids
    assert theirs.chat_template == tokenizer.chat_template


def test_a_tied_head_qwen_and_biases(tmp_path, tiny_llama):
    gguf = pytest.importorskip("gguf", reason="gguf is not installed (extra `exports`)")
    from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(3)
    config = Qwen2Config(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        dtype="float32",
    )
    source = Qwen2ForCausalLM(config)
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    source.save_pretrained(tmp_path / "source")
    archive, out = tmp_path / "m.reallm", tmp_path / "m.gguf"
    recipe = {
        "reallm": 1,
        "defaults": {
            "scales": {"kind": "affine", "code_bits": 8, "symmetric": True, "per": "row"}
            | {"dtype": "float16"},
            "quantizer": {"kind": "uniform", "bits": 8},
        },
    }
    reallm.compile(recipe, model=tmp_path / "source", output=archive, device="cpu", progress=False)
    reallm.export(archive, out, to="gguf", progress=False)
    names = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(out).tensors}
    assert "output.weight" not in names
    assert names["blk.0.attn_q.bias"] == "F32"
    assert names["blk.0.ffn_up.weight"] == "Q8_0"
    assert names["token_embd.weight"] == "F32"
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    dense, _ = reallm.load(archive)
    ids = torch.arange(2, 22)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, dense(ids).logits)


def test_a_model_of_another_graph_is_refused(archive_of, tmp_path, tiny_llama):
    pytest.importorskip("gguf", reason="gguf is not installed (extra `exports`)")
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "gpt2"
    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=320, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(folder)
    archive = tmp_path / "g.reallm"
    reallm.compile({"reallm": 1}, model=folder, output=archive, device="cpu", progress=False)
    with pytest.raises(ExportError, match="GPT2LMHeadModel is none of the models"):
        reallm.export(archive, tmp_path / "g.gguf", to="gguf", progress=False)


def llama3():
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        max_position_embeddings=1024,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    )


def test_frequencies_of_llama_3_are_those_of_transformers():
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = llama3()
    factors = GgufModel(config, "LlamaForCausalLM", "m").rope_factors()
    plain = 1 / 10000.0 ** (torch.arange(0, 32, 2) / 32)
    expected, scale = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    assert scale == 1.0
    assert factors.min() == 1.0
    assert factors.max() == 8.0
    torch.testing.assert_close(plain / factors, expected, rtol=1e-5, atol=0)


def test_positions_that_gguf_cannot_say_are_refused():
    config = llama3()
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(ExportError, match="positions are scaled by `dynamic`"):
        GgufModel(config, "LlamaForCausalLM", "m").numbers()


def sentencepiece(**model):
    vocab = ["<unk>", "<s>", "</s>", "<0x0A>", "t", "h", "e", "th", "the"]
    return {
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "unk_token": "<unk>",
            "vocab": {token: index for index, token in enumerate(vocab)},
            "merges": ["t h", ["th", "e"]],
        }
        | model,
        "normalizer": {"type": "Prepend", "prepend": "_"},
        "added_tokens": [
            {"id": 0, "content": "<unk>", "special": True},
            {"id": 1, "content": "<s>", "special": True},
        ],
        "post_processor": {"type": "T", "single": [{"SpecialToken": {"id": "<s>"}}]},
    }


def test_scores_and_types_of_tokens_with_bytes_as_a_fallback():
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    files = {
        "tokenizer.json": json.dumps(sentencepiece()).encode(),
        "tokenizer_config.json": json.dumps(settings).encode(),
    }
    found = tokenizer_metadata(files, 10, "m")
    assert found["tokenizer.ggml.model"] == "llama"
    assert found["tokenizer.ggml.scores"] == [0, 0, 0, 0, 0, 0, 0, 0, -1, 0]
    assert found["tokenizer.ggml.token_type"] == [2, 3, 1, 6, 1, 1, 1, 1, 1, 5]
    assert found["tokenizer.ggml.tokens"][-2:] == ["the", "[PAD9]"]
    assert (found["tokenizer.ggml.add_bos_token"], found["tokenizer.ggml.add_eos_token"]) == (
        True,
        False,
    )
    assert found["tokenizer.ggml.add_space_prefix"] is True


@pytest.mark.parametrize("regex", [*CUTS, None])
def test_rules_that_cut_a_text(regex):
    level = {"type": "ByteLevel", "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": regex or "[a-z]+"}}
    stored = sentencepiece(byte_fallback=False)
    stored["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}
    files = {"tokenizer.json": json.dumps(stored).encode()}
    if regex is None:
        with pytest.raises(ExportError, match="no name for the rule that cuts a text"):
            tokenizer_metadata(files, 9, "m")
        return
    assert tokenizer_metadata(files, 9, "m")["tokenizer.ggml.pre"] == CUTS[regex]


def test_without_the_library_it_says_what_to_install(archive_of, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ExportError, match="`gguf` is not installed") as caught:
        reallm.export(archive_of("nf4"), tmp_path / "x.gguf", to="gguf", progress=False)
    assert "pip install 'reallm-compiler[exports]'" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
