"""Tasks for a process of its own; a small module, since that process imports it."""

import os
import time


def double(number):
    """For a process of its own: what it makes of a number, where it dies of 13, hangs with 60 and fails with 0."""
    if number == 13:
        os._exit(7)
    if number == 60:
        time.sleep(60)
    if number == 0:
        raise ValueError("zero")
    return 2 * number, os.getpid()


def oom_score(_):
    """How soon this process goes where memory is short."""
    with open("/proc/self/oom_score_adj") as file:
        return int(file.read())
