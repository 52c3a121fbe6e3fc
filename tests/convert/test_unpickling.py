"""Checkpoints of training frameworks, read without running anything: the plain is read, the rest left inert."""

import argparse
import collections
import contextlib
import datetime
import io
import os
import pathlib
import pickle
import random
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from published_networks import mmaction2_name, resnet
from torch import nn

from frameflex.checkpoint import load_checkpoint
from frameflex.cli import main
from frameflex.convert import ConversionError, Record, convert, read_file

NETWORK = resnet(18, 4)
STATE = {mmaction2_name(key): value for key, value in NETWORK.state_dict().items()}
CLIP = torch.randn(1, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    LOGITS = NETWORK(CLIP)


@pytest.fixture
def foreign(monkeypatch):
    """Makes classes of modules that the reader's machine doesn't have; after `forget` they are gone."""
    made = []

    def foreign(module, name, base=object, **members):
        parts = module.split(".")
        for i in range(1, len(parts) + 1):
            full = ".".join(parts[:i])
            if full not in sys.modules:
                monkeypatch.setitem(sys.modules, full, types.ModuleType(full))
                made.append(full)
        kind = type(name, (base,), {"__module__": module, **members})
        monkeypatch.setattr(sys.modules[module], name, kind, raising=False)
        return kind

    def forget():
        for module in made:
            sys.modules.pop(module)

    foreign.forget = forget
    return foreign


def same_logits(path, **options):
    conversion = convert(path, **options)
    with torch.no_grad():
        torch.testing.assert_close(conversion.checkpoint.model(CLIP), LOGITS, rtol=1e-4, atol=1e-4)
    return conversion


def test_a_training_checkpoint_of_mmengine_is_read_and_says_what_it_left(tmp_path, foreign):
    history = foreign("mmengine.logging.history_buffer", "HistoryBuffer")()
    history._log_history, history._max_length = np.arange(5.0), 10
    hub = collections.OrderedDict(log_scalars={"train/loss": history}, runtime_info={"iter": 5})
    content = {
        "meta": {"cfg": "num_segments=4", "epoch": 3},
        "message_hub": hub,
        "param_schedulers": [{"last": np.float64(0.1)}],
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}},
    }
    torch.save({"state_dict": STATE, **content}, tmp_path / "a.pth")
    foreign.forget()
    conversion = same_logits(tmp_path / "a.pth")
    assert conversion.checkpoint.frame_counts == (4,)
    assert any("mmengine.logging.history_buffer.HistoryBuffer (1)" in note for note in conversion.notes)
    assert not any("BEWARE" in note for note in conversion.notes)
    left = read_file(tmp_path / "a.pth")["message_hub"]["log_scalars"]["train/loss"]
    assert isinstance(left, Record)
    np.testing.assert_array_equal(left.attributes()["_log_history"], np.arange(5.0))


PLAIN = {
    "namespace": argparse.Namespace(lr=0.01, arch="resnet50"),
    "ordered": collections.OrderedDict(b=1, a=2),
    "counter": collections.Counter(a=2),
    "default": collections.defaultdict(list, a=[1]),
    "set": {1, 2},
    "frozen": frozenset({3}),
    "bytes": b"\x00\xff",
    "bytearray": bytearray(b"\x01"),
    "complex": 1 + 2j,
    "time": datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
    "day": datetime.date(2026, 1, 2),
    "span": datetime.timedelta(seconds=3),
    "path": pathlib.PurePosixPath("runs/best"),
    "float": np.float64(0.5),
    "half": np.float16(0.5),
    "whole": np.int64(3),
    "flag": np.bool_(True),
    "array": np.arange(6, dtype=">f4").reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "words": np.array(["ab", "c"]),
    "dtype": torch.float16,
    "size": torch.Size([2, 3]),
    "tensor": torch.arange(6).view(2, 3).T,
    "brain": torch.ones(2, dtype=torch.bfloat16),
    "parameter": nn.Parameter(torch.ones(2)),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("old", [False, True])
def test_plain_things_come_back_whatever_the_protocol(protocol, old, tmp_path):
    torch.save(
        {**PLAIN, "here": pathlib.Path("a/b")},
        tmp_path / "a.pth",
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=not old,
    )
    read = read_file(tmp_path / "a.pth")
    assert read.pop("here") == pathlib.PurePosixPath("a/b")
    assert list(read) == list(PLAIN)
    for name, value in PLAIN.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(read[name], value.detach()), name
            assert read[name].dtype == value.dtype
        elif isinstance(value, np.ndarray):
            np.testing.assert_array_equal(read[name], value, err_msg=name)
        else:
            assert read[name] == value, name
    assert convert_note(tmp_path / "a.pth") == []


def convert_note(path):
    from frameflex.convert.reading import read_content

    return read_content(path)[1]


def test_dictionaries_of_unknown_classes_hold_what_they_held(tmp_path, foreign):
    config = foreign("yacs.config", "CfgNode", dict)(MODEL={"NAME": "tsm"}, state=[1])
    names = foreign("easy.lists", "Names", list)(["a", "b"])
    torch.save({"state_dict": STATE, "cfg": config, "names": names}, tmp_path / "a.pth")
    foreign.forget()
    same_logits(tmp_path / "a.pth")
    read = read_file(tmp_path / "a.pth")
    assert read["cfg"].entries == {"MODEL": {"NAME": "tsm"}, "state": [1]}
    assert read["names"].elements == ["a", "b"]


def as_they_come(foreign):
    whole = foreign("their.models", "Recogniser", nn.Module)()
    whole.backbone = nn.ModuleDict()  # for the names; tensors hang where the state_dict says
    for key, value in STATE.items():
        *path, last = key.split(".")
        module = whole
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]
        module.register_buffer(last, value)
    attributes = foreign("lightning.utilities", "AttributeDict", dict)
    moving = {f"module.{key}": value for key, value in STATE.items()}
    return {
        "the state_dict alone": STATE,
        "under another name": {"net": STATE, "epoch": 3},
        "DeepSpeed's": {"module": STATE, "ds_version": "0.1", "optimizer": None},
        "Lightning's": {
            "state_dict": {f"model.{key}": value for key, value in STATE.items()},
            "hyper_parameters": attributes(lr=0.1),
        },
        "compiled and wrapped": {f"module._orig_mod.{key}": value for key, value in STATE.items()},
        "a pair of weights and epoch": (STATE, 7),
        "arrays instead of tensors": {key: value.numpy() for key, value in STATE.items()},
        "parameters": {
            key: nn.Parameter(v, requires_grad=v.is_floating_point() and v.ndim > 1)
            for key, v in STATE.items()
        },
        "in half": {key: v.half() if key.endswith("surprise") else v for key, v in STATE.items()},
        "a whole network": whole,
        "a whole network, beside its optimiser": {"model": whole, "optimizer": "sgd"},
        "averaged alone": {"model_ema": {**moving, "n_averaged": torch.tensor(5)}},
    }


@pytest.mark.parametrize("kind", [
    "the state_dict alone", "under another name", "DeepSpeed's", "Lightning's", "compiled and wrapped",
    "a pair of weights and epoch", "arrays instead of tensors", "parameters", "a whole network",
    "a whole network, beside its optimiser", "averaged alone",
])  # fmt: skip
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_weights_are_found_however_they_were_saved(kind, old, tmp_path, foreign):
    torch.save(as_they_come(foreign)[kind], tmp_path / "a.pth", _use_new_zipfile_serialization=not old)
    foreign.forget()
    same_logits(tmp_path / "a.pth")


# -------------------------------------------------------------------------------- averaged, not a number


@pytest.mark.parametrize("name", ["state_dict_ema", "ema_state_dict", "model_ema"])
def test_averaged_weights_are_told_and_taken_on_request(name, tmp_path, capsys):
    other = {f"module.{key}": value + 1 for key, value in STATE.items()}
    torch.save({"state_dict": STATE, name: {**other, "steps": torch.tensor(9)}}, tmp_path / "a.pth")
    conversion = same_logits(tmp_path / "a.pth")
    assert any(f"took state_dict; --ema takes {name}" in note for note in conversion.notes)
    arguments = ["convert", str(tmp_path / "a.pth"), "--to", str(tmp_path / "b.safetensors")]
    assert main([*arguments, "--ema"]) == 0
    assert f"took {name}" in capsys.readouterr().out
    taken = load_checkpoint(tmp_path / "b.safetensors").model.state_dict()["head.bias"]
    assert torch.equal(taken, STATE["cls_head.fc_cls.bias"] + 1)
    torch.save(STATE, tmp_path / "a.pth")
    assert main([*arguments, "--ema"]) == 1
    assert "no averaged weights" in capsys.readouterr().err


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["backbone.layer2.0.conv1.bn.running_var", "cls_head.fc_cls.weight"])
def test_a_weight_that_is_no_number_is_refused_with_its_key(value, key, tmp_path, capsys):
    bad = {name: tensor.clone() for name, tensor in STATE.items()}
    bad[key].view(-1)[1] = value
    torch.save({"state_dict": bad}, tmp_path / "a.pth")
    arguments = ["convert", str(tmp_path / "a.pth"), "--to", str(tmp_path / "b.safetensors")]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert f"{key} has 1 of {STATE[key].numel()} values that are NaN or infinite" in error
    assert "--allow-nan" in error
    assert not (tmp_path / "b.safetensors").exists()
    assert main([*arguments, "--allow-nan"]) == 0


# ---------------------------------------------------------------------------------------------- hostile


class Calls:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class Built:
    """Pickles as a call with a state for whatever the call gives."""

    def __init__(self, function, arguments, state):
        self.call = (function, arguments, state)

    def __reduce__(self):
        return self.call


ATTACKS = {
    "exec": lambda place: Calls(exec, f"open({place!r}, 'w')"),
    "eval": lambda place: Calls(eval, f"open({place!r}, 'w')"),
    "a command": lambda place: Calls(os.system, f"touch {place}"),
    "open": lambda place: Calls(open, place, "w"),
    "through getattr": lambda place: Calls(getattr, pathlib.Path(place), "touch"),
    "an import": lambda place: Calls(__import__, "antigravity"),
    "numpy's loader": lambda place: Calls(np.load, place),
    "torch's loader": lambda place: Calls(torch.load, place),
    "a state for a function": lambda place: Built(exec, ("1",), {"__class__": 1}),
    "defaults for a constructor": lambda place: Built(
        getattr, (argparse.Namespace, "__init__"), (None, {"__defaults__": (1,)})
    ),
    "a tensor's hooks": lambda place: Calls(
        torch._utils._rebuild_tensor_v2, torch.ones(2).storage(), 0, (2,), (1,), True, {0: exec}
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_nothing_that_a_file_asks_for_is_done(attack, old, tmp_path):
    place = tmp_path / "done"
    content = {"state_dict": STATE, "hook": ATTACKS[attack](str(place))}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=not old)
    before = set(sys.modules)
    same_logits(tmp_path / "a.pth")
    assert not place.exists()
    assert "antigravity" not in set(sys.modules) - before
    assert argparse.Namespace(a=1).a == 1


def archive(path, program, **pieces):
    """A file as torch.save writes it, around a pickle of one's own."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", program)
        file.writestr("a/version", "3\n")
        file.writestr("a/byteorder", "little")
        for name, content in pieces.items():
            file.writestr(f"a/data/{name.removeprefix('piece')}", content)
    return path


@pytest.mark.parametrize("raw", [np.array([1.5, -2.0, 200.25], "<f4").tobytes(), b"\xc3\xa9abcdefghij"])
def test_arrays_and_text_of_python_2_are_read(raw, tmp_path):
    program = (
        b"\x80\x02}(U\x05wordsU\x03abcU\x05arraycnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b"
        b"\x87R(K\x01K\x03\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U" + bytes([len(raw)]) + raw + b"tbu."
    )
    read = read_file(archive(tmp_path / "a.pth", program))
    assert read["words"] == "abc"
    assert read["array"].tobytes() == raw


def test_a_call_of_what_a_call_gave_stays_inert_too(tmp_path):
    text = str(tmp_path / "done").encode()
    path = b"cpathlib\nPath\n(X" + len(text).to_bytes(4, "little") + text + b"tR"
    program = b"\x80\x02}X\x01\x00\x00\x00acbuiltins\ngetattr\n(" + path + b"X\x05\x00\x00\x00touchtR)Rs."
    read = read_file(archive(tmp_path / "a.pth", program))
    assert read["a"].name == "builtins.getattr()"
    assert not (tmp_path / "done").exists()


def storage(numel, size, stride=(1,), offset=0):
    """A pickle of one tensor, whatever it claims of its storage."""
    out = io.BytesIO()

    class Pickler(pickle._Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if value is marker else None

    marker = object()
    call = Calls(
        torch._utils._rebuild_tensor_v2, marker, offset, size, stride, False, collections.OrderedDict()
    )
    Pickler(out, 2).dump({"weight": call})
    return out.getvalue()


HOSTILE = {
    "more numbers than there are": (storage(10**12, (3,)), "more than the file holds"),
    "fewer than none": (storage(-1, (3,)), "more than the file holds"),
    "a tensor behind its storage": (storage(4, (5,)), "reaches behind"),
    "a stride behind its storage": (storage(4, (2,), (4,)), "reaches behind"),
    "an offset behind its storage": (storage(4, (1,), (1,), 4), "reaches behind"),
    "a negative offset": (storage(4, (1,), (1,), -1), "reaches behind"),
    "an endless memo": (b"\x80\x02}r\xff\xff\xff\x7f.", "holds no weights"),
    "a text without an end": (b"\x80\x02X\xff\xff\xff\x7fab.", "damaged"),
    "an extension": (b"\x80\x02\x82\x01.", "extension codes"),
    "an outside name": (b"\x80\x02Pfile:///etc/passwd\n.", "outside of it"),
    "no mark": (b"\x80\x02t.", "damaged"),
    "no end": (b"\x80\x02}", "damaged"),
    "entries for a name": (b"\x80\x02cbuiltins\ndict\nK\x01K\x02s.", "entries for a Name"),
    "elements for a text": (b"\x80\x02X\x01\x00\x00\x00aK\x01a.", "elements for a str"),
    "an unhashable key": (b"\x80\x02}]K\x01s.", "damaged"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_pickle_that_lies_is_a_clear_error(case, tmp_path):
    program, words = HOSTILE[case]
    path = archive(tmp_path / "a.pth", program, piece0=b"\0" * 16)
    with pytest.raises(ConversionError, match=words):
        convert(path)


def test_archives_that_torch_save_does_not_write_are_refused(tmp_path):
    program = pickle.dumps({"weight": 1}, 2)
    with zipfile.ZipFile(archive(tmp_path / "a.pth", program), "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data/0", b"\0" * 10_000_000)
    with pytest.raises(ConversionError, match="compressed inside"):
        convert(tmp_path / "a.pth")
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "b.pt"))
    with pytest.raises(ConversionError, match="TorchScript program"):
        convert(tmp_path / "b.pt")


@pytest.mark.filterwarnings("ignore")
def test_any_change_of_a_file_is_read_or_a_clear_error(tmp_path):
    generator = random.Random(0)
    small = {"state_dict": {"a": torch.ones(3), "b": np.ones(2)}, "args": argparse.Namespace(a=1), "x": PLAIN}
    for number in range(300):
        out = io.BytesIO()
        torch.save(small, out, _use_new_zipfile_serialization=number % 2 == 0)
        content = bytearray(out.getvalue())
        for _ in range(generator.choice((1, 1, 3, 10))):
            content[generator.randrange(min(len(content), 3000))] = generator.randrange(256)
        (tmp_path / "a.pth").write_bytes(content)
        with contextlib.suppress(ConversionError):
            read_file(tmp_path / "a.pth")
