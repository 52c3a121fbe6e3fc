"""What every test shares."""

import pytest
import torch

torch.set_num_threads(1)  # networks this small are slower on several, far slower on a busy machine


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _a_plain_cpu(monkeypatch):
    """What --precision auto comes to is the same on every machine; tests of it say otherwise."""
    monkeypatch.setattr("frameflex.models.precision.cpu_flags", frozenset)


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A server on this machine, an empty cache, and no waiting between tries."""
    from web import Web

    monkeypatch.setenv("FRAMEFLEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("frameflex.checkpoint.downloading._WAIT_SECONDS", 0.01)
    with Web() as web:
        yield web


@pytest.fixture(scope="session")
def _s3_server():
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    from store import Store

    with Store() as store:
        yield store


@pytest.fixture
def store(_s3_server, tmp_path, monkeypatch):
    """A real S3 server with an empty bucket, credentials for it, and an empty cache."""
    from store import credentials

    monkeypatch.setenv("FRAMEFLEX_CACHE", str(tmp_path / "cache"))
    _s3_server.clear()
    with credentials(monkeypatch, _s3_server):
        yield _s3_server
    _s3_server.clear()
