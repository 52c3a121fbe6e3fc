"""Statistics re-estimated at other frame counts: exact, whatever the order, and measured before they are kept."""

import copy
import re
from types import SimpleNamespace

import pytest
import torch
from helpers import bar_folder, tiny_recipe
from torch.nn.modules.batchnorm import _BatchNorm

from frameflex.checkpoint import load_checkpoint, save_checkpoint
from frameflex.cli import main
from frameflex.data.datasets import load_split
from frameflex.data.splits import Division, KnownVideos
from frameflex.engine import calibration
from frameflex.engine.calibration import Moments, StoredClips, calibrate, norms_at, pool_statistics
from frameflex.engine.confidence import fit_temperature
from frameflex.engine.evaluation import evaluate
from frameflex.engine.self_check import videos_for_calibration
from frameflex.engine.training import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("calibration")
    data = bar_folder(root / "data", per_class=4)
    paths = {}
    for method in ("tsm", "ffn"):
        [paths[method]] = train(tiny_recipe(data, root / method, method=method, epochs=2))
    return data, paths


def statistics(model, count):
    return [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms_at(model, count)]


def assert_same(found, expected):
    """To a thousandth of a standard deviation: fifteen norms after another pass rounding on."""
    for (mean, variance), (true_mean, true_variance) in zip(found, expected, strict=True):
        deviation = true_variance.sqrt() + 1e-4
        assert float(((mean - true_mean) / deviation).abs().max()) < 1e-3
        assert float((variance.sqrt() / deviation - true_variance.sqrt() / deviation).abs().max()) < 1e-3


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


@pytest.mark.parametrize("max_bytes", [1 << 30, 1], ids=["all clips together", "one clip at a time"])
def test_statistics_are_those_of_all_clips_in_every_order_at_every_batch_size(
    trained, max_bytes, monkeypatch
):
    data, paths = trained
    pool = calibration.pool_statistics
    monkeypatch.setattr(calibration, "pool_statistics", lambda *args: pool(*args, max_bytes=max_bytes))
    videos = load_split(data, "train")  # in the order of the folders: each class on its own
    mixed = [index for pair in zip(range(4), range(7, 3, -1), strict=True) for index in pair]
    found = []
    for order, batch_size in ((range(8), 1), (range(8), 4), (mixed, 3), (mixed[::-1], 8)):
        checkpoint = load_checkpoint(paths["ffn"])
        calibrate(checkpoint, videos.subset(order), [3], batch_size=batch_size)
        found.append(statistics(checkpoint.model, 3))
    for others in found[1:]:
        assert_same(others, found[0])


@pytest.mark.parametrize("max_bytes", [1 << 30, 3 * 4 * 16 * 3 * 32 * 32 * 3, 1])
def test_every_norm_gets_what_torch_computes_over_one_batch_of_all_clips(trained, tmp_path, max_bytes):
    _, paths = trained
    model = load_checkpoint(paths["ffn"]).model.eval()
    videos = torch.randn(7, 3, 2, 32, 32) * torch.linspace(0.2, 3, 7).view(
        -1, 1, 1, 1, 1
    )  # none like another
    twin = copy.deepcopy(model)
    for norm in norms_at(twin, 2):
        norm.reset_running_stats()
        norm.momentum = None
        torch.nn.Module.train(norm)
    with torch.no_grad():
        expected = twin(videos)
    clips = StoredClips(tmp_path / "clips")
    for part in videos.split(3):
        clips.append(part)
    assert torch.equal(clips.read(2, 3), videos[2:5])
    norms = norms_at(model, 2)
    assert set(pool_statistics(model, norms, clips, max_bytes=max_bytes)) == set(norms)
    for norm, other in zip(norms, norms_at(twin, 2), strict=True):
        error = (norm.running_mean - other.running_mean) / (norm.running_var.sqrt() + 1e-4)
        assert float(error.abs().max()) < 1e-3
    with torch.no_grad():
        torch.testing.assert_close(model(videos), expected, rtol=1e-3, atol=1e-3)
    assert not any(m._forward_pre_hooks for m in model.modules() if isinstance(m, _BatchNorm))


def test_moments_of_parts_are_those_of_the_whole_where_the_mean_is_large():
    values = torch.randn(40, 5, 3, dtype=torch.float64) * 0.01 + 1000
    sums = Moments()
    for part in values.float().split([1, 20, 7, 12]):
        sums.add(part)
    whole = values.float().double()
    torch.testing.assert_close(sums.mean, whole.mean((0, 2)))
    torch.testing.assert_close(sums.squares / (sums.number - 1), whole.var((0, 2)), rtol=1e-6, atol=0)


def calibrated(capsys, *arguments):
    status = main(["calibrate", *map(str, arguments), "--workers", "0"])
    return status, " ".join(capsys.readouterr().err.split())


def test_calibrate_measures_held_out_videos_before_and_after(trained, tmp_path, capsys):
    data, paths = trained
    new = tmp_path / "new.safetensors"
    status, told = calibrated(capsys, paths["ffn"], data, "--frames", "3,6", "--output", new, "--allow-worse")
    assert status == 0, told
    found = re.search(r"on 6 held-out videos ([\d.]+) % before and ([\d.]+) % after at 3 frames", told)
    videos = load_split(data, "validation")
    for path, said in ((paths["ffn"], found[1]), (new, found[2])):
        checkpoint = load_checkpoint(path)
        again = evaluate(checkpoint.model, videos, preprocessing=checkpoint.preprocessing, frame_counts=[3])
        assert said == f"{100 * again.results[0].top1:.1f}"
    assert "from 8 videos" in told  # of the training split alone
    former, now = load_checkpoint(paths["ffn"]).temperatures, load_checkpoint(new).temperatures
    assert sorted(now) == [2, 3, 4, 6]
    assert {count: now[count] for count in former} == former
    logits, labels = again.logits[3], again.labels
    assert now[3] == pytest.approx(fit_temperature(logits, labels), rel=1e-4)


def test_calibrating_an_old_checkpoint_gives_its_trained_counts_temperatures_too(trained, tmp_path, capsys):
    data, paths = trained
    old = load_checkpoint(paths["ffn"])
    old.temperatures = {}
    save_checkpoint(tmp_path / "old.safetensors", old)
    new = tmp_path / "new.safetensors"
    status, told = calibrated(
        capsys, tmp_path / "old.safetensors", data, "--frames", "3", "--output", new, "--allow-worse"
    )
    assert status == 0, told
    assert sorted(load_checkpoint(new).temperatures) == [2, 3, 4]


def test_calibrate_writes_nothing_worse_unless_it_is_told_to(trained, tmp_path, capsys, monkeypatch):
    data, paths = trained

    def ruin(checkpoint, *args, **options):
        checkpoint.model.head.weight.data.zero_()
        checkpoint.model.head.bias.data.copy_(torch.tensor([1.0, 0.0]))
        return []

    checkpoint = load_checkpoint(paths["ffn"])
    monkeypatch.setattr(
        "frameflex.engine.self_check.evaluate",
        lambda model, videos, **_: SimpleNamespace(
            results=[
                SimpleNamespace(
                    num_frames=3, top1=1.0 if model.head.weight.any() else 0.5, mean_average_precision=None
                )
            ],
            names=list(range(6)),
            logits={},
        ),
    )
    monkeypatch.setattr(calibration, "calibrate", ruin)
    new = tmp_path / "new.safetensors"
    status, told = calibrated(capsys, paths["ffn"], data, "--frames", "3", "--output", new)
    assert status == 1
    assert "on 6 held-out videos 100.0 % before and 50.0 % after at 3 frames" in told
    assert "--allow-worse" in told
    assert not new.exists()
    status, told = calibrated(capsys, paths["ffn"], data, "--frames", "3", "--output", new, "--allow-worse")
    assert status == 0, told
    assert load_checkpoint(new).class_names == checkpoint.class_names


def test_calibrate_without_labels_says_that_it_measured_nothing(trained, tmp_path, capsys):
    data, paths = trained
    new = tmp_path / "new.safetensors"
    files = sorted((data / "train" / "going left").glob("*.mp4"))
    status, told = calibrated(capsys, paths["ffn"], *files, "--frames", "3", "--output", new)
    assert status == 0, told
    assert "accuracy not measured" in told
    assert new.exists()


def test_a_folder_that_was_trained_on_is_calibrated_with_and_the_rest_is_measured(trained, tmp_path):
    data, paths = trained
    checkpoint = load_checkpoint(paths["ffn"])
    folder = data / "train"
    checkpoint.videos = Division(
        KnownVideos.of(load_split(folder, "train").subset([0, 1, 4, 5, 6])), KnownVideos.of([])
    )
    found = videos_for_calibration([str(folder)], checkpoint)
    assert (len(found.measured_on), len(found.held_out)) == (5, 3)
    checkpoint.videos = None
    found = videos_for_calibration([str(folder)], checkpoint)
    assert (len(found.measured_on), len(found.held_out)) == (6, 2)
    assert sorted(found.held_out.labels) == [0, 1]
