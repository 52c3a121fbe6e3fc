"""What may be said of an address: not the passwords and keys in it."""

from __future__ import annotations

import re

# One slash where a path was made of it. A scheme has two letters or more: C:/ is a disk.
_ADDRESS = re.compile(r"\b([a-zA-Z][a-zA-Z0-9+.-]+:/{1,2})([^\s'\"<>]+)")
_SECRET = re.compile(
    r"([?&;#][^=&;#?]*(?:password|passwd|pwd|token|key|secret|auth|signature|credential)[^=&;#]*=)[^&;#]*?(?=[:,.]*(?:$|[&;#]))",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """A text in which every address has lost its user and password, and its query the values of secrets.

    A password may hold ``@`` and ``/``: all that stands before the last ``@`` of what comes before the query goes. It
    may hold ``?``, too; then the query has an ``@``, and all before that goes.

    >>> without_secrets("lost rtsp://me:p@ss/word@camera/1?token=abc&quality=high")
    'lost rtsp://camera/1?token=***&quality=high'
    """
    return _ADDRESS.sub(lambda found: found[1] + _SECRET.sub(r"\1***", _behind_at(found[2])), text)


def _behind_at(address: str) -> str:
    place, mark, query = address.partition("?")
    host = place.rpartition("@")[2]
    if "@" in query and "@" not in place and ":" in place.partition("/")[0]:
        # host:port?…@… or user:pass?word@host: the latter must not be shown
        return address.rpartition("@")[2]
    return host + mark + query
