"""The hand-over by round trip; damaged, foreign and hostile files are refused in one line and run nothing."""

import json
import os
import pickle
import resource
import signal
import sys
import types

import pytest
import torch
from safetensors.torch import load_file, save_file

import mimkit
from mimkit.disk import write_atomically
from mimkit.encoders.vit import ViT
from mimkit.errors import UserError
from mimkit.saved.encoder import save_encoder
from mimkit.types import Encoder, Features
from mimkit.weight_files import read_weights, write_weights

OPTIONS = {
    "size": "base", "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 4.0, "patch_size": 5, "in_chans": 4,
    "class_token": True, "pos_embed": "sincos", "pos_first": "row", "drop_path": 0.3,
    "mean": (0.1, 0.2, 0.3, 0.4), "std": (0.5, 0.6, 0.7, 0.8),
}  # fmt: skip


@pytest.fixture
def encoder():
    torch.manual_seed(2)
    return ViT(image_size=(35, 55), feed="all", **OPTIONS)


@pytest.fixture
def folder(tmp_path, encoder):
    save_encoder(tmp_path, encoder, "vit", OPTIONS)
    return tmp_path


@pytest.mark.parametrize("name", ["", "encoder.safetensors"])
def test_a_saved_encoder_comes_back_frozen_and_equal(folder, encoder, name):
    """By round trip, from the folder and from the file: equal features, no gradient, no masking, eval mode."""
    images = torch.rand(2, 4, 35, 55)
    back = mimkit.load(folder / name)
    features, wanted = back(images), encoder.eval()(images)
    assert isinstance(back, Encoder) and isinstance(features, Features)
    assert torch.equal(features.sequence, wanted.sequence)
    assert not back.training and not any(p.requires_grad for p in back.parameters())
    assert (features.tokens.shape, features.cls.shape, features.pooled.shape) == ((2, 77, 24), (2, 24), (2, 24))


def test_the_files_hold_timms_names_and_all_options(folder, encoder):
    """By comparison with timm's state dict; nothing else is left in the folder."""
    saved = load_file(folder / "encoder.safetensors")
    assert saved.keys() == encoder.timm_model.state_dict().keys()
    told = json.loads((folder / "encoder.json").read_text())
    assert told == {
        "format": 1,
        "encoder": "vit",
        "options": OPTIONS | {"mean": [0.1, 0.2, 0.3, 0.4], "std": [0.5, 0.6, 0.7, 0.8]},
        "image_size": [35, 55],
        "mimkit": mimkit.__version__,
    }
    assert {path.name for path in folder.iterdir()} == {"encoder.json", "encoder.safetensors"}


def test_tied_and_expanded_tensors_can_be_saved(tmp_path, encoder):
    """By round trip of tensors that share memory."""
    encoder.timm_model.blocks[1].norm1.weight = encoder.timm_model.blocks[0].norm1.weight
    encoder.timm_model.blocks[0].mlp.fc1.weight.data = torch.rand(24).expand(96, 24)
    save_encoder(tmp_path, encoder, "vit", OPTIONS)
    images = torch.rand(1, 4, 35, 55)
    assert torch.equal(mimkit.load(tmp_path)(images).sequence, encoder.eval()(images).sequence)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    """By injection of an error in the middle of writing."""
    path = tmp_path / "encoder.json"
    path.write_text("old")

    def fail(beside):
        beside.write_text("half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_an_os_error_and_files_have_the_usual_mode(tmp_path):
    """Against the operating system: a limit on the size of files, and the mode of a file that Python opens."""
    tensors = {"a": torch.zeros(1000)}
    write_weights(tmp_path / "weights.safetensors", tensors)
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "weights.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(OSError, match="File too large"):
            write_weights(tmp_path / "more.safetensors", tensors)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not list(tmp_path.glob("*more*"))


def change(folder, **entries):
    path = folder / "encoder.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


MISTAKES = {
    "missing folder": (lambda f: None, "nowhere", "no such run folder or weights file"),
    "no encoder yet": (lambda f: (f / "empty").mkdir(), "empty", "holds no encoder.safetensors"),
    "no description": (lambda f: (f / "encoder.json").unlink(), "", "mimkit.load_official"),
    "cut weights": (lambda f: os.truncate(f / "encoder.safetensors", 3000), "", "damaged"),
    "empty weights": (lambda f: os.truncate(f / "encoder.safetensors", 0), "", "damaged"),
    "cut description": (lambda f: os.truncate(f / "encoder.json", 40), "", "encoder.json is damaged"),
    "description of something else": (lambda f: (f / "encoder.json").write_text("[1]"), "", "encoder.json is damaged"),
    "newer format": (lambda f: change(f, format=2), "", "has format 2"),
    "unknown encoder": (lambda f: change(f, encoder="vitt"), "", "did you mean 'vit'?"),
    "unknown option": (lambda f: change(f, options={"depht": 2}), "", "did you mean 'depth'?"),
    "other size": (lambda f: change(f, image_size=[35, 50]), "", "'pos_embed' is (1, 78, 24) there and (1, 71, 24)"),
    "other tensors": (
        lambda f: save_file({"a": torch.ones(1)}, f / "encoder.safetensors"), "", "'a' is (1,) there and absent"
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_cannot_be_loaded_is_told_in_one_line(folder, mistake):
    """The user's mistake, or a damaged file."""
    damage, name, told = MISTAKES[mistake]
    damage(folder)
    with pytest.raises(UserError) as error:
        mimkit.load(folder / name)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


class Hostile:
    def __reduce__(self):
        return os.system, ("touch ran-code",)


@pytest.mark.parametrize("wrapped", [lambda state: state, lambda state: {"state_dict": {"module": state}, "epoch": 3}])
@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors"])
def test_weights_are_taken_out_of_their_wrapping(tmp_path, wrapped, suffix):
    """By round trip."""
    state, path = {"a.weight": torch.rand(2, 3), "b": torch.rand(5)}, tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(wrapped(state), path)
    back = read_weights(path)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_a_configuration_of_yacs_is_read_as_a_dict(tmp_path, monkeypatch):
    """By round trip without yacs: SimMIM's checkpoints hold their CfgNode, a dict with attributes of its own."""
    module = types.ModuleType("yacs.config")
    module.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    config = module.CfgNode(MODEL=module.CfgNode(TYPE="swin"))
    config.__dict__["__immutable__"] = True
    state = {"a": torch.rand(2)}
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
        patch.setitem(sys.modules, "yacs.config", module)
        torch.save({"model": state, "config": config}, tmp_path / "weights.pth")
    assert torch.equal(read_weights(tmp_path / "weights.pth")["a"], state["a"])


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # TorchScript is one of the attacks
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda p: p.write_bytes(pickle.dumps(Hostile(), protocol=2)), "asks for 'posix.system'"),
        (lambda p: torch.save({"model": Hostile()}, p), "asks for 'posix.system'"),
        (
            lambda p: torch.save({"model": Hostile()}, p, _use_new_zipfile_serialization=False),
            "asks for 'posix.system'",
        ),
        (lambda p: torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), p), "damaged"),
        (lambda p: p.write_bytes(b"\xff" * 64), "damaged"),
        (lambda p: p.write_bytes((10**11).to_bytes(8, "little") + b"{}"), "damaged"),
        (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1"), "damaged"),
    ],
    ids=["pickle", "zip", "legacy", "script", "noise", "header of 100 GB", "pointer"],
)
def test_hostile_and_damaged_files_run_nothing(tmp_path, monkeypatch, write, told, suffix):
    """By attack: the file's code would leave a file behind."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"weights{suffix}"
    write(path)
    with pytest.raises(UserError, match=told if suffix == ".pth" else "damaged") as error:
        read_weights(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("holding", "told"),
    [
        ({"a": torch.ones(1), "epoch": 3}, "'epoch' is int, no tensor"),
        ([torch.ones(1)], "no state dict, but list"),
        ({}, "no state dict, but dict"),
    ],
)
def test_files_without_a_state_dict_are_refused(tmp_path, holding, told):
    """The user's mistake in one line."""
    torch.save(holding, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=told):
        read_weights(tmp_path / "weights.pth")
    with pytest.raises(UserError, match="no such file"):
        read_weights(tmp_path / "absent.pth")
