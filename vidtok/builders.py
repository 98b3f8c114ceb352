"""From hydra configs to objects: the one module that reads a config. Everything it builds takes plain arguments."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.resources import files
from typing import TYPE_CHECKING

import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from torch import nn

from vidtok.config import TokenizerConfig
from vidtok.hints import nearest
from vidtok.tokenizer import VideoTokenizer

if TYPE_CHECKING:
    from vidtok.datasets import ClipFolder, DigitClips, LabelledDataset
    from vidtok.eval.compare import Comparison
    from vidtok.eval.labelled_clips import ClipSet, ClipSource
    from vidtok.eval.material import Material
    from vidtok.eval.protocol import Protocol
    from vidtok.generator import GeneratorConfig
    from vidtok.heads import Head
    from vidtok.logits import LogitDistance
    from vidtok.lpips import LPIPS
    from vidtok.train.branch import Branch
    from vidtok.train.state import TrainState

CANDIDATES = 10  # checkpoints of a run that one is chosen among
AUGMENTATION = ("scale", "flip", "augment")  # of training clips of labelled videos


def list_tokenizers() -> list[str]:
    """Names that `create_tokenizer` takes: the files of `vidtok/configs/model`."""
    return sorted(p.name.removesuffix(".yaml") for p in files("vidtok.configs").joinpath("model").iterdir())


def create_tokenizer(name: str, quantizer: str | None = None) -> VideoTokenizer:
    """An untrained tokenizer by config name, in training mode on the CPU.

    Args:
        name: one of `list_tokenizers()`.
        quantizer: name of a config in `vidtok/configs/quantizer` ("lfq", "lfq-residual", "fsq", "vq") instead of the
            model's own.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in list_tokenizers():
        raise ValueError(f"unknown tokenizer {name!r}: {nearest(name, list_tokenizers())}")
    overrides = [f"+model={name}"]
    if quantizer is not None:
        known = [p.name.removesuffix(".yaml") for p in files("vidtok.configs").joinpath("quantizer").iterdir()]
        if quantizer not in known:
            raise ValueError(f"unknown quantizer {quantizer!r}: {nearest(quantizer, known)}")
        overrides.append(f"+quantizer={quantizer}")
    with initialize_config_module("vidtok.configs", version_base="1.3"):
        return build_tokenizer(compose(overrides=overrides))


def list_heads() -> list[str]:
    """Names that `create_head` takes: the files of `vidtok/configs/head`."""
    return sorted(p.name.removesuffix(".yaml") for p in files("vidtok.configs").joinpath("head").iterdir())


def create_head(
    name: str,
    input: str = "tokens",
    num_classes: int = 0,
    grid: tuple[int, int, int] = (5, 16, 16),
    merge: int = 1,
    bits: float = 18,
    channels: int | None = None,
    stride: tuple[int, int, int] = (4, 8, 8),
    **arguments,
) -> "Head":
    """An untrained recognition head by config name, in training mode on the CPU.

    Args:
        name: one of `list_heads()`.
        input: what it reads: "tokens" or "codes", int64 ids [B, t, h, w]; "latents" or "hidden", float
            [B, channels, t, h, w]; "embedding", float [B, N, channels]; "pixels", float [B, 3, T, H, W] in [-1, 1].
        num_classes: of the last layer; 0, none.
        grid: (t, h, w) of the tokens, of the pixels too; heads work on other grids as well.
        merge: neighbouring merge x merge cells become one.
        bits: log2 of the codebook, of tokens and codes; channels: of features; stride: pixels per token, of pixels.
        arguments: of the head's class instead of the config's, such as drop_path=0.1.

    Raises:
        ValueError: for an unknown name, input or argument, or a grid that doesn't divide by `merge`.
    """
    if name not in list_heads():
        raise ValueError(f"unknown head {name!r}: {nearest(name, list_heads())}")
    with initialize_config_module("vidtok.configs", version_base="1.3"):
        cfg = compose(overrides=[f"+head={name}"])
    own = {"bits": bits, "channels": channels, "stride": list(stride)}
    return build_head(cfg, name, input, num_classes, grid, merge, own, arguments)


def build_head(
    cfg: DictConfig,
    name: str,
    input: str,
    num_classes: int,
    grid: tuple[int, int, int],
    merge: int,
    own: dict,
    arguments: dict | None = None,
) -> "Head":
    """The head of the group `head`. own: values of all inputs' own settings, of which `input` takes its one; for the
    rest see `create_head`."""
    from vidtok.heads import INPUTS, HeadConfig, make_head

    if input not in INPUTS:
        raise ValueError(f"unknown input {input!r}: {nearest(input, INPUTS)}")
    key = INPUTS[input][1]
    if own.get(key) is None:
        raise ValueError(f"input {input!r} needs {key}=")
    net = {**OmegaConf.to_container(cfg.head, resolve=True), **(arguments or {})}
    spec = {"kind": input, "merge": merge, key: own[key]}
    return make_head(HeadConfig(name, net, spec, tuple(grid), num_classes))


def build_tokenizer(cfg: DictConfig) -> VideoTokenizer:
    """The tokenizer of the groups `model` and, where chosen, `quantizer`."""
    model = OmegaConf.to_container(cfg.model, resolve=True)
    if "quantizer" in cfg:
        model["quantizer"] = OmegaConf.to_container(cfg.quantizer, resolve=True)
    return VideoTokenizer(TokenizerConfig(**model))


def build_schedule(plain: dict, branch: "Branch | None" = None) -> dict:
    """The arguments `schedule` and `options` of `vidtok.train.loop.train`, of the group `trainer` and the seed.

    branch: where the run branched off, for one that did.
    """
    from vidtok.train.loop import TrainerOptions
    from vidtok.train.schedule import Schedule

    trainer = {key: value for key, value in plain["trainer"].items() if key != "ema_decay"}
    keys = ("max_steps", "max_minutes", "warmup_steps", "final_rate", "shape")
    schedule = {key: trainer.pop(key) for key in keys}
    if branch is not None:
        schedule |= {"shape": "decay", "start_step": branch.step, "start_seconds": branch.seconds}
        if schedule["max_steps"] is None and schedule["max_minutes"] is None:
            schedule["max_steps"] = branch.decay_steps
    elif schedule["shape"] == "decay":
        raise ValueError(
            "trainer.shape=decay is for a branch (vidtok train tokenizer branch=RUN): give cosine or constant"
        )
    return {"schedule": Schedule(**schedule), "options": TrainerOptions(seed=plain["seed"], **trainer)}


def build_state(model: nn.Module, plain: dict) -> "TrainState":
    """The model in training mode with its optimiser and average, of the groups `optimizer` and `trainer`."""
    from vidtok.train.optimizer import create_optimizer
    from vidtok.train.state import TrainState, average_of

    model.train()
    ema = average_of(model, plain["trainer"]["ema_decay"])
    return TrainState(model, create_optimizer(model, **plain["optimizer"]), ema)


def build_tokenizer_training(cfg: DictConfig) -> dict:
    """The arguments of `vidtok.train.loop.train` that a config determines: for `vidtok train tokenizer`.

    For a branch this starts its folder too, and completes `cfg`, which the folder keeps.
    """
    # Imported here: a tokenizer alone needs none of it.
    from vidtok.inflate import inflate
    from vidtok.nets.grow import grow
    from vidtok.train.branch import Branch, read_branch, start_branch, validate_branch
    from vidtok.train.discriminator import Discriminator
    from vidtok.train.loss import LossWeights
    from vidtok.train.optimizer import create_optimizer
    from vidtok.train.processes import join_processes
    from vidtok.train.tokenizer import TokenizerTask

    perceptual = build_perceptual(cfg)
    if perceptual is None:
        cfg.loss.perceptual = cfg.loss.gram = 0.0
    plain = OmegaConf.to_container(cfg, resolve=True)
    data, weights = plain["data"], LossWeights(**plain["loss"])
    if len(given := [key for key in ("branch", "init", "inflate", "grow") if plain[key]]) > 1:
        raise ValueError(f"give one of {'= and '.join(given)}=: each says what the weights start as")
    model = validate_branch(plain["branch"], plain["run"]) if plain["branch"] else None
    # The branch point isn't known before the checkpoint is copied; until then this checks the settings.
    arguments = build_schedule(plain, Branch(plain["branch"], 0, 0.0, model) if plain["branch"] else None)

    torch.manual_seed(plain["seed"])  # of the initial weights
    if plain["branch"]:
        cfg.model = model
        tokenizer = VideoTokenizer(TokenizerConfig(**model))
    elif plain["init"]:
        tokenizer = VideoTokenizer.from_pretrained(plain["init"])
        cfg.model = asdict(tokenizer.config)  # the config that the run folder keeps names the model that was trained
    else:
        tokenizer = build_tokenizer(cfg)
        if plain["inflate"]:
            inflate(VideoTokenizer.from_pretrained(plain["inflate"]), tokenizer)
        if plain["grow"]:
            grow(VideoTokenizer.from_pretrained(plain["grow"]), tokenizer)
    batches, fixed_clips = build_clips(plain, tokenizer.stride)
    state = build_state(tokenizer, plain)
    if weights.adversarial > 0:
        size = (data["frames"], data["crop"], data["crop"])
        state.critic = Discriminator(size, **plain["discriminator"])
        state.critic_optimizer = create_optimizer(state.critic, **plain["discriminator_optimizer"])
    task = TokenizerTask(weights, state.critic, perceptual, fixed_clips)
    if plain["branch"]:  # last, so that a command that failed has started none
        branch = start_branch(plain["branch"], plain["run"], join_processes())
        arguments = build_schedule(plain, branch)
        cfg.trainer.shape, cfg.trainer.max_steps = "decay", arguments["schedule"].max_steps
    elif branch := read_branch(cfg.run):
        raise ValueError(f"run={cfg.run} holds a branch: give branch={branch.run} to go on, or another run=")
    return {"task": task, "state": state, "batches": batches, **arguments}


def build_clips(plain: dict, stride: tuple[int, int, int]) -> tuple["ClipFolder | DigitClips", list[torch.Tensor]]:
    """Training batches of the group `data`, and the fixed clips of `validation`, which are none of theirs."""
    from vidtok.datasets import ClipFolder, DigitClips
    from vidtok.train.fixed_clips import read_fixed_clips

    data, files = dict(plain["data"]), []
    if (kind := data.pop("kind")) == "folder":
        batches = ClipFolder(data.pop("root"), stride=stride, seed=plain["seed"], **data)
        files = batches.videos + batches.images
    elif kind == "digits":
        batches = DigitClips(seed=plain["seed"], stride=stride, **data)
    else:
        raise ValueError(f"unknown data.kind {kind!r}: {nearest(kind, ['folder', 'digits'])}")
    return batches, read_fixed_clips(**plain["validation"], stride=stride, training_files=files)


def build_perceptual(cfg: DictConfig) -> "LPIPS | LogitDistance | None":
    """The perceptual distance, or None where the weights of both of its terms are 0 or those of its network are absent
    (said in a warning)."""
    from vidtok.logits import LogitDistance
    from vidtok.lpips import LPIPS

    if cfg.loss.perceptual == 0 and cfg.loss.gram == 0:
        return None
    kinds = {"lpips": LPIPS, "logits": LogitDistance}
    if cfg.perceptual not in kinds:
        raise ValueError(f"unknown perceptual distance {cfg.perceptual!r}: {nearest(cfg.perceptual, kinds)}")
    if cfg.loss.gram != 0 and cfg.perceptual != "lpips":
        raise ValueError(f"loss.gram={cfg.loss.gram} compares features of LPIPS' network: set perceptual=lpips")
    net, weights = cfg[cfg.perceptual].net, cfg[cfg.perceptual].weights
    if weights is None:
        terms = "the perceptual term" + (" and the Gram term" if cfg.loss.gram else "")
        message = f"no {cfg.perceptual}.weights=FILE (or URL): training without {terms}"
        warnings.warn(message, stacklevel=2)
        return None
    if weights == "download" and cfg.perceptual == "lpips":
        weights = None  # LPIPS knows where torchvision keeps them
    return kinds[cfg.perceptual](net, weights)


def build_clip_sources(cfg: DictConfig) -> tuple["ClipSource", "ClipSource"]:
    """(of training, of the test), of the group `data`."""
    from vidtok.eval.labelled_clips import ClipSource

    data = OmegaConf.to_container(cfg.data, resolve=True)
    fields = ("path_column", "label_column", "split_column", "group_column", "classes", "checked")
    columns = {key: data[key] for key in fields}
    source = ClipSource(str(data["source"]), data["root"], **columns)
    if data["val_source"] is None:
        return source, source
    return source, ClipSource(data["val_source"], data["val_root"] or data["root"], **columns)


def build_protocol(cfg: DictConfig) -> "Protocol":
    from vidtok.eval.protocol import Protocol

    return Protocol.parse(cfg.data.protocol, cfg.data.size, cfg.data.fps, cfg.data.resize, cfg.data.joined)


# The optimizer's state goes by the order of the head's parameters: a run from before another order isn't gone on with.
HEAD_ORDER = "embedding last"


def hold_finetuning(cfg: DictConfig, tokenizer: VideoTokenizer) -> None:
    """Notes in the run folder what its head is trained and tested on. Raises ValueError where that was something else:
    the checkpoint would fit, and its result would be of neither."""
    from pathlib import Path

    from vidtok.eval.clip_store import hold_to

    data = OmegaConf.to_container(cfg.data, resolve=True)
    facts = {f"data.{key}": value for key, value in data.items() if key not in ("batch_size", "workers", "cache")}
    facts |= {"command": "finetune", "input": cfg.input, "seed": cfg.seed, "tokenizer": tokenizer.weight_hash}
    plain = OmegaConf.to_container(cfg, resolve=True)
    facts |= {key: plain[key] for key in ("head", "head_options", "merge")}  # of other heads the weights might fit
    facts |= {"task": plain["task"], "parameters": HEAD_ORDER}
    # The rate may change, as may what the loop is told: a run that ended in NaN goes on with a lower one.
    facts["optimizer"] = {key: value for key, value in plain["optimizer"].items() if key != "lr"}
    hold_to(Path(cfg.run), facts)


def build_material(cfg: DictConfig, tokenizer: VideoTokenizer) -> "Material":
    """What `vidtok eval finetune` trains and tests on."""
    from vidtok.eval.inputs import InputEncoder, encode_all, shuffle_frames
    from vidtok.eval.labelled_clips import load_clips
    from vidtok.eval.material import feature_material, memory_material, video_material

    data, protocol = OmegaConf.to_container(cfg.data, resolve=True), build_protocol(cfg)
    refuse_idle_data(data)
    refuse_task(cfg, cfg.input)
    if data["features"] is not None:
        paths = data["features"], data["val_features"] or data["features"]
        splits = data["train_split"], data["val_split"]
        return feature_material(
            paths,
            splits,
            cfg.input,
            tokenizer,
            protocol,
            data["select"],
            data["batch_size"],
            cfg.seed,
            build_clip_sources(cfg)[0].groups if data["group_column"] else None,
            data["cache"],
            (data["train_clips"], data["val_clips"]),
        )
    source, test_source = build_clip_sources(cfg)
    splits = data["train_split"], data["val_split"]
    encoder = InputEncoder(cfg.input, tokenizer, protocol.at_once)
    source.refuse_overlap(splits[0], test_source, splits[1])
    if not data["in_memory"]:
        limits = data["train_clips"], data["val_clips"]
        return video_material(
            source, test_source, splits, protocol, encoder, data["select"], data["batch_size"], data["workers"],
            cfg.seed, limits, **{key: data[key] for key in AUGMENTATION},
        )  # fmt: skip
    refuse_joined(data)
    train = load_training_clips(source, protocol, data, encoder.packed)
    test_source = replace(test_source, classes=train.classes)
    test = load_clips(test_source.open(splits[1], protocol), data["val_clips"], data["workers"])
    groups = source.groups(train.ids)
    x_test, x_shuffled = (encode_all(encoder, video) for video in (test.video, shuffle_frames(test.video, test.ids)))
    return memory_material(
        train, test, encoder, train.video, x_test, x_shuffled, groups,
        data["select"], data["cells"], data["batch_size"], cfg.seed,
    )  # fmt: skip


def refuse_idle_data(data: dict) -> None:
    """Raises ValueError for a setting of the group `data` that would do nothing."""
    if data["features"] is not None:
        idle = ("joined", "train_views", "cells", "augment", "classes", "checked", "label_column")
        why = "takes videos, not extracted features"
    elif not data["in_memory"]:
        idle, why = ("train_views", "cells"), "takes data.in_memory=true"
    else:
        idle, why = ("augment",) if data["train_views"] is None else (), "takes data.train_views=N in memory"
    for key in idle:
        if data[key]:
            raise ValueError(f"data.{key}={data[key]} {why}")
    if data["val_features"] and data["features"] is None:
        raise ValueError("data.val_features goes with data.features, those of the training")
    if data["cache"] and data["features"] is None:
        raise ValueError("data.cache is of extracted features, data.features, and not of videos")


def refuse_joined(data: dict) -> None:
    """Before the clips are decoded. Raises ValueError where the head sees several random clips at once."""
    if data["joined"]:
        raise ValueError("joined clips are random ones of each video, read anew: data.in_memory=false")


def load_training_clips(
    source: "ClipSource", protocol: "Protocol", data: dict, encode: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> "ClipSet":
    """Training clips in memory: as a test would see them, or `train_views` random ones of each video. encode: what is
    kept of them; None, pixels."""
    from accelerate import PartialState

    from vidtok.eval.labelled_clips import load_clips, load_views

    say = PartialState().print  # of several processes one speaks
    split, limit, workers, views = (data[key] for key in ("train_split", "train_clips", "workers", "train_views"))
    if views is None:
        return load_clips(source.open(split, protocol), limit, workers, say, encode)
    augmentation = {key: data[key] for key in AUGMENTATION}
    return load_views(source, split, protocol, views, limit, workers, say, encode, **augmentation)


def refuse_task(cfg: DictConfig, input: str) -> None:
    """Before the work. Raises ValueError where clips can't be mixed as the group `task` says."""
    from vidtok.eval.task import refuse_mixing

    mixup = bool(cfg.task.mixup)
    if mixup or cfg.task.cutmix:
        refuse_mixing(input in ("tokens", "codes"), cfg.data.batch_size, averaged=mixup)


def build_recognition_head(cfg: DictConfig, material: "Material", tokenizer: VideoTokenizer) -> "Head":
    """Untrained, of the config's seed; of `material` the kind, classes and grid matter."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    own = {"bits": tokenizer.bits, "channels": material.channels, "stride": tuple(tokenizer.stride)}
    torch.manual_seed(plain["seed"])  # of the initial weights
    return build_head(
        cfg, cfg.name, material.input, len(material.classes), material.grid(tokenizer.stride), plain["merge"], own,
        plain["head_options"] or {},
    )  # fmt: skip


def build_recognition_training(cfg: DictConfig, material: "Material", tokenizer: VideoTokenizer) -> dict:
    """The arguments of `vidtok.train.loop.train` that config and material determine: for `vidtok eval finetune`."""
    from vidtok.eval.batches import LabelledBatches, MemorySource
    from vidtok.eval.task import RecognitionTask

    plain = OmegaConf.to_container(cfg, resolve=True)
    head = build_recognition_head(cfg, material, tokenizer)
    reads_tokens = cfg.input != "pixels"
    head.record(
        classes=list(material.classes),
        tokenizer={"name": tokenizer.config.name, "weight_hash": tokenizer.weight_hash} if reads_tokens else None,
        protocol=build_protocol(cfg).for_head() | ({"cells": cells} if (cells := plain["data"]["cells"]) else {}),
        class_counts=torch.bincount(torch.as_tensor(material.train.labels), minlength=head.num_classes).tolist(),
    )
    batches = LabelledBatches(material.train, plain["data"]["batch_size"], plain["seed"])
    if isinstance(material.train, MemorySource):
        plain["trainer"]["workers"] = 0  # there is nothing to make ahead, and a worker would copy it all
    arguments, may_choose = build_schedule(plain), None
    schedule, options = arguments["schedule"], arguments["options"]
    if not schedule.has_end:
        raise ValueError("a head is tested at the end of its run: set trainer.max_steps or trainer.max_minutes")
    if material.select is not None and schedule.max_minutes is None:
        # By steps: a choice among checkpoints by the clock, or where a run was stopped, would not come out twice.
        every = options.save_steps or math.ceil(schedule.max_steps / CANDIDATES)
        arguments["options"] = replace(options, save_steps=every)

        def may_choose(step: int) -> bool:
            return step % every == 0 or step >= schedule.max_steps

    task = RecognitionTask(len(material.classes), material.encode, **plain["task"], select=material.select,
                           may_choose=may_choose)  # fmt: skip
    return {"task": task, "state": build_state(head, plain), "batches": batches, **arguments}


def build_comparison(cfg: DictConfig, tokenizer: VideoTokenizer) -> "Comparison":
    """The clips and arms of `vidtok eval compare`; decodes the clips where its folder doesn't hold them yet."""
    from pathlib import Path

    from vidtok.eval.clip_store import ClipStore, hold_to
    from vidtok.eval.compare import Comparison
    from vidtok.eval.inputs import InputEncoder
    from vidtok.eval.labelled_clips import load_clips

    data = OmegaConf.to_container(cfg.data, resolve=True)
    if data["features"] is not None:
        raise ValueError("a comparison is of videos, whose pixels are one of the arms: data.features= is for finetune")
    refuse_joined(data)
    refuse_idle_data(data | {"in_memory": True})
    (source, test_source), protocol = build_clip_sources(cfg), build_protocol(cfg)
    encoders = {arm: InputEncoder(arm, tokenizer, protocol.at_once) for arm in {*cfg.arms, "tokens", "recon"}}
    source.refuse_overlap(data["train_split"], test_source, data["val_split"])
    refuse_arms(cfg, encoders, source.open(data["train_split"], protocol).classes, tokenizer)
    depends_on = ("source", "root", "val_source", "val_root", "path_column", "label_column", "split_column", "classes")
    depends_on += ("checked",)
    depends_on += ("train_split", "val_split", "protocol", "size", "resize", "fps", "train_clips", "val_clips")
    if data["train_views"] is not None:
        depends_on += ("train_views", "scale", "flip", "augment")
    facts = {key: data[key] for key in depends_on}
    hold_to(Path(cfg.run), {"command": "compare"})  # and not a run of finetune
    store = ClipStore(Path(cfg.run) / "clips", facts)
    encoded = ClipStore(Path(cfg.run) / "encoded", {"tokenizer": tokenizer.weight_hash})
    recipe = OmegaConf.to_container(cfg, resolve=True)
    training = {key: recipe[key] for key in ("head", "head_options", "merge", "task", "optimizer")}
    training |= lasting(recipe["trainer"]) | {"parameters": HEAD_ORDER}
    if data["select"]:  # whose choice depends on what is saved
        training["save_steps"] = recipe["trainer"]["save_steps"]
    chosen = ("batch_size", "cells", "select", *(["group_column"] if data["select"] else []))
    hold_to(Path(cfg.run) / "runs", training | {key: data[key] for key in chosen})

    def load_test() -> "ClipSet":
        videos = replace(test_source, classes=train.classes).open(data["val_split"], protocol)
        return load_clips(videos, data["val_clips"], data["workers"])

    train = store.clips("train", lambda: load_training_clips(source, protocol, data))
    test = store.clips("test", load_test)
    return Comparison(
        encoded, train, test, encoders.__getitem__, list(cfg.arms), list(cfg.seeds), data["cells"], data["batch_size"],
        data["select"], source.groups(train.ids),
    )  # fmt: skip


def refuse_arms(cfg: DictConfig, encoders: dict, classes: Sequence[str], tokenizer: VideoTokenizer) -> None:
    """Before clips are decoded, and a folder is held to the settings. Raises ValueError for an arm that no head of the
    config can read, or whose clips can't be mixed or cropped as it says."""
    from vidtok.eval.batches import MemorySource
    from vidtok.eval.inputs import unpack
    from vidtok.eval.material import Material

    protocol = build_protocol(cfg)
    black = torch.full((1, 3, protocol.frames, protocol.size, protocol.size), -1.0)
    for arm in cfg.arms:
        encoder = encoders[arm]
        x = unpack(encoder.packed(black))
        example = MemorySource(x[None], [0], cfg.data.cells, encoder.unit).draw(0, 0)[0][None]
        refuse_task(cfg, encoder.head_input)
        material = Material(encoder.head_input, None, None, example, None, None, None, list(classes))
        head = build_recognition_head(OmegaConf.merge(cfg, {"input": arm}), material, tokenizer).eval()
        with torch.no_grad():
            head(example.cpu())


def lasting(trainer: dict) -> dict:
    """The trainer's settings that its result depends on: not how often it logs and saves, nor its workers."""
    settings = {key: value for key, value in trainer.items() if not key.startswith(("log", "save", "work"))}
    # Folders from before there were other shapes name none, and go on.
    return {key: value for key, value in settings.items() if (key, value) != ("shape", "cosine")}


FIRST_SAMPLES = 16  # that tell a generator its grid, and diffusion the scale of latents


def build_generator_training(cfg: DictConfig) -> dict:
    """The arguments of `vidtok.train.loop.train` that a config determines: for `vidtok train generator`."""
    from vidtok.generator import GeneratorConfig, Objective, create_generator
    from vidtok.generator.masks import check_task
    from vidtok.generator.task import GeneratorTask

    plain = OmegaConf.to_container(cfg, resolve=True)
    data, count = plain["data"], plain["data"]["held_out_samples"]
    tokenizer = VideoTokenizer.from_pretrained(plain["tokenizer"])
    if tokenizer.bits != int(tokenizer.bits):
        raise ValueError(
            f"generators take ids apart into bits, and {plain['tokenizer']} has {tokenizer.bits:.2f} of them"
        )
    if plain["generator"]["kind"] == "diffusion" and tokenizer.config.quantizer["kind"] != "lfq":
        raise ValueError(
            f"diffusion makes latents whose signs are the tokens, as those of LFQ: {plain['tokenizer']} isn't"
        )
    batches, classes, fps = build_generator_batches(data, data["split"], data["batch_size"], tokenizer, plain["seed"])
    sampling = {name: value for name, value in plain["sampling"].items() if value is not None}
    task = GeneratorTask(Objective(**plain["objective"]), tokenizer, plain["samples"], sampling)
    if data["held_out"]:
        same = data | {"classes": list(classes)}
        task.held_out = build_generator_batches(same, data["held_out"], count, tokenizer, plain["seed"])[0][0]
    if task.samples and task.objective.given_prefix and task.held_out is None:
        raise ValueError("pictures of a model that is always given a prefix need data.held_out=SPLIT, or samples=0")
    first = task.encoded(batches.first(min(FIRST_SAMPLES, data["batch_size"])))
    torch.manual_seed(plain["seed"])  # of the initial weights
    generator = create_generator(
        GeneratorConfig(
            name=plain["name"],
            tokenizer=tokenizer.config.name,
            weight_hash=tokenizer.weight_hash,
            bits=tokenizer.bits,
            grid=tuple(first["ids"].shape[1:]),
            stride=tokenizer.stride,
            fps=fps,
            classes=tuple(classes),
            **plain["size"],
            **plain["generator"],
        )
    )
    generator.check_sampling(**sampling)  # now, not at the first picture
    for name, weight in task.objective.tasks.items():
        if weight and generator.causal and not name.startswith(("none", "prefix")):  # it learns every prefix anyway
            raise ValueError(
                f"an autoregressive model goes on from prefixes alone: objective.tasks.{name} is for others"
            )
        if weight:
            check_task(name, generator.config.grid)  # likewise: not when it is first drawn
    if generator.config.kind == "diffusion":
        if "latents" not in first:
            raise ValueError("diffusion is trained on latents: give clips, or extract them with --features latents")
        generator.fit_scale(first["latents"])
    return {"task": task, "state": build_state(generator, plain), "batches": batches, **build_schedule(plain)}


def hold_generator(cfg: DictConfig, config: "GeneratorConfig") -> None:
    """Notes in the run folder what its weights mean. Raises ValueError where that was something else, such as another
    tokenizer or other classes: the checkpoint might fit, and its tokens would be of neither."""
    from pathlib import Path

    from vidtok.eval.clip_store import hold_to
    from vidtok.generator.config import SCHEMA

    facts = {key: value for key, value in asdict(config).items() if key != "name"}
    hold_to(Path(cfg.run), {"command": "train generator", "schema": SCHEMA, **facts})


def build_generator_batches(data: dict, split: str, batch_size: int, tokenizer: VideoTokenizer, seed: int):
    """(batches, classes, frames per second or None where these differ) of the group `data` of a generator.

    Raises:
        ValueError: for features of another tokenizer, a split held out where there are none, or unless either features
            or a source are given.
    """
    from vidtok.datasets import MovingDigits
    from vidtok.extract import TokenDataset
    from vidtok.extract.token_batches import TokenBatches
    from vidtok.generator.batches import ClipBatches, StoredBatches

    if (data["features"] is None) == (data["source"] is None):
        raise ValueError("give either data.features=, extracted tokens, or data.source=, videos")
    if data["features"] is None:
        dataset = build_generator_clips(data, split, seed)
        batches = ClipBatches(dataset, batch_size, seed)
        fps = MovingDigits.fps if data["source"] == "digits" else data["fps"] and data["fps"] / data["stride"]
    else:
        splits = {entry.split for entry in TokenDataset(data["features"], cache=data["cache"]).entries}
        if splits == {None} and split != data["split"]:
            raise ValueError(f"{data['features']} has no splits, so that {split!r} can't be held out of it")
        chosen = split if splits != {None} else None
        dataset = TokenDataset(data["features"], chosen, classes=data["classes"] or None, cache=data["cache"])
        if (own := dataset.meta["weight_hash"]) != tokenizer.weight_hash:
            name = f"{tokenizer.config.name} ({tokenizer.weight_hash})"
            raise ValueError(f"{data['features']} holds tokens of weights {own}, not of {name}: set tokenizer=")
        if dataset.feature == "latents" and tokenizer.config.quantizer["kind"] != "lfq":
            raise ValueError(f"{data['features']}: tokens are the signs of latents of LFQ alone: extract ids")
        tokens = TokenBatches(dataset, batch_size, data["latents"], first_only=True, seed=seed)
        batches = StoredBatches(tokens, seed)
        rates = {round(dataset.read(i).meta.fps, 3) for i in range(0, len(dataset), -(-len(dataset) // 32))}
        fps = rates.pop() if len(rates) == 1 else None
        if fps is None:
            message = (
                f"{data['features']}: clips of different rates: real clips to compare with, and prefixes, will be read "
                "at their own; extract with --fps for one of all"
            )
            warnings.warn(message, stacklevel=2)
    return batches, [] if data["classes"] == [] else dataset.classes, fps


def build_generator_clips(data: dict, split: str, seed: int) -> "LabelledDataset":
    """Random clips and crops of the videos that the group `data` of a generator names."""
    from functools import partial

    from vidtok.datasets import MovingDigits, SquareTransform, open_dataset, random_clip

    if data["source"] == "digits":
        return MovingDigits(split, data["frames"], data["size"], seed)
    if data["stride"] != 1 and data["fps"] is None:
        raise ValueError(f"data.stride={data['stride']} counts frames of data.fps: give it, too")
    columns = {name: data[name] for name in ("path_column", "label_column", "split_column")}
    return open_dataset(
        data["source"],
        data["root"],
        split,
        data["classes"] or None,
        **columns,
        seed=seed,
        on_error="resample",
        sampler=partial(random_clip, frames=data["frames"], stride=data["stride"], at_fps=data["fps"]),
        transform=SquareTransform(data["size"], tuple(data["scale"]), data["flip"]),
    )
