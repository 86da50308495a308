"""A run that was stopped, however rudely, continues to the same bytes; what does not belong to it is refused."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from lora_cls.commands.cross_validation import cross_validate
from lora_cls.errors import RunError
from lora_cls.recipe import load_recipe
from lora_cls.runs import RunFolder

KILL = """
import os, signal, sys
import lora_cls.training.loop as loop
from lora_cls.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background

save, saved = loop.save_state, []

def save_state(file, *rest):
    save(file, *rest)
    saved.append(file)
    if len(saved) == 3:  # two epochs of fold 0, one of fold 1
        os.kill(os.getpid(), signal.{signal})

loop.save_state = save_state
sys.argv = ["lora-cls", *{arguments!r}]
main()
"""


class Stopped(BaseException):
    """Stands for a power cut: nothing catches it."""


def train_in_subprocess(how, arguments):
    """Run the command line in a process that sends itself a signal after the first epoch of fold 1."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    code = KILL.format(signal=how, arguments=list(map(str, arguments)))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def files(tmp_path_factory, train, test, small_recipe):
    """Recipe and tables of the tiny llama run, as files: recipe.yaml, train.csv, test.csv."""
    import yaml

    folder = tmp_path_factory.mktemp("files")
    recipe = small_recipe("llama", backbone__dtype="bfloat16")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
    train.to_csv(folder / "train.csv", index=False)
    test.to_csv(folder / "test.csv", index=False)
    return folder


@pytest.fixture
def command(files):
    """Arguments of `lora-cls run` on these files."""
    return ["run", files / "recipe.yaml", "--train", files / "train.csv", "--test", files / "test.csv", "--out"]


def test_killed(finished, results, command, files, tmp_path):
    """After kill -9 in the middle of fold 1, --resume ends with the bytes of a run that was never stopped."""
    done = train_in_subprocess("SIGKILL", [*command, tmp_path / "run"])
    assert done.returncode == -signal.SIGKILL, done.stderr
    stopped = RunFolder(tmp_path / "run")
    assert stopped.finished_folds == [0]
    assert stopped.fold(1).state.is_file()
    first = stopped.fold(0).info_file.stat().st_mtime_ns
    run = cross_validate(files / "recipe.yaml", files / "train.csv", files / "test.csv", tmp_path / "run", resume=True)
    assert results(run) == results(finished("llama"))
    assert run.fold(0).info_file.stat().st_mtime_ns == first, "a finished fold was trained again"
    assert not run.fold(1).state.exists()
    epochs = [json.loads(line)["epoch"] for line in run.fold(1).metrics.read_text().splitlines()]
    assert epochs == [1, 2]


def test_ctrl_c(command, tmp_path):
    """Ctrl-C ends with code 130, no traceback, and a sentence on how to continue."""
    done = train_in_subprocess("SIGINT", [*command, tmp_path / "run"])
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert "--resume" in done.stderr
    assert RunFolder(tmp_path / "run").fold(1).state.is_file()


@pytest.mark.parametrize(
    ("module", "name", "calls"),
    [
        ("training.loop", "save_state", 1),  # the first epoch of fold 0 was lost
        ("training.loop", "save_state", 4),  # the last epoch of fold 1 was lost
        ("training.loop", "predict_logits", 1),  # all epochs of fold 0 done, its answers not
        ("commands.fold_training", "peak_memory", 1),  # answers of fold 0 written, fold.json not
        ("commands.cross_validation", "score", 1),  # all folds done, no score
    ],
)
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_stopped_anywhere(finished, results, train, test, tmp_path, monkeypatch, kind, module, name, calls):
    """Stopped at any point, LoRA and full fine-tuning continue to the same bytes."""
    import importlib

    home = importlib.import_module(f"lora_cls.{module}")
    original, count = getattr(home, name), []

    def stop(*arguments, **options):
        count.append(1)
        if len(count) == calls:
            raise Stopped
        return original(*arguments, **options)

    recipe = finished(kind).recipe
    with monkeypatch.context() as patch:
        patch.setattr(home, name, stop)
        with pytest.raises(Stopped):
            cross_validate(recipe, train, test, tmp_path / "run")
    run = cross_validate(recipe, train, test, tmp_path / "run", resume=True)
    assert results(run) == results(finished(kind))


def test_choices_are_kept_before_training(small_recipe, train, tmp_path, monkeypatch):
    """What `auto` measured is in run.json before the first epoch, so that a resume computes the same way."""
    import lora_cls.training.loop as loop

    def stop(*arguments):
        raise Stopped

    recipe = small_recipe("llama", backbone__attn_implementation="auto")
    monkeypatch.setattr(loop, "save_state", stop)
    with pytest.raises(Stopped):
        cross_validate(recipe, train, out=tmp_path / "run")
    assert RunFolder(tmp_path / "run").info.choices["attn_implementation"] in ("sdpa", "eager")


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_stopped_while_epochs_are_chosen(small_recipe, train, test, tmp_path, results, monkeypatch, stop_at):
    """`select: cross_fitted` stopped while it takes or removes epochs chooses the same ones again."""
    import lora_cls.commands.epochs as module

    recipe = small_recipe("llama", train__select="cross_fitted", train__learning_rate=2e-2)
    whole = cross_validate(recipe, train, test, tmp_path / "whole" / "run")
    take, remove, count = module._take_epoch, shutil.rmtree, []

    def stop(*arguments, **options):
        count.append(1)
        if len(count) == stop_at:
            raise Stopped
        return take(*arguments, **options)

    def stop_removing(path, *arguments, **options):
        if stop_at == 3 and str(path).endswith("fold-01/epoch-01"):
            raise Stopped
        return remove(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_take_epoch", stop)
        patch.setattr(module.shutil, "rmtree", stop_removing)
        with pytest.raises(Stopped):
            cross_validate(recipe, train, test, tmp_path / "run")
    run = cross_validate(recipe, train, test, tmp_path / "run", resume=True)
    assert results(run) == results(whole)
    assert [path.name for path in run.path.glob("fold-*/epoch-*")] == []


def test_one_fold_of_chosen_epochs_again(small_recipe, train, test, tmp_path, results, damage):
    """With `select: cross_fitted` a damaged fold can be trained again, as the message about it says."""
    recipe = small_recipe("llama", train__select="cross_fitted")
    run = cross_validate(recipe, train, test, tmp_path / "run")
    before = results(run)
    damage(run.fold(0).oof_logits)
    with pytest.raises(RunError, match=r"Remove .*fold-00/fold\.json and run again with --resume"):
        cross_validate(recipe, train, test, tmp_path / "run", resume=True)
    run.fold(0).info_file.unlink()
    assert results(cross_validate(recipe, train, test, tmp_path / "run", resume=True)) == before


def test_another_recipe(finished, train, test):
    """Resuming with other settings names each one that differs, with both values."""
    run = finished("llama")
    other = load_recipe(run.recipe, ["train.learning_rate=1e-4", "lora.r=2", "lora.use_rslora=true"])
    with pytest.raises(RunError) as error:
        cross_validate(other, train, test, run.path, resume=True)
    text = str(error.value)
    assert "recipe train.learning_rate: was 0.005, now 0.0001" in text
    assert "recipe lora.r: was 4, now 2" in text
    assert "recipe lora.use_rslora: was None, now True" in text
    assert "train.seed" not in text


def test_lora_instead_of_full_fine_tuning(finished, train, test):
    """Resuming a LoRA run as full fine-tuning is refused."""
    run = finished("llama")
    with pytest.raises(RunError, match=r"recipe lora"):
        cross_validate(load_recipe(run.recipe, ["lora=null"]), train, test, run.path, resume=True)


def test_other_data(finished, train, test):
    """Resuming with other training or test rows names the table that differs."""
    run = finished("llama")
    changed = train.assign(text=[*train["text"][:-1], "another text"])
    with pytest.raises(RunError) as error:
        cross_validate(run.recipe, changed, test, run.path, resume=True)
    assert "train_sha256: other texts" in str(error.value)
    assert "test_sha256" not in str(error.value)
    with pytest.raises(RunError, match=r"test_sha256: was .*, now None"):
        cross_validate(run.recipe, train, None, run.path, resume=True)
    with pytest.raises(RunError, match="train_sha256"):
        cross_validate(run.recipe, train.iloc[::-1], test, run.path, resume=True)


def test_other_training_rows_are_told(finished, train, test):
    """Resuming says what of the training rows differs, and no hashes: a new label, rows, or labels of rows."""
    run = finished("tfidf")
    others = {
        "new labels: 'surprise'": train.assign(surprise=train["joy"]),
        "labels gone: 'fear'": train.drop(columns="fear"),
        "rows gone: 'row044'": train[:-1],
        "the rows stand in another order": train.iloc[::-1],
        "other labels in rows row003": train.assign(joy=[*train["joy"][:3], 1 - train["joy"][3], *train["joy"][4:]]),
    }
    for told, table in others.items():
        sample = run.sample_submission if told.startswith("other") else None  # it says the labels' order
        with pytest.raises(RunError, match=told) as error:
            cross_validate(run.recipe, table, test, run.path, resume=True, sample_submission=sample)
        line = next(line for line in str(error.value).splitlines() if "train_sha256" in line)
        assert not re.search("[0-9a-f]{20}", line)
    relabelled = train.assign(joy=1 - train["joy"])
    with pytest.raises(RunError, match="train_sha256"):
        cross_validate(run.recipe, relabelled, test, run.path, resume=True)


def test_engine_may_differ(finished, train, test, copy_of, results):
    """Engine settings are how, not what: a resume with others is accepted."""
    run = copy_of(finished("llama"))
    other = load_recipe(run.recipe, ["engine.num_threads=2"])
    assert results(cross_validate(other, train, test, run.path, resume=True)) == results(finished("llama"))


@pytest.mark.parametrize("kind", ["tfidf", "bert"])
def test_finished_run_trains_nothing(finished, train, test, sample, copy_of, results, monkeypatch, kind):
    """Resuming a finished run loads no model, trains nothing and writes the same files."""
    from lora_cls.training import session, tfidf, transformer

    def fail(*arguments, **options):
        raise AssertionError("trained or loaded a model")

    run = copy_of(finished(kind))
    monkeypatch.setattr(tfidf.TfidfTrainer, "fit_fold", fail)
    monkeypatch.setattr(transformer.TransformerTrainer, "fit_fold", fail)
    monkeypatch.setattr(session, "load_base", fail)
    given = sample if kind == "tfidf" else None
    again = cross_validate(run.recipe, train, test, run.path, sample_submission=given, resume=True)
    assert results(again) == results(finished(kind))
    assert (again.path / "README.md").read_bytes() == (finished(kind).path / "README.md").read_bytes()


@pytest.mark.parametrize("name", ["oof_logits.npy", "test_logits.npy", "fold.json"])
def test_damaged_fold(finished, train, test, sample, copy_of, damage, name):
    """A damaged file of a fold is named; it is neither read as something else nor trained over."""
    run = copy_of(finished("tfidf"))
    file = damage(run.fold(1).path / name)
    with pytest.raises(RunError, match=rf"fold-01.{name.replace('.', '[.]')}"):
        cross_validate(run.recipe, train, test, run.path, sample_submission=sample, resume=True)
    assert file.is_file()


@pytest.mark.parametrize("content", [b"{}", b"[]", b"\xff\xfe"])
def test_fold_json_of_another_shape(finished, train, test, sample, copy_of, content):
    """A fold.json that holds something else is named, too."""
    run = copy_of(finished("tfidf"))
    run.fold(1).info_file.write_bytes(content)
    with pytest.raises(RunError, match=r"fold-01.fold\.json"):
        cross_validate(run.recipe, train, test, run.path, sample_submission=sample, resume=True)


def test_logits_that_are_no_numbers(finished, train, test, sample, copy_of):
    """Saved logits with NaN are named, not turned into a score."""
    run = copy_of(finished("tfidf"))
    logits = np.load(run.fold(1).oof_logits)
    np.save(run.fold(1).oof_logits, np.full_like(logits, np.nan))
    with pytest.raises(RunError, match=r"fold-01.oof_logits\.npy"):
        cross_validate(run.recipe, train, test, run.path, sample_submission=sample, resume=True)


@pytest.mark.parametrize("name", ["folds.csv", "labels.json", "run.json", "train_labels.csv"])
def test_damaged_run(finished, train, test, sample, copy_of, damage, name):
    """A damaged file of the run is named."""
    run = copy_of(finished("tfidf"))
    damage(run.path / name)
    with pytest.raises(RunError, match=name.replace(".", "[.]")):
        cross_validate(run.recipe, train, test, run.path, sample_submission=sample, resume=True)


def test_damaged_state(finished, train, test, copy_of, damage):
    """A damaged training state is named, with what to do; it is not silently trained over."""
    run = copy_of(finished("llama"))
    run.fold(1).info_file.unlink()
    run.fold(1).state.write_bytes((run.fold(1).adapter / "adapter_model.safetensors").read_bytes())
    with pytest.raises(RunError, match=r"fold-01.state\.safetensors is damaged or belongs to another model"):
        cross_validate(run.recipe, train, test, run.path, resume=True)
    damage(run.fold(1).state)
    with pytest.raises(RunError, match=r"fold-01.state\.safetensors is damaged.*Remove it to train the fold again"):
        cross_validate(run.recipe, train, test, run.path, resume=True)


def test_fold_trained_again(finished, train, test, copy_of, results, damage):
    """Removing fold.json, as messages advise, trains that fold again to the same bytes."""
    run = copy_of(finished("llama"))
    damage(run.fold(1).oof_logits)
    run.fold(1).info_file.unlink()
    assert results(cross_validate(run.recipe, train, test, run.path, resume=True)) == results(finished("llama"))


def test_resume_of_nothing(finished, train, test, sample, tmp_path, results):
    """--resume on a folder that does not exist starts the run, so that one command serves both."""
    run = cross_validate(finished("tfidf").recipe, train, test, tmp_path / "run", sample_submission=sample, resume=True)
    assert results(run) == results(finished("tfidf"))


def test_stopped_while_the_folder_was_made(finished, train, test, sample, tmp_path, results, monkeypatch):
    """Stopped before the folder was complete, the same command with --resume goes on."""
    import lora_cls.runs.folder as folder

    def stop(recipe):
        raise Stopped

    recipe = finished("tfidf").recipe
    with monkeypatch.context() as patch:
        patch.setattr(folder, "recipe_bytes", stop)
        with pytest.raises(Stopped):
            cross_validate(recipe, train, test, tmp_path / "run", sample_submission=sample)
    run = cross_validate(recipe, train, test, tmp_path / "run", sample_submission=sample, resume=True)
    assert results(run) == results(finished("tfidf"))


def test_two_processes_in_one_run(finished, copy_of):
    """Two processes that train folds of one run side by side do not trip over each other's temporary files."""
    run = copy_of(finished("tfidf"))
    code = (
        "import sys\nfrom lora_cls.runs import RunFolder\nrun = RunFolder(sys.argv[1])\n"
        "sys.stdin.readline()\nfor i in range(400):\n    run.update_info(i=i)"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(run.path)], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    errors = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(errors)
    assert run.info.i == 399


AVERAGED = {
    "moving": ("save_state", 2, {"train__ema_decay": 0.9}),  # the last epoch of fold 0 was lost
    "both, full": ("accumulated_loss", 5, {"train__ema_decay": 0.9, "train__average_epochs": 2, "lora": None}),
    "moving, cross-fitted": ("accumulated_loss", 5, {"train__ema_decay": 0.9, "train__select": "cross_fitted"}),
}


@pytest.mark.parametrize("name", AVERAGED)
def test_stopped_with_averages(small_recipe, train, test, tmp_path, results, monkeypatch, name):
    """With averaged weights too, a stopped run continues to the same bytes of answers and of saved weights."""
    import lora_cls.training.loop as loop

    function, call, settings = AVERAGED[name]
    recipe = small_recipe("bert", **{"train__learning_rate": 2e-3} | settings)
    whole = cross_validate(recipe, train, test, tmp_path / "whole" / "run")
    original, count = getattr(loop, function), []

    def stop(*arguments):
        count.append(1)
        if len(count) == call:
            raise Stopped
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, function, stop)
        with pytest.raises(Stopped):
            cross_validate(recipe, train, test, tmp_path / "run")
    run = cross_validate(recipe, train, test, tmp_path / "run", resume=True)
    assert results(run) == results(whole)
    weights = sorted(file.relative_to(whole.path) for file in whole.path.rglob("*.safetensors"))
    assert weights
    for file in weights:
        assert (run.path / file).read_bytes() == (whole.path / file).read_bytes()
