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
