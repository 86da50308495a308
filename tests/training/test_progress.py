"""Progress: shown to whoever reads along, silent in a script."""

import sys

import pytest

from lora_cls import cross_validate
from lora_cls.training.progress import Progress


@pytest.mark.parametrize(
    ("prompt", "show", "shown"),
    [(True, None, "out"), (True, False, None), (False, None, None), (False, True, "err"), (True, True, "out")],
)
def test_who_sees_progress(prompt, show, shown, monkeypatch, capsys):
    """A notebook and a prompt (`sys.ps1`) see it by default, on stdout; a script only where it asks, on stderr."""
    if prompt:
        monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    with Progress(2, show) as progress:
        progress.part_done("fold 0", "done")
    said = capsys.readouterr()
    assert (said.out != "", said.err != "") == (shown == "out", shown == "err")


def test_a_run_in_a_notebook_says_how_far_it_is(monkeypatch, capsys, emotion_table, tmp_path):
    """A line per fold, without asking for it."""
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    cross_validate("tfidf-logreg", emotion_table(45), out=tmp_path / "run", overrides=["cv.n_splits=2"])
    said = capsys.readouterr().out
    assert "fold 0: macro-F1" in said and "(2 of 2" in said
