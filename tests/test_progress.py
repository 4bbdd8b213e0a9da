"""Progress in a host's log file, as its GUI shows it."""

from __future__ import annotations

import io

import pytest

from cryoforum_plugin import progress as module
from cryoforum_plugin.progress import LiveLog, progress, show_progress_in


def shown(text: str) -> list[str]:
    """Lines as RELION's GUI shows them: what follows the last carriage return."""
    return [line.rpartition("\r")[2].rstrip() for line in text.rstrip("\n").split("\n")]


def test_renewed_lines_leave_whole_lines_behind() -> None:
    stream = io.StringIO()
    log = LiveLog(stream)
    log.renew("step: 1/10, a long note")
    log.renew("step: 2/10")
    log.line("epoch 1")
    log.line("epoch 2")
    log.renew("step: 3/10")
    assert shown(stream.getvalue()) == ["epoch 1", "epoch 2", "step: 3/10"]


def test_progress_goes_to_the_log_and_ends_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_RENEWALS", 0.0)
    stream = io.StringIO()
    show_progress_in(LiveLog(stream))
    try:
        with progress("reading", 4) as advance:
            for step in range(4):
                advance(1, f"image {step}")
        with progress("silent", 4, quiet=True) as advance:
            advance(4, "")
    finally:
        show_progress_in(None)
    assert stream.getvalue().count("\r") >= 4
    (line,) = shown(stream.getvalue())
    assert line.startswith("reading: 4/4")
    assert line.endswith("image 3")


def test_progress_without_a_terminal_ends_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("reading", 4) as advance:
        advance(3, "")
        advance(1, "done")
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "reading: 4/4, 0 s, done"
