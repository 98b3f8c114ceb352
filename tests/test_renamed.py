"""Settings that were renamed: files of earlier versions load, and a typed old name is answered with the new one."""

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel

from vidtok.cli.main import main
from vidtok.configs.compose import compose_config
from vidtok.errors import RENAMED, UserError
from vidtok.extraction.decoding import ReadConfig
from vidtok.extraction.record import SCHEMA, Settings, parse_description, settings_of
from vidtok.generator import GeneratorConfig, create_generator, from_pretrained
from vidtok.generator.base import RENAMED_PARAMETERS
from vidtok.heads import Head, create_head
from vidtok.tokenizer import TokenizerConfig, VideoTokenizer
from vidtok.train.run_folder import FINGERPRINT, check_fingerprint


def with_old_names(folder) -> None:
    """Rewrite a config.json as an earlier version wrote it."""
    text = (folder / "config.json").read_text()
    for old, new in RENAMED.items():
        text = text.replace(f'"{new}"', f'"{old}"')
    (folder / "config.json").write_text(text)


def test_tokenizers_of_earlier_versions_load(tmp_path):
    net = {"kind": "magvit2", "base": 4, "channel_multipliers": [1, 1, 2], "blocks": 1}
    net["temporal_downsample"] = [False, True]
    tokenizer = VideoTokenizer(TokenizerConfig("old", net, {"kind": "lfq", "bits": 8})).eval()
    tokenizer.save_pretrained(tmp_path)
    with_old_names(tmp_path)
    assert {"multipliers", "halve_time"} <= set(json.loads((tmp_path / "config.json").read_text())["net"])
    again = VideoTokenizer.from_pretrained(tmp_path)
    assert again.config == tokenizer.config
    video = torch.rand(1, 3, 3, 16, 16)
    torch.testing.assert_close(again.decode(again.encode(video)).shape, video.shape)


def test_heads_of_earlier_versions_load(tmp_path):
    head = create_head("vivit-micro", num_classes=3, grid=(3, 4, 4), patch_merge=2, dim=16, depth=1, heads=2).eval()
    head.save_pretrained(tmp_path)
    with_old_names(tmp_path)
    assert "merge" in json.loads((tmp_path / "config.json").read_text())["input"]
    again = Head.from_pretrained(tmp_path)
    assert again.config == head.config and again.embed.patch_merge == 2
    assert Head.from_pretrained("digits-tokens").embed.patch_merge == 2  # shipped by an earlier version


def old_parameters(state: dict) -> dict:
    old_names = {new: old for old, new in RENAMED_PARAMETERS.items()}
    return {".".join(old_names.get(part, part) for part in name.split(".")): value for name, value in state.items()}


def test_generators_of_earlier_versions_load(tmp_path):
    config = GeneratorConfig("old", "diffusion", "test", "0" * 16, 8, (2, 2, 2), width=16, depth=1, heads=2)
    generator = create_generator(config)
    generator.save_pretrained(tmp_path)
    tensors = old_parameters(load_file(tmp_path / "model.safetensors"))
    assert {"trunk.blocks.0.sharpness", "enter.weight", "leave.bias"} <= set(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    again = from_pretrained(tmp_path)
    for name, value in generator.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, atol=1e-3, rtol=1e-3)  # half precision on disk

    # Checkpoints of a training: the model and its average.
    for model, fresh in ((generator, create_generator(config)), (AveragedModel(generator), AveragedModel(again))):
        fresh.load_state_dict(old_parameters(model.state_dict()))
        for name, value in model.state_dict().items():
            assert torch.equal(fresh.state_dict()[name], value)


def test_run_folders_of_earlier_versions_go_on(tmp_path):
    (tmp_path / FINGERPRINT).write_text(json.dumps({"merge": 2, "objective": {"label_drop": 0.1}}))
    check_fingerprint(tmp_path, {"patch_merge": 2, "objective": {"class_dropout_prob": 0.1}})
    with pytest.raises(ValueError, match="patch_merge"):
        check_fingerprint(tmp_path, {"patch_merge": 1, "objective": {"class_dropout_prob": 0.1}})


def test_a_fingerprint_under_its_old_file_name_counts_until_there_is_a_new_one(tmp_path):
    (tmp_path / "depends_on.json").write_text(json.dumps({"cells": 4, "joined": False}))
    with pytest.raises(ValueError, match="another grid_crop"):
        check_fingerprint(tmp_path, {"grid_crop": 5, "concat_segments": False})
    check_fingerprint(tmp_path, {"grid_crop": 4, "concat_segments": False})
    (tmp_path / "depends_on.json").write_text(json.dumps({"cells": 5, "joined": False}))
    check_fingerprint(tmp_path, {"grid_crop": 4, "concat_segments": False})


def test_protocols_of_earlier_heads_load(tmp_path):
    protocol = {"frames": 9, "size": 32, "stride": 2, "concat_segments": True, "grid_crop": 4}
    head = create_head("linear", num_classes=3, grid=(3, 4, 4))
    head.record(protocol=protocol)
    head.save_pretrained(tmp_path)
    with_old_names(tmp_path)
    assert {"joined", "cells"} <= set(json.loads((tmp_path / "config.json").read_text())["protocol"])
    assert Head.from_pretrained(tmp_path).config.protocol == protocol


def test_center_crops_of_earlier_records_load():
    settings = Settings(
        feature="ids", model="m", weight_hash="0", precision="fp32", bits=18, stride=(4, 8, 8), dtype="uint32",
        resize=64, crop="center",
    )  # fmt: skip
    old = json.dumps({"schema": SCHEMA, **asdict(settings), "crop": "centre"})
    assert settings_of(parse_description(old)) == settings
    with pytest.raises(ValueError, match="unknown crop 'centre': did you mean 'center'"):
        ReadConfig((4, 8, 8), 64, "centre")


def test_a_typed_old_flag_is_answered_with_the_new_one(capsys):
    with pytest.raises(SystemExit):
        main(["eval", "generation", "model", "digits", "--neighbours", "x.png"])
    assert "did you mean --neighbors?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "config, overrides, message",
    [
        ("finetune", ["data.source=x", "merge=2"], "unknown key 'merge': did you mean 'patch_merge'"),
        ("finetune", ["data.source=x", "head=vivit-tiny-factorised"], "did you mean 'vivit-tiny-factorized'"),
        ("train_generator", ["objective.label_drop=0"], "did you mean 'objective.class_dropout_prob'"),
        ("train_tokenizer", ["discriminator.multipliers=[2]"], "did you mean 'discriminator.channel_multipliers'"),
        ("train_tokenizer", ["model=magvit2", "model.net.multipliers=[2]"], "'model.net.channel_multipliers'"),
        ("finetune", ["data.source=x", "data.joined=true"], "did you mean 'data.concat_segments'"),
        ("compare", ["data.source=x", "data.cells=4"], "did you mean 'data.grid_crop'"),
        ("generation_compare", ["recogniser=x"], "did you mean 'recognizer'"),
        ("train_tokenizer", ["model=magvit2", "model.net.halve_time=[true]"], "'model.net.temporal_downsample'"),
    ],
)
def test_a_typed_old_name_is_answered_with_the_new_one(config, overrides, message):
    with pytest.raises(UserError, match=message):
        compose_config(config, overrides)


def test_old_arguments_in_python_are_refused():
    with pytest.raises(ValueError, match="unexpected keyword argument 'merge'"):
        create_head("linear", num_classes=3, merge=2)


def test_the_optimizer_of_generators_knows_the_new_names():
    """Muon leaves the projections of diffusion to AdamW, as before they were renamed."""
    cfg = compose_config("train_generator", ["data.source=digits"])
    assert {"proj_in*", "proj_out*"} <= set(cfg.optimizer.fallback_list)
    assert not {f"{old}*" for old in RENAMED_PARAMETERS} & set(cfg.optimizer.fallback_list)
