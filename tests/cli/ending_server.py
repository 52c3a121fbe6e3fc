"""Runs the command line again and again in forked children of a process that has imported everything.

A line of JSON on standard input is one run: the child is a session of its own, becomes as broken as it says, and ends
as the program does, with all that an interpreter does at its end. Two lines come back: its process id at once, its
status when it is gone.
"""

import json
import os
import signal
import sys
import time

import torch


def serve() -> None:
    import frameflex.cli.calibrate
    import frameflex.cli.data
    import frameflex.cli.evaluate
    import frameflex.cli.export
    import frameflex.cli.predict
    import frameflex.cli.stream
    import frameflex.cli.train
    import frameflex.deploy.batch
    import frameflex.deploy.live.streaming
    import frameflex.engine.training  # noqa: F401

    for line in sys.stdin:
        run = json.loads(line)
        child = os.fork()
        if child == 0:
            be(run)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def be(run: dict) -> None:
    from frameflex.cli import main

    os.setsid()
    os.chdir(run["folder"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    if run["fault"] == "closed stdout":
        reads, writes = os.pipe()
        os.close(reads)
    else:
        writes = os.open(run["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(writes, 1)
    os.dup2(os.open(run["err"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    torch.set_num_threads(1)
    spoil(run)
    sys.exit(main(run["arguments"]))


def spoil(run: dict) -> None:
    """What can't be had by arguments: a network that fails, and work that takes long enough to be stopped in it."""
    from frameflex.models import causal, tsm
    from frameflex.video import VideoReader

    if run["fault"] == "error in the model":

        def forward(*_: object) -> None:
            raise RuntimeError("the network fell over")

        tsm.TSM.forward_frames = forward
        causal.CausalStep.forward = forward
    if run["fault"] in ("Ctrl-C", "SIGTERM"):

        def slowly(real):
            def late(*arguments, **options):
                with open(run["ready"], "w") as file:
                    file.write("working")
                time.sleep(0.3)
                return real(*arguments, **options)

            return late

        if run["arguments"][0] == "data":
            VideoReader.sample = slowly(VideoReader.sample)
            VideoReader.__iter__ = slowly(VideoReader.__iter__)
        else:
            tsm.TSM.forward_frames = slowly(tsm.TSM.forward_frames)
            causal.CausalStep.forward = slowly(causal.CausalStep.forward)


if __name__ == "__main__":
    serve()
