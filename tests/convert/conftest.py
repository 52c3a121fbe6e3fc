import hashlib
from dataclasses import replace

import pytest
import torch

from frameflex.checkpoint import published


@pytest.fixture
def serve(web, tmp_path, monkeypatch):
    """Let the server of the test offer a file as that of a row."""

    def serve(name, content, **changes):
        if not isinstance(content, bytes):
            torch.save(content, tmp_path / "file.pth")
            content = (tmp_path / "file.pth").read_bytes()
        web.files[f"{name}.pth"] = content
        digest = hashlib.sha256(content).hexdigest()
        rows = published.published()
        row = replace(rows[name], address=f"{web.address}{name}.pth", sha256=digest[:8], **changes)
        monkeypatch.setattr(published, "published", lambda: rows | {name: row})
        return row

    return serve
