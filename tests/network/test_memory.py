"""Batches that do not fit into memory are done in parts."""

from __future__ import annotations

import logging
from itertools import chain

import pytest
import torch

from cryoforum_plugin.errors import DeviceError
from cryoforum_plugin.network.memory import InParts


class Device:
    """Holds at most `room` items at a time; says so as a GPU, torch's CPU allocator, or Python does."""

    def __init__(self, room: int, error: Exception) -> None:
        self.room, self.error, self.sizes = room, error, list[int]()

    def __call__(self, items: slice) -> list[int]:
        rows = list(range(items.start, items.stop))
        self.sizes.append(len(rows))
        if len(rows) > self.room:
            raise self.error
        return rows


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_smaller_parts_cover_everything_once(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    device, in_parts = Device(7, error), InParts("images")
    with caplog.at_level(logging.WARNING):
        assert list(chain.from_iterable(in_parts(device, 50))) == list(range(50))
    assert device.sizes[:4] == [50, 25, 12, 6]
    assert [record.getMessage() for record in caplog.records] == [
        f"out of memory with {a} images at a time: going on with {b}"
        for a, b in ((50, 25), (25, 12), (12, 6))
    ]
    device.sizes.clear()
    in_parts(device, 12)
    assert device.sizes == [6, 6]  # not tried again


def test_not_even_one_fits() -> None:
    with pytest.raises(DeviceError, match="one at a time of the images"):
        InParts("images")(Device(0, MemoryError()), 4)


def test_other_errors_are_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        InParts("images")(Device(0, RuntimeError("a bug")), 4)
