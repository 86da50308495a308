"""The command line answers at once where no model is needed, and its help is plain."""

import json
import re
import shlex
import subprocess
import sys

import pytest
import typer
import yaml

from lora_cls.cli import app

HEAVY = ("torch", "transformers", "peft", "pandas", "numpy", "sklearn", "scipy", "yaml", "pydantic")


def heavy_modules_after(code):
    """Names of heavy libraries imported by a piece of Python in a fresh process, and its standard output."""
    ending = f"\nimport json, sys; print(json.dumps([m for m in {HEAVY} if m in sys.modules]), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code + ending], capture_output=True, text=True, check=True)
    return json.loads(done.stderr.splitlines()[-1]), done.stdout


def commands(group, path=()):
    """(words, command) of every command and group below a group: `(("recipes", "show"), <command>)`."""
    for name, command in group.commands.items():
        yield (*path, name), command
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))


COMMANDS = dict(commands(typer.main.get_command(app)))


def call(monkeypatch, capsys, *arguments):
    """Exit code, stdout and stderr of `lora-cls` with these arguments."""
    from lora_cls import cli

    monkeypatch.setattr(sys, "argv", ["lora-cls", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_imports_nothing_heavy():
    """--help lists the commands without a second of imports."""
    heavy, out = heavy_modules_after(
        "from lora_cls.cli import main\nimport sys\nsys.argv = ['lora-cls', '--help']\n"
        "try:\n    main()\nexcept SystemExit as error:\n    assert not error.code"
    )
    assert heavy == []
    listed = [line.split()[0] for line in out.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()]
    assert listed == [words[0] for words in COMMANDS if len(words) == 1]


def test_import_is_instant():
    """`import lora_cls` loads no library; its public names are listed all the same."""
    heavy, out = heavy_modules_after("import lora_cls\nprint(dir(lora_cls))")
    assert heavy == []
    assert "'cross_validate'" in out and "'RunFolder'" in out


def test_recipe_and_thresholds_need_no_torch():
    """Loading a recipe and tuning thresholds from Python imports neither torch nor transformers."""
    heavy, _ = heavy_modules_after(
        "import lora_cls\nlora_cls.load_recipe('gemma-3-270m')\nlora_cls.tune_thresholds([[1], [0]], [[0.9], [0.1]])"
    )
    assert not {"torch", "transformers", "peft"} & set(heavy)


def test_public_names():
    """Every name in `__all__` can be imported, and a wrong one says so."""
    import lora_cls

    for name in lora_cls.__all__:
        assert getattr(lora_cls, name) is not None
    assert {name for name in dir(lora_cls) if not name.startswith("_")} == set(lora_cls.__all__) - {"__version__"}
    with pytest.raises(AttributeError, match="no attribute 'trainn'"):
        _ = lora_cls.trainn


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_of_each_command(words, monkeypatch, capsys):
    """Every command explains itself and each of its options."""
    code, out, _ = call(monkeypatch, capsys, *words, "--help")
    assert code == 0
    assert f"lora-cls {' '.join(words)}" in out
    assert COMMANDS[words].help
    assert [option.name for option in COMMANDS[words].params if not getattr(option, "help", None)] == []
    assert not re.search(r"<(str|path|list)|\{", out), "Python's names of types mean nothing to a reader"
    example = out.partition("Example:\n")[2]
    assert example and all(line.startswith("  ") for line in example.splitlines())


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_examples_are_commands(words):
    """Every example in a help is parsed: its command and its options exist."""
    for line in COMMANDS[words].epilog.splitlines()[2:]:
        given = shlex.split(line.split(">")[0])
        assert given[0] == "lora-cls"
        command, rest = typer.main.get_command(app), given[1:]
        while hasattr(command, "commands"):
            command, rest = command.commands[rest[0]], rest[1:]
        assert command.make_context(rest[0] if rest else "", list(rest)) is not None
        assert command.name == words[-1] or hasattr(COMMANDS[words], "commands")


def test_version(monkeypatch, capsys):
    """`--version` says the version that is installed."""
    import lora_cls

    assert call(monkeypatch, capsys, "--version") == (0, f"lora-cls {lora_cls.__version__}\n", "")


def test_completion(monkeypatch, capsys):
    """Shells can complete commands and options."""
    assert "--install-completion" in call(monkeypatch, capsys, "--help")[1]


def test_check_says_what_it_does(monkeypatch, capsys, tmp_path, tiny_recipe, emotion_table):
    """`check` tells what takes its time before it takes it, on stderr, and results alone go to stdout."""
    emotion_table(45).to_csv(tmp_path / "train.csv", index=False)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe("bert").to_dict()))
    code, out, err = call(monkeypatch, capsys, "check", recipe, "--train", tmp_path / "train.csv")
    assert code == 0
    assert err.index("Reading the tokens of 45 texts") < err.index("timing some of its steps")
    assert "timing some" not in out and "minutes here" in out


def test_recipes(monkeypatch, capsys):
    """`recipes` lists every shipped recipe with what it needs."""
    from lora_cls.recipe import shipped_recipes

    code, out, _ = call(monkeypatch, capsys, "recipes")
    assert code == 0
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert set(lines) == set(shipped_recipes())
    assert "memory" in lines["gemma-3-270m"]


def test_recipes_show(monkeypatch, capsys):
    """`recipes show` prints a recipe as written, comment included, so that it can be saved and changed."""
    from lora_cls.recipe import shipped_recipes

    code, out, _ = call(monkeypatch, capsys, "recipes", "show", "tfidf-logreg")
    assert code == 0
    assert out == shipped_recipes()["tfidf-logreg"].read_text(encoding="utf-8")


def test_recipes_fields(monkeypatch, capsys):
    """`recipes fields` prints all, one section, or one field, and refuses a name that is neither with the nearest."""
    code, everything, _ = call(monkeypatch, capsys, "recipes", "fields")
    assert code == 0
    assert "\ntrain.weight_decay: number >= 0; default 0.0\n" in everything
    code, section, _ = call(monkeypatch, capsys, "recipes", "fields", "train")
    assert code == 0
    assert section.startswith("train: ") and section in everything
    code, field, _ = call(monkeypatch, capsys, "recipes", "fields", "train.weight_decay")
    assert code == 0
    assert field.startswith("train.weight_decay: ") and field in section
    code, out, err = call(monkeypatch, capsys, "recipes", "fields", "train.wieght_decay")
    assert (code, out) == (2, "")
    assert "Did you mean 'train.weight_decay'?" in err


@pytest.mark.parametrize("command", [["recipes", "show"], ["run"], ["check"]])
def test_unknown_recipe(command, monkeypatch, capsys):
    """A mistyped recipe name gets the nearest, exit code 2 and no traceback."""
    code, out, err = call(monkeypatch, capsys, *command, "gemma-3-270")
    assert code == 2
    assert out == ""
    assert err.startswith("Error: No recipe 'gemma-3-270'")
    assert "Did you mean 'gemma-3-270m'?" in err


def test_option_that_does_not_exist(monkeypatch, capsys):
    """A mistyped option is refused with exit code 2."""
    code, _, err = call(monkeypatch, capsys, "run", "tfidf-logreg", "--trian", "x.csv")
    assert code == 2
    assert "--trian" in err
