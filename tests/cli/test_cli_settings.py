"""Settings that can't be: one line that says what to do, before any work."""

import hashlib
import io
import pickle
from email.message import Message
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vidtok.cli.main import main, one_line_once
from vidtok.configs.compose import compose_config, to_dict
from vidtok.errors import UserError
from vidtok.eval.recognition.comparison import validate_settings
from vidtok.eval.recognition.finetuning import check_finetuning
from vidtok.files import validate_output
from vidtok.hub import fetch, find_pretrained, read_state
from vidtok.tokenizer import VideoTokenizer
from vidtok.train import state
from vidtok.train.run_folder import check_fingerprint


@pytest.mark.parametrize(
    "override, message",
    [
        ("optimizer.lr=fast", "optimizer.lr is a number, such as 0.001, and not 'fast'"),
        ("data.protocol=17", "data.protocol is text, such as 17x4x1x1, and not 17"),
        ("data.flip=2", "data.flip is true or false"),
        ("data.fps=fast", "data.fps is a number above 0, and not 'fast'"),
        ("data.train_views=0", "data.train_views is a whole number above 0, and not 0"),
        ("data.train_clips=18.5", "data.train_clips is a whole number above 0"),
        ("data.scale=0.5", "data.scale is a list"),
        ("seeds=3", None),
        ("data.fps=12.5", None),
        ("arms=tokens", r"arms is a list, such as \['tokens', .*, and not 'tokens'"),
        ("head.dims=3", "unknown key 'head.dims': did you mean 'head.dim'"),
        ("data.source", "'data.source' sets nothing: want KEY=VALUE"),
        ("recipe=k400-linaer", "did you mean 'k400-linear'"),
        ("run=null", None),
        ("head_options={drop_path: 0.1}", None),
        ("optimizer=muon-head", None),
    ],
)
def test_other_kinds_of_values_are_refused(override, message):
    if message is None:
        compose_config("compare", ["data.source=x", override])
    else:
        with pytest.raises(UserError, match=message):
            compose_config("compare", ["data.source=x", override])


@pytest.mark.parametrize(
    "override, message",
    [
        ("arms=[]", "at least one"),
        ("seeds=3", "seeds=3: want a list"),
        ("seeds=[1,1]", "none of them twice"),
        ("reference=pixel", "did you mean 'pixels'"),
        ("page.fps=0", "page.fps above 0"),
        ("reference='pixels on recon'", None),
    ],
)
def test_a_comparison_is_checked_before_the_training(override, message):
    cfg = compose_config("compare", ["data.source=x", override])
    if message is None:
        validate_settings(cfg)
    else:
        with pytest.raises(UserError, match=message):
            validate_settings(cfg)


def test_a_finetuning_goes_on_with_the_same_clips_only(tokenizer_path, tmp_path):
    tokenizer = VideoTokenizer.from_pretrained(tokenizer_path)

    def hold(*overrides, folder=tmp_path / "run"):
        cfg = compose_config("finetune", ["data.source=x", f"run={folder}", *overrides])
        check_finetuning(to_dict(cfg), tokenizer)

    hold()
    hold("optimizer.lr=1e-4", "data.batch_size=2", "trainer.max_steps=9")  # what one changes to go on
    for override, name in (
        ("data.source=y", "data.source"), ("seed=1", "seed"), ("input=codes", "input"), ("head.heads=1", "head"),
        ("patch_merge=2", "patch_merge"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"run was filled with another {name} \(.*\): give another run="):
            hold(override)
    check_fingerprint(tmp_path / "compared", {"command": "compare"})
    with pytest.raises(ValueError, match=r"another command \(compare\)"):
        hold(folder=tmp_path / "compared")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="file can't be made"):
        hold(folder=tmp_path / "file")


def test_a_result_that_could_not_be_written_is_refused_first(tmp_path):
    (tmp_path / "file").write_text("x")
    validate_output(str(tmp_path / "new" / "folder" / "r.json"), force=False)
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="file is no folder"):
        validate_output(str(tmp_path / "file" / "r.json"), force=False)
    with pytest.raises(UserError, match="--force overwrites it"):
        validate_output(str(tmp_path / "file"), force=False)


def test_no_tokenizer_is_one_line():
    with pytest.raises(ValueError, match="a tokenizer is needed, by its name or folder"):
        VideoTokenizer.from_pretrained(None)


def test_a_run_folder_names_its_models(tmp_path):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"did you mean .*best\?"):
        find_pretrained(tmp_path, "head")


def test_downloads_are_checked_against_the_hash_in_their_name(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    content = b"weights"
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(torch.hub, "urlopen", lambda request: Response(content))
    path = fetch(f"https://host/net-{digest[:8]}.pth")
    assert path.read_bytes() == content
    with pytest.raises(FileNotFoundError, match="invalid hash value"):
        fetch("https://host/net-01234567.pth")
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert fetch("https://host/net-400.pth").read_bytes() == content  # 400 is no hash


class Response(io.BytesIO):
    def info(self):
        return Message()


def test_a_folder_named_like_a_hub_owner_blocks_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    monkeypatch.setattr("vidtok.hub.hf_hub_download", lambda name, file, **_: f"/cache/{name}/{file}")
    found = find_pretrained("owner/model", "tokenizer")
    assert found == (Path("/cache/owner/model/config.json"), Path("/cache/owner/model/model.safetensors"))

    def offline(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("vidtok.hub.hf_hub_download", offline)
    with pytest.raises(ValueError, match=r"no folder 'owner/model', and the Hugging Face hub gives none: no route"):
        find_pretrained("owner/model", "tokenizer")
    for name in ("owner/../model", "./model", "a/b/c", "model"):
        with pytest.raises(ValueError, match=r"no folder '.*': (known are|did you mean)"):
            find_pretrained(name, "tokenizer")


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
@pytest.mark.parametrize(
    "content", [bytes(range(256)) * 4, b"", b"hello", b".", pickle.dumps([1]), pickle.dumps(print)]
)
def test_damaged_weights_are_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="can't be read") as error:
        read_state(tmp_path / name)
    assert "\n" not in str(error.value)


def unpack():
    a, b = [1]
    return a, b


def read_count():
    return int("one")


def refuse():
    raise ValueError("batch=0 is too few")


BUGS = [unpack, read_count, lambda: None + 1, lambda: {}["key"], lambda: [][0], lambda: None.shape]


@pytest.mark.parametrize("bug", BUGS)
def test_a_programming_error_keeps_its_traceback(monkeypatch, bug):
    monkeypatch.setattr("vidtok.cli.info.run", lambda args: bug())
    with pytest.raises((ValueError, TypeError, LookupError, AttributeError)):
        main(["info", "vidtok-t"])


def test_a_users_error_is_one_line_unless_debugged(monkeypatch, capsys):
    monkeypatch.setattr("vidtok.cli.info.run", lambda args: refuse())
    assert main(["info", "vidtok-t"]) == 1
    assert capsys.readouterr().err == "vidtok: batch=0 is too few\n"
    for argv in (["info", "vidtok-t", "--debug"], ["--debug", "info", "vidtok-t"]):
        with pytest.raises(ValueError, match="too few"):
            main(argv)
    monkeypatch.setenv("VIDTOK_DEBUG", "1")
    with pytest.raises(ValueError, match="too few"):
        main(["info", "vidtok-t"])


def test_a_warning_is_said_once():
    form = one_line_once(set())
    assert [form(text, UserWarning, "x.py", 1) for text in ("one", "two", "one")] == [
        "vidtok: one\n", "vidtok: two\n", ""
    ]  # fmt: skip


def test_a_comparison_is_one_process(monkeypatch):
    monkeypatch.setattr(state, "join_processes", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(ValueError, match="eval compare is one process, not 2: start it without torchrun"):
        state.only_process("eval compare")
