"""The loss over the vocabulary is the same in chunks of positions, and so are its gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from reallm_compiler.finetune import loss
from reallm_compiler.finetune.loss import Headless, VocabularyLoss

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
GPT2 = {"vocab_size": 50, "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
MODELS = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)),
    "tied": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, tie_word_embeddings=True)
    ),
    "soft caps": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**SIZES, final_logit_softcapping=2.0)
    ),
    "scaled logits": lambda: transformers.GraniteForCausalLM(
        transformers.GraniteConfig(**SIZES, logits_scaling=8.0)
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)),
}
GENERATOR = torch.Generator().manual_seed(3)
IDS = torch.randint(1, 50, (3, 12), generator=GENERATOR)
REAL = torch.rand(3, 11, generator=GENERATOR) < 0.7


def made(name: str, seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name]().eval()


def whole(model: Any, teacher: Any) -> torch.Tensor:
    log_q = model(input_ids=IDS, use_cache=False).logits[:, :-1][REAL].log_softmax(-1)
    if teacher is None:
        return functional.nll_loss(log_q, IDS[:, 1:][REAL], reduction="sum")
    with torch.no_grad():
        log_p = teacher(input_ids=IDS).logits[:, :-1][REAL].log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("distill", [False, True], ids=["text", "original"])
def test_chunks_add_up(name: str, distill: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(name)
    teacher = made(name, seed=1).requires_grad_(False) if distill else None
    wanted = whole(model, teacher)
    (wanted / 7).backward()
    gradients = {key: value.grad.clone() for key, value in model.named_parameters()}
    model.zero_grad()
    monkeypatch.setattr(loss, "CHUNK_BYTES", 4 * 50 * 5)  # five positions
    sizes = []
    original = Headless.logits

    def watched(self: Headless, hidden: torch.Tensor, rest: Any) -> torch.Tensor:
        sizes.append(hidden.shape[1])
        return original(self, hidden, rest)

    measured = VocabularyLoss(model, teacher, IDS[:2])
    monkeypatch.setattr(Headless, "logits", watched)
    with torch.no_grad():
        assert measured(IDS, REAL) == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert max(sizes) == 5
    assert sum(sizes) == int(REAL.sum()) * (2 if distill else 1)
    assert all(value.grad is None for value in model.parameters())
    assert measured(IDS, REAL, 1 / 7) == pytest.approx(float(wanted.detach()), rel=1e-5)
    for key, value in model.named_parameters():
        torch.testing.assert_close(value.grad, gradients[key], rtol=1e-4, atol=1e-6)


class Mixing(torch.nn.Module):
    """A model whose logits depend on all hidden states at once: it cannot be cut."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.config = inner.config

    @property
    def base_model(self) -> Any:
        return self.inner.base_model

    def forward(self, **given: Any) -> Any:
        output = self.inner(**given)
        output.logits = output.logits - output.logits.mean(1, keepdim=True)
        return output


def test_a_model_that_does_not_split_is_taken_whole() -> None:
    model = Mixing(made("llama"))
    assert not Headless.splits(model, IDS)
    wanted = whole(model, None)
    wanted.backward()
    gradients = {key: value.grad.clone() for key, value in model.named_parameters()}
    model.zero_grad()
    assert VocabularyLoss(model, None, IDS)(IDS, REAL, 1.0) == pytest.approx(
        float(wanted.detach()), rel=1e-5
    )
    for key, value in model.named_parameters():
        torch.testing.assert_close(value.grad, gradients[key], rtol=1e-4, atol=1e-6)


def test_a_model_without_a_base_is_taken_whole() -> None:
    assert not Headless.splits(torch.nn.Linear(2, 2), IDS)
