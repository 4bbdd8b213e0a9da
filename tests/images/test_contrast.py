"""Contrast is told from many noisy images, and not guessed from few."""

from __future__ import annotations

import pytest
import torch

from cryoforum_plugin.errors import ImageStackError
from cryoforum_plugin.images.contrast import ContrastCheck


def noisy_discs(sign: float, count: int = 200) -> torch.Tensor:
    axis = torch.arange(32) - 16
    disc = ((axis[:, None] ** 2 + axis[None] ** 2) < 64).float()
    return sign * disc + 3 * torch.randn(count, 32, 32)


def test_bright_protein_passes_and_dark_is_refused() -> None:
    bright, dark = ContrastCheck(), ContrastCheck()
    bright.add(noisy_discs(0.5))
    dark.add(noisy_discs(-0.5))
    assert bright.verdict("x.star") is None
    with pytest.raises(ImageStackError, match=r"x\.star: protein is dark.*--invert-contrast"):
        dark.verdict("x.star")


def test_noise_alone_gives_a_warning() -> None:
    check = ContrastCheck()
    check.add(noisy_discs(0.0))
    assert "could not be confirmed" in str(check.verdict("x.star"))
    few = ContrastCheck()
    few.add(noisy_discs(-2.0, 5))
    assert "could not be confirmed" in str(few.verdict("x.star"))
