"""`reallm export` as a user sees it."""

from __future__ import annotations

from reallm_cli.main import main


def test_the_command_writes_a_folder_and_prints_its_path(archive_of, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["export", str(archive_of("nf4")), "--to", "bitsandbytes", "-o", str(out)]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert printed.err.startswith("wrote 3")
    assert (out / "tokenizer.json").exists()
    assert main(words) == 6
    assert main([*words, "--force"]) == 0


def test_a_refusal_is_shown_with_reasons_and_code_15(archive_of, tmp_path, capsys):
    archive = archive_of("plain", {})
    code = main(["export", str(archive), "--to", "bitsandbytes", "-o", str(tmp_path / "out")])
    printed = capsys.readouterr()
    assert (code, printed.out) == (15, "")
    assert "bitsandbytes cannot hold 14 of 14 linear layers exactly" in printed.err
    assert "and 13 more: `quantizer: none`" in printed.err
    assert "Traceback" not in printed.err
