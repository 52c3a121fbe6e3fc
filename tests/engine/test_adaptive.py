"""The compute dial and calibration."""

import copy

import pytest
import torch
from helpers import bar_folder, tiny_recipe

from frameflex.checkpoint import load_checkpoint, save_checkpoint
from frameflex.data.datasets import load_split
from frameflex.deploy.recognizer import Recognizer
from frameflex.engine.adaptive import adaptive_report, run_adaptive
from frameflex.engine.calibration import calibrate
from frameflex.engine.evaluation import CountResult, Evaluation
from frameflex.engine.training import train
from frameflex.models import create_model
from frameflex.models.frame_flexible import add_norms, blend_weight, serve_untrained


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
    assert recognizer(video, budget="auto", confidence=1.01) == recognizer(video, num_frames=4)
    assert recognizer(video, budget=(3, 2), confidence=1.01) == recognizer(video, num_frames=3)
    with pytest.raises(ValueError, match="both num_frames and budget"):
        recognizer(video, num_frames=2, budget="auto")
    with pytest.raises(ValueError, match="budget is 'cheap'"):
        recognizer(video, budget="cheap")


@pytest.mark.parametrize("method", ["tsm", "ffn"])
def test_calibration_changes_statistics_of_new_counts_and_nothing_else(trained, tmp_path, method):
    data, paths = trained
    checkpoint = load_checkpoint(paths[method])
    before = copy.deepcopy(checkpoint.model)
    clips = {t: torch.randn(2, 3, t, 32, 32) for t in (2, 3, 4)}
    videos = load_split(data, "train")
    calibrate(checkpoint, videos, [3], batch_size=8)
    with torch.no_grad():
        trained_counts = checkpoint.frame_counts
        for count in trained_counts:
            torch.testing.assert_close(checkpoint.model(clips[count]), before(clips[count]))
        assert not torch.allclose(checkpoint.model(clips[3]), before(clips[3]))
    for name, parameter in checkpoint.model.named_parameters():
        if ".norms." not in name:
            assert torch.equal(parameter, before.get_parameter(name))
    norm = checkpoint.model.backbone.bn1.norms["3"]
    assert int(norm.num_batches_tracked) == 1
    assert not norm.training
    assert norm.momentum == 0.1

    save_checkpoint(tmp_path / "calibrated.safetensors", checkpoint)
    again = load_checkpoint(tmp_path / "calibrated.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(again.model(clips[3]), checkpoint.model(clips[3]))
    assert again.frame_counts == trained_counts
    with pytest.raises(ValueError, match="have norms of their own already"):
        calibrate(again, videos, [3])


def test_calibrated_statistics_are_those_of_the_clips(trained):
    data, paths = trained
    checkpoint = load_checkpoint(paths["ffn"])
    seen = []
    checkpoint.model.backbone.conv1.register_forward_hook(lambda m, args, out: seen.append(out.detach()))
    videos = load_split(data, "validation")
    calibrate(checkpoint, videos, [3], batch_size=len(videos))
    features = torch.cat(seen)
    norm = checkpoint.model.backbone.bn1.norms["3"]
    torch.testing.assert_close(norm.running_mean, features.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, features.var((0, 2, 3)), rtol=1e-3, atol=1e-5)


def test_every_calibration_video_counts_alike_where_batches_do_not_divide_them(trained):
    data, paths = trained
    checkpoint = load_checkpoint(paths["ffn"])
    sizes = []
    checkpoint.model.backbone.conv1.register_forward_hook(lambda m, args, out: sizes.append(len(args[0])))
    videos = load_split(data, "validation")
    calibrate(checkpoint, videos, [3], batch_size=len(videos) - 1)
    assert sizes == [3 * len(videos) // 2] * 2  # not all but one, and then one that counts as much as they do


def test_a_count_added_to_a_blended_network_starts_between_its_neighbours():
    model = create_model("test_resnet", num_classes=2, frame_counts=(2, 8), untrained="blend").eval()
    norms = model.backbone.bn1.norms
    norms["2"].running_mean.fill_(1.0)
    norms["8"].running_mean.fill_(3.0)
    clip = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        before = model(clip)
        add_norms(model, [4])
        torch.testing.assert_close(model(clip), before)
    assert norms["4"].running_mean.unique().tolist() == [2.0]
    assert norms["2"].running_mean.unique().tolist() == [1.0]
    assert all(isinstance(p, torch.nn.Parameter) for p in norms["4"].parameters())
    assert len(list(norms["4"].parameters())) == 2


def test_blending_interpolates_in_log_t():
    assert blend_weight((4, 8, 16), 8) == (8, 8, 0.0)
    assert blend_weight((4, 8, 16), 2) == (4, 4, 0.0)
    assert blend_weight((4, 8, 16), 40) == (16, 16, 0.0)
    below, above, weight = blend_weight((4, 16), 8)
    assert (below, above) == (4, 16)
    assert weight == pytest.approx(0.5)


def test_a_blended_network_equals_a_plain_one_with_interpolated_parts():
    from test_frame_flexible import flexible, plain_twin

    model = flexible(counts=(2, 8)).eval()
    clip = torch.randn(1, 3, 4, 32, 32)
    nearest = model(clip)
    serve_untrained(model, "blend")
    expected = flexible(counts=(2, 8))
    for name, tensor in [*expected.named_parameters(), *expected.named_buffers()]:
        if "norms.8." in name or name.endswith("scales.8"):
            other = model.get_buffer(name.replace("norms.8.", "norms.2.")) if "running" in name else None
            if other is None and tensor.is_floating_point():
                other = model.get_parameter(
                    name.replace("norms.8.", "norms.2.").replace("scales.8", "scales.2")
                )
            if other is not None:
                tensor.data = (tensor.data + other.data) / 2
    with torch.no_grad():
        got = model(clip)
        torch.testing.assert_close(got, plain_twin(expected, 8).eval()(clip), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(got, nearest)
    again = create_model(**model.config)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.eval()(clip), got)
    model.train()
    assert (
        model.backbone.bn1.at_num_frames(4) is model.backbone.bn1.norms["2"]
    )  # training: nearest, on its own scale
