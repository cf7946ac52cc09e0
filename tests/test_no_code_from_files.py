"""No way into transformers runs code that came with a model, asks about it, or uses the network."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest

import reallm_compiler as reallm
from reallm_compiler.checkpoint.untrusted import offline, without_code
from reallm_compiler.errors import SourceError
from reallm_compiler.evaluate import load_for_evaluation

ROOT = Path(__file__).parent.parent
LOADERS = ("from_pretrained", "from_config", "pipeline", "HFLM", "Handed")
SWITCH = "trust_remote_code"


def careless(text: str) -> list[int]:
    """Lines of calls that load by transformers and do not say `trust_remote_code=False`."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", None))
        given = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
        if (name in LOADERS and given.get(SWITCH) is not False) or given.get(SWITCH):
            found.append(node.lineno)
    return found


def test_a_careless_call_is_seen() -> None:
    assert careless("AutoModel.from_pretrained(x)") == [1]
    assert careless("AutoModel.from_config(x, trust_remote_code=True)") == [1]
    assert careless("AutoModel.from_config(x, trust_remote_code=asked)") == [1]
    assert careless("AutoModel.from_config(x, trust_remote_code=False)") == []


@pytest.mark.parametrize(
    "folder", ["reallm_compiler", "cli", "benchmarks", "studies", "examples", "demo"]
)
def test_every_call_into_transformers_refuses_code(folder: str) -> None:
    paths = list((ROOT / folder).rglob("*.py"))
    assert paths
    found = {str(path): careless(path.read_text(encoding="utf-8")) for path in paths}
    assert {path: lines for path, lines in found.items() if lines} == {}


def coded_model(config: dict) -> None:
    config.update(
        model_type="fancy_llm",
        architectures=["FancyForCausalLM"],
        auto_map={
            "AutoConfig": "code_of_it.FancyConfig",
            "AutoModelForCausalLM": "code_of_it.Fancy",
        },
    )


def hub_model(config: dict) -> None:
    coded_model(config)
    config["auto_map"] = {key: f"owner/name--{value}" for key, value in config["auto_map"].items()}


def coded_tokenizer(config: dict) -> None:
    config.update(
        tokenizer_class="FancyTokenizer",
        auto_map={"AutoTokenizer": ["code_of_it.Fancy", "code_of_it.Fancy"]},
    )


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a model, with code beside it that leaves a trace; questions fail the test."""

    def asked(*words: object) -> str:
        raise AssertionError(f"the user was asked: {words}")

    monkeypatch.setattr("builtins.input", asked)
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    trace = f"open({str(tmp_path / 'RAN')!r}, 'w').close()\n"
    (folder / "code_of_it.py").write_text(trace)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(trace)
    return folder


def changed(folder: Path, name: str, change) -> None:
    path = folder / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        pytest.param("config.json", coded_model, "is not known to transformers", id="model"),
        pytest.param("config.json", hub_model, "is not known to transformers", id="hub"),
        pytest.param(
            "tokenizer_config.json", coded_tokenizer, "the tokenizer needs program code", id="words"
        ),
    ],
)
def test_code_of_a_repository_is_refused(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, change, message: str
) -> None:
    changed(folder, name, change)
    archive = tmp_path / "model.reallm"
    reallm.compile({"reallm": 1}, model=folder, output=archive, workers=1)
    for load in (lambda: load_for_evaluation(folder), lambda: reallm.load(archive)):
        with pytest.raises(SourceError, match=message):
            load()
    assert not (tmp_path / "RAN").exists()
    assert capfd.readouterr().out == ""


def test_an_own_class_is_used_where_transformers_has_one(folder: Path, tmp_path: Path) -> None:
    changed(
        folder,
        "config.json",
        lambda config: config.update(auto_map={"AutoModelForCausalLM": "code_of_it.Fancy"}),
    )
    model, _ = load_for_evaluation(folder)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not (tmp_path / "RAN").exists()


def test_kernels_of_the_hub_are_not_asked_for(folder: Path) -> None:
    changed(
        folder,
        "config.json",
        lambda config: config.update(attn_implementation="kernels-community/flash-attn2"),
    )
    model, _ = load_for_evaluation(folder)
    assert "/" not in str(model.config._attn_implementation)


def test_words_that_lead_to_code_are_left_out_at_any_depth() -> None:
    config = {"a": {"auto_map": {}, "b": [{"attn_implementation": "x/y", "c": 1}]}, "d": None}
    assert without_code(config) == {"a": {"b": [{"c": 1}]}, "d": None}


def test_offline_is_put_back_by_the_last_one_out() -> None:
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    first, second = offline(), offline()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert constants.is_offline_mode()
    second.__exit__(None, None, None)
    assert constants.HF_HUB_OFFLINE is before
