"""Perplexity and divergence against slow loops over transformers' own loss."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from reallm_compiler.errors import EvaluationError
from reallm_compiler.evaluate import perplexity
from reallm_compiler.evaluate.perplexity import choose_window, evaluate
from reallm_compiler.models import text_models
from reallm_compiler.models.text_models import usable_positions

SENTENCES = (
    "The miller's cat sat by the naïve stove. It had three kittens and a café of mice. ",
    "Anna counted seven apples; Ben counted eight. Who was right? Nobody knew until noon. ",
    "A long road goes over the hill, past the old mill, and down to the harbour.\n\n",
)
TEXT = "".join(SENTENCES[(index * index) % 3] for index in range(14))
STORIES = "<|end|>\n".join("".join(SENTENCES[index % 3 :])[: 40 + 25 * index] for index in range(9))


@pytest.fixture(scope="module")
def tokenizer():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<s>"],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")


def llama(seed, dtype=torch.float32, positions=48, vocabulary=300):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


@pytest.fixture(scope="module")
def model():
    return llama(1)


@pytest.fixture(scope="module")
def other():
    """The model with noise on it: often of one mind with it, and not always."""
    noisy = llama(1)
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    return noisy


def windows_by_hand(tokenizer, text, window):
    ids = tokenizer(text)["input_ids"]
    return [ids[at : at + window] for at in range(0, len(ids) - window + 1, window)]


def stories_by_hand(tokenizer, text, window):
    stories = [story.strip() for story in text.split("<|end|>")]
    return [
        ([tokenizer.bos_token_id] + tokenizer(story)["input_ids"])[:window] for story in stories
    ]


@torch.no_grad()
def own_loss(model, sequence):
    ids = torch.tensor([sequence])
    return model(input_ids=ids, labels=ids).loss.double().item()


@torch.no_grad()
def slow_divergence(model, reference, sequences):
    """KL and agreement, one token at a time in float64."""
    kl, agree, count = 0.0, 0, 0
    for sequence in sequences:
        ids = torch.tensor([sequence])
        q_rows, p_rows = model(ids).logits[0].double(), reference(ids).logits[0].double()
        for index in range(len(sequence) - 1):
            q, p = q_rows[index].softmax(0), p_rows[index].softmax(0)
            kl += sum(float(p[k]) * math.log(float(p[k]) / float(q[k])) for k in range(len(p)))
            agree += int(q.argmax()) == int(p.argmax())
            count += 1
    return kl / count, agree / count


@pytest.mark.parametrize("batch", [None, 1, 3, 1000])
@pytest.mark.parametrize("window", [None, 2, 7, 48])
def test_windows_equal_the_loop_over_transformers_own_loss(model, tokenizer, window, batch):
    result = evaluate(model, tokenizer, TEXT, window=window, batch=batch)
    length = window or 48  # the model's positions
    windows = windows_by_hand(tokenizer, TEXT, length)
    expected = sum(own_loss(model, each) for each in windows) / len(windows)
    assert len(windows) > 2
    assert result.loss == pytest.approx(expected, rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(expected), rel=1e-5)
    assert (result.window, result.windows) == (length, len(windows))
    assert result.tokens == len(windows) * (length - 1)
    assert result.dropped_tokens == len(tokenizer(TEXT)["input_ids"]) - len(windows) * length
    assert result.protocol == "windows"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_types_equal_transformers_own_loss(tokenizer, dtype):
    model = llama(1, dtype)
    windows = windows_by_hand(tokenizer, TEXT, 16)
    expected = sum(own_loss(model, each) for each in windows) / len(windows)
    result = evaluate(model, tokenizer, TEXT, window=16, batch=1)
    assert result.loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("batch", [None, 1, 4])
def test_documents_equal_the_loop_over_transformers_own_loss(model, tokenizer, batch):
    result = evaluate(model, tokenizer, STORIES, window=40, separator="<|end|>", batch=batch)
    stories = stories_by_hand(tokenizer, STORIES, 40)
    counts = [len(story) - 1 for story in stories]
    assert len(set(counts)) > 2
    assert max(counts) == 39
    summed = sum(own_loss(model, s) * n for s, n in zip(stories, counts, strict=True))
    assert result.loss == pytest.approx(summed / sum(counts), rel=1e-6)
    assert (result.tokens, result.windows) == (sum(counts), 9)
    # Byte-level tokens decode to exactly the bytes that they cover.
    covered = sum(len(tokenizer.decode(story[1:]).encode()) for story in stories)
    assert result.nbytes == covered
    assert result.protocol == "documents"


def test_bits_per_byte_by_hand(model, tokenizer):
    result = evaluate(model, tokenizer, TEXT, window=16)
    windows = windows_by_hand(tokenizer, TEXT, 16)
    text = tokenizer.decode([token for each in windows for token in each])
    assert TEXT.startswith(text)
    assert text != TEXT
    bits = sum(own_loss(model, each) * 15 for each in windows) / math.log(2)
    assert result.nbytes == len(text.encode())
    assert result.bits_per_byte == pytest.approx(bits / len(text.encode()), rel=1e-6)


def test_what_is_in_the_tail_changes_nothing(model, tokenizer):
    kept = tokenizer.decode(tokenizer(TEXT)["input_ids"][:64])
    assert tokenizer(kept)["input_ids"] == tokenizer(TEXT)["input_ids"][:64]
    plain = evaluate(model, tokenizer, kept, window=32)
    tailed = evaluate(model, tokenizer, kept + " past the", window=32)
    assert plain.dropped_tokens == 0 < tailed.dropped_tokens
    assert (plain.loss, plain.bits_per_byte) == (tailed.loss, tailed.bits_per_byte)


@pytest.mark.parametrize("separator", [None, "<|end|>"], ids=["windows", "documents"])
def test_divergence_equals_the_slow_one(model, other, tokenizer, separator):
    text = STORIES if separator else TEXT
    result = evaluate(model, tokenizer, text, window=12, separator=separator, reference=other)
    by_hand = stories_by_hand if separator else windows_by_hand
    kl, agree = slow_divergence(model, other, by_hand(tokenizer, text, 12))
    assert kl > 0.01
    assert 0 < agree < 1
    assert result.kl == pytest.approx(kl, rel=1e-5)
    assert result.top1_agreement == pytest.approx(agree, abs=1e-12)
    alone = evaluate(other, tokenizer, text, window=12, separator=separator)
    assert result.reference_perplexity == pytest.approx(alone.perplexity, rel=1e-9)
    # The divergence has a direction.
    turned = evaluate(other, tokenizer, text, window=12, separator=separator, reference=model)
    assert turned.kl != pytest.approx(result.kl, rel=1e-3)


def test_a_model_does_not_differ_from_itself(model, tokenizer):
    result = evaluate(model, tokenizer, TEXT, reference=model)
    assert (result.kl, result.top1_agreement) == (0.0, 1.0)
    assert result.reference_perplexity == result.perplexity


def test_small_blocks_give_the_same(model, other, tokenizer, monkeypatch):
    whole = evaluate(model, tokenizer, TEXT, reference=other)
    sizes = []
    exact = perplexity._total
    monkeypatch.setattr(perplexity, "_total", lambda v: sizes.append(v.shape[0]) or exact(v))
    monkeypatch.setattr(perplexity, "_BLOCK_ELEMENTS", 5 * 300)
    blocks = evaluate(model, tokenizer, TEXT, reference=other)
    assert set(sizes) == {5, 47 % 5}
    assert blocks.loss == pytest.approx(whole.loss, rel=1e-9)
    assert blocks.kl == pytest.approx(whole.kl, rel=1e-9)


def test_a_token_that_the_reference_rules_out_adds_nothing():
    logits = torch.tensor([[0.0, 0.0, -math.inf], [1.0, 2.0, 3.0]])
    sums = perplexity._sum_rows(logits, torch.tensor([0, 1]), logits)
    assert sums.kl == 0.0
    assert sums.agree == 2


@pytest.mark.parametrize(
    ("positions", "asked", "window"),
    [(48, None, 48), (2048, None, 2048), (4096, None, 2048), (4096, 4096, 4096), (48, 5, 5)],
)
def test_the_window_is_the_smaller_of_2048_and_the_positions(positions, asked, window):
    assert choose_window(asked, [llama(0, positions=positions)]) == window


def test_the_window_suits_both_models_and_other_families():
    gpt = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, n_positions=33, vocab_size=9))
    assert usable_positions(gpt) == 33
    assert choose_window(None, [llama(0), gpt]) == 33
    with pytest.raises(EvaluationError, match="longer than the model's 33 positions"):
        choose_window(40, [llama(0), gpt])


def test_a_model_that_states_no_positions_gets_the_literature_window(model, monkeypatch):
    monkeypatch.setattr(text_models, "_POSITION_KEYS", ())
    assert choose_window(None, [model]) == 2048
    assert choose_window(9999, [model]) == 9999


def test_json_has_stable_keys_in_order(model, other, tokenizer):
    plain = evaluate(model, tokenizer, TEXT).to_json()
    compared = evaluate(model, tokenizer, TEXT, reference=other).to_json()
    keys = [
        "perplexity",
        "tokens",
        "window",
        "windows",
        "bits_per_byte",
        "loss",
        "bytes",
        "dropped_tokens",
        "protocol",
    ]
    assert list(plain) == keys
    assert list(compared) == [*keys, "kl", "top1_agreement", "reference_perplexity"]
    assert json.loads(json.dumps(compared)) == compared


def test_progress_counts_windows(model, tokenizer):
    calls = []
    result = evaluate(
        model, tokenizer, TEXT, window=16, batch=5, progress=lambda *done: calls.append(done)
    )
    total = result.windows
    assert calls == [(min(at, total), total) for at in range(5, total + 5, 5)]
    calls.clear()
    evaluate(model, tokenizer, TEXT, window=16, progress=lambda *done: calls.append(done))
    assert calls == [(total, total)]  # 2048 tokens hold 128 such windows


def test_a_model_in_training_is_measured_without_dropout(tokenizer):
    config = GPT2Config(
        n_layer=1,
        n_embd=16,
        n_head=2,
        n_positions=32,
        vocab_size=300,
        resid_pdrop=0.5,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    gpt = GPT2LMHeadModel(config).train()
    first = evaluate(gpt, tokenizer, TEXT)
    assert first == evaluate(gpt, tokenizer, TEXT)


@pytest.mark.parametrize(
    ("separator", "location"),
    [(None, "window 2 of 5"), ("<|end|>", "document 2 of 3")],
    ids=["windows", "documents"],
)
def test_a_loss_that_is_not_finite_names_its_window(tokenizer, separator, location):
    model = llama(1)
    if separator:
        text = "cat and mice <|end|> Q cat <|end|> and mice"
    else:
        ids = [tokenizer("a")["input_ids"][0]] * 40
        text = tokenizer.decode(ids[:12]) + "Q" + tokenizer.decode(ids[:29])
    broken = tokenizer("Q")["input_ids"]
    assert len(broken) == 1
    with torch.no_grad():
        model.get_input_embeddings().weight[broken[0]] = math.nan
        model.lm_head.weight = torch.nn.Parameter(torch.randn(300, 32))
    for batch in (1, 4):
        with pytest.raises(EvaluationError, match="the model's loss is nan") as caught:
            evaluate(model, tokenizer, text, window=8, separator=separator, batch=batch)
        assert caught.value.location == location


def test_a_reference_that_is_not_finite_is_distinguished(model, tokenizer):
    broken = llama(1)
    with torch.no_grad():
        broken.lm_head.weight[5] = math.inf
    with pytest.raises(EvaluationError, match="the reference's loss is nan"):
        evaluate(model, tokenizer, TEXT, reference=broken)


def test_a_loss_beyond_float64_is_reported(tokenizer):
    model = llama(1)
    with torch.no_grad():
        model.model.norm.weight.mul_(1e4)
    with pytest.raises(EvaluationError, match="the loss of the model is"):
        evaluate(model, tokenizer, TEXT)


def test_unfit_models_are_reported(model, tokenizer):
    with pytest.raises(EvaluationError, match="and the model knows 200 tokens"):
        evaluate(llama(1, vocabulary=200), tokenizer, TEXT)
    with pytest.raises(EvaluationError, match="different vocabularies: 300 and 320 logits"):
        evaluate(model, tokenizer, TEXT, reference=llama(1, vocabulary=320))
    with pytest.raises(EvaluationError, match="batch of at least 1 window, got 0"):
        evaluate(model, tokenizer, TEXT, batch=0)


def test_other_tokenizers_are_refused_before_any_work(model, tokenizer):
    larger = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    larger.add_tokens(["<new>"])

    class Untouched:
        config = model.config

    with pytest.raises(EvaluationError, match="different tokenizers"):
        evaluate(Untouched(), tokenizer, TEXT, reference=Untouched(), reference_tokenizer=larger)


def test_memory_that_runs_out_is_reported(model, tokenizer, monkeypatch):
    def exhausted(**_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "forward", exhausted)
    with pytest.raises(EvaluationError, match="out of memory on a batch of 2 windows"):
        evaluate(model, tokenizer, TEXT, window=16, batch=2)
