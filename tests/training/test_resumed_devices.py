"""A training that other devices go on with."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryoforum_plugin.errors import ModelError
from cryoforum_plugin.training.folder import check_resumed, start_run


def test_another_batch_size_is_named(tmp_path: Path) -> None:
    identity = {"settings": {"training.batch_size": 64}, "batch_size": 66}
    start_run(tmp_path, identity, resume=False)
    check_resumed(tmp_path, identity)
    with pytest.raises(ModelError, match="batch size of 66, which is 64 with as many devices as now"):
        check_resumed(tmp_path, identity | {"batch_size": 64})
    with pytest.raises(ModelError, match="other particles, map or settings"):
        check_resumed(tmp_path, {"settings": {}, "batch_size": 64})
