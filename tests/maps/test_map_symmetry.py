"""A user's map is held to its point group: about RELION's axes, through voxel n/2, where the map holds anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from blobs import blob_positions, blob_volume, positions_with
from scipy.spatial.transform import Rotation
from torch import Tensor

from cryoforum_plugin.errors import ImageStackError
from cryoforum_plugin.maps.given import ShownMap
from cryoforum_plugin.maps.map_symmetry import check_map_symmetry
from cryoforum_plugin.maps.volume import low_pass

SIZE, PIXEL_A = 48, 4.0


def shown(volume: Tensor, resolution_A: float | None = None) -> ShownMap:
    filtered = volume if resolution_A is None else low_pass(volume, PIXEL_A, resolution_A)
    return ShownMap(Path("map.mrc"), filtered, PIXEL_A, "")


@pytest.mark.parametrize("resolution_A", [None, 25.0, 30.0, 40.0])
@pytest.mark.parametrize("symmetry", ["C3", "D2", "O"])
def test_a_map_with_the_symmetry_passes_filtered_or_not(symmetry: str, resolution_A: float | None) -> None:
    volume = blob_volume(positions_with(symmetry, 3), SIZE)
    check_map_symmetry(shown(volume, resolution_A), symmetry, refuse=True)


@pytest.mark.parametrize("resolution_A", [None, 25.0, 40.0])
@pytest.mark.parametrize("symmetry", ["C3", "D2"])
def test_other_axes_and_no_symmetry_are_refused(symmetry: str, resolution_A: float | None) -> None:
    turned = Rotation.from_euler("y", 30, degrees=True).apply(positions_with(symmetry, 3))
    for positions in (turned, blob_positions(12, 9.0)):
        with pytest.raises(ImageStackError, match=rf"does not have the symmetry {symmetry}.*0\.\d\d.*axes"):
            check_map_symmetry(shown(blob_volume(positions, SIZE), resolution_A), symmetry, refuse=True)


@pytest.mark.parametrize("symmetry", ["C4", "D2", "O"])
def test_a_centre_between_two_voxels_is_not_blamed_on_the_axes(symmetry: str) -> None:
    volume = blob_volume(positions_with(symmetry, 6) - 0.5, SIZE)  # about (n - 1) / 2
    with pytest.raises(
        ImageStackError, match=r"1\.00 once it is moved by half a voxel: its centre"
    ) as refusal:
        check_map_symmetry(shown(volume), symmetry, refuse=True)
    assert "axes" not in str(refusal.value)


def test_the_refusal_can_be_overruled(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        check_map_symmetry(shown(blob_volume(blob_positions(12, 9.0), SIZE)), "C2", refuse=False)
    assert "does not have the symmetry C2" in caplog.text
    assert "as training.check_symmetry is false" in caplog.text
