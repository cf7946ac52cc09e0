"""The two protocols: what is cut, what is dropped, which bytes count."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from reallm_compiler.errors import EvaluationError
from reallm_compiler.evaluate.text import (
    check_same_tokenizer,
    cut_documents,
    cut_windows,
    read_text,
)


def byte_tokenizer(*, bos: bool, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges: a token is a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0} | {letter: index + 1 for index, letter in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>" if bos else None, model_max_length=4
    )


PLAIN = byte_tokenizer(bos=False)
NAMED = byte_tokenizer(bos=True)
ADDING = byte_tokenizer(bos=True, adds_bos=True)


class WithoutOffsets:
    """A tokenizer that cannot say where its tokens stand, as those written in Python."""

    is_fast = False
    bos_token_id = 0

    def __call__(self, text, *, return_offsets_mapping, **options):
        assert not return_offsets_mapping
        return ADDING(text, **options)

    def decode(self, ids, **options):
        return ADDING.decode(ids, **options)


def test_windows_are_equal_and_the_tail_is_dropped():
    cut = cut_windows(PLAIN, "abcdefghijk", 4)
    ids = PLAIN("abcdefghijk", verbose=False)["input_ids"]
    assert cut.sequences == (tuple(ids[0:4]), tuple(ids[4:8]))
    assert (cut.window, cut.dropped_tokens, cut.predicted, cut.nbytes) == (4, 3, 6, 8)
    assert cut.protocol == "windows"


def test_a_bos_is_there_only_as_the_tokenizer_puts_it():
    assert cut_windows(NAMED, "abcdef", 3).sequences[0][0] != 0
    cut = cut_windows(ADDING, "abcdef", 3)
    assert [sequence[0] == 0 for sequence in cut.sequences] == [True, False]
    # BOS and five letters are in the two windows; BOS has no bytes.
    assert (cut.nbytes, cut.dropped_tokens) == (5, 1)


@pytest.mark.parametrize(
    ("text", "window", "expected"),
    [
        pytest.param("éaéa", 3, 6, id="cut-at-a-character"),
        pytest.param("éaéaa", 2, 6, id="nothing-of-a-character-dropped"),
        pytest.param("aéaaa", 2, 6, id="split-character-inside"),
        pytest.param("éaéaaab", 4, 9 - 1, id="no-split-at-the-end"),
        pytest.param("aaaéa", 4, 5, id="split-at-the-end-counts-whole"),
        pytest.param("a\r\n\n", 2, 4, id="line-ends"),
    ],
)
def test_bytes_are_those_up_to_the_end_of_the_last_window(text, window, expected):
    assert cut_windows(PLAIN, text, window).nbytes == expected


def test_a_tokenizer_without_offsets_counts_by_decoding():
    cut = cut_windows(WithoutOffsets(), "abécdef", 4)
    # BOS a b é(2) c d e | f dropped? 9 tokens: two windows of 4 hold all but the last.
    assert (len(cut.sequences), cut.dropped_tokens, cut.nbytes) == (2, 1, 7)


@settings(deadline=None, max_examples=40)
@given(
    text=st.text(alphabet=st.characters(codec="utf-8", exclude_characters="<"), min_size=2),
    window=st.integers(2, 9),
)
def test_windows_lose_and_repeat_nothing(text, window):
    ids = PLAIN(text, verbose=False)["input_ids"]
    assert len(ids) == len(text.encode())
    if len(ids) < window:
        with pytest.raises(EvaluationError, match="too short"):
            cut_windows(PLAIN, text, window)
        return
    cut = cut_windows(PLAIN, text, window)
    joined = [token for sequence in cut.sequences for token in sequence]
    assert {len(sequence) for sequence in cut.sequences} == {window}
    assert joined == ids[: len(joined)]
    assert cut.dropped_tokens == len(ids) - len(joined) < window
    # A token is a byte here; a split last character adds at most its other three.
    assert len(joined) <= cut.nbytes <= min(len(joined) + 3, len(ids))


def test_documents_stand_alone_after_one_bos():
    text = "abc\n<end>\n  de \n<end>\n\n<end>fghijk"
    expected = [b"abc", b"de", b"fghi"]
    for tokenizer in (NAMED, ADDING):
        cut = cut_documents(tokenizer, text, 5, "<end>")
        assert [sequence[0] for sequence in cut.sequences] == [0, 0, 0]
        assert [tokenizer.decode(s[1:]).encode() for s in cut.sequences] == expected
        assert (cut.predicted, cut.nbytes, cut.dropped_tokens) == (9, 9, 2)
        assert cut.protocol == "documents"


def test_bytes_of_a_document_that_is_cut_off_follow_its_tokens():
    cut = cut_documents(NAMED, "aéé<end>é", 4, "<end>")
    # BOS a é | é: 3 bytes of 5; then BOS é: 2 bytes.
    assert (cut.nbytes, cut.predicted, cut.dropped_tokens) == (5, 5, 2)


def test_a_long_text_raises_no_warning_about_the_models_context(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger="transformers"):
        fresh = byte_tokenizer(bos=False)  # the warning comes once for each tokenizer
        cut_windows(fresh, "abcdefgh", 4)
        assert not caplog.records
        fresh("abcdefgh")  # and it is there when asked in the usual way
    assert "longer than" in caplog.text


@pytest.mark.parametrize(
    ("call", "message", "hint"),
    [
        pytest.param(
            lambda: cut_windows(PLAIN, "abc", 8),
            "the text is too short: it has 3 tokens, and one window needs 8",
            "give a longer text, or a window of at most 3",
            id="too-short",
        ),
        pytest.param(
            lambda: cut_windows(PLAIN, "a", 8),
            "the text is too short: it has 1 tokens, and one window needs 8",
            "give a longer text",
            id="one-token",
        ),
        pytest.param(
            lambda: cut_windows(PLAIN, "abc", 1),
            "a window of 1 predicts nothing",
            "give a window of 2 or more tokens",
            id="window-1",
        ),
        pytest.param(
            lambda: cut_documents(NAMED, "abc", 8, "<end>"),
            "the separator '<end>' does not occur in the text",
            "without a separator the text is cut into windows of equal length",
            id="no-separator",
        ),
        pytest.param(
            lambda: cut_documents(NAMED, "abc", 8, ""),
            "the separator '' does not occur in the text",
            "without a separator the text is cut into windows of equal length",
            id="empty-separator",
        ),
        pytest.param(
            lambda: cut_documents(PLAIN, "a<end>b", 8, "<end>"),
            "the tokenizer has no BOS token to put before each document",
            "without a separator the text is cut into windows of equal length",
            id="no-bos",
        ),
        pytest.param(
            lambda: cut_documents(NAMED, " <end>\n<end>", 8, "<end>"),
            "every document of the text is empty",
            None,
            id="only-empty",
        ),
    ],
)
def test_unfit_texts_are_reported(call, message, hint):
    with pytest.raises(EvaluationError) as caught:
        call()
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_read_text_keeps_every_byte(tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes("\ufeffé\r\n\n".encode())
    assert read_text(file).encode() == file.read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "there is no such text file", id="missing"),
        pytest.param("folder", "the text is a folder", id="folder"),
        pytest.param(b"", "the text is empty", id="empty"),
        pytest.param(b"ab\xff", "the text is not UTF-8: byte 0xff at offset 2", id="not-utf-8"),
    ],
)
def test_read_text_tells_what_is_wrong(tmp_path, content, message):
    file = tmp_path / "text.txt"
    if content == "folder":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(EvaluationError) as caught:
        read_text(file)
    assert (caught.value.message, caught.value.location) == (message, str(file))


def test_equal_tokenizers_pass():
    check_same_tokenizer(NAMED, NAMED, "abc")
    check_same_tokenizer(NAMED, byte_tokenizer(bos=True), "abc")


def test_other_tokens_of_the_same_text_are_refused():
    with pytest.raises(EvaluationError, match="different tokenizers") as caught:
        check_same_tokenizer(NAMED, ADDING, "abc")
    assert caught.value.note == "the vocabularies are equal, but the same text gives other tokens"


def test_another_vocabulary_is_refused():
    larger = byte_tokenizer(bos=True)
    larger.add_tokens(["<new>"])
    with pytest.raises(EvaluationError, match="different tokenizers") as caught:
        check_same_tokenizer(NAMED, larger, "abc")
    assert caught.value.note == "the vocabularies have 257 and 258 tokens"
    turned = Tokenizer.from_str(NAMED.backend_tokenizer.to_str().replace('"a"', '"\\u0000"', 1))
    with pytest.raises(EvaluationError, match="different tokenizers") as caught:
        check_same_tokenizer(NAMED, PreTrainedTokenizerFast(tokenizer_object=turned), "abc")
    assert caught.value.note == "1 of 257 tokens differ"
