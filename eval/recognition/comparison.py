"""Compare inputs of a head: tokens, codes, latents, features, pixels and reconstructions of the same clips, with the
same training budget.

The run folder holds clips/ (decoded once), encoded/ (by the tokenizer, once), and runs/ARM-SEED/ (training run, head,
and predictions.npz once it has been tested). Existing files are reused.

Schema of `costs`, of clips as video and as tokens:

    bytes_per_clip      file (mean size of a video file, all of its frames), frames_uint8 (the clip's frames in memory),
                        tokens (bits x number / 8), tokens_int64 (as `vidtok.extraction` and torch hold them)
    clips_per_second    video: opened, decoded, resized and cut; tokens: read from the cache on disk; ratio; clips: how
                        many each; null where there are no files
    trained_per_second  arm -> clips of a training batch per second, mean over seeds
"""

import json
import math
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from vidtok.configs.compose import compose_config, given_keys, to_dict
from vidtok.datasets import LabeledDataset
from vidtok.datasets.backends import pixels_version
from vidtok.errors import UserError, nearest
from vidtok.eval.metrics.intervals import paired_ratio
from vidtok.eval.recognition.clips import DIGITS, ClipSet, build_clip_sources, load_clips, load_training_clips
from vidtok.eval.recognition.data import (
    DataOptions,
    HeadData,
    HeadInput,
    MemorySource,
    Test,
    build_data_options,
    memory_head_data,
    memory_test,
    validate_data_settings,
    validate_no_concat,
    validate_task,
)
from vidtok.eval.recognition.finetuning import (
    HEAD_ORDER,
    build_recognition_head,
    build_recognition_training,
    chosen_head,
)
from vidtok.eval.recognition.inputs import INPUTS, InputEncoder, encode_all, shuffle_frames, unpack
from vidtok.eval.recognition.prediction import Predictions
from vidtok.eval.recognition.protocol import build_protocol
from vidtok.eval.recognition.results import correct_of, data_record, recognition_result, result_entry
from vidtok.eval.recognition.store import ClipStore
from vidtok.eval.report import format_table
from vidtok.eval.report.page import write_report
from vidtok.files import write_json
from vidtok.heads import Head
from vidtok.tokenizer import VideoTokenizer
from vidtok.train.distributed import only_process
from vidtok.train.loop import StopSignal, train
from vidtok.train.run_folder import RunFolder, check_fingerprint, lasting

Fit = Callable[[HeadData, str, int, Path], tuple[nn.Module, dict] | None]
TRANSFER = "pixels on recon"  # the paper's protocol: trained on pixels, tested on what the tokens keep of them


def compare(*overrides: str, log: Callable[[str], None] = print, **settings) -> dict | None:
    """Train and test the same head on each input, for each seed.

        compare(data={"source": "digits", "size": 64, "protocol": "17x1x1x1"}, arms=["tokens", "pixels"], run="runs/c")

    The run folder (setting `run`) keeps clips, encodings, heads, result.json, page.html and charts; the same call again
    resumes.

    Args:
        overrides, settings: of configs/compare.yaml, as hydra overrides or nested, see `vidtok.configs.compose`.
        log: called with each line of progress, and with the table in the end.

    Returns:
        A result of schema "vidtok.recognition/1" and kind "compare"; None where SIGTERM or Ctrl-C stopped it.

    Raises:
        UserError: for an unknown or missing setting.
        ValueError: for settings that don't fit each other or the data, a run folder of other settings, and several
            processes.
    """
    cfg = compose_config("compare", overrides, settings)
    validate_settings(cfg, given_keys(overrides, settings))
    start = time.perf_counter()
    device = only_process("eval compare")
    tokenizer = VideoTokenizer.from_pretrained(cfg.tokenizer, device)
    comparison = build_comparison(cfg, tokenizer)
    folder = Path(cfg.run)

    def fit(head_data: HeadData, arm: str, seed: int, own: Path):
        merged = arm_config(cfg, input=arm, seed=seed)
        arguments = build_recognition_training(merged, head_data, tokenizer)
        text = OmegaConf.to_yaml(merged, resolve=True)
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
    entries, predictions, comparisons = comparison.results(folder, cfg.reference)
    source, test_source = build_clip_sources(cfg)
    protocol, tokens = build_protocol(cfg), comparison.encoded("tokens", "test")
    splits = {"train": cfg.data.train_split, "test": cfg.data.val_split}
    videos = test_source.open(splits["test"], protocol)
    result = recognition_result(
        "compare",
        entries,
        predictions,
        data=data_record(source, splits, comparison.train.classes, comparison.train.failures),
        train_labels=comparison.train.labels,
        protocol=protocol.record(),
        tokenizer=tokenizer,
        config=to_dict(cfg),
        wall_time_s=time.perf_counter() - start,
        device=str(device),
        comparisons=comparisons,
        costs=comparison.costs(videos, tokenizer.bits, entries),
    )
    write_json(folder / "result.json", result)
    write_report(result, comparison, tokenizer, tokens, cfg.page.clips, cfg.page.fps, folder)
    log(f"{format_table(result)}\nresult: {folder / 'result.json'}, page: {folder / 'page.html'}")
    return result


class Comparison:
    """Train and test a head for each arm and seed.

    Every head is tested on the test clips, and on the same clips with shuffled frames. Heads of pixels are also tested
    on reconstructions.

    Args:
        encoded: store of the encodings. train, test: the clips.
        encoder: arm -> `InputEncoder`. arms: names of `vidtok.eval.recognition.inputs.INPUTS`. seeds: of each arm.
        options, groups: see `memory_head_data`; each seed replaces that of the options.
    """

    def __init__(
        self,
        encoded: ClipStore,
        train: ClipSet,
        test: ClipSet,
        encoder: Callable[[str], InputEncoder],
        arms: Sequence[str],
        seeds: Sequence[int],
        options: DataOptions,
        groups: Sequence[str] | None = None,
    ):
        self.store, self.encoder, self.arms, self.seeds = encoded, encoder, arms, seeds
        self.train, self.test, self.options, self.groups = train, test, options, groups
        self.sides = {"train": train.video, "test": test.video, "shuffled": shuffle_frames(test.video, test.ids)}

    def run(self, fit: Fit, folder: Path, log=print) -> bool:
        """Train and test the missing heads. Returns False where it was stopped.

        fit(head_data, arm, seed, folder) trains a head and returns it with facts for the result, or None where it was
        stopped.
        """
        for arm in self.arms:
            missing = [seed for seed in self.seeds if not _done(folder, arm, seed)]
            if not missing:
                continue
            encoded = tuple(self.encoded(arm, side) for side in ("train", "test", "shuffled"))
            for seed in missing:
                log(f"{arm}, seed {seed}")
                options = replace(self.options, seed=seed)
                head_data = memory_head_data(self.train, self.test, self.encoder(arm), encoded, options, self.groups)
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
        """Return (entries, predictions by name, comparisons with the reference), see `recognition.results`."""
        entries, predictions = [], {}
        for arm in self.arms:
            runs = [_load(folder, arm, seed, self.test) for seed in self.seeds]
            facts = [facts for facts, _ in runs]
            own = [found["test"] for _, found in runs]
            entries.append(
                result_entry(arm, arm, [*zip(facts, own, strict=True)], arm, [f["shuffled"] for _, f in runs])
            )
            predictions[arm] = own
            if arm == "pixels":
                other = [found["recon"] for _, found in runs]
                shuffled = [found["recon, shuffled"] for _, found in runs]
                entries.append(result_entry(TRANSFER, arm, [*zip(facts, other, strict=True)], "recon", shuffled))
                predictions[TRANSFER] = other
        comparisons = []
        for name, found in predictions.items():
            if name != reference and reference in predictions:
                same_heads = {name, reference} == {TRANSFER, "pixels"}
                ratio = paired_ratio(correct_of(found), correct_of(predictions[reference]), same_heads)
                comparisons.append({"ours": name, "theirs": reference, **ratio})
        return entries, predictions, comparisons

    def _transfer(self, arm: str) -> dict[str, Test]:
        """Return the tests of heads of pixels on reconstructions."""
        if arm != "pixels":
            return {}
        unit = self.encoder(arm).unit
        return {
            name: memory_test(
                self.encoded("recon", side), self.test, self.options.grid_crop, unit, self.options.batch_size
            )
            for name, side in (("recon", "test"), ("recon, shuffled", "shuffled"))
        }

    def encoded(self, arm: str, side: str):
        """Return the inputs x [N,V,...] of an arm. side: "train", "test" or "shuffled"."""
        video = self.sides[side]
        if arm == "pixels":
            return video
        name = {"codes": "tokens"}.get(arm, arm)  # both are ids
        return self.store.array(
            f"{name}-{side}",
            lambda: encode_all(self.encoder(arm), video, self.encoded("tokens", side) if arm == "recon" else None),
        )

    def costs(self, videos: LabeledDataset, bits: float, entries: Sequence[Mapping]) -> dict:
        """Measure bytes and loading speed of the test clips as video and as tokens, and training speed.

        The result is described at the top of this file. videos: of the test. bits: of a token.
        """
        tokens = self.encoded("tokens", "test")[0, 0].numel()
        return {
            "bytes_per_clip": bytes_per_clip(self.test, bits, tokens),
            "clips_per_second": loading_speed(videos, self.store, "tokens-test", min(len(self.test), 64)),
            "trained_per_second": training_speed(entries, self.options.batch_size),
        }


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


def bytes_per_clip(clips: ClipSet, bits: float, tokens: int) -> dict:
    """tokens: number of tokens of one view of a clip."""
    sizes = [os.path.getsize(path) for path in clips.paths if path]
    return {
        "file": sum(sizes) / len(sizes) if sizes else None,
        "frames_uint8": math.prod(clips.video.shape[2:]),
        "tokens": bits * tokens / 8,
        "tokens_int64": 8 * tokens,
    }


def loading_speed(dataset: LabeledDataset, store: ClipStore, tokens: str, count: int) -> dict | None:
    """Measure clips per second from the video files and from the token cache in this process, for the first `count`
    clips."""
    if not dataset.paths:  # rendered, not decoded
        return None
    dataset[0], store.read(tokens, 0)  # warm up
    video = _rate(dataset.__getitem__, count)
    cached = _rate(lambda index: store.read(tokens, index), count)
    return {"video": video, "tokens": cached, "ratio": cached / video, "clips": count}


def training_speed(entries: Sequence[Mapping], batch_size: int) -> dict[str, float]:
    rates = {}
    for entry in entries:
        if entry["input"] == entry["tested_on"]:
            runs = entry["runs"]
            rates[entry["name"]] = sum(batch_size * run["steps"] / run["seconds"] for run in runs) / len(runs)
    return rates


def _rate(read: Callable[[int], object], count: int) -> float:
    start = time.perf_counter()
    for index in range(count):
        read(index)
    return count / (time.perf_counter() - start)


def build_comparison(cfg: DictConfig, tokenizer: VideoTokenizer) -> Comparison:
    """Build a comparison from its config. Clips are decoded where the run folder doesn't hold them yet."""
    data = to_dict(cfg.data)
    if data["features"] is not None:
        raise ValueError("a comparison needs videos, as pixels are one of its arms: data.features= is for finetune")
    validate_no_concat(data)
    validate_data_settings(data | {"in_memory": True})
    (source, test_source), protocol = build_clip_sources(cfg), build_protocol(cfg)
    encoders = {arm: InputEncoder(arm, tokenizer, protocol.at_once) for arm in {*cfg.arms, "tokens", "recon"}}
    source.validate_disjoint(data["train_split"], test_source, data["val_split"])
    validate_arms(cfg, encoders, source.open(data["train_split"], protocol).classes, tokenizer)
    depends_on = ["source", "root", "val_source", "val_root", "path_column", "label_column", "split_column", "classes"]
    depends_on += ["checked"]
    depends_on += ["train_split", "val_split", "protocol", "size", "resize", "fps", "train_clips", "val_clips"]
    if data["train_views"] is not None:
        depends_on += ["train_views", "scale", "flip", "augment"]
    facts = {key: data[key] for key in depends_on}
    if data["source"] != DIGITS:
        facts["pixels"] = pixels_version(data["reader"])
    check_fingerprint(Path(cfg.run), {"command": "compare"})  # and not a run of finetune
    store = ClipStore(Path(cfg.run) / "clips", facts)
    encoded = ClipStore(Path(cfg.run) / "encoded", {"tokenizer": tokenizer.weight_hash})
    recipe = to_dict(cfg)
    training = {key: recipe[key] for key in ("head", "head_options", "patch_merge", "task", "optimizer")}
    training |= lasting(recipe["trainer"]) | {"parameters": HEAD_ORDER}
    if cfg.init:
        training["init"] = {arm: Head.from_pretrained(name).weight_hash for arm, name in cfg.init.items()}
    if data["select"]:  # whose choice depends on what is saved
        training["save_steps"] = recipe["trainer"]["save_steps"]
    chosen = ("batch_size", "grid_crop", "select", *(["group_column"] if data["select"] else []))
    check_fingerprint(Path(cfg.run) / "runs", training | {key: data[key] for key in chosen})

    def load_test() -> ClipSet:
        videos = replace(test_source, classes=train_clips.classes).open(data["val_split"], protocol)
        return load_clips(videos, data["val_clips"], data["workers"])

    train_clips = store.clips("train", lambda: load_training_clips(source, protocol, data))
    test_clips = store.clips("test", load_test)
    options, groups = build_data_options(cfg), source.groups(train_clips.ids)
    return Comparison(
        encoded, train_clips, test_clips, encoders.__getitem__, list(cfg.arms), list(cfg.seeds), options, groups
    )


def validate_arms(cfg: DictConfig, encoders: dict, classes: Sequence[str], tokenizer: VideoTokenizer) -> None:
    """Raise ValueError for an arm that the config's head can't read, or whose clips can't be mixed or cropped as the
    config says. This runs before clips are decoded."""
    protocol = build_protocol(cfg)
    black = torch.full((1, 3, protocol.frames, protocol.size, protocol.size), -1.0)
    for arm in cfg.arms:
        encoder = encoders[arm]
        x = unpack(encoder.encode_compact(black))
        example = MemorySource(x[None], np.zeros(1, int), cfg.data.grid_crop, encoder.unit).draw(0, 0)[0][None]
        validate_task(cfg, encoder.head_input)
        head_input = HeadInput(encoder.head_input, example, list(classes))
        head = build_recognition_head(arm_config(cfg, input=arm), head_input, tokenizer).eval()
        with torch.no_grad():
            head(example.cpu())


def arm_config(cfg: DictConfig, input: str, **values) -> DictConfig:
    """Return the config of one head. values: of other settings, such as `seed`."""
    values |= {"input": input, "init": (cfg.init or {}).get(input)}
    return cast(DictConfig, OmegaConf.merge(cfg, values))


def validate_settings(cfg: DictConfig, given: Collection[str] = ()) -> None:
    """Raise UserError for settings that would fail only after the training, or have no effect. given: the keys that the
    user gave."""
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
