"""Commands that only read a run leave it as it was, as an input of a notebook that cannot be written to."""

import pytest

from lora_cls.commands.blend import blend
from lora_cls.commands.compare import compare
from lora_cls.commands.export import export
from lora_cls.commands.predict import Classifier, predict_file
from lora_cls.commands.push import push
from lora_cls.commands.score import score_file
from lora_cls.commands.status import status
from lora_cls.commands.tune import tune
from lora_cls.errors import RunError
from lora_cls.report.page import write_page
from lora_cls.runs import RunFolder


@pytest.fixture
def unchanged():
    """Function that gives what a folder is now: names, inodes and times of all that lies in it, itself too."""
    return lambda folder: {
        place: (place.stat().st_ino, place.stat().st_mtime_ns) for place in [folder, *folder.rglob("*")]
    }


def test_answers_go_elsewhere(finished, train, test, copy_of, unchanged, tmp_path):
    """`predict`, `score`, `report`, `blend`, `compare` with another place to write, `status`, `explain`, a dry push."""
    run = copy_of(finished("tfidf"))
    before = unchanged(run.path)
    predict_file(run, test, tmp_path / "answers")
    score_file(run, train, tmp_path / "scores")
    write_page(run, out=tmp_path / "page.html")
    blend([run, finished("tfidf").path], tmp_path / "blend")
    compare([run, finished("tfidf").path])
    status(run)
    Classifier.load(run).explain("so happy")
    assert unchanged(run.path) == before


def test_models_go_elsewhere(finished, copy_of, unchanged, tmp_path):
    run = copy_of(finished("llama"))
    before = unchanged(run.path)
    export(run, tmp_path / "export")
    push(run, "ann/emotions", base_model="org/tiny", dry_run=True)
    assert unchanged(run.path) == before


def test_what_writes_into_a_run_says_so(finished, copy_of, monkeypatch):
    """`tune` in a folder that may only be read: one sentence, before any work."""
    import errno

    from lora_cls.runs import lock

    run = copy_of(finished("tfidf"))

    class Refused(lock.FileLock):
        def acquire(self, *args, **kwargs):
            raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(lock, "FileLock", Refused)
    with pytest.raises(RunError, match=r"\.lock cannot be written: Read-only file system\. .*work on a copy"):
        tune(RunFolder(run.path))
