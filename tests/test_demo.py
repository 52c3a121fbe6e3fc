"""The sentences that the demo makes of whatever it measured, and a small run of the whole."""

from rich.console import Console

from frameflex import demo as module
from frameflex.demo import _free_name, _story, demo
from frameflex.engine.evaluation import CountResult, Evaluation


def measured(top1):
    import torch

    return Evaluation(
        results=[CountResult(t, value, 1.0, value, 0.1, 1.0) for t, value in top1.items()],
        trained_counts=(16,), class_names=["a"], names=["v"] * 200, labels=torch.empty(0), logits={}, views="1x1",
    )  # fmt: skip


def test_a_repaired_collapse_is_told_in_its_own_numbers():
    text = " ".join(
        _story({"TSM": measured({4: 0.5, 8: 0.8, 16: 0.9}), "FFN": measured({4: 0.85, 8: 0.9, 16: 0.88})})
    )
    assert "scores 50.0 % instead of 90.0 %: it loses 40.0 points" in text
    assert "gains 35.0 points there, 88 % of that loss" in text
    assert "88.0 % at 16 frames, where the plain one has 90.0 %" in text


def test_a_failed_repair_and_no_collapse_are_told_too():
    text = " ".join(_story({"TSM": measured({4: 0.5, 16: 0.9}), "FFN": measured({4: 0.4, 16: 0.9})}))
    assert "loses 10.0 points there, -25 % of that loss" in text
    text = " ".join(_story({"TSM": measured({4: 0.9, 16: 0.8}), "FFN": measured({4: 0.9, 16: 0.9})}))
    assert "gains 10.0 points" in text
    assert "No Temporal Frequency Deviation to repair" in text


def test_a_used_folder_is_left_alone(tmp_path):
    assert _free_name(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    assert _free_name(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo" / "file").write_text("")
    (tmp_path / "demo-2").write_text("")
    assert _free_name(tmp_path / "demo") == tmp_path / "demo-3"


def test_the_whole_demo_runs_and_leaves_what_it_says(tmp_path, monkeypatch, capsys, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(module, "QUICK_VIDEOS", 24)
    monkeypatch.setattr(module, "QUICK_EPOCHS", {"tsm": 1, "ffn": 1})
    results = demo(tmp_path / "demo", quick=True, seed=0, console=Console(stderr=True))
    out = capsys.readouterr().out
    assert list(results) == ["TSM(8)", "FFN(2,4,8)"]
    for evaluation in results.values():
        assert [result.num_frames for result in evaluation.results] == [2, 4, 8]
        for result in evaluation.results:
            assert f"{100 * result.top1:.1f}" in out
    for name in ("accuracy.png", "results.json", "tsm/best.safetensors", "ffn/best.safetensors"):
        assert (tmp_path / "demo" / name).is_file()
    assert "in truth: " in out
    assert "numbers are rough" in out
    assert [record.getMessage() for record in caplog.records if record.levelname == "INFO"] == []
