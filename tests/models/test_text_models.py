"""What predicts text, how many tokens it takes, and whether it looks ahead."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from reallm_compiler.errors import EvaluationError, FinetuneError
from reallm_compiler.models.text_models import check_reads, run, usable_positions

transformers = pytest.importorskip("transformers")

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 48,
    "max_position_embeddings": 34,
    "pad_token_id": 1,
}
TOKENS = list(range(5, 25))


def made(name: str, **settings: Any) -> Any:
    family = name.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    config = getattr(transformers, f"{family}Config")(
        **{k: v for k, v in {**TINY, **settings}.items() if v}
    )
    torch.manual_seed(0)
    return getattr(transformers, name)(config).eval()


@pytest.mark.parametrize(
    ("name", "usable"),
    [
        ("LlamaForCausalLM", 34),
        ("BertLMHeadModel", 34),
        ("RobertaForCausalLM", 32),
        ("XLMRobertaForCausalLM", 32),
        ("CamembertForCausalLM", 32),
    ],
)
def test_usable_positions_can_be_read_and_one_more_cannot(name: str, usable: int) -> None:
    model = made(name, is_decoder=True) if name != "LlamaForCausalLM" else made(name)
    assert usable_positions(model) == usable
    ids = torch.arange(usable + 1).remainder(40).add(5)[None]
    with torch.inference_mode():
        assert run(model, ids[:, :usable], None).shape == (1, usable, 48)
        if name != "LlamaForCausalLM":  # rotary positions end nowhere
            with pytest.raises(EvaluationError, match=f"cannot be run on {usable + 1} tokens"):
                run(model, ids, None)


def test_a_config_without_positions_states_none() -> None:
    assert usable_positions(made("MambaForCausalLM", max_position_embeddings=None)) is None


@pytest.mark.parametrize("name", ["BertLMHeadModel", "RobertaForCausalLM", "XLNetLMHeadModel"])
def test_what_looks_ahead_has_no_perplexity(name: str) -> None:
    family = {"d_head": 8, "max_position_embeddings": None} if name == "XLNetLMHeadModel" else {}
    model = made(name, **family)
    with pytest.raises(EvaluationError, match="depends on that token and later ones"):
        check_reads(model, TOKENS, 24)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("LlamaForCausalLM", {}),
        ("BertLMHeadModel", {"is_decoder": True}),
        ("MixtralForCausalLM", {"num_key_value_heads": 1, "num_local_experts": 4}),
        ("MambaForCausalLM", {"state_size": 4}),
    ],
)
def test_what_does_not_is_let_through(name: str, settings: dict[str, Any], dtype) -> None:
    check_reads(made(name, **settings).to(dtype), TOKENS, 24)
    check_reads(made(name, **settings).to(dtype), [7] * 20, 7)


def test_a_token_beyond_the_vocabulary_is_reported() -> None:
    with pytest.raises(FinetuneError, match="gives token 48, and the model knows 48 tokens"):
        check_reads(made("LlamaForCausalLM"), [5, 6], 48, FinetuneError)


def test_a_class_that_takes_no_text_alone_is_reported() -> None:
    vision = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    with pytest.raises(EvaluationError, match="CLIPVisionModel cannot be run on 16 tokens"):
        check_reads(transformers.CLIPVisionModel(vision), TOKENS, 24)
