"""Which tensors are matrices: name rules against the modules of real model classes."""

from __future__ import annotations

import pytest

from reallm_compiler.checkpoint import matrix_kind, matrix_name, natural_key
from reallm_compiler.checkpoint.linear import matrices, model_types
from reallm_compiler.errors import SourceError
from reallm_compiler.tensors import TensorSpec

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GPT2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
FAMILIES = {
    "llama": SMALL,
    "mistral": SMALL,
    "qwen2": SMALL,
    "qwen3": {**SMALL, "head_dim": 8},
    "gemma": {**SMALL, "head_dim": 8},
    "gemma2": {**SMALL, "head_dim": 8},
    "phi3": {**SMALL, "pad_token_id": 0},
    "gpt_neox": SMALL,
    "opt": {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 16},
    "bloom": {"vocab_size": 96, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": SMALL,
    "gpt2": GPT2,
    "openai-gpt": GPT2,
    "gpt_bigcode": GPT2,
    "mixtral": {**SMALL, "num_local_experts": 3},
    "qwen2_moe": {
        **SMALL,
        "num_experts": 4,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 24,
    },
    "granitemoe": {**SMALL, "num_local_experts": 4},
    "gpt_oss": {**SMALL, "num_local_experts": 4, "head_dim": 8},
    "mamba": {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}


def meta_model(model_type):
    """The model class of a type, built without memory."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.CONFIG_MAPPING[model_type](**FAMILIES[model_type])
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def specs_of(model):
    return [
        TensorSpec(
            name=name,
            dtype="bf16" if value.is_floating_point() else "i64",
            shape=tuple(value.shape),
        )
        for name, value in model.state_dict().items()
        if name not in model.all_tied_weights_keys
    ]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_rules_agree_with_the_modules(model_type):
    """Every inner Linear or Conv1D is a matrix of its shape, and nothing else is."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    model = meta_model(model_type)
    head = model.get_output_embeddings()
    expected = {}
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if module is head or last in ("gate", "router", "shared_expert_gate"):
            continue
        if isinstance(module, Conv1D):
            expected[name] = (True, tuple(module.weight.shape)[::-1])
        elif isinstance(module, nn.Linear):
            expected[name] = (False, tuple(module.weight.shape))
    facts = list(matrices(specs_of(model), model.config.to_dict()))
    found = {
        fact.name: (fact.transposed, fact.shape)
        for fact in facts
        if fact.coded_by_default and fact.index is None
    }
    assert found == expected
    assert expected
    layers = {fact.layer for fact in facts if fact.coded_by_default} - {None}
    assert layers == {0, 1}


@pytest.mark.parametrize(
    ("model_type", "parts"),
    [("mixtral", 2 * 3 * 2), ("qwen2_moe", 2 * 4 * 2), ("granitemoe", 16), ("gpt_oss", 16)],
)
def test_stacks_of_experts(model_type, parts):
    model = meta_model(model_type)
    facts = list(matrices(specs_of(model), model.config.to_dict()))
    experts = [fact for fact in facts if fact.index is not None]
    assert len(experts) == parts
    width = 2 * (16 if model_type == "qwen2_moe" else 48)
    for fact in experts:
        assert fact.coded_by_default
        assert fact.name == f"{matrix_name(fact.tensor)}.{fact.index}"
        assert fact.shape == ((width, 32) if "gate_up" in fact.name else (32, width // 2))
        assert fact.transposed == (model_type == "gpt_oss")


@pytest.mark.parametrize("model_type", sorted(set(FAMILIES) - {"mamba"}))
def test_kept_by_role(model_type):
    facts = list(matrices(specs_of(meta_model(model_type)), {"model_type": model_type}))
    roles = {fact.role for fact in facts}
    assert {"linear", "embedding"} <= roles
    assert ("router" in roles) == (model_type in {"mixtral", "qwen2_moe", "granitemoe", "gpt_oss"})


def roles(config=None, **shapes):
    specs = [
        TensorSpec(name=name.replace("__", "."), dtype="bf16", shape=shape)
        for name, shape in shapes.items()
    ]
    return {fact.name: fact.role for fact in matrices(specs, config)}


NAMES = {
    "model.layers.0.mlp.up_proj.weight": "linear",
    "h.3.attn.c_attn.weight": "linear",
    "project_in.weight": "linear",
    "electra.embeddings_project.weight": "linear",
    "lm_head.weight": "head",
    "lm_head.dense.weight": "head",
    "embed_out.weight": "head",
    "output.weight": "head",
    "layer.0.output.weight": "linear",
    "score.weight": "head",
    "model.layers.61.shared_head.head.weight": "head",
    "model.layers.45.transformer.shared_head.output.weight": "head",
    "model.mtp.head.weight": "head",
    "model.layers.61.embed_tokens.weight": "embedding",
    "model.layers.61.eh_proj.weight": "linear",
    "model.embed_tokens.weight": "embedding",
    "wpe.weight": "embedding",
    "shared.weight": "embedding",
    "embeddings.word_embeddings.weight": "embedding",
    "transformer.w.weight": "embedding",
    "model.layers.0.mlp.gate.weight": "router",
    "model.layers.0.block_sparse_moe.router.layer.weight": "router",
    "model.layers.0.mlp.shared_expert_gate.weight": "router",
    "model.layers.0.mlp.gate_proj.weight": "linear",
    "model.layers.0.q_norm.weight": "norm",
    "layers.0.mixer.A_log": "other",
    "layers.0.mlp.experts.gate_up_proj_bias": "other",
    "transformer.blocks.0.ffn.experts.mlp.w1": "linear",
    "layers.0.temporal.conv_1d.weight": "other",
}


@pytest.mark.parametrize(("name", "role"), NAMES.items(), ids=NAMES.keys())
def test_role_by_name(name, role):
    (found,) = roles({"model_type": "x"}, **{name: (8, 6)}).values()
    assert found == role


def test_a_row_or_a_column_is_a_vector():
    assert roles(a__weight=(1, 8), b__weight=(8, 1)) == {"a": "vector", "b": "vector"}


def test_without_a_config_no_suffix_is_needed():
    assert roles(None, x=(4, 4), x_bias=(4, 4)) == {"x": "linear", "x_bias": "other"}
    assert roles({"model_type": "llama"}, x=(4, 4)) == {"x": "other"}


def test_what_is_no_matrix():
    specs = [
        TensorSpec(name="ids", dtype="i64", shape=(4, 4)),
        TensorSpec(name="norm", dtype="f32", shape=(4,)),
        TensorSpec(name="conv.weight", dtype="f32", shape=(4, 1, 4)),
        TensorSpec(name="patch.weight", dtype="f32", shape=(4, 3, 2, 2)),
        TensorSpec(name="none.weight", dtype="f32", shape=(0, 4)),
        TensorSpec(name="layers.0.experts.mask", dtype="bool", shape=(2, 4, 4)),
    ]
    assert list(matrices(specs, None)) == []


def test_conv1d_only_where_the_model_type_says_so():
    spec = [TensorSpec(name="h.0.attn.c_attn.weight", dtype="f32", shape=(8, 24))]

    def one(config):
        (fact,) = matrices(spec, config)
        return fact.transposed, fact.shape

    assert one({"model_type": "gpt2"}) == (True, (24, 8))
    assert one({"model_type": "vlm", "decoder": {"model_type": "gpt2"}}) == (True, (24, 8))
    assert one({"model_type": "gpt_bigcode"}) == (False, (8, 24))
    assert one(None) == (False, (8, 24))


@pytest.mark.parametrize(
    ("name", "shape", "transposed"),
    [
        ("gate_up_proj", (3, 20, 8), False),
        ("gate_up_proj", (3, 8, 20), True),
        ("down_proj", (3, 8, 20), False),
        ("down_proj", (3, 20, 8), True),
    ],
)
def test_shape_tells_how_experts_are_stored(name, shape, transposed):
    spec = TensorSpec(name=f"layers.0.mlp.experts.{name}", dtype="f32", shape=shape)
    config = {"model_type": "new", "text_config": {"hidden_size": 8}}
    facts = list(matrices([spec], config))
    assert {fact.transposed for fact in facts} == {transposed}
    assert facts[2].shape == ((20, 8) if name == "gate_up_proj" else (8, 20))
    assert [fact.name for fact in facts] == [f"{spec.name}.{i}" for i in range(3)]


@pytest.mark.parametrize(("model_type", "transposed"), [("llama4_text", True), ("mixtral", False)])
def test_model_type_tells_for_square_experts(model_type, transposed):
    spec = TensorSpec(name="layers.0.mlp.experts.down_proj", dtype="f32", shape=(2, 8, 8))
    facts = list(matrices([spec], {"model_type": model_type, "hidden_size": 8}))
    assert {fact.transposed for fact in facts} == {transposed}


def parts(name, shape, config):
    spec = TensorSpec(name=name, dtype="bf16", shape=shape)
    return [(fact.name, fact.shape, fact.role) for fact in matrices([spec], config)]


@pytest.mark.parametrize(
    ("name", "stacked"),
    {
        "model.layers.0.mlp.experts.gate_up_proj": True,
        "model.layers.0.mlp.experts.w13_weight": True,
        "model.layers.0.mlp.experts.fc2.weight": True,
        "model.layers.0.block_sparse_moe.input_linear.weight": True,
        "model.layers.0.conv1d.weight": False,
        "model.layers.0.mlp.experts.gate_up_proj_scale_inv": False,
        "model.layers.0.moe.up_proj.weight": False,
    }.items(),
)
def test_expert_stacks_by_name(name, stacked):
    assert bool(parts(name, (5, 4, 6), None)) == stacked


EXPERT_KEYS = {
    "num_experts": {"num_experts": 5},
    "nested": {"text_config": {"n_routed_experts": 5}},
    "list": {"moe_num_experts": [5, 7]},
    "local": {"num_local_experts": 5},
}


@pytest.mark.parametrize("config", EXPERT_KEYS.values(), ids=EXPERT_KEYS.keys())
def test_expert_stacks_by_shape(config):
    """Whatever it is called, a 3-D tensor with a slice for each expert that the config counts."""
    config = {"model_type": "new", "hidden_size": 4, **config}
    found = parts("model.layers.3.moe.up_proj.weight", (5, 6, 4), config)
    assert found == [(f"model.layers.3.moe.up_proj.{i}", (6, 4), "linear") for i in range(5)]
    stored_in_out = parts("model.layers.3.moe.wi", (5, 4, 6), config)
    assert [shape for _, shape, _ in stored_in_out] == [(6, 4)] * 5


@pytest.mark.parametrize(
    ("name", "shape", "config"),
    [
        ("layers.0.moe.conv1d.weight", (5, 2, 4), {"num_experts": 5}),
        ("layers.0.moe.norm.weight", (5, 2, 4), {"num_experts": 5}),
        ("layers.0.moe.up_proj_bias", (5, 2, 4), {"num_experts": 5}),
        ("layers.0.moe.gains", (5, 1, 4), {"num_experts": 5}),
        ("layers.0.moe.up_proj.weight", (5, 2, 4), {"num_experts": 6}),
        ("layers.0.moe.up_proj.weight", (5, 2, 4), {"num_experts_per_tok": 5}),
        ("layers.0.moe.up_proj.weight", (5, 2, 4), {"n_shared_experts": 5}),
        ("layers.0.moe.up_proj.weight", (1, 2, 4), {"num_experts": 1}),
        ("layers.0.moe.up_proj.weight", (5, 2, 4), {"num_experts": "5"}),
    ],
)
def test_what_stacks_no_experts(name, shape, config):
    assert parts(name, shape, {"model_type": "new", **config}) == []


def test_two_tensors_of_one_name():
    with pytest.raises(SourceError, match="would both be called 'x'"):
        roles(x=(2, 2), x__weight=(2, 2))


def test_natural_order():
    names = ["b.10.x", "b.2.x", "b.2", "a", "b.x", "10", "2", "b.2.x1", "b.02.x"]
    assert sorted(names, key=natural_key) == [
        "2",
        "10",
        "a",
        "b.02.x",
        "b.2",
        "b.2.x",
        "b.2.x1",
        "b.10.x",
        "b.x",
    ]


def test_model_types_of_nested_configs():
    config = {"model_type": "a", "text_config": {"model_type": "b"}, "x": {"model_type": 3}}
    assert model_types(config) == {"a", "b"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.3.mlp.up_proj", "model.layers.*.mlp.up_proj"),
        ("model.layers.3.mlp.experts.3.up_proj", "model.layers.*.mlp.experts.*.up_proj"),
        ("layers.0.block_sparse_moe.experts.7.w1", "layers.*.block_sparse_moe.experts.*.w1"),
        ("model.layers.12.mlp.experts.gate_up_proj.7", "model.layers.*.mlp.experts.gate_up_proj.*"),
        ("layers.1.moe.input_linear.5", "layers.*.moe.input_linear.*"),
        ("visual.blocks.2.mlp.2", "visual.blocks.*.mlp.2"),
        ("projector.0", "projector.0"),
        ("lm_head", "lm_head"),
    ],
)  # fmt: skip
def test_matrices_of_one_kind_share_its_name(name, kind):
    assert matrix_kind(name) == kind
