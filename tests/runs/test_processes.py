from __future__ import annotations

import os
import subprocess
import sys

from robustclip.runs.processes import is_alive, this_process


def test_this_process_is_alive() -> None:
    assert is_alive(this_process()) is True


def test_one_that_ended_is_not_even_before_it_is_waited_for() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        found = this_process() | {"pid": child.pid}
        import psutil

        found["born"] = psutil.Process(child.pid).create_time()
        assert is_alive(found) is True
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert is_alive(found) is False, "a zombie"
        child.wait()
        assert is_alive(found) is False


def test_a_number_that_is_used_again_is_another_process() -> None:
    assert is_alive(this_process() | {"born": this_process()["born"] - 60}) is False


def test_another_host_cannot_be_seen() -> None:
    assert is_alive(this_process() | {"host": "elsewhere"}) is None
    assert is_alive({}) is None
    assert is_alive({"host": this_process()["host"]}) is None
