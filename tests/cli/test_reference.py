"""The page of all commands is what the commands say of themselves."""

from __future__ import annotations

from pathlib import Path

from cryoforum_plugin.cli.reference import reference

PAGE = Path(__file__).resolve().parents[2] / "docs" / "commands.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == reference(), (
        "run `python -m cryoforum_plugin.cli.reference > docs/commands.md`"
    )
