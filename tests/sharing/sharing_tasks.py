"""Work for the tests of sharing; a small module, since processes elsewhere import it."""

import faulthandler
import os
import signal
import time
from functools import partial


def read(task):
    """What is read of a task: its double. It dies of "crash", hangs with "hang", and a float takes its seconds."""
    if task == "crash":
        faulthandler.disable()  # pytest's, inherited: its traceback would stand in the output of a green run
        os.kill(os.getpid(), signal.SIGSEGV)
    if task == "hang":
        time.sleep(600)
    if task == "storage":
        raise RuntimeError("the storage is gone")
    if isinstance(task, float):
        time.sleep(task)
        return task
    return 2 * task


def load():
    """A network that adds one, and says in which process."""
    return _network


def _network(found):
    if any(one == 26 for one in found):
        raise ValueError("the network can't do 13")
    return [(one + 1, os.getpid()) for one in found]


def leave_marks(folder):
    """Read, and leave a file behind that says so: how often a task was done."""
    return partial(_leave_mark, str(folder))


def _leave_mark(folder, task):
    number, seconds = task
    time.sleep(seconds)
    with open(os.path.join(folder, f"{number}.{os.getpid()}.{time.monotonic_ns()}"), "w"):
        return number * number
