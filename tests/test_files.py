"""Files that are whole or absent, with the rights of the umask, and one sentence where they cannot be written."""

import errno
import io
import os
import subprocess
import sys

import numpy as np
import pytest

from lora_cls import cli, files
from lora_cls.errors import RunError, WriteError, unwritable
from lora_cls.files import append_line, make_folder, sweep, whole_file, whole_folder, write_bytes

CODES = ("ENOSPC", "EDQUOT", "EIO", "EACCES", "EPERM", "EROFS", "ENAMETOOLONG", "EISDIR", "ENOTDIR", "ENOENT", "ESTALE")
REMEDIES = ("Free space", "--out", "Check that the folder")


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("call", ["mkdir", "replace", "fsync"])
def test_every_error_is_one_sentence(tmp_path, monkeypatch, code, call):
    """It names the file, the reason and what to do; the old file stays, and nothing else."""
    file = tmp_path / "old.json"
    write_bytes(file, b"old")

    def fail(*arguments, **options):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(WriteError) as caught:
            write_bytes(file, b"new")
    said = str(caught.value)
    assert str(file) in said and os.strerror(getattr(errno, code)) in said and any(text in said for text in REMEDIES)
    assert len(said) < 2000
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"old.json": b"old"}


def test_errors_of_libraries(tmp_path):
    """safetensors and tokenizers raise errors of their own; what is no error of the system passes."""
    for error in (RuntimeError("I/O error: No space left on device (os error 28)"), Exception("full (os error 28)")):
        with pytest.raises(WriteError, match=r"No space left on device\. Free space"), whole_file(tmp_path / "a"):
            raise error
    with pytest.raises(ValueError, match="other"), whole_folder(tmp_path / "a"):
        raise ValueError("other")
    with pytest.raises(RunError, match=r"^ours$"), whole_folder(tmp_path / "a"):
        raise RunError("ours")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_a_files_place(tmp_path):
    """And a file in a folder's."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    for write in (lambda: write_bytes(tmp_path / "a", b""), lambda: append_line(tmp_path / "a", "x")):
        with pytest.raises(WriteError, match="folder stands where a file belongs"):
            write()
    write_bytes(tmp_path / "f", b"")
    for write in (lambda: make_folder(tmp_path / "f"), lambda: write_bytes(tmp_path / "f" / "g", b"")):
        with pytest.raises(WriteError, match="or the other way round"):
            write()
    with whole_folder(tmp_path / "f", replace=True) as scratch:
        write_bytes(scratch / "g", b"1")
    assert (tmp_path / "f" / "g").read_bytes() == b"1"


def test_names(tmp_path):
    """A name of 255 bytes is written; a longer one is told, in few words."""
    write_bytes(tmp_path / ("x" * 255), b"1")
    for name in ("x" * 256, "x" * 5000):
        with pytest.raises(WriteError, match="Choose a shorter name") as caught:
            write_bytes(tmp_path / name, b"1")
        assert len(str(caught.value)) < 1000
    assert "..." in str(unwritable(tmp_path / ("y" * 5000), OSError(errno.EIO, "x")))


@pytest.mark.skipif(os.name == "nt", reason="no umask")
@pytest.mark.parametrize(("umask", "rights"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664), (0o077, 0o600)])
def test_rights_are_the_umasks(tmp_path, umask, rights):
    """Of every file, whoever writes it: safetensors' own are 0600."""
    from safetensors.numpy import save_file

    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "plain", b"1")
        with whole_file(tmp_path / "a.safetensors") as scratch:
            save_file({"x": np.zeros(2)}, scratch)
        with whole_folder(tmp_path / "folder") as scratch:
            (scratch / "below").mkdir()
            save_file({"x": np.zeros(2)}, scratch / "below" / "b.safetensors")
            os.chmod(scratch / "below" / "b.safetensors", 0o600)
    finally:
        os.umask(before)
    found = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert found == dict.fromkeys(("plain", "a.safetensors", "b.safetensors"), rights)


def test_on_the_disk_before_it_is_seen(tmp_path, monkeypatch):
    """Content, then name: a power cut leaves the old file or the new one. A cache does not wait."""
    done, fsync, replace, rename = [], os.fsync, os.replace, os.rename
    monkeypatch.setattr(os, "fsync", lambda opened: (done.append("fsync"), fsync(opened)))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("replace"), replace(*paths)))
    monkeypatch.setattr(os, "rename", lambda *paths: (done.append("rename"), rename(*paths)))
    write_bytes(tmp_path / "a", b"1")
    assert done == ["fsync", "replace", "fsync"]
    done.clear()
    with whole_folder(tmp_path / "b") as scratch:
        (scratch / "x").write_bytes(b"")
        (scratch / "y").write_bytes(b"")
    assert done == ["fsync", "fsync", "fsync", "rename", "fsync"]
    done.clear()
    with whole_file(tmp_path / "c", durable=False) as scratch:
        scratch.write_bytes(b"1")
    assert done == ["replace"]


KILLED = """
import os, signal, sys
from pathlib import Path
from lora_cls.files import whole_file
contexts = [whole_file(Path(sys.argv[1]) / name) for name in ("a", "below/b")]
for context in contexts:
    context.__enter__().write_bytes(b"half")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_litter_of_killed_processes(tmp_path):
    """Goes with the next write into the folder, or when the run is written into; what is written now stays."""
    (tmp_path / "below").mkdir()
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert len(list(tmp_path.rglob("*.tmp"))) == 2
    with whole_file(tmp_path / "c") as scratch:
        scratch.write_bytes(b"1")
        assert [path.parent for path in tmp_path.glob("*.tmp")] == [tmp_path]
        sweep(tmp_path, deep=True)
        assert scratch.read_bytes() == b"1"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["below", "c"]


def test_litter_of_others(tmp_path):
    """A running process's scratch stays; that of this process's number in an earlier life goes; another machine's stays
    for a day."""
    running = tmp_path / f".lora_cls-{files._HOST}-{os.getppid()}-0.tmp"
    before = tmp_path / f".lora_cls-{files._HOST}-{os.getpid()}-999999.tmp"
    elsewhere, long_ago = tmp_path / ".lora_cls-000000-7-0.tmp", tmp_path / ".lora_cls-000000-8-0.tmp"
    for folder in (running, before, elsewhere, long_ago):
        folder.mkdir()
    os.utime(long_ago, (1, 1))
    sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([running, elsewhere])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied", "runs/a"), "Error: runs/a: Permission denied."),
        (OSError("odd"), "Error: odd."),
        (MemoryError(), "Error: The memory is full."),
        (RecursionError(), "Error: a file or a value is nested too deeply"),
    ],
)
def test_no_traceback(monkeypatch, capsys, error, said):
    """Of what the system refuses, whoever met it."""

    def fail():
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(said)


def test_a_terminal_without_the_letters(monkeypatch):
    """Printed with replacement."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(cli, "app", lambda: print("Wut \U0001f600 \u00e4rger"))
    cli.main()
    out.flush()
    assert out.buffer.getvalue() == b"Wut ? ?rger\n"
