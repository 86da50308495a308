"""Every command, with its n-th file operation failing: one sentence, nothing torn, and a repetition that ends the same.

Here a few of them; all (some ten minutes) with `LORA_CLS_NTH=all python -m pytest tests/test_nth_failure.py`.
"""

import os
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from nth_failure import FAULTS, Operations, Trial

ALL = os.environ.get("LORA_CLS_NTH") == "all"
SLOW = ("export", "compare", "cross-fitted")  # only where all are tried
SECONDS = 2.0  # for each command, where not all are tried


@pytest.fixture(scope="module")
def operations(tmp_path_factory, emotion_table, tiny_recipe):
    """The commands, on a folder of their own."""
    return Operations(tmp_path_factory.mktemp("nth"), emotion_table, tiny_recipe)


@pytest.mark.parametrize("name", Operations.names)
def test_nth_failure(operations, name):
    """Full disk, broken disk and kill."""
    if name in SLOW and not ALL:
        pytest.skip("tried with LORA_CLS_NTH=all")
    trial = Trial(operations, name)
    chosen = [(n, fault) for n in range(1, trial.count + 1) for fault in FAULTS]
    if not ALL:  # spread over the whole command; a step that is no multiple of 3 takes all kinds
        chosen = chosen[1 :: max(1, len(chosen) // 12) * 3 + 1] or chosen
    problems, started = [], time.monotonic()
    for n, fault in chosen:
        problems += trial.disturb(n, fault)
        if not ALL and time.monotonic() - started > SECONDS:
            break
    assert not problems, "\n".join(problems)
