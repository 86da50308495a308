"""Every file of a run folder, a blend and an export, damaged in each way, under each command: the answer of the
undamaged one, or one sentence; never other numbers.

Of a TF-IDF run every pair of file and damage is tried, of the others a part of the pairs (each file once); all of them
(some twenty minutes) with `LORA_CLS_WALLS=all python -m pytest tests/runs/test_damaged_files.py`.
"""

import json
import os
import shutil

import numpy as np
import pytest

from lora_cls.commands.blend import blend
from lora_cls.commands.calibrate import calibrate
from lora_cls.commands.compare import compare
from lora_cls.commands.cross_validation import cross_validate
from lora_cls.commands.export import export
from lora_cls.commands.predict import Classifier, predict_file
from lora_cls.commands.refit import refit
from lora_cls.commands.tune import tune
from lora_cls.errors import LoraClsError
from lora_cls.report.comparison import markdown
from lora_cls.report.page import write_page
from lora_cls.runs import RunFolder
from lora_cls.runs.sums import sums

ALL = os.environ.get("LORA_CLS_WALLS") == "all"
TEXTS = ["happy and delighted, a lovely day", "furious and angry, I hate it", "afraid of the dark"] * 3
EVERY_PAIR = ("tfidf",)  # also where not all are tried


def flip(content):
    """One bit in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


def another_digit(content):
    """The last digit of a file of text, changed: other numbers in a sound file."""
    for i in range(len(content) - 1, -1, -1):
        if content[i : i + 1].isdigit():
            return content[:i] + (b"1" if content[i : i + 1] != b"1" else b"2") + content[i + 1 :]
    return flip(content)


DAMAGES = {
    "flipped": lambda file: file.write_bytes(flip(file.read_bytes()) if file.stat().st_size else b"?"),
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_bytes(b""),
    "gone": lambda file: file.unlink(),
    "folder": lambda file: (file.unlink(), file.mkdir()),
    "digit": lambda file: file.write_bytes(another_digit(file.read_bytes())),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),  # what a power cut leaves
    "twice": lambda file: file.write_bytes(file.read_bytes() * 2),
}


class Stopped(BaseException):
    """Stands for a power cut: nothing catches it."""


@pytest.fixture(scope="session")
def tables(finished, train, test):
    """What a run is started with, by the kind of its recipe: as keywords of `cross_validate`."""
    made = finished("tfidf").path.parent
    files = {name: made / f"{name}.csv" for name in ("train", "test", "sample_submission")}
    return {"tfidf": files, "transformer": {"train": train, "test": test}}


@pytest.fixture(scope="session")
def damaged(tmp_path_factory, finished, tables, small_recipe):
    """Factory `damaged(kind)`: a folder, the name of what is to be damaged in it, and the commands to be tried."""
    made = {}

    def make(kind):
        if kind not in made:
            root = tmp_path_factory.mktemp(kind)
            made[kind] = (root, *MAKERS[kind](root, finished, tables, small_recipe))
        return made[kind]

    return make


def _tfidf(root, finished, tables, _):
    run = shutil.copytree(finished("tfidf").path, root / "run")
    shutil.copytree(run, root / "other")
    refit(run)
    calibrate(run)
    predict_file(run, tables["tfidf"]["test"])
    return "run", (*WITHOUT_MODEL, "predict", "decide", "predict refit")


def _blend(root, finished, *_):
    runs = [shutil.copytree(finished("tfidf").path, root / name) for name in ("other", "second")]
    blended = blend(runs, root / "run", "stacking")
    calibrate(blended.path)
    return "run", (*WITHOUT_MODEL, "predict", "decide")


def _member(root, finished, *_):
    runs = [shutil.copytree(finished("tfidf").path, root / name) for name in ("run", "second")]
    blend(runs, root / "blend", "stacking")
    blend(runs, root / "ranks", "rank_mean")
    return "run", ("predict blend", "predict ranks")


def _lora(root, finished, tables, _):
    run = shutil.copytree(finished("llama").path, root / "run")
    refit(run, **{"train": tables["transformer"]["train"]})
    return "run", ("predict", "predict refit", "page", "refit", "resume", "export", "merged")


def _full(root, finished, *_):
    shutil.copytree(finished("bert").path, root / "run")
    return "run", ("predict", "merged")


def _adapter(root, finished, *_):
    export(finished("llama").path, root / "run")
    shutil.copytree(finished("tfidf").path, root / "other")
    return "run", ("predict", "decide", "file", "tune", "compare", "page")


def _merged(root, finished, *_):
    export(finished("llama").path, root / "run", to="merged")
    return "run", ("predict", "decide", "file")


def _unfinished(root, finished, tables, small_recipe):
    """Fold 0 with its epochs kept, fold 1 stopped after its first, and scores of fold 0."""
    import lora_cls.training.loop as loop

    save, saved = loop.save_state, []

    def save_state(*arguments):
        save(*arguments)
        saved.append(arguments)
        if len(saved) == 3:
            raise Stopped

    recipe = small_recipe("llama", backbone__dtype="bfloat16", train__select="cross_fitted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_state", save_state)
        with pytest.raises(Stopped):
            cross_validate(recipe, out=root / "run", **tables["transformer"])
    tune(root / "run")
    assert RunFolder(root / "run").fold(1).state.is_file()
    return "run", ("resume", "tune", "page")


def _chosen(root, finished, tables, small_recipe):
    """As `unfinished`, and stopped again when all folds are trained and no epoch is chosen."""
    import lora_cls.commands.cross_validation as module

    recipe = small_recipe("llama", backbone__dtype="bfloat16", train__select="cross_fitted")

    def stop(_):
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "choose_epochs", stop)
        with pytest.raises(Stopped):
            cross_validate(recipe, out=root / "run", **tables["transformer"])
    return "run", ("resume",)


MAKERS = {
    "tfidf": _tfidf,
    "blend": _blend,
    "member": _member,
    "lora": _lora,
    "full": _full,
    "adapter": _adapter,
    "merged": _merged,
    "unfinished": _unfinished,
    "epochs": _chosen,
}
WITHOUT_MODEL = ("tune", "calibrate", "compare", "blend", "page", "results", "shown")


def files_of(root, damaged=None):
    """Every file below a folder but the damaged one, as its sum; of those that hold seconds the rest."""
    found = sums(root, [root])
    found.pop(str(damaged), None)
    for name in [name for name in found if name.endswith((".jsonl", "fold.json", "run.json", ".md", ".html"))]:
        del found[name]
        if name.endswith(".jsonl"):
            lines = [json.loads(line) for line in (root / name).read_text().splitlines()]
            found[name] = [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
    return found


def differences(found, right):
    """What of two answers differs."""
    if not (isinstance(found, dict) and isinstance(right, dict)):
        return f"{found!s:.200} instead of {right!s:.200}"
    return sorted(key for key in {*found, *right} if found.get(key) != right.get(key))


class Commands:
    """What the commands answer for the run, blend or export in `root / name`."""

    def __init__(self, root, name, tables, damaged=None):
        self.root, self.path, self.tables, self.damaged = root, root / name, tables, damaged

    def __call__(self, command):
        """The answer, or the error that says what is wrong. Whatever a command writes lies beside the folder."""
        beside = self.root / command
        shutil.rmtree(beside, ignore_errors=True)
        try:
            return getattr(self, command.replace(" ", "_"))(beside)
        except LoraClsError as error:
            return error

    def predict(self, _):
        return np.array(Classifier.load(self.path).predict_proba(TEXTS)).tolist()

    def decide(self, _):
        return Classifier.load(self.path).predict(TEXTS).tolist()

    def predict_refit(self, _):
        return Classifier.load(self.path, models="refit").predict_proba(TEXTS).tolist()

    def predict_blend(self, _):
        return Classifier.load(self.root / "blend").predict_proba(TEXTS).tolist()

    def predict_ranks(self, _):
        return Classifier.load(self.root / "ranks").predict_proba(TEXTS).tolist()

    def file(self, beside):
        return files_of(predict_file(self.path, self.tables["transformer"]["test"], beside))

    def tune(self, beside):
        score = tune(shutil.copytree(self.path, beside)).cross_fitted.macro_f1
        results = ("oof_proba.csv", "test_proba.csv", "submission.csv")
        return [score, *(file.read_text() for name in results if (file := beside / name).is_file())]

    def calibrate(self, beside):
        return calibrate(shutil.copytree(self.path, beside)).after.brier

    def compare(self, _):
        return markdown(compare([self.path, self.root / "other"]))

    def blend(self, beside):
        return blend([self.path, self.root / "other"], beside).out_of_fold().y_score.tolist()

    def page(self, beside):
        return write_page(RunFolder(self.path), out=beside / "page.html").read_text()

    def results(self, _):
        found = RunFolder(self.path).results()
        return found.oof.y_score.tolist(), found.scores.cross_fitted.macro_f1

    def shown(self, _):
        run = RunFolder(self.path)
        return [table.to_csv() for table in (run.per_label, run.oof, run.test_proba, run.submission)]

    def resume(self, beside):
        run = RunFolder(shutil.copytree(self.path, beside))
        kind = "tfidf" if run.recipe.tfidf else "transformer"
        cross_validate(run.recipe, out=run.path, resume=True, show=False, **self.tables[kind])
        return files_of(beside, self.damaged)

    def refit(self, beside):
        shutil.copytree(self.path, beside)
        shutil.rmtree(beside / "refit")
        return files_of(refit(beside, self.tables["transformer"]["train"]).path)

    def export(self, beside):
        return files_of(export(self.path, beside).path)

    def merged(self, beside):
        return files_of(export(self.path, beside, to="merged").path)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", MAKERS)
def test_no_damaged_file_gives_another_answer(damaged, tables, tmp_path, kind, damage):
    """The answer of the undamaged folder, or one sentence."""
    source, name, commands = damaged(kind)
    good = Commands(shutil.copytree(source, tmp_path / "0"), name, tables)
    expected = {command: good(command) for command in commands}
    files = sorted(file.relative_to(source / name) for file in (source / name).rglob("*") if file.is_file())
    if not ALL and kind not in EVERY_PAIR:
        files = files[list(DAMAGES).index(damage) :: len(DAMAGES)]
    wrong = []
    for number, file in enumerate(files):
        root = shutil.copytree(source, tmp_path / f"{number + 1}")
        DAMAGES[damage](root / name / file)
        tried = Commands(root, name, tables, file)
        for command in commands:
            try:
                found = tried(command)
            except Exception as error:
                wrong.append((str(file), command, f"{type(error).__name__}: {error}"))
                continue
            if isinstance(found, LoraClsError):
                if len(str(found)) > 2000:
                    wrong.append((str(file), command, "a long message"))
                continue
            # a fold that was finished can be removed to be trained again: `tune` says how many it scores
            fewer = command == "tune" and file.name == "fold.json" and damage in ("gone", "folder")
            right = expected[command]
            if command == "resume" and isinstance(right, dict):  # a page that fails is said, and leaves no tables
                gone = {str(file), *({"mistakes.csv", "doubts.csv"} - set(found))}
                right = {key: value for key, value in right.items() if key not in gone}
            if found != right and not fewer:
                wrong.append((str(file), command, f"another answer: {differences(found, right)}"))
        shutil.rmtree(root)
    assert not wrong, "\n".join(map(str, wrong))
