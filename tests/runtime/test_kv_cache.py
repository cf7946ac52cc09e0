"""Quantized caches in models: what is read, what is kept, and what `generate` makes of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

import reallm_compiler as reallm
from reallm_compiler.checkpoint.attention import cached_layers
from reallm_compiler.errors import RecipeError, SourceError
from reallm_compiler.evaluate import evaluate_files
from reallm_compiler.planning.kv_cache import cache_budget
from reallm_compiler.recipe import load_recipe
from reallm_compiler.runtime.kv_cache import PagedLayer, QuantizedCache, new_cache
from reallm_compiler.runtime.kv_settings import kv_settings
from reallm_compiler.stages import KvCache

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 64,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
BY_8 = {
    "page": 8,
    "window": 8,
    "first": 2,
    "keys": {
        "scales": {"kind": "minmax", "per": "row", "dtype": "float16"},
        "quantizer": {"kind": "uniform", "bits": 8},
    },
    "values": {
        "scales": {"kind": "minmax", "per": "row", "dtype": "float16"},
        "quantizer": {"kind": "uniform", "bits": 8},
    },
}
PARAMS = KvCache.model_validate(BY_8)


def made(kind: str = "llama", **changed: Any) -> Any:
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[kind](**{**TINY, **changed})
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # so that tokens matter to each other
                parameter.mul_(6)
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return made()


def tokens(batch: int, count: int) -> torch.Tensor:
    return torch.randint(2, 64, (batch, count), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor, cache: Any, step: int = 1) -> torch.Tensor:
    parts = [
        model(ids[:, at : at + step], past_key_values=cache, use_cache=True).logits
        for at in range(0, ids.shape[1], step)
    ]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("step", [1, 7, 50])
def test_it_predicts_what_the_plain_cache_predicts_nearly(model, step):
    ids = tokens(2, 50)
    plain = logits(model, ids, DynamicCache(config=model.config), step)
    cache = new_cache(model, PARAMS)
    found = logits(model, ids, cache, step)
    assert cache.get_seq_length() == 50
    error = (found - plain).abs().amax((0, 2)) / plain.std()
    assert float(error.max()) < 0.1
    exact = 10 if step < 50 else 50  # the window and the first tokens; a call sees its own tokens
    assert float(error[:exact].max()) < 1e-5
    if step < 50:
        assert float(error.max()) > 1e-5


@pytest.mark.parametrize("name", ["kv-8bit", "kv-4bit", "kv-3bit", "kv-2bit", "own"])
@pytest.mark.parametrize("batch", [1, 3])
def test_it_holds_the_bytes_that_the_law_says(model, name, batch):
    params = PARAMS if name == "own" else load_recipe(name).kv_cache
    assert params is not None
    cache = new_cache(model, params)
    layers = cached_layers(model.config.to_dict() | {"architectures": ["LlamaForCausalLM"]}, "it")
    ids = tokens(batch, 150)
    for first, last in ((0, 3), (3, 20), (20, 100), (100, 101), (101, 150)):
        logits(model, ids[:, first:last], cache, last)
        found = cache_budget(params, layers, last, 4)
        assert cache.nbytes == batch * (found.total - found.tables) + found.tables
    for layer in cache.layers:
        for tensor in (layer.keys, layer.values):  # no view keeps more than it shows
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_greedy_tokens_are_those_of_the_plain_cache(model):
    ids = tokens(2, 12)
    options: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False}
    cache = new_cache(model, PARAMS)
    found = model.generate(ids, past_key_values=cache, **options)
    assert torch.equal(found, model.generate(ids, **options))
    assert cache.get_seq_length() > 40


def test_beams_keep_their_own_tokens(model):
    """The score of each beam is that of its tokens when they are read at once."""
    found = model.generate(
        tokens(2, 12),
        past_key_values=new_cache(model, PARAMS),
        max_new_tokens=40,
        min_new_tokens=40,
        do_sample=False,
        num_beams=4,
        num_return_sequences=2,
        length_penalty=0.0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    with torch.no_grad():
        read = model(found.sequences).logits.log_softmax(-1)
    rows = read[:, 11:-1].gather(-1, found.sequences[:, 12:, None])[..., 0].sum(1)
    assert len(found.sequences.unique(dim=0)) == 4
    assert torch.allclose(found.sequences_scores, rows, atol=0.15)


def test_rows_padded_on_the_left_are_as_by_themselves(model):
    ids = tokens(2, 40)
    mask = torch.ones_like(ids)
    ids[0, :9], mask[0, :9] = 0, 0
    options: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False}
    both = model.generate(
        ids, attention_mask=mask, past_key_values=new_cache(model, PARAMS), **options
    )
    alone = model.generate(ids[:1, 9:], past_key_values=new_cache(model, PARAMS), **options)
    assert torch.equal(both[0, 40:], alone[0, 31:])


def test_the_cache_can_be_cut_chosen_repeated_and_emptied(model):
    ids = tokens(2, 40)
    cache = new_cache(model, PARAMS)
    logits(model, ids, cache, 4)
    cache.crop(-15)
    assert cache.get_seq_length() == 25
    again = logits(model, ids[:, 25:], cache, 4)
    straight = logits(model, ids, new_cache(model, PARAMS), 4)[:, 25:]
    assert float((again - straight).abs().max() / straight.std()) < 0.1
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([3, 0]))
    cache.reorder_cache(torch.tensor([0, 0]))
    for layer in cache.layers:
        assert torch.equal(*layer.keys)
        assert torch.equal(*layer.values)
    more = tokens(1, 3)
    swapped = logits(model, more.expand(2, 3), cache, 1)
    torch.testing.assert_close(swapped[0], swapped[1])  # a batch is one product: to rounding
    one = new_cache(model, PARAMS)
    logits(model, ids[1:], one, 4)
    near = logits(model, more, one, 1)
    assert float((swapped[:1] - near).abs().max() / near.std()) < 0.1
    cache.reset()
    assert (cache.get_seq_length(), cache.nbytes) == (0, 0)
    cache = new_cache(model, PARAMS)
    logits(model, ids, cache)
    cache.crop(30)  # as older versions of transformers say it
    assert cache.get_seq_length() == 30


def test_layers_with_a_sliding_window_stay_as_they_are():
    model = made("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1)
    cache = new_cache(model, PARAMS)
    kinds = [isinstance(layer, PagedLayer) for layer in cache.layers]
    assert kinds == [True, False]
    ids = tokens(1, 40)
    plain = logits(model, ids, DynamicCache(config=model.config))
    found = logits(model, ids, cache)
    assert float((found - plain).abs().max() / plain.std()) < 0.1
    layers = cached_layers(model.config.to_dict() | {"architectures": ["Qwen2ForCausalLM"]}, "it")
    assert [layer.window for layer in layers] == [None, 8]
    assert cache.nbytes == cache_budget(PARAMS, layers, 40, 4).total


def test_positions_without_a_rotary_embedding(model):
    gpt = made("gpt2", n_embd=32, n_layer=2, n_head=2)
    ids = tokens(1, 40)
    plain = logits(gpt, ids, DynamicCache(config=gpt.config))
    found = logits(gpt, ids, new_cache(gpt, PARAMS))
    assert float((found - plain).abs().max() / plain.std()) < 0.1


@pytest.mark.parametrize(
    ("kind", "changed", "why"),
    [
        ("mamba", {}, "not keys and values of tokens"),
        ("mistral", {"sliding_window": 8}, "no more than a sliding window"),
        (
            "deepseek_v3",
            {"n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1},
            r"latents \(MLA\)",
        ),
    ],
)
def test_models_that_keep_something_else_are_refused_by_name(kind, changed, why):
    other = made(kind, **changed)
    with pytest.raises(SourceError, match=why) as caught:
        new_cache(other, PARAMS)
    assert type(other).__name__ in str(caught.value)


def test_load_gives_a_model_that_generates_so(tiny_llama, tmp_path):
    prompt = torch.tensor([[5, 6, 7]])
    plain, _ = reallm.load(tiny_llama)
    recipe = {"reallm": 1, "extends": "rtn-4bit", "kv_cache": BY_8}
    archive = tmp_path / "m.reallm"
    reallm.compile(recipe, model=tiny_llama, output=archive)
    options: dict[str, Any] = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": False}
    for source, given, quantized in (
        (tiny_llama, BY_8, True),
        (tiny_llama, archive, True),
        (tiny_llama, None, False),
        (archive, None, True),
        (archive, "none", False),
        (archive, "kv-4bit", True),
    ):
        modes = ("dense", "packed") if source is archive else ("dense",)
        for mode in modes:
            model, _ = reallm.load(source, kv_cache=given, mode=mode)
            found = model.generate(prompt, return_dict_in_generate=True, **options)
            assert isinstance(found.past_key_values, QuantizedCache) is quantized
            if source == tiny_llama:
                assert torch.equal(found.sequences, plain.generate(prompt, **options))
    model, _ = reallm.load(tiny_llama, kv_cache="kv-4bit")
    own = DynamicCache(config=model.config)
    found = model.generate(prompt, past_key_values=own, return_dict_in_generate=True, **options)
    assert found.past_key_values is own
    assert model.generate(prompt, use_cache=False, **options).shape == (1, 43)


def test_sources_of_settings(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("reallm: 1\nextends: kv-2bit\nkv_cache: {window: 77}\n")
    named = kv_settings(file)
    assert named is not None
    assert (named.window, named.page) == (77, 64)
    assert kv_settings(named) is named
    assert kv_settings(None) is None
    assert kv_settings(None, own=BY_8) == PARAMS
    assert kv_settings("none", own=BY_8) is None
    model = made()
    assert isinstance(reallm.kv_cache(model, "kv-4bit"), QuantizedCache)
    assert not isinstance(reallm.kv_cache(model, "none"), QuantizedCache)
    with pytest.raises(RecipeError, match="says nothing of keys and values"):
        kv_settings("nf4")
    with pytest.raises(RecipeError, match="kv-4bit"):
        kv_settings("kv-4bits")
    with pytest.raises(RecipeError, match=r"keys\.quantizer\.bits"):
        kv_settings({**BY_8, "keys": {**BY_8["keys"], "quantizer": {"kind": "uniform", "bits": 9}}})


def test_evaluation_goes_through_the_cache(tiny_llama, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Tom puts the apple on the old table near the window. " * 12)
    options: dict[str, Any] = {"reference": tiny_llama, "window": 48}
    plain = evaluate_files(tiny_llama, text, **options)
    coarse = evaluate_files(tiny_llama, text, kv_cache="kv-2bit", kv_step=6, **options)
    fine = evaluate_files(tiny_llama, text, kv_cache=BY_8, **options)
    by_document = evaluate_files(tiny_llama, text, kv_cache=BY_8, separator=". ", batch=3)
    assert plain.kl is not None
    assert coarse.kl is not None
    assert fine.kl is not None
    assert plain.kl < fine.kl < 1e-4
    assert by_document.perplexity == pytest.approx(
        evaluate_files(tiny_llama, text, separator=". ", batch=3).perplexity, rel=1e-3
    )
