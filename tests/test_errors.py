"""Messages: what they hold of others' names does nothing to a terminal, and they end."""

import pickle
import sys

import pytest

from lora_cls.errors import LONGEST_MESSAGE, DataError, RecipeError, visible

OBEYED = [
    "\x1b[2J",
    "\r",
    "\x07",
    "\x08",
    "\x7f",
    "\x9b31m",
    "\u202e",
    "\u2066",
    "\u2028",
    "\u200b",
    "\ufeff",
    "\ud800",
]


@pytest.mark.parametrize("text", OBEYED)
def test_nothing_is_obeyed(text):
    """Whatever a terminal would obey, and whatever turns or hides text, stands as its code."""
    shown = visible(f"joy{text}fear")
    assert shown.startswith("joy\\")
    assert shown.isprintable()
    assert visible(shown) == shown


def test_languages_are_left_alone():
    """Letters of any script, joined emoji, tabs and new lines are text."""
    text = "crème brûlée, 日本語, עברית, می‌خواهم, 👩‍🚒\n\ttwo"
    assert visible(text) == text


def test_errors_are_visible_and_end():
    """A message says its beginning and its end, in fewer than 2,000 characters, from Python and after pickling."""
    error = DataError(f"t.csv: row 3 holds \x1b[31m{'x' * 200_000}. Give it a label.")
    for text in (str(error), str(pickle.loads(pickle.dumps(error)))):
        assert len(text) <= LONGEST_MESSAGE < 2000
        assert text.startswith("t.csv: row 3 holds \\x1b[31mxx")
        assert text.endswith("xx. Give it a label.")
        assert "characters]" in text


def test_errors_on_the_terminal(monkeypatch, capsys):
    """The command line prints what the error says: bounded, and without control characters."""
    from lora_cls import cli

    def fail():
        raise RecipeError("\x1b[2Jrecipe\r" + "y" * 5000)

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(sys, "argv", ["lora-cls"])
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr().err
    assert said.startswith("Error: \\x1b[2Jrecipe\\ryy")
    assert len(said) < 2000


def test_a_recipe_is_shown_harmless(tmp_path, monkeypatch, capsys):
    """`recipes show` prints a recipe of anyone: what a terminal would obey in it stands as its code."""
    from lora_cls import cli

    (tmp_path / "recipe.yaml").write_text("tfidf: {}  # \x1b]0;title\x07\n")
    monkeypatch.setattr(sys, "argv", ["lora-cls", "recipes", "show", str(tmp_path / "recipe.yaml")])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().out == "tfidf: {}  # \\x1b]0;title\\x07\n"


def test_progress_is_visible(capsys):
    """Lines between the bars go the same way."""
    from lora_cls.training.progress import Progress

    with Progress(1, show=True) as progress:
        progress.say("label \x1b[2J")
    assert capsys.readouterr().err == "label \\x1b[2J\n"


def test_a_full_memory_is_told_alike(monkeypatch, capsys):
    """Where it is no training step that did not fit, the command line says the sentence of one."""
    from lora_cls import cli

    def fail():
        raise type("OutOfMemoryError", (RuntimeError,), {})

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(sys, "argv", ["lora-cls"])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err.startswith(
        "Error: The memory is full. In a new run with another --out: lower train."
    )
