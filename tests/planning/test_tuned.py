"""How tuning went, written into a provenance and read again."""

from __future__ import annotations

from reallm_compiler.planning.tuned import BLOCKS, from_provenance, to_provenance, without_record


def test_what_is_written_is_read() -> None:
    blocks, losses = [(0.0123, 0.01), (2.5e-7, 1e-7)], [(0, 3.25), (40, 3.125)]
    stored = to_provenance(blocks, losses)
    assert stored == {
        "tuned_blocks": "0.0123 0.01, 2.5e-07 1e-07",
        "tuned_losses": "0 3.25, 40 3.125",
    }
    found = from_provenance({"text": b"x", **stored})
    assert (list(found.blocks), list(found.losses)) == (blocks, losses)
    assert without_record({"text": b"x", **stored}) == {"text": b"x"}


def test_a_stage_that_was_not_run_says_nothing() -> None:
    assert to_provenance([], []) == {}
    assert from_provenance({}).blocks == from_provenance({BLOCKS: b"1 2"}).blocks == ()


def test_what_something_else_wrote_is_left_out() -> None:
    for odd in ("x", "1", "1 2 3", "1 2,3 4"):
        assert from_provenance({BLOCKS: odd}).blocks == ()
