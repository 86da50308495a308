"""Messages are in the words of whoever called: options of the command line, or parameters of Python."""

import inspect
import subprocess
import sys

import pytest
import typer

import lora_cls
from lora_cls.cli import app
from lora_cls.errors import RunError, in_callers_words, words_of


@pytest.mark.parametrize(
    ("shell", "python"),
    [
        ("No training data: give --train FILE, or data.train.", "No training data: give train=FILE, or data.train."),
        ("Train on --fold-table runs/a/folds.csv.", 'Train on fold_table="runs/a/folds.csv".'),
        ("--fold-table 'my runs/folds.csv'", 'fold_table="my runs/folds.csv"'),
        ("--set takes key=value, as --set lora.r=8.", 'overrides= takes key=value, as overrides=["lora.r=8"].'),
        ('--set "a=b\\".', '--set "a=b\\".'),
        ("--set 'data.label_columns=[\"a\", b]'", 'overrides=["data.label_columns=[\\"a\\", b]"]'),
        ("--set train.a=4 --set train.b=2 makes", 'overrides=["train.a=4", "train.b=2"] makes'),
        ("Give either --rank or --share: both say", "Give either rank= or share=: both say"),
        ("Give each its folds: --folds 0,1", "Give each its folds: folds=[0, 1]"),
        ("--folds: there is no fold 7", "folds=: there is no fold 7"),
        ("Leave out --to merged.", 'Leave out to="merged".'),
        ("Run: pip install --force-reinstall --no-deps x", "Run: pip install --force-reinstall --no-deps x"),
        ("Make one with lora-cls blend RUN RUN --out NEW.", "Make one with lora-cls blend RUN RUN --out NEW."),
        ("lora-cls predict runs/a --input b.csv, or --resume", "lora-cls predict runs/a --input b.csv, or resume=True"),
        ("a--out b---resume --outer", "a--out b---resume --outer"),
    ],
)  # fmt: skip
def test_words(shell, python):
    """Options become parameters, whole commands stay commands, and what is not ours is left alone."""
    assert in_callers_words(shell) == shell
    with words_of("python"):
        assert in_callers_words(shell) == python
        assert in_callers_words(python) == python


def options():
    """Every option of every command, without its dashes."""

    def of(group):
        for name, command in group.commands.items():
            if name == "serve":  # no function of Python's is asked for it
                continue
            for parameter in command.params:
                yield from (opt for opt in (*parameter.opts, *parameter.secondary_opts) if opt.startswith("--"))
            if hasattr(command, "commands"):
                yield from of(command)

    return sorted(set(of(typer.main.get_command(app))) - {"--help", "--version", "--no-at-least-one"})


@pytest.mark.parametrize("option", options())
def test_every_option_has_a_word_in_python(option):
    """A new option needs its word in `errors`, so that no message shows dashes to a caller from Python."""
    with words_of("python"):
        word = in_callers_words(f"Use {option}.")
    assert word.startswith("Use ") and "--" not in word and "=" in word


def test_words_are_parameters():
    """What a message advises in Python is a parameter of a public function."""
    public = [getattr(lora_cls, name) for name in lora_cls.__all__]
    known = {name for found in public if inspect.isfunction(found) for name in inspect.signature(found).parameters}
    # of check, of explain, of settings
    known |= {"most_words"} | {
        "measure",
        "min_positives",
        "default",
        "strategy",
        "combine",
        "at_least_one",
        "metric",
        "metric_beta",
    }
    with words_of("python"):
        told = {in_callers_words(option).partition("=")[0] for option in options()}
    assert told <= known


def test_errors_from_python_and_from_the_shell(tmp_path, monkeypatch, capsys):
    """The same mistake: Python is told of `resume=True`, the shell of `--resume`, each in a process of its own."""
    (tmp_path / "recipe.yaml").write_text("tfidf: {}\n")
    (tmp_path / "train.csv").write_text("id,text,joy\n" + "".join(f"{i},text {i},{i % 2}\n" for i in range(20)))
    call = (
        "from lora_cls import cross_validate\n"
        "try:\n    cross_validate('tfidf-logreg', 'train.csv', out='.')\nexcept Exception as error:\n    print(error)"
    )
    python = subprocess.run([sys.executable, "-c", call], cwd=tmp_path, capture_output=True, text=True)
    assert "resume=True" in python.stdout and "out=" in python.stdout and "--" not in python.stdout, python.stderr
    command = [sys.executable, "-m", "lora_cls.cli", "run", "tfidf-logreg", "--train", "train.csv", "--out", "."]
    shell = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "--resume" in shell.stderr and "--out" in shell.stderr and "resume=" not in shell.stderr


def test_an_error_is_whole_when_it_is_raised():
    """Its words are chosen where it is raised, so that a message within another and `args` say the same."""
    with words_of("python"):
        error = RunError("Use --resume.")
        assert str(error) == error.args[0] == "Use resume=True."
