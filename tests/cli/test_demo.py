"""The demonstration, small."""

from __future__ import annotations

from pathlib import Path

from chain import cryoforum, succeed


def test_demo_runs_the_whole_chain_and_says_where_things_are(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    result = succeed("demo", "-o", folder, "--count", 400, "--epochs", 1, "--quiet")
    for words in (
        "error of the new particles",
        "resolution (FSC 0.143)",
        "wrong particles",
        str(folder / "demo.png"),
    ):
        assert words in result.stdout
    assert {"demo.png", "report.html", "predicted.star", "selected.star"} <= {
        p.name for p in folder.iterdir()
    }
    again = cryoforum("demo", "-o", folder)
    assert again.exit_code == 1
    assert "exists already" in again.stderr
    (folder / "thesis.tex").write_text("years of work")
    refused = cryoforum("demo", "-o", folder, "--overwrite")
    assert refused.exit_code == 1
    assert "thesis.tex" in refused.stderr
