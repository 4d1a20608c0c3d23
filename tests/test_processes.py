"""A process that the tests fork is what a fresh start of Python is."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.processes import ROOT, finish, kill_when, run, start, start_ranks, wait_for

both = pytest.mark.parametrize("fresh", [False, True], ids=["forked", "fresh"])


@both
def test_words_folder_environment_and_output_are_its_own(fresh, tmp_path):
    program = "import os, sys; print(sys.argv, os.getcwd(), __name__); print(os.environ.get('HERE'), file=sys.stderr)"
    done = run("-c", program, "a b", 3, fresh=fresh, folder=tmp_path, HERE="yes")
    assert (done.stdout, done.stderr) == (f"['-c', 'a b', '3'] {tmp_path} __main__\n", "yes\n")
    assert run("-c", program, fresh=fresh, HERE=None).stderr == "None\n"
    assert "HERE" not in os.environ


@both
def test_a_module_runs_as_main_of_the_clone(fresh):
    assert "January 2026" in run("-m", "calendar", 2026, 1, fresh=fresh).stdout
    assert run("-c", "import os; print(os.getcwd())", fresh=fresh).stdout == f"{ROOT}\n"


@both
@pytest.mark.parametrize(
    ("program", "status", "said"),
    [
        ("import sys; sys.exit()", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('no')", 1, "no\n"),
        ("raise ValueError('wrong')", 1, "ValueError: wrong\n"),
        ("import atexit, sys; atexit.register(print, 'end', file=sys.stderr)", 0, "end\n"),
        ("import os; os.kill(os.getpid(), 15)", -signal.SIGTERM, ""),
    ],
)
def test_statuses(fresh, program, status, said):
    done = run("-c", program, status=status, fresh=fresh)
    assert done.stderr.endswith(said) and bool(done.stderr) == bool(said)


@both
def test_a_status_that_is_not_expected_fails(fresh):
    with pytest.raises(AssertionError, match="wrong"):
        run("-c", "raise ValueError('wrong')", fresh=fresh)


@both
def test_signals_reach_it_and_its_pid_is_gone(fresh, tmp_path):
    program = "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(60)"
    process = start("-c", program, fresh=fresh, folder=tmp_path)
    kill_when(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "", process)
    assert process.poll() == -signal.SIGKILL and int((tmp_path / "pid").read_text()) == process.pid
    assert not Path(f"/proc/{process.pid}").exists()
    with pytest.raises(AssertionError, match="ended too early"):
        wait_for(lambda: time.sleep(0.1) is None and False, process)


def test_no_two_forks_draw_the_same():
    program = "import numpy, random, torch; print(random.random(), numpy.random.rand(), torch.rand(1).item())"
    one, two = (run("-c", program).stdout.split() for _ in range(2))
    assert not {*one} & {*two}


def test_forks_have_one_thread_and_untouched_cuda():
    found = "len(os.listdir('/proc/self/task')), torch.get_num_threads(), torch.cuda.is_initialized()"
    assert run("-c", f"import os, torch; print({found})").stdout == "1 1 False\n"


SUM = """
import os, torch
torch.distributed.init_process_group("gloo")
total = torch.ones(1) * (1 + torch.distributed.get_rank())
torch.distributed.all_reduce(total)
print(total.item(), os.environ["LOCAL_RANK"], os.environ["LOCAL_WORLD_SIZE"], flush=True)
torch.distributed.destroy_process_group()
"""


def test_ranks_form_a_group():
    ranks = start_ranks(2, "-c", SUM)
    finish(ranks)
    assert [rank.said()[0] for rank in ranks] == ["3.0 0 2\n", "3.0 1 2\n"]
