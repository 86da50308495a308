"""The processes that train folds of a run, as the system lists them."""

import os

import psutil


def workers_of(run):
    """Processes that write a log of a run."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if "lora_cls.commands.fold_worker" in (process.info["cmdline"] or []):
            try:
                outputs = os.readlink(f"/proc/{process.pid}/fd/2")
            except OSError:
                continue
            if outputs.startswith(str(run)):
                found.append(process)
    return found
