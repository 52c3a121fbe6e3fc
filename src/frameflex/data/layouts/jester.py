"""Jester (hand gestures): frames and lines ``ID;LABEL``, as Something-Something V1."""

from frameflex.data.layouts.something_something import FramesOf20BN

JESTER = FramesOf20BN("Jester", "jester-v1", "20bn-jester-v1")
