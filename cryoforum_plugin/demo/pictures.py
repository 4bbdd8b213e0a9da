"""The picture that the demonstration ends with."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cryoforum_plugin.charts.charts import BLUE, GREY, ORANGE, VERMILION
from cryoforum_plugin.images.stacks import StackReader
from cryoforum_plugin.particles import FloatArray, ParticleSet

Mask = NDArray[np.bool_]


def summary_picture(
    folder: Path, predicted: ParticleSet, chosen: Mask, junk: Mask, error_deg: FloatArray, output: Path
) -> None:
    """Draw images, maps, expected against true error, confidences and FSC curves into one PNG.

    chosen, junk : `(n,)` rows that were selected, that are junk. error_deg : `(n,)` true angular errors.
    """
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    axes = figure.subplot_mosaic("abcd;eefg")
    _images(axes["a"], predicted)
    for key, name, title in (
        ("b", "map_predicted/map.mrc", "map from all images"),
        ("c", "map_selected/map.mrc", "map from the selected"),
    ):
        _show(axes[key], mrcfile.read(folder / name).sum(axis=0), title)
    _show(axes["d"], mrcfile.read(folder / "model" / "reference.mrc").sum(axis=0), "training reference")
    _fsc(axes["e"], folder)
    _errors(axes["f"], predicted, junk, error_deg)
    _confidence(axes["g"], predicted, chosen, junk)
    figure.savefig(output, dpi=110)


def _show(axes: Axes, image: FloatArray, title: str) -> None:
    axes.imshow(image, cmap="gray")
    axes.set(title=title, xticks=[], yticks=[])


def _images(axes: Axes, particles: ParticleSet) -> None:
    reader = StackReader(particles.stacks)
    images = reader.read(particles.stack_index[:9], particles.slice_index[:9])
    _show(axes, np.concatenate(np.concatenate(images.reshape(3, 3, *images.shape[1:]), 1), 1), "new images")


def _fsc(axes: Axes, folder: Path) -> None:
    for name, colour, label in (("predicted", ORANGE, "all images"), ("selected", BLUE, "selected")):
        table = np.genfromtxt(folder / f"map_{name}" / "fsc.csv", delimiter=",", names=True)[1:]
        axes.plot(1 / table["resolution_A"], table["fsc"], color=colour, label=label)
    axes.axhline(0.143, color=GREY, linestyle=":", linewidth=1)
    axes.set(
        xlabel="spatial frequency (1/Å)", ylabel="FSC of the half maps", title="resolution", ylim=(-0.1, 1.05)
    )
    axes.legend(frameon=False)


def _errors(axes: Axes, particles: ParticleSet, junk: Mask, error_deg: FloatArray) -> None:
    assert particles.prediction is not None
    expected = particles.prediction.expected_error_deg
    assert expected is not None
    for rows, colour, label in ((~junk, BLUE, "particles"), (junk, VERMILION, "junk")):
        axes.loglog(expected[rows], error_deg[rows], ".", color=colour, markersize=2, alpha=0.5, label=label)
    axes.plot([0.5, 180], [0.5, 180], color=GREY, linewidth=1)
    axes.set(xlabel="expected error (deg)", ylabel="true error (deg)", title="it knows how sure it is")
    axes.legend(frameon=False, markerscale=4)


def _confidence(axes: Axes, particles: ParticleSet, chosen: Mask, junk: Mask) -> None:
    assert particles.prediction is not None
    confidence = particles.prediction.confidence
    bins = list(np.linspace(0, 1, 31))
    axes.hist(confidence[~junk], bins=bins, color=BLUE, alpha=0.6, label="particles")
    axes.hist(confidence[junk], bins=bins, color=VERMILION, alpha=0.6, label="junk")
    if chosen.any():
        axes.axvline(float(confidence[chosen].min()), color=GREY, linestyle="--", label="threshold")
    axes.set(xlabel="confidence: P(error < 5°)", ylabel="images", title="confidence", yscale="log")
    axes.legend(frameon=False)
