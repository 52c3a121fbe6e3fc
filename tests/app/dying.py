"""A task on which the decoder hangs or crashes; a module of its own, since the process that decodes imports it."""

import os
import signal
import time

from frameflex.app.decoding import DecodeClips


class DieFor(DecodeClips):
    """As the file's first byte says."""

    def run(self):
        with open(self.path, "rb") as file:
            kind = file.read(1)
        if kind == b"!":
            os.kill(os.getpid(), signal.SIGSEGV)
        if kind == b"?":
            time.sleep(60)
        return super().run()


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
