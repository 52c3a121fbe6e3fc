"""Probabilities to be believed: temperatures fitted on held-out videos, used wherever one is shown or decides."""

import json

import pytest
import torch
from helpers import bar_folder, tiny_recipe
from torch.nn import functional as F

from frameflex.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from frameflex.cli import main
from frameflex.deploy.recognizer import Recognizer
from frameflex.engine.confidence import calibration_error, fit_temperature
from frameflex.engine.training import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("confidence")
    data = bar_folder(root / "data", per_class=4)
    [best] = train(tiny_recipe(data, root / "run", method="ffn", epochs=2))
    return data, best


def drawn(temperature, *, number=4000, num_classes=5):
    """Logits whose probabilities are right when they are divided by ``temperature``."""
    logits = torch.randn(number, num_classes) * 2
    labels = torch.distributions.Categorical(logits=logits).sample()
    return logits * temperature, labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_a_temperature_is_found_again_and_takes_the_error_away(temperature):
    logits, labels = drawn(temperature)
    fitted = fit_temperature(logits, labels)
    assert fitted == pytest.approx(temperature, rel=0.05)
    assert calibration_error(logits / fitted, labels) < 0.03


def test_it_is_the_one_of_the_lowest_loss_on_a_grid_with_its_prior():
    logits, labels = drawn(2.0, number=50)
    grid = torch.linspace(-1.5, 1.5, 3001)
    losses = [
        float(F.cross_entropy(logits / u.exp(), labels, reduction="sum")) + float(u) ** 2 / 0.5 for u in grid
    ]
    best = float(grid[min(range(len(losses)), key=losses.__getitem__)].exp())
    assert fit_temperature(logits, labels) == pytest.approx(best, rel=2e-3)


def test_few_videos_that_are_all_right_do_not_make_it_sure_of_everything():
    logits = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    assert 0.6 < fit_temperature(logits, torch.tensor([0, 1])) <= 1.0
    assert fit_temperature(logits[:0], torch.tensor([], dtype=torch.long)) == 1.0


def test_the_error_equals_counting_by_hand():
    probabilities = torch.tensor([0.95, 0.95, 0.95, 0.65, 0.65])
    logits = torch.stack([probabilities, 1 - probabilities], 1).log()
    labels = torch.tensor([0, 0, 1, 0, 1])
    by_hand = 3 / 5 * abs(0.95 - 2 / 3) + 2 / 5 * abs(0.65 - 1 / 2)
    assert calibration_error(logits, labels) == pytest.approx(by_hand, abs=1e-6)


def test_a_checkpoint_keeps_a_temperature_for_each_count_and_blends_between_them(trained, tmp_path):
    _, best = trained
    checkpoint = load_checkpoint(best)
    assert sorted(checkpoint.temperatures) == [2, 4]
    checkpoint.temperatures = {2: 1.0, 8: 4.0}
    save_checkpoint(tmp_path / "new.safetensors", checkpoint)
    again = load_checkpoint(tmp_path / "new.safetensors")
    assert [again.temperature(t) for t in (1, 2, 4, 8, 16)] == pytest.approx([1, 1, 2, 4, 4])
    checkpoint.temperatures = {2: 0.0}
    save_checkpoint(tmp_path / "broken.safetensors", checkpoint)
    with pytest.raises(CheckpointError, match="temperatures are"):
        load_checkpoint(tmp_path / "broken.safetensors")


def test_probabilities_and_the_dial_are_those_at_the_temperature(trained):
    data, best = trained
    checkpoint = load_checkpoint(best)
    checkpoint.temperatures = {2: 0.5, 4: 3.0}
    recognizer = Recognizer(checkpoint, device="cpu")
    video = next((data / "val").rglob("*.mp4"))
    for count, temperature in checkpoint.temperatures.items():
        expected = (recognizer.logits(video, num_frames=count) / temperature).softmax(0).max()
        assert recognizer(video, num_frames=count)[0].probability == pytest.approx(float(expected), abs=1e-6)
    sure = recognizer(video, num_frames=2)[0].probability
    first = recognizer(video, budget=(2, 4), confidence=sure - 1e-4)[0].probability
    last = recognizer(video, budget=(2, 4), confidence=sure + 1e-4)[0].probability
    assert first == pytest.approx(sure, abs=1e-6)
    assert last == pytest.approx(recognizer(video, num_frames=4)[0].probability, abs=1e-6)


def test_evaluate_prints_the_error_before_and_after(trained, capsys):
    data, best = trained
    assert main(["evaluate", str(best), str(data), "--workers", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for result in found["results"]:
        assert 0 <= result["calibration_error"] <= 1
        assert 0 <= result["calibrated_error"] <= 1
    assert main(["evaluate", str(best), str(data), "--workers", "0"]) == 0
    assert "ECE %" in capsys.readouterr().out
