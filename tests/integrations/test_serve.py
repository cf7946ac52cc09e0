"""`reallm serve` with real HTTP: completions, chats by the template, two requests at once."""

from __future__ import annotations

import json
import socket
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import reallm_compiler as reallm
from reallm_compiler.errors import ExportError
from reallm_compiler.integrations import serve as serve_module

serving = pytest.mark.filterwarnings("ignore")
"""Warnings of the libraries of the server."""


def libraries():
    for name in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(name, reason=f"{name} is not installed (extra `serve`)")


@pytest.fixture(scope="module")
def server(archive_of):
    libraries()
    running = reallm.serve(archive_of("nf4"), port=0, device="cpu")
    yield running
    running.stop()


def ask(url, content=None, timeout=120):
    request = urllib.request.Request(
        url,
        data=None if content is None else json.dumps(content).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return json.loads(answer.read())


@pytest.fixture(scope="module")
def expected(archive_of):
    """What the model says by itself, greedily."""
    model, tokenizer = reallm.load(archive_of("nf4"), mode="packed")

    def text(prompt, tokens):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        out = model.generate(ids, max_new_tokens=tokens, do_sample=False)
        return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)

    return text


def completion(server, prompt, tokens=12):
    content = {"model": server.name, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    return ask(f"{server.url}/completions", content)["choices"][0]["text"]


@serving
def test_it_completes_as_the_model_does(server, expected):
    assert ask(server.url.removesuffix("/v1") + "/health") == {"status": "ok"}
    assert [model["id"] for model in ask(f"{server.url}/models")["data"]] == [server.name]
    assert server.name == "nf4"
    assert completion(server, "Anna has three") == expected("Anna has three", 12)


@serving
def test_two_requests_at_once(server, expected):
    prompts = ("Anna has", "The cat sleeps")
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda prompt: completion(server, prompt, 24), prompts))
    assert answers == [expected(prompt, 24) for prompt in prompts]


@serving
def test_a_chat_goes_by_the_template(server, expected):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=server.url, api_key="none")
    messages = [{"role": "user", "content": "How many apples?"}]
    answer = client.chat.completions.create(
        model=server.name, messages=messages, max_tokens=8, temperature=0
    )
    assert answer.choices[0].message.content == expected("user: How many apples?\n", 8)
    streamed = client.chat.completions.create(
        model=server.name, messages=messages, max_tokens=8, temperature=0, stream=True
    )
    parts = [chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices]
    whole = answer.choices[0].message.content.rstrip("\ufffd")  # half a character at the end
    assert "".join(parts).rstrip("\ufffd") == whole
    client.close()


@serving
def test_another_model_is_not_served(server):
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(f"{server.url}/completions", {"model": "gpt2", "prompt": "x"})
    with caught.value as answer:
        assert answer.code == 400
        assert b"pinned to 'nf4'" in answer.read()


def test_a_port_that_is_taken_is_named_before_the_model_is_loaded(archive_of, monkeypatch):
    monkeypatch.setattr(serve_module, "_library", lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ExportError, match="cannot listen there") as caught:
            reallm.serve(archive_of("nf4"), port=port)
    assert caught.value.location == f"127.0.0.1:{port}"


def test_without_the_libraries_it_says_what_to_install(archive_of, monkeypatch):
    from transformers.utils import import_utils

    monkeypatch.setattr(import_utils, "is_serve_available", lambda: False)
    with pytest.raises(ExportError, match="libraries of a server are not installed") as caught:
        reallm.serve(archive_of("nf4"), port=0)
    assert "reallm-compiler[serve]" in caught.value.hint


def test_what_generates_no_text_is_refused(tmp_path, monkeypatch):
    from transformers import BertConfig, BertModel

    monkeypatch.setattr(serve_module, "_library", lambda: None)
    config = BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        vocab_size=64, max_position_embeddings=16,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(tmp_path / "bert")
    archive = tmp_path / "bert.reallm"
    reallm.compile({"reallm": 1}, model=tmp_path / "bert", output=archive, progress=False)
    with pytest.raises(ExportError, match="it has no tokenizer"):
        reallm.serve(archive, port=0)


def test_the_command_reports_what_is_missing(archive_of, capsys, monkeypatch):
    from reallm_cli.main import main

    monkeypatch.setitem(sys.modules, "transformers.cli.serve", None)
    assert main(["serve", str(archive_of("nf4")), "--port", "0"]) == 15
    assert "has no server" in capsys.readouterr().err
