"""Messages between the processes of a run, as plain pickles; torch would send tensors through shared memory, which ends
with the sender, when left to `Connection.send`."""

from __future__ import annotations

import pickle
from multiprocessing.connection import Connection
from typing import Any


def tell(connection: Connection, *message: Any) -> None:
    """Send a message. Raises OSError where nobody is there any more."""
    connection.send_bytes(pickle.dumps(message))


def hear(connection: Connection) -> Any:
    """Wait for a message. Raises EOFError or OSError where there is nobody to send one."""
    return pickle.loads(connection.recv_bytes())
