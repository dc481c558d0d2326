"""Processes of tests end, and so does what they have started."""

from __future__ import annotations

import sys
import time

import psutil
import pytest

from jzi.tests.children import Child, run, run_python

#: Starts a process that outlives it, in its group or in a session of its own, prints its number, and ends or sleeps.
PARENT = """
import subprocess, sys, time
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=sys.argv[1] == "own")
print(other.pid, flush=True)
time.sleep(float(sys.argv[2]))
"""


def has_ended(pid: int) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def test_a_process_is_not_waited_for_because_another_holds_its_output() -> None:
    child = run_python(PARENT, "same", 0)
    assert has_ended(int(child.output))


@pytest.mark.parametrize("session", ["same", "own"])
def test_a_process_that_does_not_end_fails_with_its_output_and_stacks_and_leaves_nothing(session: str) -> None:
    with Child([sys.executable, "-c", PARENT, session, 600]) as child:
        child.wait_until(lambda: child.output.endswith("\n"))
        child.deadline = time.monotonic()
        with pytest.raises(pytest.fail.Exception, match="had not ended in time") as failure:
            child.wait()
    assert has_ended(child.pid) and has_ended(int(child.output))
    assert child.output in str(failure.value) and "most recent call first" in str(failure.value)


def test_what_happens_is_waited_for_until_the_process_ends() -> None:
    with Child([sys.executable, "-c", "print('a', flush=True); input()"], stdin=-1) as child:
        child.wait_until(lambda: child.output == "a\n")
        child.process.stdin.close()
        with pytest.raises(pytest.fail.Exception, match="ended too early with 1"):
            child.wait_until(lambda: child.output == "b\n")


def test_exit_codes_are_compared() -> None:
    assert run([sys.executable, "-c", "exit(3)"], code=None).process.returncode == 3
    with pytest.raises(pytest.fail.Exception, match="oh no"):
        run_python("exit('oh no')")
