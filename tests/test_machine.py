"""What a run took of the machine, and not what the process took before it."""

import numpy as np
import pytest

from lora_cls import machine


def test_peak_is_of_the_run():
    """A peak of before is not told as the run's; one of the run is."""
    block = np.ones(2**28 // 8)
    held = machine.peak_memory()
    del block
    machine.reset_peak_memory()
    after = machine.peak_memory()
    assert after is None or after < held - 2**27
    block = np.ones(2**29 // 8)
    assert machine.peak_memory() > 2**29
    assert block.size


@pytest.fixture
def no_reset(monkeypatch, tmp_path):
    """A system that keeps its high-water mark, which is 100 bytes."""
    marks = iter([100, 100, 150])
    monkeypatch.setattr(machine, "Path", lambda path: tmp_path / "missing" / "file")
    monkeypatch.setattr(machine, "_high_water_mark", lambda: next(marks))
    monkeypatch.setattr(machine, "_before", [0])


@pytest.mark.usefixtures("no_reset")
def test_unknown_where_it_cannot_be_counted():
    """Where the mark cannot be taken back, only a higher one is the run's."""
    machine.reset_peak_memory()
    assert machine.peak_memory() is None
    assert machine.peak_memory() == 150
