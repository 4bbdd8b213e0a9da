"""Work on items by threads that run ahead of whoever takes the results, in order and in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
READERS = 4  # requests to storage at a time: network file systems answer several as soon as one


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int | None = None
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with what `work` makes of it, in order; `ahead` items (default one a thread) wait at most.

    An error of `work` is raised in its item's turn. Items are taken from `items` as they are needed. torch shares no step
    of `work` among cores: its threads would wait for each other by spinning, at the cost of those that compute.
    """
    cores = torch.get_num_threads()
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                for item in items:
                    waiting.append((item, pool.submit(work, item)))
                    if len(waiting) > (ahead or threads):
                        first, future = waiting.popleft()
                        yield first, future.result()
                while waiting:
                    first, future = waiting.popleft()
                    yield first, future.result()
            finally:  # also where nobody takes the rest
                for _, future in waiting:
                    future.cancel()
    finally:
        torch.set_num_threads(cores)  # what its threads set counts in part for all


def on_each_core(
    work: Callable[[Item], Result], items: Iterable[Item], device: torch.device
) -> Iterator[tuple[Item, Result]]:
    """As `in_order`, on a CPU one item to a core: many small steps gain little from sharing each.

    A GPU takes one item after the other.
    """
    cores = torch.get_num_threads()
    if device.type != "cpu" or cores == 1:
        yield from ((item, work(item)) for item in items)
    else:
        yield from in_order(work, items, cores)
