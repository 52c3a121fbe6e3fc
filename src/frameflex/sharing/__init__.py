"""Work on many videos, shared by the processes of this machine or by the machines of a Ray cluster.

`Work` says what happens to one video, and is the same for both; `Here` and `Cluster` share it. Who is free takes the
next video, so that a long one or a slow machine holds up nobody.
"""

from frameflex.sharing.here import Here
from frameflex.sharing.work import Engine, Raised, Work

__all__ = ["Engine", "Here", "Raised", "Work"]
