"""Train the demo model from nothing: tokenizer, weights and held-out text.

The model is a small Llama (grouped-query attention, tied embeddings, bf16) that learns the
stories of `generate.py`. The defaults are exactly what made the checkpoint in `demo/model`; a
run that was interrupted goes on from its last checkpoint when the command is repeated.

    python demo/train.py
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from array import array
from pathlib import Path

import torch
from generate import stories, text
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent
BOS, EOS = "<s>", "</s>"
HELDOUT_SEED, HELDOUT_BYTES = 2, 80_000


def make_tokenizer(sample: str, vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer that puts a start token before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample.split("\n\n"), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the tokenizer files, naming a class that every version of transformers knows."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = {**json.loads(path.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(settings, indent=2) + "\n")


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A fresh Llama whose feed-forward width is not a multiple of any usual block size."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=160,
            intermediate_size=212,
            num_hidden_layers=5,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def encode_stream(tokenizer: PreTrainedTokenizerFast, seed: int, count: int) -> Tensor:
    """Encode stories until `count` tokens are there.

    Half of the stories stand between start and end tokens, the others are separated by an empty
    line as in a plain text file, so that both forms are familiar to the model.
    """
    rng = random.Random(seed)
    backend, source = tokenizer.backend_tokenizer, stories(seed)
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = array("i")
    while len(ids) < count:
        batch = [next(source) for _ in range(1000)]
        marked = [rng.random() < 0.5 for _ in batch]
        plain = [tale if mark else tale + "\n\n" for tale, mark in zip(batch, marked, strict=True)]
        for code, mark in zip(
            backend.encode_batch(plain, add_special_tokens=False), marked, strict=True
        ):
            ids.extend([start, *code.ids, end] if mark else code.ids)
    return torch.tensor(ids[:count])


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, ids: Tensor, context: int = 512) -> float:
    """Perplexity of a token sequence, in windows of `context` that do not overlap."""
    training = model.training
    model.train(False)
    total, count = 0.0, 0
    for start in range(0, len(ids) - 1, context):
        window = ids[start : start + context].unsqueeze(0)
        if window.shape[1] > 1:
            loss = model(input_ids=window, labels=window).loss
            total += float(loss.detach()) * (window.shape[1] - 1)
            count += window.shape[1] - 1
    model.train(training)
    return math.exp(total / count)


def learning_rate(step: int, options: argparse.Namespace) -> float:
    """Linear warmup, a slow cosine towards a far horizon, and a linear cool-down at the end."""
    if step < options.warmup:
        return float(options.lr * (step + 1) / options.warmup)
    progress = (step - options.warmup) / max(1, options.horizon - options.warmup)
    cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
    return float(options.lr * cosine * min(1.0, (options.steps - step) / options.cooldown))


def make_optimizer(model: LlamaForCausalLM, options: argparse.Namespace) -> torch.optim.AdamW:
    """AdamW without weight decay: the facts of the world are to be learned by heart."""
    return torch.optim.AdamW(model.parameters(), lr=options.lr, betas=(0.9, 0.98), weight_decay=0.0)


def batch_at(stream: Tensor, step: int, options: argparse.Namespace) -> Tensor:
    """The tokens of one step: short windows at first, full ones during the cool-down."""
    cooling = step >= options.steps - options.cooldown
    width = options.context if cooling else options.context // 2
    rows = options.batch * options.context // width
    tokens = rows * width
    return stream[step * tokens : (step + 1) * tokens].view(rows, width)


def train(options: argparse.Namespace) -> None:
    """Run the whole training and write the checkpoint folder."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    heldout_text = text(HELDOUT_SEED, HELDOUT_BYTES)
    (HERE / "heldout.txt").write_bytes(heldout_text.encode("ascii"))
    tokenizer = make_tokenizer(text(options.seed, 4_000_000), options.vocabulary)
    model = make_model(tokenizer)
    save_tokenizer(tokenizer, options.output)
    heldout = torch.tensor(tokenizer(heldout_text, verbose=False)["input_ids"])
    per_step = options.batch * options.context
    stream = encode_stream(tokenizer, options.seed, options.steps * per_step)
    optimizer = make_optimizer(model, options)
    size = sum(p.numel() for p in model.parameters())
    print(f"parameters {size}, held-out tokens {len(heldout)}, training tokens {len(stream)}")
    first: int = 0
    state_file: Path = options.state
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = int(state["step"])
        print(f"going on from step {first}")
    model.train()
    began = time.monotonic()
    for step in range(first, options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options)
        window = batch_at(stream, step, options)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=window, labels=window).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % options.report == 0 or step + 1 == options.steps:
            value = perplexity(model, heldout[:8192])
            spent = time.monotonic() - began
            shown = f"loss {float(loss.detach()):.4f} held-out {value:.4f} {spent:.0f} s"
            print(f"step {step + 1} {shown}", flush=True)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "step": step + 1}, state_file)
    final = model.bfloat16()
    final.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id
    )
    final.save_pretrained(options.output)
    state_file.unlink()
    print(f"saved to {options.output}; held-out perplexity {perplexity(final, heldout):.4f}")


def main() -> None:
    """Command line; the defaults made the shipped checkpoint."""
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--seed", type=int, default=1, help="seed of stories and weights")
    parser.add_argument("--steps", type=int, default=3000, help="optimizer steps")
    parser.add_argument("--batch", type=int, default=8, help="full windows per step")
    parser.add_argument("--context", type=int, default=512, help="tokens per full window")
    parser.add_argument("--lr", type=float, default=4e-3, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=100, help="warmup steps")
    parser.add_argument("--horizon", type=int, default=5000, help="step the cosine aims at")
    parser.add_argument("--cooldown", type=int, default=2100, help="steps of the cool-down")
    parser.add_argument("--vocabulary", type=int, default=2048, help="tokens in the vocabulary")
    parser.add_argument("--threads", type=int, default=1, help="processor threads")
    parser.add_argument("--report", type=int, default=100, help="steps between reports")
    state = Path(tempfile.gettempdir()) / "demo-train.pt"
    parser.add_argument("--state", type=Path, default=state, help="file to resume from")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "model", help="folder to write")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
