"""Models, tokenizers and devices that cannot be tuned are refused, with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import reallm_compiler as reallm
from reallm_compiler.errors import FinetuneError, SourceError
from reallm_compiler.finetune import finetune
from tests.conftest import copy_tokenizer

transformers = pytest.importorskip("transformers")

RECIPE = {"reallm": 1, "extends": "rtn-4bit", "defaults": {"residual": {"rank": 2}}}
RECIPE["defaults"]["residual"]["kind"] = "low_rank"
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 320,
    "max_position_embeddings": 34,
    "pad_token_id": 1,
}


def archive_of(model: Any, tiny_llama: Path, folder: Path) -> tuple[Path, Path]:
    """A checkpoint of a model with the small tokenizer, and its archive."""
    model.save_pretrained(folder)
    copy_tokenizer(tiny_llama, folder)
    archive = folder.with_suffix(".reallm")
    reallm.compile(RECIPE, model=folder, output=archive, workers=1)
    return folder, archive


def made(name: str, **settings: Any) -> Any:
    family = name.split("For")[0]
    config = getattr(transformers, f"{family}Config")(**{**TINY, **settings})
    torch.manual_seed(0)
    return getattr(transformers, name)(config)


@pytest.mark.parametrize(
    ("name", "settings", "options", "error", "message"),
    [
        ("BertForTokenClassification", {}, {}, SourceError, "has no perplexity"),
        ("RobertaForCausalLM", {}, {}, FinetuneError, "depends on that token and later ones"),
        (
            "RobertaForCausalLM",
            {"is_decoder": True},
            {"window": 33},
            FinetuneError,
            "longer than the model's 32 positions",
        ),
        ("LlamaForCausalLM", {"vocab_size": 64}, {}, FinetuneError, "the model knows 64 tokens"),
    ],
)
def test_unfit_models(
    tiny_llama: Path,
    prose: Path,
    tmp_path: Path,
    name: str,
    settings: dict[str, Any],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    folder, archive = archive_of(made(name, **settings), tiny_llama, tmp_path / "model")
    with pytest.raises(error, match=message):
        finetune(
            archive,
            model=folder,
            text=prose,
            output=tmp_path / "a.adapter",
            options=options or None,
        )


def test_a_device_that_is_not_there(base: Path, tiny_llama: Path, prose: Path, tmp_path: Path):
    with pytest.raises(FinetuneError, match="`gpu` is not a device"):
        finetune(base, model=tiny_llama, text=prose, output=tmp_path / "a.adapter", device="gpu")


def test_one_path_is_one_text(
    base: Path, tiny_llama: Path, prose: Path, options: dict, adapter: Path, tmp_path: Path
) -> None:
    output = tmp_path / "a.adapter"
    finetune(base, model=tiny_llama, text=str(prose), output=output, options=options)
    assert output.read_bytes() == adapter.read_bytes()
