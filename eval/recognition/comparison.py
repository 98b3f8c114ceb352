"""The same head on the same clips with the same budget, reading tokens, codes, latents, features, pixels or
reconstructions: what of an action is left in the tokens?

A folder keeps all of it: clips/ (decoded once), encoded/ (by the tokenizer, once), runs/ARM-SEED/ (training, its head,
and predictions.npz once it has been tested). What is there is not made again.

What clips cost as video and as tokens: bytes, and how many of them a second can be had.

Schema of `costs`:

    bytes_per_clip      file (mean size of a video file, all of its frames), frames_uint8 (the clip's frames in memory),
                        tokens (bits x cells / 8), tokens_int64 (as `vidtok.extraction` and torch hold them)
    clips_per_second    video: opened, decoded, resized and cut; tokens: read from the cache on disk; ratio; clips: how
                        many each; null where there are no files
    trained_per_second  arm -> clips of a training batch per second, mean over seeds
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from vidtok.datasets import LabelledDataset
from vidtok.eval.metrics.intervals import paired_ratio
from vidtok.eval.recognition.clips import ClipSet, build_clip_sources, load_training_clips
from vidtok.eval.recognition.data import (
    HeadData,
    Test,
    memory_head_data,
    memory_test,
    validate_data_settings,
    validate_no_concat,
    validate_task,
)
from vidtok.eval.recognition.finetuning import HEAD_ORDER, build_recognition_head
from vidtok.eval.recognition.inputs import InputEncoder, encode_all, shuffle_frames
from vidtok.eval.recognition.prediction import Predictions
from vidtok.eval.recognition.protocol import build_protocol
from vidtok.eval.recognition.results import correct_of, result_entry
from vidtok.eval.recognition.store import ClipStore
from vidtok.tokenizer import VideoTokenizer
from vidtok.train.run_folder import lasting

Fit = Callable[[HeadData, str, int, Path], tuple[nn.Module, dict] | None]
TRANSFER = "pixels on recon"  # the paper's protocol: trained on pixels, tested on what the tokens keep of them


class Comparison:
    """arms: of `vidtok.eval.recognition.inputs.INPUTS`. seeds: of each. fit(material, arm, seed, folder) trains a head
    and returns it with the facts for its result, or None where it was stopped. encoder: arm -> `InputEncoder`.

    Every head is tested on the test clips, and on the same with their frames in random order. With pixels among the
    arms, their heads are tested on reconstructions, too.
    """

    def __init__(
        self,
        encoded: ClipStore,
        train: ClipSet,
        test: ClipSet,
        encoder: Callable[[str], InputEncoder],
        arms: Sequence[str],
        seeds: Sequence[int],
        cells: int | None = None,
        batch_size: int = 16,
        select: float = 0.0,
        groups: Sequence[str] | None = None,
    ):
        self.store, self.encoder, self.arms, self.seeds, self.cells = encoded, encoder, arms, seeds, cells
        self.train, self.test, self.batch_size, self.select, self.groups = train, test, batch_size, select, groups
        self.sides = {"train": train.video, "test": test.video, "shuffled": shuffle_frames(test.video, test.ids)}

    def run(self, fit: Fit, folder: Path, log=print) -> bool:
        """Trains and tests what is missing; False where it was stopped."""
        for arm in self.arms:
            missing = [seed for seed in self.seeds if not _done(folder, arm, seed)]
            if not missing:
                continue
            encoded = [self.encoded(arm, side) for side in ("train", "test", "shuffled")]
            for seed in missing:
                log(f"{arm}, seed {seed}")
                head_data = memory_head_data(
                    self.train, self.test, self.encoder(arm), *encoded,
                    self.groups, self.select, self.cells, self.batch_size, seed,
                )  # fmt: skip
                own = folder / "runs" / f"{arm}-{seed}"
                fitted = fit(head_data, arm, seed, own)
                if fitted is None:
                    return False
                head, facts = fitted
                tests = {"test": head_data.test, "shuffled": head_data.shuffled} | self._transfer(arm)
                found = {name: test(head) for name, test in tests.items()}
                _save(own, facts, found)
                log(f"{arm}, seed {seed}: " + ", ".join(f"{k} {v.correct_N.mean():.3f}" for k, v in found.items()))
        return True

    def results(self, folder: Path, reference: str) -> tuple[list[dict], dict[str, list[Predictions]], list[dict]]:
        """(entries, predictions by their names, comparisons with the reference), see `recognition.results`."""
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
        """The tests of heads of pixels on reconstructions."""
        if arm != "pixels":
            return {}
        unit = self.encoder(arm).unit
        return {
            name: memory_test(self.encoded("recon", side), self.test, self.cells, unit, self.batch_size)
            for name, side in (("recon", "test"), ("recon, shuffled", "shuffled"))
        }

    def encoded(self, arm: str, side: str):
        """x [N,V,...] of one of the three sets of clips."""
        video = self.sides[side]
        if arm == "pixels":
            return video
        name = {"codes": "tokens"}.get(arm, arm)  # both are ids
        return self.store.array(f"{name}-{side}", lambda: encode_all(self.encoder(arm), video))


def _done(folder: Path, arm: str, seed: int) -> bool:
    return (folder / "runs" / f"{arm}-{seed}" / "tested.json").exists()


def _save(own: Path, facts: dict, found: dict[str, Predictions]) -> None:
    np.savez(own / "predictions.npz", **{name: each.probabilities for name, each in found.items()})
    (own / "tested.json").write_text(json.dumps(facts, indent=2) + "\n")


def _load(folder: Path, arm: str, seed: int, test: ClipSet) -> tuple[dict, dict[str, Predictions]]:
    own = folder / "runs" / f"{arm}-{seed}"
    with np.load(own / "predictions.npz", allow_pickle=False) as arrays:
        found = {name: Predictions(arrays[name], test.labels, test.ids, test.failures) for name in arrays}
    return json.loads((own / "tested.json").read_text()), found


def bytes_per_clip(clips: ClipSet, bits: float, cells: int) -> dict:
    """cells: tokens of one view of a clip."""
    sizes = [os.path.getsize(path) for path in clips.paths if path]
    return {
        "file": sum(sizes) / len(sizes) if sizes else None,
        "frames_uint8": math.prod(clips.video.shape[2:]),
        "tokens": bits * cells / 8,
        "tokens_int64": 8 * cells,
    }


def loading_speed(dataset: LabelledDataset, store: ClipStore, tokens: str, count: int) -> dict | None:
    """Clips per second from the video files and from the token cache, one after the other in this process: the first
    `count` of each."""
    if not dataset.paths:  # rendered, not decoded
        return None
    dataset[0], store.read(tokens, 0)  # what is paid once
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


def costs(
    clips: ClipSet, dataset: LabelledDataset, store: ClipStore, tokens: str, bits: float, cells: int,
    entries: Sequence[Mapping], batch_size: int,
) -> dict:  # fmt: skip
    """All of them. tokens: name of the token cache in `store`."""
    return {
        "bytes_per_clip": bytes_per_clip(clips, bits, cells),
        "clips_per_second": loading_speed(dataset, store, tokens, min(len(clips), 64)),
        "trained_per_second": training_speed(entries, batch_size),
    }


def _rate(read: Callable[[int], object], count: int) -> float:
    start = time.perf_counter()
    for index in range(count):
        read(index)
    return count / (time.perf_counter() - start)


def build_comparison(cfg: DictConfig, tokenizer: VideoTokenizer) -> "Comparison":
    """The clips and arms of `vidtok eval compare`; decodes the clips where its folder doesn't hold them yet."""

    from vidtok.eval.recognition.clips import load_clips
    from vidtok.train.run_folder import check_fingerprint

    data = OmegaConf.to_container(cfg.data, resolve=True)
    if data["features"] is not None:
        raise ValueError("a comparison is of videos, whose pixels are one of the arms: data.features= is for finetune")
    validate_no_concat(data)
    validate_data_settings(data | {"in_memory": True})
    (source, test_source), protocol = build_clip_sources(cfg), build_protocol(cfg)
    encoders = {arm: InputEncoder(arm, tokenizer, protocol.at_once) for arm in {*cfg.arms, "tokens", "recon"}}
    source.validate_disjoint(data["train_split"], test_source, data["val_split"])
    validate_arms(cfg, encoders, source.open(data["train_split"], protocol).classes, tokenizer)
    depends_on = ("source", "root", "val_source", "val_root", "path_column", "label_column", "split_column", "classes")
    depends_on += ("checked",)
    depends_on += ("train_split", "val_split", "protocol", "size", "resize", "fps", "train_clips", "val_clips")
    if data["train_views"] is not None:
        depends_on += ("train_views", "scale", "flip", "augment")
    facts = {key: data[key] for key in depends_on}
    check_fingerprint(Path(cfg.run), {"command": "compare"})  # and not a run of finetune
    store = ClipStore(Path(cfg.run) / "clips", facts)
    encoded = ClipStore(Path(cfg.run) / "encoded", {"tokenizer": tokenizer.weight_hash})
    recipe = OmegaConf.to_container(cfg, resolve=True)
    training = {key: recipe[key] for key in ("head", "head_options", "patch_merge", "task", "optimizer")}
    training |= lasting(recipe["trainer"]) | {"parameters": HEAD_ORDER}
    if data["select"]:  # whose choice depends on what is saved
        training["save_steps"] = recipe["trainer"]["save_steps"]
    chosen = ("batch_size", "cells", "select", *(["group_column"] if data["select"] else []))
    check_fingerprint(Path(cfg.run) / "runs", training | {key: data[key] for key in chosen})

    def load_test() -> "ClipSet":
        videos = replace(test_source, classes=train.classes).open(data["val_split"], protocol)
        return load_clips(videos, data["val_clips"], data["workers"])

    train = store.clips("train", lambda: load_training_clips(source, protocol, data))
    test = store.clips("test", load_test)
    return Comparison(
        encoded, train, test, encoders.__getitem__, list(cfg.arms), list(cfg.seeds), data["cells"], data["batch_size"],
        data["select"], source.groups(train.ids),
    )  # fmt: skip


def validate_arms(cfg: DictConfig, encoders: dict, classes: Sequence[str], tokenizer: VideoTokenizer) -> None:
    """Before clips are decoded, and a folder is held to the settings. Raises ValueError for an arm that no head of the
    config can read, or whose clips can't be mixed or cropped as it says."""
    from vidtok.eval.recognition.data import MemorySource
    from vidtok.eval.recognition.inputs import unpack

    protocol = build_protocol(cfg)
    black = torch.full((1, 3, protocol.frames, protocol.size, protocol.size), -1.0)
    for arm in cfg.arms:
        encoder = encoders[arm]
        x = unpack(encoder.encode_compact(black))
        example = MemorySource(x[None], [0], cfg.data.cells, encoder.unit).draw(0, 0)[0][None]
        validate_task(cfg, encoder.head_input)
        head_data = HeadData(encoder.head_input, None, None, example, None, None, None, list(classes))
        head = build_recognition_head(OmegaConf.merge(cfg, {"input": arm}), head_data, tokenizer).eval()
        with torch.no_grad():
            head(example.cpu())


def validate_settings(cfg, overrides: Sequence[str] = ()) -> None:
    """Raises UserError for what would be found wrong only after the training, or would do nothing."""

    from vidtok.errors import UserError, nearest
    from vidtok.eval.recognition.inputs import INPUTS

    for idle, used in (("input", "arms=[...]"), ("seed", "seeds=[...]")):
        if any(override.startswith(f"{idle}=") for override in overrides):
            raise UserError(f"{idle}= is of a single head: give {used}")
    if not cfg.data.in_memory:
        raise UserError("a comparison keeps its clips in memory: data.in_memory=false is for finetune")
    for key in ("arms", "seeds"):
        if not OmegaConf.is_list(cfg[key]) or not cfg[key] or len(set(cfg[key])) < len(cfg[key]):
            raise UserError(f"{key}={cfg[key]}: want a list of at least one, and none of them twice")
    if cfg.reference not in (known := [*INPUTS, TRANSFER]):
        raise UserError(f"unknown reference {cfg.reference!r}: {nearest(cfg.reference, known)}")
    if cfg.page.clips < 0 or not cfg.page.fps > 0:
        raise UserError(f"the page shows page.clips=0 or more clips at page.fps above 0, not {cfg.page}")
