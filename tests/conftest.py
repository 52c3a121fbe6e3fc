"""What every test shares."""

import pytest
import torch

torch.set_num_threads(1)  # networks this small are slower on several, far slower on a busy machine


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
