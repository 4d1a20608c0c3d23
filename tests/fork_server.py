"""Forks the processes of `tests.processes` from one that has imported PyTorch, diffusers and the project's rooms.

Started by `tests.processes` alone. A request is one message on a Unix socket with the descriptors of stdout, stderr and
of a pipe that learns pid and exit status. It imports and does nothing else, so that it has one thread and random
states as a new interpreter has them. What forks share all the same is the seed of `hash`.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import socket
import sys
import threading
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch


def rooms() -> list[str]:
    """The modules that other modules import; a file directly in data, eval or train is a command and runs as main."""
    files = [
        *Path("models").glob("*.py"),
        *(file for folder in ("data", "eval", "train") for file in Path(folder).glob("*/**/*.py")),
    ]
    return sorted(".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files)


def serve(requests: socket.socket) -> dict | None:
    """Forks a process for each request; returns the request in that process, and None when there will be no more."""
    running: dict[int, tuple[int, int]] = {}
    while True:
        ready = select.select([requests, *running], [], [])[0]
        for ended in running.keys() & set(ready):
            pid, report = running.pop(ended)
            os.write(report, b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            os.close(report)
            os.close(ended)
        if requests not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(requests, 1 << 20, 3)
        if not message:
            return None
        stdout, stderr, report = descriptors
        pid = os.fork()
        if pid == 0:
            os.dup2(stdout, 1)
            os.dup2(stderr, 2)
            for descriptor in (*descriptors, *running, *(report for _, report in running.values())):
                os.close(descriptor)
            requests.close()
            return json.loads(message)
        os.close(stdout)
        os.close(stderr)
        os.write(report, b"%d" % pid)
        running[os.pidfd_open(pid)] = (pid, report)


def become(request: dict) -> NoReturn:
    """Makes this process the one that `python WORDS` would be, until its end."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path[0] = request["folder"]
    np.random.seed()  # from the system's entropy; Python's own generator does so by itself after a fork
    torch.default_generator.seed()
    status = 1
    try:
        run(*request["words"])
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:  # what an interpreter does at its end, without taking apart all that was imported
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run(option: str, what: str, *words: str) -> None:
    """Does what `python -m MODULE WORDS` or `python -c PROGRAM WORDS` does."""
    sys.argv = ["-c", *words]
    if option == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    for room in rooms():
        importlib.import_module(room)
    gc.collect()
    gc.freeze()  # pages that the collector does not touch stay shared
    if request := serve(socket.socket(fileno=int(sys.argv[1]))):
        become(request)
