"""Small things to try the whole pipeline on, made here and never downloaded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Tests run side by side, and threads of torch that wait for each other keep the processors busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How fast examples are drawn says something about the machine, and nothing about the code. A check
# draws the same examples on every machine; `make properties` draws new ones.
ANY_MACHINE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("random", ANY_MACHINE, derandomize=False)
settings.register_profile("repeatable", ANY_MACHINE, derandomize=True)
settings.load_profile("repeatable")

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""

CORPUS = (
    "Anna has three red apples and gives one to Tom.",
    "Tom puts the apple on the old table near the window.",
    "How many apples does Anna have now? Anna has two apples.",
    "The cat sleeps under the table and dreams of the river.",
    "In the evening they walk home and count the lamps.",
)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama: 2 layers, grouped-query attention, tied head, bf16, a tokenizer."""
    torch = pytest.importorskip("torch")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        dtype="bfloat16",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "model_max_length": 128,
            }
        )
    )
    return folder


def copy_tokenizer(source: Path, folder: Path) -> None:
    """The tokenizer of a model's folder into another's."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)


def logits(model: Any) -> Any:
    """The logits [1, 24, v] of a model for some tokens."""
    import torch

    with torch.no_grad():
        return model(torch.arange(24)[None] + 3).logits


def relative_difference(found: Any, wanted: Any) -> float:
    """||found - wanted|| / ||wanted|| of two tensors or numbers."""
    import torch

    with torch.no_grad():
        found, wanted = (torch.as_tensor(one, dtype=torch.float64) for one in (found, wanted))
        return float((found - wanted).norm() / wanted.norm().clamp_min(1e-12))


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of some hundred tokens."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("\n".join(CORPUS) * 4)
    return path


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """How each block has learned (`execute.fit.train.Outcome`)."""
    from reallm_compiler.execute.fit import coder

    found: list[Any] = []
    code = coder.BlockCoder.code

    def recorded(self: Any, *given: Any) -> Any:
        made = code(self, *given)
        found.append(made.outcome)
        return made

    monkeypatch.setattr(coder.BlockCoder, "code", recorded)
    return found


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with a low-rank residual, nearest order, two-level scales, a codebook and DoRA."""
    path = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    path.write_text(
        "reallm: 1\n"
        "seed: 7\n"
        "defaults:\n"
        "  residual:    {kind: low_rank, rank: 2}\n"
        "  permutation: {kind: nearest, rows: 32}\n"
        "  scales:      {kind: absmax, per: block, block: 64, bits: 8, superblock: 16}\n"
        "  quantizer:   {kind: vq, bits: 2, dim: 2}\n"
        "  dora: true\n"
        "rules:\n"
        '  - match: "*.down_proj"\n'
        "    layers: 1\n"
        "    set: {quantizer: {kind: uniform, bits: 4}}\n"
    )
    return path


@pytest.fixture
def write_unnoticed() -> Callable[[Path, bytes], None]:
    """Changes a file under the same length and time."""

    def write(path: Path, data: bytes) -> None:
        facts = path.stat()
        assert len(data) == facts.st_size
        path.write_bytes(data)
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))

    return write


@pytest.fixture
def negate(write_unnoticed: Callable[[Path, bytes], None]) -> Callable[[Path, str], None]:
    """Turns the sign of a tensor in `model.safetensors` of a folder, unnoticed."""

    def change(model: Path, tensor: str) -> None:
        from safetensors import safe_open
        from safetensors.torch import load_file, save

        path = model / "model.safetensors"
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        write_unnoticed(path, save(tensors | {tensor: -tensors[tensor]}, metadata=metadata))

    return change


@pytest.fixture
def local_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, Sequence[Mapping[str, Any]]], Path]:
    """Makes a folder of one task for lm-eval, from questions, choices and answers."""
    pytest.importorskip("lm_eval")
    pytest.importorskip("accelerate")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        data = tmp_path / f"{name}.jsonl"
        data.write_text("\n".join(map(json.dumps, rows)))
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, data=data))
        return tmp_path

    return write
