"""Work that runs ahead: in order, bounded, errors in their turn."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from cryoforum_plugin.images.read_ahead import in_order, on_each_core


def test_results_come_in_order_and_few_items_wait() -> None:
    taken = []

    def items() -> Iterator[int]:
        for i in range(40):
            taken.append(i)
            yield i

    def work(i: int) -> int:
        time.sleep(0.002 * (i % 3))
        return i * i

    for number, (item, result) in enumerate(in_order(work, items(), threads=4)):
        assert (item, result) == (number, number**2)
        assert len(taken) <= number + 6


def test_slow_requests_are_made_together() -> None:
    at_once, most, lock = 0, 0, threading.Lock()

    def slow(i: int) -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.02)
        with lock:
            at_once -= 1

    assert len(list(in_order(slow, range(12), threads=4))) == 12
    assert most == 4


def test_an_error_is_raised_in_its_turn_and_ends_the_threads() -> None:
    def work(i: int) -> int:
        if i == 5:
            raise ValueError("five")
        return i

    results = in_order(work, range(100), threads=3)
    assert [next(results)[0] for _ in range(5)] == [0, 1, 2, 3, 4]
    before = threading.active_count()
    with pytest.raises(ValueError, match="five"):
        next(results)
    assert threading.active_count() < before


def test_each_core_takes_a_batch_with_one_thread() -> None:
    cores = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = list(on_each_core(lambda i: torch.get_num_threads(), range(6), torch.device("cpu")))
        assert found == [(i, 1) for i in range(6)]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(cores)
