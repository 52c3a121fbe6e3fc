"""What is refused, what is told, and where class names come from."""

import os
import pickle

import pytest
import torch
import torchvision
from published_networks import resnet, same_logits, save

from frameflex.checkpoint import load_checkpoint
from frameflex.cli import main
from frameflex.convert import ConversionError, convert, read_class_names


def test_left_over_and_missing_tensors_are_all_listed_and_nothing_is_saved(tmp_path, capsys):
    state = dict(resnet(18, 4).state_dict())
    del state["base_model.layer3.1.bn2.bias"], state["base_model.layer1.0.bn1.weight"]
    state["base_model.layer4.1.surprise.weight"] = torch.zeros(3)
    state["new_fc.bias"] = torch.zeros(5)
    torch.save(state, tmp_path / "a.pth")
    assert main(["convert", str(tmp_path / "a.pth"), "--to", str(tmp_path / "out.safetensors")]) == 1
    error = capsys.readouterr().err
    assert "1 left over: base_model.layer4.1.surprise.weight" in error
    assert "2 missing: backbone.layer1.0.bn1.weight, backbone.layer3.1.bn2.bias" in error
    assert "new_fc.bias is (5,), expected (7,)" in error
    assert not (tmp_path / "out.safetensors").exists()


def test_counters_that_old_torch_did_not_keep_may_be_absent(tmp_path):
    model = resnet(18, 4)
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "a.pth")
    assert any("counters of batches" in note for note in same_logits(tmp_path / "a.pth", model, 4).notes)


class Dangerous:
    def __reduce__(self):
        return os.mkdir, (self.place,)


def test_a_file_that_asks_for_code_is_read_without_it_unless_its_author_is_trusted(tmp_path, capsys):
    danger = Dangerous()
    danger.place = str(tmp_path / "was run")
    torch.save({"state_dict": resnet(18, 4).state_dict(), "extra": danger}, tmp_path / "a.pth")
    arguments = ["convert", str(tmp_path / "a.pth"), "--to", str(tmp_path / "out.safetensors")]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "left unread, as code would be needed, and none was run: posix.mkdir (1)" in told
    assert "BEWARE: the file asks to run posix.mkdir" in told
    assert not (tmp_path / "was run").exists()
    assert main([*arguments, "--trust-pickle"]) == 0
    assert (tmp_path / "was run").exists()
    assert "code inside the file may run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "0 bytes"),
        (b"<html>not found</html>" * 9, "no file of torch.save"),
        (pickle.dumps({"a": 1}) + b" " * 99, "no file of torch.save"),
    ],
)
def test_files_without_weights_are_told_apart(content, words, tmp_path):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ConversionError, match=words):
        convert(tmp_path / "a.pth")


def test_other_networks_are_refused_with_the_reason(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"encoder.layer.0.weight": torch.zeros(3, 3)}, path)
    with pytest.raises(ConversionError, match="no kind that is known.*encoder"):
        convert(path)
    state = dict(resnet(18, 4).state_dict())
    state["base_model.conv1.weight"] = torch.zeros(64, 10, 7, 7)
    torch.save(state, path)
    with pytest.raises(ConversionError, match="optical flow"):
        convert(path)
    torch.save({k: v for k, v in torchvision.models.resnet18().state_dict().items() if k[:3] != "fc."}, path)
    with pytest.raises(ConversionError, match="resnet18, but no classifier"):
        convert(path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        convert("nowhere.pth")


def test_class_names_come_from_text_or_json(tmp_path):
    (tmp_path / "a.txt").write_text("Opening a door\n\nClosing a door\n", encoding="utf-8")
    (tmp_path / "b.json").write_text('{"Closing": "1", "Opening": "0"}', encoding="utf-8")
    (tmp_path / "c.json").write_text('["x", "y", "z"]', encoding="utf-8")
    (tmp_path / "d.json").write_text('{"a": "0", "b": "5"}', encoding="utf-8")
    assert read_class_names(tmp_path / "a.txt") == ["Opening a door", "Closing a door"]
    assert read_class_names(tmp_path / "b.json") == ["Opening", "Closing"]
    assert read_class_names(tmp_path / "c.json") == ["x", "y", "z"]
    with pytest.raises(ConversionError, match="from 0 to 1"):
        read_class_names(tmp_path / "d.json")


def test_the_command_says_what_it_found_and_keeps_what_it_was_told(tmp_path, capsys):
    save(tmp_path / "tsm.pth", resnet(18, 4))
    (tmp_path / "labels.txt").write_text("\n".join("abcdefg"), encoding="utf-8")
    out = tmp_path / "out.safetensors"
    arguments = [
        "convert",
        str(tmp_path / "tsm.pth"),
        "--to",
        str(out),
        "--classes",
        str(tmp_path / "labels.txt"),
    ]
    arguments += ["--frames", "4", "--mean", "104,117,128", "--std", "1,1,1", "--pixel-scale", "255"]
    assert main([*arguments, "--channel-order", "bgr", "--license", "cc-by-4.0", "--sampling", "dense"]) == 0
    text = capsys.readouterr().out
    assert "found: mit-han-lab temporal-shift-module, resnet18, 7 classes, a shift of 1/8 in 8" in text
    assert "matched: all" in text
    loaded = load_checkpoint(out)
    assert loaded.class_names == list("abcdefg")
    assert loaded.frame_counts == (4,)
    assert loaded.preprocessing.channel_order == "bgr"
    assert loaded.preprocessing.mean == pytest.approx((104 / 255, 117 / 255, 128 / 255))
    assert (loaded.license, loaded.sampling) == ("cc-by-4.0", {"sampling": "dense", "window": 64})
    assert main([*arguments[:4], "--classes", str(tmp_path / "tsm.pth")]) != 0


def test_wrong_numbers_of_class_names_are_refused(tmp_path):
    with pytest.raises(ConversionError, match="2 class names for 7 logits"):
        convert(save(tmp_path / "a.pth", resnet(18, 4)), class_names=["a", "b"])
