"""Comparison of inputs of a head: tokens, codes, latents, features, pixels and reconstructions of the same clips, with
the same training budget.

The run folder holds clips/ (decoded clips), encoded/ (their encodings), and runs/ARM-SEED/ (training run, head, and
predictions.npz after the test). Existing files are reused.
"""

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vidtok.configs.compose import compose_config, given_keys, to_dict
from vidtok.datasets import LabeledDataset
from vidtok.datasets.backends import pixels_version
from vidtok.errors import UserError, nearest
from vidtok.eval.recognition.clips import (
    DIGITS,
    ClipSource,
    Protocol,
    build_clip_sources,
    build_protocol,
    load_clips,
    load_training_clips,
)
from vidtok.eval.recognition.data import (
    DataOptions,
    HeadData,
    HeadInput,
    MemorySource,
    build_data_options,
    build_recognition_head,
    memory_head_data,
    validate_data_settings,
    validate_no_concat,
    validate_task,
)
from vidtok.eval.recognition.finetuning import HEAD_ORDER, build_recognition_training, chosen_head
from vidtok.eval.recognition.inputs import (
    INPUTS,
    ClipSet,
    InputEncoder,
    Predictions,
    Test,
    encode_all,
    memory_test,
    shuffle_frames,
    unpack,
)
from vidtok.eval.recognition.results import compare_with, cost_record, data_record, recognition_result, result_entry
from vidtok.eval.report import format_table
from vidtok.eval.report.page import choose_clips, write_report
from vidtok.extraction.model import open_tokenizer
from vidtok.files import replacing, write_json
from vidtok.heads import Head
from vidtok.tokenizer import VideoTokenizer
from vidtok.train.loop import train
from vidtok.train.run_folder import RunFolder, check_fingerprint, lasting
from vidtok.train.state import StopSignal, only_process

Fit = Callable[[HeadData, str, int, Path], tuple[nn.Module, dict] | None]
TRANSFER = "pixels on recon"  # the paper's protocol: trained on pixels, tested on reconstructions


def compare(*overrides: str, log: Callable[[str], None] = print, **settings) -> dict | None:
    """Train and test the same head on each input, for each seed.

        compare(data={"source": "digits", "size": 64, "protocol": "17x1x1x1"}, arms=["tokens", "pixels"], run="runs/c")

    The run folder (setting `run`) keeps clips, encodings, heads, result.json, page.html and charts. The same call
    resumes a stopped run.

    Args:
        overrides, settings: settings of configs/compare.yaml, as hydra overrides or nested, see
            `vidtok.configs.compose`.
        log: called with each line of progress, and with the table at the end.

    Returns:
        A result of schema "vidtok.recognition/1" and kind "compare"; None if SIGTERM or Ctrl-C stopped it.

    Raises:
        UserError: an unknown or missing setting.
        ValueError: settings that don't fit each other or the data, a run folder of other settings, or several
            processes.
    """
    cfg = compose_config("compare", overrides, settings)
    validate_settings(cfg, given_keys(overrides, settings))
    start = time.perf_counter()
    device = only_process("eval compare")
    tokenizer = open_tokenizer(cfg.tokenizer, device)
    of_arm, plain, folder = arm_settings(cfg), to_dict(cfg), Path(cfg.run)
    comparison = build_comparison(plain, of_arm, tokenizer)

    def fit(head_data: HeadData, arm: str, seed: int, own: Path):
        chosen = {**of_arm[arm], "seed": seed}
        head = comparison.heads.pop((arm, seed), None)
        if head is None:
            head = build_recognition_head(chosen, head_data, tokenizer)
        arguments = build_recognition_training(chosen, head, head_data, tokenizer)
        text = OmegaConf.to_yaml(chosen)
        last = cast(Head, train(**arguments, run=RunFolder(own), stop=stop, config_yaml=text, log=log))
        if stop.requested:
            return None
        head, facts = chosen_head(last, own)
        state = arguments["state"]
        return head, {**facts, "seed": seed, "steps": state.step, "seconds": state.seconds}

    with StopSignal() as stop:
        if not comparison.run(fit, folder, log):
            log("stopped: the same command goes on")
            return None
    clips = comparison.train
    tokens = comparison.encoded("tokens", "test")
    entries, predictions, comparisons = comparison.results(folder, cfg.reference)
    splits = {"train": cfg.data.train_split, "test": cfg.data.val_split}
    read = comparison.videos, partial(comparison.store.read, "tokens-test")
    result = recognition_result(
        "compare",
        entries,
        predictions,
        protocol=comparison.protocol.record(),
        data=data_record(comparison.source, splits, clips.classes, clips.failures),
        train_labels=clips.labels,
        tokenizer=tokenizer,
        config=plain,
        wall_time_s=time.perf_counter() - start,
        device=str(device),
        comparisons=comparisons,
        costs=cost_record(comparison.test, tokens[0, 0].numel(), tokenizer.bits, *read, entries, cfg.data.batch_size),
    )
    write_json(folder / "result.json", result)
    shown = choose_clips(result, cfg.page.clips)
    played = comparison.test.video[shown, :1]
    decoded = encode_all(comparison.encoders["recon"], played, tokens[shown, :1]) if shown else played
    write_report(result, folder, shown, played[:, 0], decoded[:, 0], cfg.page.fps)
    log(f"{format_table(result)}\nresult: {folder / 'result.json'}, page: {folder / 'page.html'}")
    return result


class ClipStore:
    """Folder of safetensors files with the clips and tensors of a comparison, so that it can be resumed."""

    def __init__(self, folder: Path):
        self.folder = folder

    def clips(self, name: str, load: Callable[[], ClipSet]) -> ClipSet:
        """Return the clips of this name. The first call loads and writes them."""
        file, side = self._path(name), self.folder / f"{name}.json"
        if not side.exists():
            found = load()
            keys = ("ids", "classes", "failures", "paths")
            facts = {key: getattr(found, key) for key in keys} | {"labels": found.labels.tolist()}
            _save_tensor(file, "video", found.video)
            write_json(side, facts)
            return found
        known = json.loads(side.read_text())
        labels = np.array(known.pop("labels"))
        return ClipSet(load_file(file)["video"], labels, **known)

    def array(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """Return the tensor of this name. The first call makes and writes it."""
        path = self._path(name)
        if not path.exists():
            _save_tensor(path, "x", make())
        return load_file(path)["x"]

    def read(self, name: str, index: int) -> Tensor:
        """Read the row of one clip from a stored tensor."""
        with safe_open(self._path(name), "pt") as file:
            return file.get_slice("x")[index]

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def _save_tensor(path: Path, name: str, tensor: Tensor) -> None:
    with replacing(path) as part:
        save_file({name: tensor.contiguous()}, part)


@dataclass
class Comparison:
    """Comparison of a head on several inputs (arms), each trained and tested with several seeds.

    Every head is tested on the test clips, and on the same clips with shuffled frames. Heads on pixels are also tested
    on reconstructions.

    Attributes:
        store: stored encodings. train, test: training and test clips.
        encoders: arm -> `InputEncoder`. arms: keys of `vidtok.eval.recognition.inputs.INPUTS`. seeds: seeds per arm.
        options, groups: see `memory_head_data`; the seed of the options is replaced by each seed.
        source: source of the training clips. videos: test videos as files. protocol: protocol of both.
        heads: {(arm, seed): untrained head} for heads that `build_heads` has built already.
    """

    store: ClipStore
    train: ClipSet
    test: ClipSet
    encoders: Mapping[str, InputEncoder]
    arms: Sequence[str]
    seeds: Sequence[int]
    options: DataOptions
    groups: Sequence[str] | None
    source: ClipSource
    videos: LabeledDataset
    protocol: Protocol
    heads: dict[tuple[str, int], Head]

    def __post_init__(self):
        shuffled = shuffle_frames(self.test.video, self.test.ids)
        self.sides = {"train": self.train.video, "test": self.test.video, "shuffled": shuffled}

    def run(self, fit: Fit, folder: Path, log=print) -> bool:
        """Train and test the missing heads; return False if stopped.

        fit: fit(head_data, arm, seed, folder) trains a head and returns it with its record for the result, or None if
        stopped.
        """
        for arm in self.arms:
            missing = [seed for seed in self.seeds if not _done(folder, arm, seed)]
            if not missing:
                continue
            train, test, shuffled = (self.encoded(arm, side) for side in ("train", "test", "shuffled"))
            for seed in missing:
                log(f"{arm}, seed {seed}")
                options = replace(self.options, seed=seed)
                inputs = self.train, self.test, self.encoders[arm], (train, test, shuffled)
                head_data = memory_head_data(*inputs, options, self.groups)
                own = folder / "runs" / f"{arm}-{seed}"
                fitted = fit(head_data, arm, seed, own)
                if fitted is None:
                    return False
                head, facts = fitted
                tests = {"test": head_data.test, "shuffled": head_data.shuffled} | self._transfer(arm)
                found = {name: test(head) for name, test in tests.items() if test is not None}
                _save(own, facts, found)
                log(f"{arm}, seed {seed}: " + ", ".join(f"{k} {v.correct_N.mean():.3f}" for k, v in found.items()))
        return True

    def results(self, folder: Path, reference: str) -> tuple[list[dict], dict[str, list[Predictions]], list[dict]]:
        """Return (entries, predictions by name, comparisons with the reference arm), see `recognition.results`."""
        files = self.source.groups(self.test.ids) if self.source.task else None
        rows: list[tuple] = []  # the arguments of `result_entry`
        for arm in self.arms:
            runs = [_load(folder, arm, seed, self.test) for seed in self.seeds]
            rows.append((arm, arm, [(facts, found["test"]) for facts, found in runs], arm))
            rows[-1] += ([found["shuffled"] for _, found in runs], files)
            if arm == "pixels":
                rows.append((TRANSFER, arm, [(facts, found["recon"]) for facts, found in runs], "recon"))
                rows[-1] += ([found["recon, shuffled"] for _, found in runs], files)
        predictions = {name: [found for _, found in runs] for name, _, runs, *_ in rows}
        entries = [result_entry(*row) for row in rows]
        return entries, predictions, compare_with(reference, predictions, {TRANSFER, "pixels"}, files)

    def _transfer(self, arm: str) -> dict[str, Test]:
        """Return the tests on reconstructions, which only heads on pixels have."""
        if arm != "pixels":
            return {}
        unit, options = self.encoders[arm].unit, self.options
        encoded = {"recon": self.encoded("recon", "test"), "recon, shuffled": self.encoded("recon", "shuffled")}
        return {
            name: memory_test(x_NV, self.test, options.grid_crop, unit, options.batch_size)
            for name, x_NV in encoded.items()
        }

    def encoded(self, arm: str, side: str) -> Tensor:
        """Return the inputs x [N,V,...] of an arm. side: "train", "test" or "shuffled"."""
        video = self.sides[side]
        if arm == "pixels":
            return video

        def encode() -> Tensor:
            return encode_all(self.encoders[arm], video, self.encoded("tokens", side) if arm == "recon" else None)

        name = {"codes": "tokens"}.get(arm, arm)  # codes and tokens share their ids
        return self.store.array(f"{name}-{side}", encode)


def _done(folder: Path, arm: str, seed: int) -> bool:
    return (folder / "runs" / f"{arm}-{seed}" / "tested.json").exists()


def _save(own: Path, facts: dict, found: dict[str, Predictions]) -> None:
    arrays: dict[str, Any] = {name: each.probabilities for name, each in found.items()}
    np.savez(own / "predictions.npz", **arrays)
    (own / "tested.json").write_text(json.dumps(facts, indent=2) + "\n")


def _load(folder: Path, arm: str, seed: int, test: ClipSet) -> tuple[dict, dict[str, Predictions]]:
    own = folder / "runs" / f"{arm}-{seed}"
    with np.load(own / "predictions.npz", allow_pickle=False) as arrays:
        found = {name: Predictions(arrays[name], test.labels, test.ids, test.failures) for name in arrays}
    return json.loads((own / "tested.json").read_text()), found


def build_comparison(settings: dict, of_arm: Mapping[str, dict], tokenizer: VideoTokenizer) -> Comparison:
    """Build a comparison from its settings. Clips are decoded unless the run folder holds them already.

    of_arm: see `arm_settings`.
    """
    data, folder = settings["data"], Path(settings["run"])
    if data["features"] is not None:
        raise ValueError("a comparison needs videos, as pixels are one of its arms: data.features= is for finetune")
    validate_no_concat(data)
    validate_data_settings(data | {"in_memory": True})
    (source, test_source), protocol = build_clip_sources(data), build_protocol(data)
    encoders = {arm: InputEncoder(arm, tokenizer) for arm in {*of_arm, "tokens", "recon"}}
    source.validate_disjoint(data["train_split"], test_source, data["val_split"])
    train_videos = source.open(data["train_split"], protocol)
    seeds = settings["seeds"]
    heads = build_heads(of_arm, seeds[0], encoders, protocol, train_videos.classes, tokenizer)
    depends_on = ["source", "root", "val_source", "val_root", "path_column", "label_column", "split_column", "classes"]
    depends_on += ["checked", *(name for name in ("task", "frame_folders") if data[name])]
    depends_on += ["train_split", "val_split", "protocol", "size", "resize", "fps", "train_clips", "val_clips"]
    if data["train_views"] is not None:
        depends_on += ["train_views", "scale", "flip", "augment"]
    facts = {key: data[key] for key in depends_on}
    if data["source"] != DIGITS:
        facts["pixels"] = pixels_version(data["reader"])
    training = {key: settings[key] for key in ("head", "head_options", "patch_merge", "task", "optimizer")}
    training["parameters"] = HEAD_ORDER
    if settings["init"]:
        training["init"] = {arm: Head.from_pretrained(name).weight_hash for arm, name in settings["init"].items()}
    if data["select"]:  # the choice depends on the saved checkpoints
        training["save_steps"] = settings["trainer"]["save_steps"]
    chosen = ("batch_size", "grid_crop", "select", *(["group_column"] if data["select"] else []))
    training |= {key: data[key] for key in chosen}
    encoding = {"tokenizer": tokenizer.weight_hash}
    check_fingerprint(folder, {"command": "compare"})  # rejects the folder of a finetune run
    check_fingerprint(folder / "clips", facts)
    check_fingerprint(folder / "encoded", encoding)
    check_fingerprint(folder / "runs", training | lasting(settings["trainer"]))
    store, encoded = ClipStore(folder / "clips"), ClipStore(folder / "encoded")
    train = store.clips("train", lambda: load_training_clips(source, protocol, data, videos=train_videos))
    if train.classes != train_videos.classes:  # the annotations have changed since the clips were decoded
        heads.clear()
    videos = replace(test_source, classes=train.classes).open(data["val_split"], protocol)
    test = store.clips("test", lambda: load_clips(videos, data["val_clips"], data["workers"]))
    options, groups = build_data_options(settings), source.groups(train.ids)
    return Comparison(
        encoded, train, test, encoders, list(of_arm), seeds, options, groups, source, videos, protocol, heads
    )


def build_heads(
    of_arm: Mapping[str, dict],
    seed: int,
    encoders: Mapping[str, InputEncoder],
    protocol: Protocol,
    classes: Sequence[str],
    tokenizer: VideoTokenizer,
) -> dict[tuple[str, int], Head]:
    """Build the untrained head of each arm for a seed, and run it on a black clip; return {(arm, seed): head}.

    This happens before clips are decoded. Raises ValueError for an arm that isn't an input of the head, or whose clips
    can't be mixed or cropped as set.
    """
    heads = {}
    black = torch.zeros((1, 3, protocol.frames, protocol.size, protocol.size), dtype=torch.uint8)
    for arm, settings in of_arm.items():
        encoder = encoders[arm]
        x, side = unpack(encoder.encode_compact(black)), settings["data"]["grid_crop"]
        example = MemorySource(x[None], np.zeros(1, int), side, encoder.unit).draw(0, 0)[0][None]
        validate_task(settings, encoder.head_input)
        head_input = HeadInput(encoder.head_input, example, list(classes))
        head = build_recognition_head({**settings, "seed": seed}, head_input, tokenizer)
        with torch.no_grad():
            head.eval()(example.cpu())
        heads[arm, seed] = head.train()
    return heads


def arm_settings(cfg: DictConfig) -> dict[str, dict]:
    """Return the settings of each arm's head: those of the config with the arm as `input` and the arm's `init`."""
    inits = cfg.init or {}
    own = {arm: OmegaConf.merge(cfg, {"input": arm, "init": inits.get(arm)}) for arm in cfg.arms}
    return {arm: to_dict(cast(DictConfig, merged)) for arm, merged in own.items()}


def validate_settings(cfg: DictConfig, given: Collection[str] = ()) -> None:
    """Raise UserError for settings that have no effect or would fail only after the training. given: keys that the user
    has set."""
    for idle, used in (("input", "arms=[...]"), ("seed", "seeds=[...]")):
        if idle in given:
            raise UserError(f"{idle}= is for a single head: give {used}")
    if not cfg.data.in_memory:
        raise UserError("a comparison keeps its clips in memory: data.in_memory=false is for finetune")
    for key in ("arms", "seeds"):
        if not OmegaConf.is_list(cfg[key]) or not cfg[key] or len(set(cfg[key])) < len(cfg[key]):
            raise UserError(f"{key}={cfg[key]}: want a list of at least one, and none of them twice")
    if cfg.reference not in (known := [*INPUTS, TRANSFER]):
        raise UserError(f"unknown reference {cfg.reference!r}: {nearest(cfg.reference, known)}")
    if cfg.init is not None and not (OmegaConf.is_dict(cfg.init) and {*cfg.init} <= {*cfg.arms}):
        raise UserError(
            f"init={cfg.init}: want the head that an arm starts from, such as init={{{cfg.arms[0]}: FOLDER}}"
        )
    if cfg.page.clips < 0 or not cfg.page.fps > 0:
        raise UserError(f"the page shows page.clips=0 or more clips at page.fps above 0, not {cfg.page}")
