"""Commands of the project as processes of their own, forked from one that has imported the libraries.

Importing PyTorch, diffusers and transformers takes ten seconds, which are spent once where many commands are run.
"""

import multiprocessing
import os
import runpy
import signal
import sys
import threading
from multiprocessing.process import BaseProcess

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["models.backbone", "accelerate"])


def start_command(module: str, *words: object) -> BaseProcess:
    """Start what `python -m MODULE WORDS` does; after `join()` its status stands in `exitcode`.

    It ends with this process, however that ends: nobody else would wait for it, and a second start would meet it.
    """
    process = _PROCESSES.Process(target=_be, args=(module, *map(str, words)))
    process.start()
    return process


def _be(module: str, *words: str) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a forked process has a parent"
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)
