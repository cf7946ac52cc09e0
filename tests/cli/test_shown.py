"""Numbers, kinds, tables, YAML and progress: what everything shown is made of."""

from __future__ import annotations

import io
from fractions import Fraction

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from reallm_cli.progress import ProgressBar, Reporter
from reallm_cli.tables import Sheet, show_sheet
from reallm_cli.terminal import Terminal, escape
from reallm_compiler import numbers
from reallm_compiler.hints import did_you_mean, nearest
from reallm_compiler.planning.budget_rows import budget_rows, pattern_of
from reallm_compiler.planning.build import plan
from reallm_compiler.recipe.plain_yaml import to_yaml


@pytest.mark.parametrize(
    ("rates", "shown"),
    [
        ([Fraction(2)], ["2"]),
        ([Fraction(0), Fraction(1, 2)], ["0.0", "0.5"]),
        ([Fraction(3, 32), Fraction(2)], ["0.09375", "2.00000"]),
        ([Fraction(2500977, 10**6)], ["2.500977"]),
        ([Fraction(1, 3), Fraction(10)], ["0.333333", "10.000000"]),
        ([Fraction(1999999999, 10**9)], ["2"]),
        ([Fraction(1, 2 * 10**6), Fraction(3, 2 * 10**6)], ["0.000000", "0.000002"]),
        ([], []),
    ],
    ids=str,
)
def test_rates_have_the_decimals_they_need(rates, shown):
    assert numbers.bits_column(rates) == shown


@given(st.lists(st.fractions(min_value=0, max_value=64), min_size=1))
def test_a_shown_rate_is_the_rate_to_six_decimals(rates):
    shown = numbers.bits_column(rates)
    for rate, text in zip(rates, shown, strict=True):
        assert abs(Fraction(text) - rate) <= Fraction(1, 2 * 10**6)
    assert len({len(text.partition(".")[2]) for text in shown}) == 1


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (969024, "969.0 kB"),
        (2648608704, "2.6 GB"),
        (5 * 10**15, "5000.0 TB"),
    ],
)
def test_sizes(count, text):
    assert numbers.size_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.84, "0.8 s"),
        (42.4, "42 s"),
        (59.7, "1 min 00 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
        (float("inf"), "-"),
    ],
)
def test_durations(seconds, text):
    assert numbers.duration_text(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.0, "0.0000"), (0.13884, "0.1388"), (0.000512, "5.12e-04")]
)
def test_errors(value, text):
    assert numbers.error_text(value) == text


def test_counts_and_shares():
    assert numbers.grouped(6476005376) == "6,476,005,376"
    assert numbers.counted(1, "matrix", "matrices") == "1 matrix"
    assert numbers.counted(2000, "byte") == "2,000 bytes"
    assert numbers.share_text(1, 3) == "33.33 %"
    assert numbers.share_text(0, 0) == "-"
    assert [numbers.rate_text(n) for n in (10, 2e3, 3.5e6, 4e9)] == [
        "10 weights/s", "2.0k weights/s", "3.5M weights/s", "4.0G weights/s",
    ]  # fmt: skip


def test_a_pattern_stars_numbers_only():
    assert pattern_of("model.layers.12.mlp.experts.3.w1") == "model.layers.*.mlp.experts.*.w1"
    assert pattern_of("h0.c_attn2") == "h0.c_attn2"


def test_kinds_hold_every_matrix_once():
    shapes = {f"layers.{layer}.q_proj": [64, 64] for layer in range(6)}
    shapes |= {f"layers.{layer}.up_proj": [128, 64] for layer in range(6)}
    recipe = {
        "reallm": 1,
        "defaults": {"quantizer": {"kind": "vq", "bits": 2, "dim": 2}},
        "rules": [
            {"match": "*.q_proj", "layers": "0,2-3", "set": {"quantizer": {"bits": 3}}},
        ],
    }
    planned = plan(recipe, model={"shapes": shapes})
    sizes = planned.budget()
    rows = budget_rows(planned, sizes.matrices)
    assert {row.name: row.count for row in rows} == {
        "layers.0,2-3.q_proj": 3,
        "layers.1,4-5.q_proj": 3,
        "layers.*.up_proj": 6,
    }
    assert sum(row.nbytes for row in rows) == sizes.totals.coded_bytes
    for row in rows:
        terms = row.matrices[0].terms
        assert sum(row.term_bits(term) for term in terms) == row.exact_bits
    weighted = sum(row.paper_bits * row.numel for row in rows)
    assert weighted / sizes.totals.numel == sizes.totals.paper_bits


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=12), st.sampled_from(
        ["true", "no", "1/64", "*.q_proj", "re:a.*", "1e3", "0x10", "12", "-", "a: b", "a b", "~",
         "2026-01-01", "1_000", "12:30:45", "null", "=", "<<", "nan", ".inf", "0-3", "a/b c"]
    )
)  # fmt: skip
PLAIN = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=8), PLAIN, max_size=5), st.integers(0, 4))
def test_yaml_reads_back(value, indent):
    assert yaml.safe_load(to_yaml(value, indent) + "\n") == value


def test_yaml_is_written_as_a_recipe_is():
    value = {
        "reallm": 1,
        "defaults": {"quantizer": {"kind": "vq", "bits": 2}, "dora": True, "share": None},
        "rules": [{"match": ["*.q_proj", "lm_head"], "keep": "source"}],
        "none": [],
    }
    assert to_yaml(value) == (
        "reallm: 1\n"
        "defaults:\n"
        "  quantizer: {kind: vq, bits: 2}\n"
        "  dora: true\n"
        "  share: null\n"
        "rules:\n"
        '  - match: ["*.q_proj", lm_head]\n'
        "    keep: source\n"
        "none: []"
    )


class Tty(io.StringIO):
    def isatty(self):
        return True


SHEET = Sheet(
    columns=["<name", "count", "shape", "bytes"],
    rows=[("layers.*.q_proj", "2", "64 x 64", "1,024"), ("été", "1", "8 x 8", "64")],
    total=("all", "3", "", "1,088"),
    last=["shape"],
)


def shown(stream, sheet=SHEET):
    show_sheet(Terminal(out=stream), sheet)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_a_table():
    assert shown(io.StringIO()) == [
        "name             count    shape  bytes",
        "──────────────────────────────────────",
        "layers.*.q_proj      2  64 x 64  1,024",
        "été                  1    8 x 8     64",
        "──────────────────────────────────────",
        "all                  3           1,088",
    ]


def test_a_table_in_ascii():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    show_sheet(Terminal(out=stream), SHEET)
    stream.flush()
    lines = [line.rstrip() for line in stream.buffer.getvalue().decode("ascii").splitlines()]
    assert lines == [
        "name             count    shape  bytes",
        "--------------------------------------",
        "layers.*.q_proj      2  64 x 64  1,024",
        "\\xe9t\\xe9            1    8 x 8     64",
        "--------------------------------------",
        "all                  3           1,088",
    ]


def test_a_wide_table_is_cut_between_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "34")
    monkeypatch.setenv("NO_COLOR", "1")
    assert shown(Tty()) == [
        "name             count  bytes",
        "─────────────────────────────",
        "layers.*.q_proj      2  1,024",
        "été                  1     64",
        "─────────────────────────────",
        "all                  3  1,088",
        "",
        "name               shape",
        "────────────────────────",
        "layers.*.q_proj  64 x 64",
        "été                8 x 8",
        "────────────────────────",
        "all",
    ]


def test_prose_alone_is_wrapped(monkeypatch):
    monkeypatch.setenv("COLUMNS", "44")
    monkeypatch.setenv("NO_COLOR", "1")
    sheet = Sheet(columns=["<name", "<purpose"], rows=[("nf4", "word " * 9)], wrap="<purpose")
    assert shown(Tty(), sheet)[2:] == [
        "nf4   word word word word word word word",
        "      word word",
    ]


def test_text_from_outside_cannot_steer_a_terminal():
    assert escape("a\x1b]0;x\x07\u202eb\nc\t") == "a\\x1b]0;x\\x07\\u202eb\nc\\t"


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_progress_without_a_terminal_is_a_line_now_and_then():
    stream, clock = io.StringIO(), Clock()
    bar = ProgressBar(
        Terminal(err=stream), "compile", total=20, unit="steps", work=2000, initial=10,
        initial_work=1000, rate=numbers.rate_text, clock=clock,
    )  # fmt: skip
    with bar:
        for unit in range(1, 11):
            clock.now += 4
            bar.update(10 + unit, 1000 + 100 * unit)
    # 100 weights in 4 seconds of this run; what was done before does not count.
    assert stream.getvalue() == (
        "compile: 13 of 20 steps, 25 weights/s, 28 s left\n"
        "compile: 16 of 20 steps, 25 weights/s, 16 s left\n"
        "compile: 19 of 20 steps, 25 weights/s, 4.0 s left\n"
        "compile: 20 of 20 steps, 25 weights/s\n"
    )


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream, clock = Tty(), Clock()
    with ProgressBar(
        Terminal(err=stream), "eval", total=1, unit="windows", work=1, clock=clock
    ) as bar:
        clock.now += 2
        bar.retarget(3, 12)
    assert "3 of 12 windows, 1.5 windows/s, 6.0 s left" in stream.getvalue()


def test_nearest_words():
    words = ["reallm-2bit", "reallm-3bit", "nf4", "model.layers.0.self_attn.q_proj"]
    assert nearest("reallm-2bt", words)[0] == "reallm-2bit"
    assert nearest("q_proj", words) == ["model.layers.0.self_attn.q_proj"]
    assert nearest("xyz", words) == []
    assert did_you_mean(["a", "b", "c"]) == "did you mean `a`, `b` or `c`?"
    assert did_you_mean([]) is None


def test_each_step_of_a_command_has_a_bar_of_its_own() -> None:
    shown = io.StringIO()
    with Reporter(Terminal(io.StringIO(), shown)) as reporter:
        reporter.measure("load", "tensors", 1, 2)
        reporter.measure("load", "tensors", 2, 2)
        reporter.measure("eval", "windows", 3, 3, last=True)
        reporter.end_bar()
        reporter.measure("eval", "windows", 4, 4, last=True)
    assert shown.getvalue() == "eval: 3 of 3 windows\neval: 4 of 4 windows\n"
