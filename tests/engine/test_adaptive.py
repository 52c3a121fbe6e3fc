"""The compute dial."""

import pytest
import torch
from helpers import bar_folder, tiny_recipe

from frameflex.deploy.recognizer import Recognizer
from frameflex.engine.adaptive import adaptive_report, run_adaptive
from frameflex.engine.evaluation import CountResult, Evaluation
from frameflex.engine.training import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("adaptive")
    data = bar_folder(root / "data", per_class=4)
    paths = {}
    for method in ("tsm", "ffn"):
        [paths[method]] = train(tiny_recipe(data, root / method, method=method, epochs=2))
    return data, paths


def scores(*probabilities):
    p = torch.tensor(probabilities)
    return torch.stack([p, 1 - p], 1).log()


def test_each_video_stops_at_the_first_count_that_is_sure():
    logits = {2: scores(0.95, 0.6, 0.1, 0.55), 4: scores(0.9, 0.9, 0.9, 0.4), 8: scores(0.9, 0.9, 0.9, 0.9)}
    labels = torch.tensor([0, 0, 0, 0])
    point = run_adaptive(logits, labels, {2: 1.0, 4: 2.0, 8: 4.0}, 0.8)
    assert point.shares == {2: 0.5, 4: 0.25, 8: 0.25}  # the third is sure, and wrong, at once
    assert point.top1 == 0.75
    assert point.gflops == pytest.approx(0.5 * 1 + 0.25 * 3 + 0.25 * 7)


def test_a_threshold_above_one_is_the_largest_count_at_the_price_of_all_passes():
    logits = {2: scores(0.99, 0.99), 8: scores(0.2, 0.9)}
    point = run_adaptive(logits, torch.tensor([0, 0]), {2: 1.0, 8: 4.0}, 1.01)
    assert (point.top1, point.gflops, point.shares) == (0.5, 5.0, {2: 0.0, 8: 1.0})


def test_the_threshold_is_chosen_on_other_videos_than_it_is_reported_on():
    torch.manual_seed(0)
    labels = torch.arange(40) % 2
    certain = torch.nn.functional.one_hot(labels, 2).float() * 8
    wrong_early = certain.clone()
    # Only the half that is reported on is wrong at few frames: the choice can't see it, the report must.
    odd = (torch.arange(40) // 2) % 2 == 1
    wrong_early[odd] = -wrong_early[odd]
    measured = Evaluation(
        results=[CountResult(2, 0, 0, 0, 1.0, 1.0), CountResult(8, 0, 0, 0, 4.0, 1.0)],
        trained_counts=(2, 8), class_names=["a", "b"], names=[str(i) for i in range(40)], labels=labels,
        logits={2: wrong_early, 8: certain}, views="1x1",
    )  # fmt: skip
    report = adaptive_report(measured, (2, 8), max_drop=0.005)
    assert (report.num_chosen_on, report.num_reported_on) == (20, 20)
    assert report.chosen.gflops == 1.0
    assert report.chosen.top1 == 0.0
    assert report.full_top1 == 1.0


def test_a_first_look_that_is_never_sure_is_left_out():
    labels = torch.zeros(40, dtype=torch.long)
    logits = {
        2: scores(*[0.4] * 40),  # never right
        4: scores(*([0.95] * 30 + [0.4] * 10)),  # sure and right on three quarters
        8: scores(*[0.9] * 40),
    }
    results = [CountResult(t, 0, 0, 0, t / 2, 1.0) for t in logits]
    measured = Evaluation(
        results=results, trained_counts=(2, 4, 8), class_names=["a", "b"],
        names=[str(i) for i in range(40)], labels=labels, logits=logits, views="1x1",
    )  # fmt: skip
    report = adaptive_report(measured, (2, 4, 8), max_drop=0.0)
    assert report.frame_counts == (4, 8)
    assert report.chosen.top1 == 1.0
    assert report.chosen.gflops == pytest.approx(2 + 0.25 * 4)


def test_recognizer_with_a_budget_stops_where_it_is_sure(trained):
    data, paths = trained
    recognizer = Recognizer.from_checkpoint(paths["ffn"], device="cpu")
    video = data / "val" / "going left" / "0.mp4"
    assert recognizer(video, budget="auto", confidence=0.01) == recognizer(video, num_frames=2)
    assert recognizer(video, budget="auto", confidence=1.0) == recognizer(video, num_frames=4)
    assert recognizer(video, budget=(3, 2), confidence=1.0) == recognizer(video, num_frames=3)
    with pytest.raises(ValueError, match="both num_frames and budget"):
        recognizer(video, num_frames=2, budget="auto")
    with pytest.raises(ValueError, match="budget is 'cheap'"):
        recognizer(video, budget="cheap")
