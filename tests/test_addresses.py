"""Passwords and keys in addresses are for the place they open, not for messages, logs and JSON lines."""

import json
import logging

import pytest
from rich.console import Console

from frameflex.addresses import without_secrets
from frameflex.checkpoint import CheckpointError, load_checkpoint
from frameflex.cli import main
from frameflex.console import show_messages
from frameflex.data.shards import read_index
from frameflex.deploy.live.sources import LiveSource, running
from frameflex.storage import StorageError
from frameflex.video.sequential import SequentialReader, SourceLost


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("rtsp://camera/1", "rtsp://camera/1"),
        ("rtsp://me:hush@camera:554/1", "rtsp://camera:554/1"),
        ("rtsp://me:hu@sh@camera/1", "rtsp://camera/1"),
        ("rtsp://me:hu/sh@camera/1", "rtsp://camera/1"),
        ("rtsp://me:hu?sh@camera/1", "rtsp://camera/1"),
        ("rtsp://hush@camera", "rtsp://camera"),
        ("http://a/b?password=hush", "http://a/b?password=***"),
        ("http://a/b?x=1&Access_Token=hush&y=2", "http://a/b?x=1&Access_Token=***&y=2"),
        ("http://a/b?passwd=hush;pwd=hush#key=hush", "http://a/b?passwd=***;pwd=***#key=***"),
        ("https://b.s3/x?X-Amz-Signature=hush&api_key=hush&client_secret=hush&auth=hush",
         "https://b.s3/x?X-Amz-Signature=***&api_key=***&client_secret=***&auth=***"),
        ("s3://me:hush@bucket/index.json", "s3://bucket/index.json"),
        ("HTTPS://me:hush@a/b, then rtmp://u:hush@c/d", "HTTPS://a/b, then rtmp://c/d"),
        ("no address: me@example.org a=b?token=x", "no address: me@example.org a=b?token=x"),
    ],
)  # fmt: skip
def test_what_may_be_said_of_an_address(address, said):
    assert without_secrets(address) == said


ADDRESS = "rtsp://me:hu@s/h@127.0.0.1:9/live?token=hush"


def test_a_live_source_that_cannot_be_reached_says_no_secret(caplog):
    source = LiveSource(ADDRESS, timeout_seconds=1, give_up_seconds=1)
    notices = []
    with running([source]) as wake:
        while not source.ended:
            wake.wait(0.05)
            notices += source.poll()
    told = source.name + caplog.text + json.dumps([str(notice) for notice in notices])
    assert notices
    assert "127.0.0.1:9/live?token=***" in told
    assert not any(secret in told for secret in ("hush", "me:", "s/h@"))


def test_errors_and_logs_say_no_secret(capsys):
    with pytest.raises(SourceLost) as lost:
        SequentialReader(ADDRESS, protocols="tcp,rtsp,rtp,udp", timeout_seconds=1)
    with pytest.raises(StorageError) as shard:
        read_index("unknown+kind://me:hush@a/index.json?key=hush")
    with pytest.raises(CheckpointError) as checkpoint:
        load_checkpoint("https://me:hush@127.0.0.1:9/a.safetensors?token=hush")
    told = [str(lost.value), str(shard.value), str(checkpoint.value)]
    console = Console(stderr=True, force_terminal=False)
    show_messages(console, debug=False)
    logging.getLogger("frameflex").warning("lost %s", ADDRESS)
    told.append(capsys.readouterr().err)
    assert all("://" in text for text in told)
    assert not any("hush" in text or "me:" in text or "s/h@" in text for text in told)


def test_the_command_line_says_no_secret(capsys):
    assert main(["predict", "https://me:hush@127.0.0.1:9/a.safetensors?token=hush", "a.mp4"]) == 1
    told = "".join(capsys.readouterr())
    assert "127.0.0.1:9" in told
    assert "hush" not in told
