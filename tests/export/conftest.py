"""An export that several test files run."""

import pytest
import torch
from exportable import checkpoint
from helpers import moving_bar, write_video

from frameflex.checkpoint import save_checkpoint
from frameflex.export import export


@pytest.fixture(scope="session")
def exported_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("exported")
    made = checkpoint()
    save_checkpoint(folder / "model.safetensors", made)
    export(made, folder / "out", format="torchscript", frame_counts=(2, 4))
    write_video(folder / "a.mp4", moving_bar(12, rightwards=True))
    write_video(folder / "b.mp4", moving_bar(9, rightwards=False))
    return folder
