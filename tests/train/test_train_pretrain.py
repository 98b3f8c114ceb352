"""Masked pretraining of backbones."""

import math
from types import SimpleNamespace

import pytest
import torch

import vidtok
from vidtok.cli.main import main
from vidtok.configs.compose import compose_config
from vidtok.datasets import demo_clip, write_video
from vidtok.eval.recognition import finetune
from vidtok.extraction import TokenBatches, TokenDataset
from vidtok.generator.sampling import PerSampleRNG
from vidtok.heads import Head, create_head
from vidtok.quantize.lfq import pack_bits
from vidtok.train.pretraining import MASKS, Imitation, MaskedPretraining, TeacherBatches, teacher_features
from vidtok.train.run import pretrain

HEAD = {"dim": 16, "depth": 1, "temporal_depth": 1, "heads": 2}
DATA = {"source": "digits", "frames": 9, "size": 32, "batch_size": 4}
SETTINGS = {"head_options": HEAD, "mask_ratio": 0.5, "log": lambda line: None}


def make_model(input: str, name: str = "vivit-micro-factorized", **options) -> MaskedPretraining:
    torch.manual_seed(0)
    sizes = HEAD if "factorized" in name else HEAD | {"temporal_depth": 0}
    return MaskedPretraining(create_head(name, input, grid=(3, 4, 6), patch_merge=2, **sizes), 18, **options)


@pytest.mark.parametrize("kind", MASKS)
def test_masks_have_the_asked_number_of_cells_and_are_the_sample_s_own(kind):
    seeds = torch.arange(500)
    masks = MASKS[kind]((6, 8), 30, PerSampleRNG(seeds))
    assert masks.dtype == torch.bool and (masks.flatten(1).sum(1) == 30).all()
    assert torch.equal(masks[7:9], MASKS[kind]((6, 8), 30, PerSampleRNG(seeds[7:9])))
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) > 495
    assert 0.35 < masks.float().mean(0).min() < masks.float().mean(0).max() < 0.85  # no cell is always masked, or never


def test_blocks_are_connected_where_random_cells_are_not():
    def borders(kind):
        mask = MASKS[kind]((8, 8), 32, PerSampleRNG(torch.arange(100)))
        return (mask[:, 1:] != mask[:, :-1]).float().mean()

    assert borders("block") < 0.6 * borders("tube")


@pytest.mark.parametrize("name", ["vivit-micro-factorized", "vivit-micro"])
@pytest.mark.parametrize("input", ["tokens", "codes", "pixels"])
def test_masked_cells_are_predicted_without_being_seen(input, name):
    model = make_model(input, name, mask_ratio=0.5).eval()
    ids = torch.randint(2**18, (2, 3, 4, 6), generator=torch.Generator().manual_seed(1))
    x = torch.rand(2, 3, 9, 32, 48) * 2 - 1 if input == "pixels" else ids
    seeds = torch.tensor([3, 4])
    masked = MASKS["block"]((2, 3), model.count, PerSampleRNG(seeds)).repeat_interleave(2, 1).repeat_interleave(2, 2)
    if input == "pixels":
        hidden = masked.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None, None]
        other = torch.where(hidden, -x, x)
    else:
        other = torch.where(masked[:, None], ids ^ 77, ids)
    terms = model(x, ids, seeds)
    assert torch.equal(terms["bits"], model(other, ids, seeds)["bits"])  # what is masked isn't seen
    assert 17 < terms["bits"] < 20 and 0 <= terms["accuracy"] < 0.1
    assert not torch.equal(terms["bits"], model(x.flip(0), ids, seeds)["bits"])
    # Targets of other cells don't matter.
    assert torch.equal(terms["bits"], model(x, torch.where(masked[:, None], ids, ids ^ 5), seeds)["bits"])


def test_random_masks_differ_from_time_to_time():
    model = make_model("tokens", mask="random", mask_ratio=0.5).eval()
    ids, seeds = torch.randint(2**18, (2, 3, 4, 6), generator=torch.Generator().manual_seed(1)), torch.tensor([3, 4])
    masked = MASKS["random"]((3, 2, 3), 3 * model.count, PerSampleRNG(seeds))
    assert (masked[:, 1:] != masked[:, :-1]).any((1, 2, 3)).all()
    masked = masked.repeat_interleave(2, 2).repeat_interleave(2, 3)
    terms = model(ids, ids, seeds)
    assert torch.equal(terms["bits"], model(torch.where(masked, ids ^ 77, ids), ids, seeds)["bits"])
    assert not torch.equal(terms["bits"], model(torch.where(masked, ids, ids ^ 77), ids, seeds)["bits"])
    assert torch.equal(terms["bits"], model(ids, torch.where(masked, ids, ids ^ 77), seeds)["bits"])


def test_the_loss_is_a_mean_over_samples():
    model = make_model("tokens").eval()
    ids, seeds = torch.randint(2**18, (4, 3, 4, 6)), torch.arange(4)
    whole = model(ids, ids, seeds)["cross_entropy"]
    parts = [model(ids[i : i + 1], ids[i : i + 1], seeds[i : i + 1])["cross_entropy"] for i in range(4)]
    torch.testing.assert_close(whole, torch.stack(parts).mean())


def test_a_model_learns_the_tokens_of_a_clip():
    model = make_model("tokens", mask_ratio=0.34)
    ids, seeds = torch.full((4, 3, 4, 6), 12345), torch.arange(4)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(ids, ids, seeds)["cross_entropy"].backward()
        optimizer.step()
    assert model(ids, ids, seeds)["accuracy"] == 1


@pytest.fixture(scope="module")
def pretrained(tokenizer_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    backbone = pretrain(
        tokenizer=tokenizer_path, data=DATA | {"held_out": "val", "held_out_samples": 4}, run=folder,
        trainer={"max_steps": 2, "workers": 0}, **SETTINGS,
    )  # fmt: skip
    return folder, backbone


def test_the_run_leaves_a_backbone(pretrained, tokenizer_path):
    folder, backbone = pretrained
    loaded = Head.from_pretrained(folder / "model")
    assert loaded.num_classes == 0 and loaded.config.tokenizer["name"] == "tiny"
    weights = backbone.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())
    assert not backbone.training
    assert loaded.config.protocol["frames"] == 9


def test_finetuning_starts_from_it(pretrained, tokenizer_path, tmp_path):
    folder, backbone = pretrained
    data = {"source": "digits", "protocol": "9x1x1x1", "size": 32, "train_clips": 9, "val_clips": 9, "in_memory": True}
    data |= {"select": 0, "batch_size": 4}
    settings = {"head": "vivit-tiny-factorized", "head_options": HEAD, "patch_merge": 2, "tokenizer": tokenizer_path}
    settings |= {"data": data, "trainer": {"max_steps": 1, "ema_decay": 0.0}, "log": lambda line: None}
    settings |= {"optimizer": {"lr": 1e-12}}
    result = finetune(init=str(folder / "model"), run=tmp_path / "run", **settings)
    head = Head.from_pretrained(tmp_path / "run" / "model")
    torch.testing.assert_close(head.embed.linear.weight, backbone.embed.linear.weight)
    assert head.num_classes == 9 and result["config"]["init"] == str(folder / "model")
    with pytest.raises(ValueError, match="was filled with another init"):
        finetune(run=tmp_path / "run", **settings)
    with pytest.raises(ValueError, match=r"has net .*: give the settings that it was trained with"):
        finetune(init=str(folder / "model"), run=tmp_path / "a", **settings | {"head_options": HEAD | {"depth": 2}})
    with pytest.raises(ValueError, match="reads tokens of tokenizer 'tiny'"):
        finetune(init=str(folder / "model"), run=tmp_path / "b", **settings | {"tokenizer": "vidtok-t"})


@pytest.mark.parametrize("source", ["videos", "features"])
def test_a_backbone_s_features_are_extracted_from_clips_as_it_was_trained_on(source, tokenizer_path, tmp_path):
    video = tmp_path / "videos" / "a.mp4"
    video.parent.mkdir()
    write_video(video, demo_clip(frames=40, size=48), fps=25)
    clips = {"size": 32, "crop": "center", "clips": "dense:1", "frames": 9}
    model = {"model": tokenizer_path, "device": "cpu", "workers": 0}
    vidtok.extract(video, tmp_path / "ids", **clips, **model)
    data = {"source": str(video.parent), "split": None, "frames": 9, "size": 32} if source == "videos" else {}
    data = data or {"features": str(tmp_path / "ids")}
    backbone = pretrain(tokenizer=tokenizer_path, data=data | {"batch_size": 1}, run=tmp_path / "run",
                        trainer={"max_steps": 1, "workers": 0}, **SETTINGS)  # fmt: skip
    head = str(tmp_path / "run" / "model")
    vidtok.extract(video, tmp_path / "embedding", features="embedding", head=head, **model)
    (record,), (ids,) = (vidtok.TokenDataset(tmp_path / name) for name in ("embedding", "ids"))
    with torch.no_grad():
        expected = backbone.forward_head(backbone.forward_features(ids["features"][None]), pre_logits=True)[0]
    torch.testing.assert_close(record["features"], expected)


def test_pixels_are_a_backbone_s_input_too(tokenizer_path, tmp_path):
    backbone = pretrain(
        input="pixels", tokenizer=tokenizer_path, data=DATA, run=tmp_path, trainer={"max_steps": 1, "workers": 0},
        **SETTINGS,
    )  # fmt: skip
    assert backbone.config.input["kind"] == "pixels" and backbone.config.tokenizer is None
    assert backbone(torch.zeros(1, 3, 9, 32, 32)).shape == (1, 16)


def test_a_teacher_is_imitated_on_the_coarser_grid():
    torch.manual_seed(0)
    own, norm = torch.randn(2, 16, 3, 2, 3), torch.nn.LayerNorm(16)
    scale, shift = torch.rand(5, 1, 1, 1) + 1, 10 * torch.randn(5, 1, 1, 1)
    for sides in ((4, 1, 1), (3, 2, 3), (6, 1, 7)):
        teacher = torch.randn(2, 5, *sides)
        torch.manual_seed(1)
        distance = Imitation(16, teacher)(own, teacher, norm)
        torch.manual_seed(1)
        moved = scale * teacher + shift
        torch.testing.assert_close(distance, Imitation(16, moved)(own, moved, norm), atol=1e-4, rtol=1e-4)
        assert 0.5 < distance < 1.5
    # A channel that is silent in the examples does not outweigh the others.
    silent, loud = torch.randn(2, 5, 3, 2, 3), torch.randn(2, 5, 3, 2, 3)
    silent[:, 0] = 0
    assert Imitation(16, silent).std.flatten()[0] == pytest.approx(0.08, abs=0.02)
    assert Imitation(16, loud[:1, :, :1, :1, :1])(own, loud, norm).isfinite()
    # An average over the teacher's places is an average over the grid that both share.
    fine = torch.randn(2, 5, 3, 4, 6)
    part = Imitation(16, fine)
    coarse = torch.nn.functional.avg_pool3d(fine, (1, 2, 2))
    torch.testing.assert_close(part(own, fine, norm), part(own, coarse, norm))


def test_teachers_alone():
    teachers = [torch.randn(2, 5, 3, 2, 3), torch.randn(2, 7, 1, 1, 1)]
    model = make_model("tokens", mask_ratio=0, teachers=teachers)
    ids, seeds = torch.randint(2**18, (2, 3, 4, 6)), torch.arange(2)
    terms = model(ids, ids, seeds, teachers)
    assert [*terms] == ["cosine"] and not any("mask" in name for name, _ in model.named_parameters())
    terms["cosine"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    alone = [model(ids, ids, seeds, [x, y])["cosine"] for x, y in ([teachers[0], -teachers[1]], teachers)]
    assert alone[0] != alone[1]
    with pytest.raises(ValueError, match="mask_ratio=0 masks 0 of 2 x 3 cells: that needs a teacher"):
        make_model("tokens", mask_ratio=0)


def test_a_teacher_computes_where_the_clips_are():
    """It was left on the CPU, so that its features could not be compared with those of a model on a GPU."""

    class Teacher:
        def __init__(self):
            self.moves = []
            self.network = SimpleNamespace(to=self.moves.append)

        def __call__(self, video):
            return video[:, :1]

    teacher, video = Teacher(), torch.rand(1, 3, 5, 8, 8)
    assert torch.equal(teacher_features(teacher, video), video[:, :1]) and teacher.moves == [video.device]


def test_a_run_imitates_a_teacher(tokenizer_path, tmp_path, monkeypatch):
    """With random weights, in place of a download."""
    from vidtok.eval.recognition import references

    network = references.FrameBackbone("test_vit", pretrained=False)
    monkeypatch.setattr(references, "FrameBackbone", lambda name, weights: network)
    lines = []
    pretrain(tokenizer=tokenizer_path, data=DATA | {"held_out": "val", "held_out_samples": 2},
             run=tmp_path, teacher="test_vit", trainer={"max_steps": 1, "workers": 0},
             **SETTINGS | {"log": lines.append})  # fmt: skip
    assert any("2 held out" in line and "distance to teachers" in line for line in lines)


def test_features_of_the_same_clips_are_a_teacher(tokenizer_path, tmp_path):
    video = tmp_path / "a.mp4"
    write_video(video, demo_clip(frames=40, size=48), fps=25)

    def extract(name, clips="dense:3", **options):
        common = {"size": 32, "crop": "center", "frames": 9, "model": tokenizer_path, "device": "cpu", "workers": 0}
        vidtok.extract(video, tmp_path / name, clips=clips, **common, **options)
        return TokenDataset(tmp_path / name)

    ids, latents = extract("ids"), extract("i3d", features="latents")  # a folder may have the name of a network
    batch = TeacherBatches(TokenBatches(ids, 3, seed=1), [latents])[0]
    assert torch.equal(pack_bits(batch["teacher-0"] > 0), batch["ids"]) and len(batch["ids"].unique()) > 3
    with pytest.raises(ValueError, match=r"was extracted with --clips dense:2, 9 x 1, and .* with dense:3"):
        TeacherBatches(TokenBatches(ids, 3), [extract("other", "dense:2", features="latents")])
    with pytest.raises(ValueError, match="extract hidden, unpooled"):
        TeacherBatches(TokenBatches(ids, 3), [extract("pooled", features="latents", pool="mean")])
    window = TeacherBatches(TokenBatches(ids, 3, window=2, first_only=True), [latents])[0]
    assert torch.equal(pack_bits(window["teacher-0"] > 0), window["ids"]) and window["ids"].shape[1] == 2
    lines = []
    pretrain(tokenizer=tokenizer_path, data={"features": str(tmp_path / "ids"), "batch_size": 2}, run=tmp_path / "run",
             teacher=[str(tmp_path / "i3d")] * 2, trainer={"max_steps": 1, "workers": 0, "log_seconds": 0},
             **SETTINGS | {"log": lines.append, "mask_ratio": 0})  # fmt: skip
    assert any("distance to teachers" in line for line in lines)
    with pytest.raises(ValueError, match="was filled with another teacher"):
        pretrain(tokenizer=tokenizer_path, data={"features": str(tmp_path / "ids"), "batch_size": 2},
                 run=tmp_path / "run", teacher=str(tmp_path / "i3d"), trainer={"max_steps": 2, "workers": 0},
                 **SETTINGS | {"mask_ratio": 0})  # fmt: skip


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"input": "recon"}, "unknown input 'recon'"),
        ({"input": "pixels", "data": {"source": None, "features": "x"}}, "input=pixels reads videos"),
        (
            {"teacher": "i3d", "data": {"source": None, "features": "x"}},
            "teacher=i3d: with data.features= give folders",
        ),
        ({"teacher": "."}, "teacher=.: with data.source= give i3d or"),
        ({"teacher": ".", "teacher_weights": "x", "data": {"source": None, "features": "x"}}, "is for networks"),
        ({"teacher": "i3d"}, "the teacher i3d needs teacher_weights"),
        ({"teacher": ["i3d"]}, "the teacher i3d needs teacher_weights"),
        ({"teacher": ["i3d", "resnet18"]}, r"teacher=\['i3d', 'resnet18'\]: with data.source= give i3d or"),
        ({"teacher": [None]}, "timm has no model 'None'"),
        ({"teacher": "resnet5"}, "timm has no model 'resnet5'"),
        ({"mask": "blok"}, "unknown mask 'blok': did you mean 'block'"),
        ({"mask_ratio": 0.99}, "mask_ratio=0.99 masks 4 of 2 x 2 cells"),
        ({"head": "linear", "head_options": None}, "head 'linear' has no features for each cell"),
    ],
)
def test_wrong_settings_are_one_line(settings, message, tokenizer_path, tmp_path):
    settings = SETTINGS | {"tokenizer": tokenizer_path, "data": DATA} | settings
    with pytest.raises(ValueError, match=message):
        pretrain(run=tmp_path, **settings)
    assert not any(tmp_path.iterdir())


def test_another_run_in_the_folder_is_refused(pretrained, tokenizer_path):
    folder, _ = pretrained
    with pytest.raises(ValueError, match="was filled with another mask"):
        pretrain(tokenizer=tokenizer_path, data=DATA | {"held_out": "val", "held_out_samples": 4}, run=folder,
                 mask="tube", trainer={"max_steps": 3, "workers": 0}, **SETTINGS)  # fmt: skip


def test_the_command_lists_its_settings(capsys):
    assert main(["train", "pretrain", "--config"]) == 0
    assert "mask_ratio" in capsys.readouterr().out


@pytest.mark.parametrize("experiment, videos", [("ssv2", 168_913), ("k400", 240_436)])
def test_the_recipes_are_complete_and_train(experiment, videos, tokenizer_path, tmp_path):
    cfg = compose_config("train_pretrain", [f"experiment=pretrain/{experiment}", "data.source=x", "tokenizer=x"])
    assert cfg.trainer.max_steps == math.ceil(800 * videos / cfg.data.batch_size)
    backbone = create_head("vivit-base", cfg.input, grid=(5, 28, 28), patch_merge=cfg.patch_merge)
    model = MaskedPretraining(backbone, 18, cfg.mask, cfg.mask_ratio)
    assert model.grid == (14, 14) and model.count == 147
    assert 85e6 < sum(p.numel() for p in backbone.parameters()) < 90e6
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / "videos" / name, demo_clip(frames=40, size=48), fps=cfg.data.fps)
    small = {"source": str(tmp_path / "videos"), "size": 32, "batch_size": 2, "split": None}
    options = {"dim": 24, "depth": 2, "heads": 2}
    lines = []
    pretrain(
        f"experiment=pretrain/{experiment}", tokenizer=tokenizer_path, data=small, head_options=options,
        trainer={"max_steps": 2, "workers": 0, "precision": "fp32"}, run=tmp_path / "run", log=lines.append,
    )  # fmt: skip
    assert any(line.startswith("done at step 2") for line in lines)
