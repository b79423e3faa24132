"""What the study's tests share."""

import pytest
import stand_ins


@pytest.fixture
def setting(store, tmp_path):
    """A tiny CLIP with three tasks of colours, in a store of its own."""
    return stand_ins.setting(tmp_path)
