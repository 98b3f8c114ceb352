"""The published recipes, each two steps long on generated videos in the real file layout of its data set."""

import json
import re
from importlib.resources import files

import av
import numpy as np
import pytest
import torch
from timm.data.auto_augment import rand_augment_transform

from vidtok.cli.main import main
from vidtok.configs.compose import compose_config
from vidtok.datasets import write_video

RECIPES = sorted(path.name.removesuffix(".yaml") for path in files("vidtok.configs").joinpath("recipe").iterdir())
LABELS = ("air drumming", "zumba")
TEMPLATES = ("Pushing [something] from left to right", "Turning [something] upside down")


def make_video(seed: int, frames: int = 20) -> torch.Tensor:
    noise = torch.rand(1, 3, 4, 5, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(noise, (frames, 40, 48), mode="trilinear")


def write_webm(path, video) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=12, options={"cpu-used": "8", "deadline": "realtime"})
        stream.height, stream.width = video.shape[-2:]
        for frame in ((video[0].permute(1, 2, 3, 0) + 1) * 127.5).byte().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def kinetics(tmp_path_factory):
    """train.csv and val.csv as the official ones, clips in class folders."""
    root = tmp_path_factory.mktemp("kinetics")
    for split, count in (("train", 2), ("val", 1)):
        rows = ["label,youtube_id,time_start,time_end,split"]
        for number, label in enumerate(LABELS):
            folder = root / split / label.replace(" ", "_")
            folder.mkdir(parents=True)
            for clip in range(count):
                name = f"{split}-{number}_{clip:04d}"  # eleven characters, one of them an underscore
                write_video(folder / f"{name}_000010_000020.mp4", make_video(10 * number + clip + 99 * count), fps=25)
                rows.append(f"{label},{name},10,20,{split}")
        (root / f"{split}.csv").write_text("\n".join(rows) + "\n")
    data = [f"data.source={root}/train.csv", f"data.root={root}/train", f"data.val_source={root}/val.csv"]
    return [*data, f"data.val_root={root}/val"]


@pytest.fixture(scope="module")
def something(tmp_path_factory):
    """The three json files and ID.webm, VP9."""
    root, number = tmp_path_factory.mktemp("something"), 0
    names = {template.replace("[", "").replace("]", ""): str(i) for i, template in enumerate(TEMPLATES)}
    (root / "something-something-v2-labels.json").write_text(json.dumps(names))
    (root / "videos").mkdir()
    for split, count in (("train", 2), ("validation", 1)):
        rows = []
        for template in TEMPLATES:
            for _ in range(count):
                number += 1
                write_webm(root / "videos" / f"{number}.webm", make_video(number))
                row = {"id": str(number), "template": template, "placeholders": ["a cup"]}
                rows.append(row | {"label": template.replace("[something]", "a cup")})
        (root / f"something-something-v2-{split}.json").write_text(json.dumps(rows))
    prefix = root / "something-something-v2"
    data = [f"data.source={prefix}-train.json", f"data.val_source={prefix}-validation.json"]
    return [*data, f"data.root={root}/videos", f"data.classes={prefix}-labels.json"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_steps_of_a_recipe(recipe, request, tokenizer_path, tmp_path):
    is_kinetics = recipe.startswith("k")
    data = request.getfixturevalue("kinetics" if is_kinetics else "something")
    published = compose_config("finetune", [f"recipe={recipe}", "data.source=none"])
    command = [f"recipe={recipe}", *data, f"tokenizer={tokenizer_path}", f"run={tmp_path}", "trainer.max_steps=2"]
    command += ["data.size=32", "data.batch_size=2", "trainer.workers=0", "trainer.precision=fp32"]
    sizes = {"dim": 16, "depth": 1, "heads": 2, "temporal_depth": 1}
    command += [f"head.{key}={value}" for key, value in sizes.items() if key in published.head]
    assert main(["eval", "finetune", *command]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["results"][0]["runs"][0]["steps"] == 2 and result["n_used"] == 2 and result["n_failed"] == 0
    assert result["protocol"]["name"] == published.data.protocol and published.data.size == 224
    expected = LABELS if is_kinetics else [t.replace("[", "").replace("]", "") for t in TEMPLATES]
    assert result["data"]["classes"] == list(expected)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_steps_are_the_epochs(recipe):
    """Those that a recipe's first lines name, or the lines of the recipe that it is derived from."""
    cfg, name, found = compose_config("finetune", [f"recipe={recipe}", "data.source=x"]), recipe, None
    while found is None:
        text = files("vidtok.configs").joinpath("recipe", f"{name}.yaml").read_text().replace("\n# ", " ")
        found = re.search(r"(?:([0-9.]+) of )?([0-9]+) epochs of ([0-9,]+) videos", text)
        name = re.search(r"^  - ([a-z0-9-]+)$", text, re.MULTILINE)
        name = name and name[1]
    steps = int(found[3].replace(",", "")) / cfg.data.batch_size
    assert cfg.trainer.max_steps == pytest.approx(int(found[2]) * steps, abs=1)
    assert cfg.trainer.warmup_steps == pytest.approx(float(found[1] or 0) * steps, abs=1)


@pytest.mark.parametrize("recipe", RECIPES)
def test_augmentation_is_as_strong_as_published(recipe):
    """timm cuts magnitudes above 10 unless told otherwise."""
    augment = compose_config("finetune", [f"recipe={recipe}", "data.source=x"]).data.augment
    if augment is not None:
        ops = rand_augment_transform(augment, {}).ops
        assert all(op.magnitude <= (op.magnitude_max or 10) for op in ops)
        assert f"-m{ops[0].magnitude}" in augment


def test_every_set_has_every_recipe():
    kinds = {"linear", "attentive", "finetune", "vivit-b-pixels", "vivit-b-tokens"}
    assert {*RECIPES} == {f"{data}-{kind}" for data in ("k400", "k600", "ssv2") for kind in kinds}


def test_only_the_input_differs_between_tokens_and_pixels():
    for data in ("k400", "k600", "ssv2"):
        tokens, pixels = (
            compose_config("finetune", [f"recipe={data}-vivit-b-{arm}", "data.source=x"])
            for arm in ("tokens", "pixels")
        )
        assert (tokens.input, pixels.input) == ("tokens", "pixels")
        for group in ("head", "data", "optimizer", "trainer", "patch_merge", "head_options"):
            assert tokens[group] == pixels[group]
        assert tokens.task == pixels.task or data == "ssv2"  # where cutmix stands in for mixup
