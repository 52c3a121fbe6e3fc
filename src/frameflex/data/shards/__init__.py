"""Videos in a few large tar files with an index, here or on a server: what `frameflex data prepare` writes.

A folder of shards holds ``index.json`` and tar files in webdataset's format: ``000123.mp4`` (or ``.mkv``) is a video,
``000123.json`` says what it shows. The index knows where in its tar file each video begins, so that any of them is
read alone, in any order: by its place in a local file, by a range of bytes from a server. `ShardStream` (in
``data/shard_stream.py``) reads whole shards from their beginning instead, through webdataset.

Nothing in a shard or an index is trusted: names stay in the folder, and sizes are checked against the file before
memory is asked for.
"""

from frameflex.data.shards.index import Shard, ShardIndex, ShardVideo, is_shards, read_index
from frameflex.data.shards.members import ShardMember
from frameflex.data.shards.reading import ShardError

__all__ = ["Shard", "ShardError", "ShardIndex", "ShardMember", "ShardVideo", "is_shards", "read_index"]
