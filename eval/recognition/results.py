"""Result files of recognition, of one schema for all kinds.

Result schema "vidtok.recognition/1":

    schema          that string
    kind            "recognition", "probe", "finetune" or "compare"
    data            source, root, splits {train, test}, label_column, classes [names], n_train; for probes: folds (how
                    the clips were divided; null: a single split), groups (their number, if folds keep them whole)
    protocol        name (frames x stride x segments x crops: 17x4x1x1), frames, stride, segments, crops, size, fps
    tokenizer       name, weight_hash, stride, bits; or null
    results         for each head or arm:
      name            its name in tables
      input           input of the head in training; tested_on: its input in the test, usually the same
      top1            over seeds: mean, deviation (null for one seed), seeds, low, high (95 %), interval (its kind)
      top5, mean_class   means over seeds; top5 is null for five classes or fewer
      shuffled_frames    top1 of the same heads on clips whose frames are in random order; or null
      runs            for each seed: seed; top1, top5, top1_of_total, mean_class: {value, low, high} (95 %: Wilson;
                      mean_class: bootstrap over clips); confusion [K][K], true class by row; n_total, n_used,
                      n_failed; head: name, weight_hash; steps and seconds of the training. For probes, a run for each
                      division into folds, with pool, features (their number), chosen, path, best_by_fold and
                      within_one_se, see `vidtok.eval.recognition.probing.path_record`; reference: name, weight_hash
    controls        majority: the most frequent training class (of each motion task, if there are several): class,
                    top1, ...
    comparisons     [{ours, theirs, ratio, difference, method}]: paired bootstrap, see `paired_ratio`
                    With several motion tasks, each entry of `results` and `comparisons` also has tasks {task: values
                    for its clips}: top1, or ratio, difference and method.
    costs           costs of clips as video and as tokens; for kind "compare" only
      bytes_per_clip      file (mean size of a whole video file), frames_uint8 (the clip's frames in memory), tokens
                          (bits x number / 8), tokens_int64 (as in `vidtok.extraction` and torch)
      clips_per_second    video: opened, decoded, resized and cropped; tokens: read from the cache on disk; ratio;
                          clips: number of clips of each; null if there are no files
      trained_per_second  arm -> training clips per second, mean over seeds
    left_out        {input: option that adds it} for references without weights; for kind "probe" only
    n_total         number of clips of the test split = n_used + n_failed
    n_used, n_failed
    failures        [{name, reason}]: clips that could not be read; they are not replaced
    clips           [{id, label, predicted: {name of a result: [class for each seed]}}]
    config          all settings
    provenance      git, versions, device, threads, date
    wall_time_s     seconds
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import cast

import numpy as np

from vidtok.configs.compose import plain
from vidtok.datasets import LabeledDataset
from vidtok.datasets.synthetic.motion import source_of, task_of
from vidtok.errors import nearest
from vidtok.eval.metrics.intervals import accuracy, majority, over_seeds, paired_ratio
from vidtok.eval.recognition.clips import ClipSource
from vidtok.eval.recognition.inputs import ClipSet, Predictions, same_task
from vidtok.heads import Head
from vidtok.inputs import file_version
from vidtok.provenance import provenance
from vidtok.tokenizer import VideoTokenizer

SCHEMA = "vidtok.recognition/1"
MOST_FREQUENT = "most frequent of each task"  # class of the control of several motion tasks


def result_entry(
    name: str,
    input: str,
    runs: Sequence[tuple[Mapping, Predictions]],
    tested_on: str | None = None,
    shuffled: Sequence[Predictions] | None = None,
    groups: Sequence[str] | None = None,
) -> dict:
    """Build an entry of `results`.

    Args:
        name, input, tested_on: see the top of this file.
        runs: ({"seed", "head", ...}, predictions) of each seed, all for the same clips.
        shuffled: predictions of the same heads for shuffled frames.
        groups: groups of the clips, see `over_seeds`.
    """
    correct_SN, shuffled_SN = correct_of([found for _, found in runs]), correct_of(shuffled) if shuffled else None
    rows = [{**facts, **accuracy(found.probabilities, found.labels, len(found.failures))} for facts, found in runs]
    top1 = over_seeds(correct_SN, groups)
    shuffled_top1 = None if shuffled_SN is None else over_seeds(shuffled_SN, groups)
    top5 = None if rows[0]["top5"] is None else float(np.mean([row["top5"]["value"] for row in rows]))
    return {
        "name": name,
        "input": input,
        "tested_on": tested_on or input,
        "top1": top1,
        "top5": top5,
        "mean_class": float(np.mean([row["mean_class"]["value"] for row in rows])),
        "shuffled_frames": shuffled_top1,
        "runs": rows,
    }


def correct_of(predictions: Sequence[Predictions]) -> np.ndarray:
    """Return which predictions of S seeds for N clips are correct, bool [S,N].

    Raises:
        ValueError: the seeds were tested on different clips.
    """
    if len({tuple(found.ids) for found in predictions}) > 1:
        raise ValueError("the runs have not been tested on the same clips")
    return np.stack([found.correct_N for found in predictions])


def compare_with(
    reference: str,
    predictions: Mapping[str, Sequence[Predictions]],
    same_heads: set[str],
    groups: Sequence[str] | None = None,
) -> list[dict]:
    """Build `comparisons` of all predictions with those named `reference`; empty if there are none.

    same_heads: names of predictions by the same heads. groups: groups of the clips, see `over_seeds`.
    """
    correct = {name: correct_of(found) for name, found in predictions.items()}
    theirs = correct.pop(reference, None)
    if theirs is None:
        return []
    return [
        {"ours": name, "theirs": reference, **paired_ratio(ours, theirs, {name, reference} == same_heads, groups)}
        for name, ours in correct.items()
    ]


def compare_results(ours: Mapping, theirs: Mapping, name: str, their_name: str | None = None) -> dict:
    """Compare entries of two results on the same test clips, such as pretrained heads and others.

    Args:
        ours, theirs: results of schema "vidtok.recognition/1".
        name: name of the entry in `ours`. their_name: its name in `theirs`; None, the same.

    Returns:
        Ratio and difference of the accuracies, see `paired_ratio`; for motion tasks, source files are resampled.

    Raises:
        ValueError: the clips differ, or there is no such entry.
    """
    clips, others = ours["clips"], theirs["clips"]
    if [(clip["id"], clip["label"]) for clip in clips] != [(clip["id"], clip["label"]) for clip in others]:
        raise ValueError("the results are of other test clips: they can't be compared clip by clip")
    sides = (clips, name), (others, their_name or name)
    for side, entry in sides:
        if any(entry not in clip["predicted"] for clip in side[:1]):
            raise ValueError(f"no entry {entry!r} in a result: {nearest(entry, side[0]['predicted'])}")
    ours_SN, theirs_SN = (
        np.array([[predicted == clip["label"] for predicted in clip["predicted"][entry]] for clip in side]).T
        for side, entry in sides
    )
    files = [source_of(clip["id"]) for clip in clips] if ours["data"].get("task") else None
    return paired_ratio(ours_SN, theirs_SN, groups_N=files)


def cost_record(
    clips: ClipSet, tokens: int, bits: float, videos: LabeledDataset, read_tokens: Callable[[int], object],
    entries: Sequence[Mapping], batch_size: int,
) -> dict:  # fmt: skip
    """Build `costs`. Loading is measured in this process, on the first clips of the test.

    tokens: number of tokens of one view of a clip. bits: bits per token. videos: the clips as video. read_tokens: reads
    the tokens of a clip from disk. entries: results of heads that were trained with batches of `batch_size`.
    """
    sizes = [file_version(path).size for path in clips.paths if path]
    speed = None
    if videos.paths:  # decoded, not rendered
        count = min(len(clips.ids), 64)
        videos[0], read_tokens(0)  # warm up
        video, cached = _rate(videos.__getitem__, count), _rate(read_tokens, count)
        speed = {"video": video, "tokens": cached, "ratio": cached / video, "clips": count}
    trained = {}
    for entry in entries:
        if entry["input"] == entry["tested_on"]:
            runs = entry["runs"]
            trained[entry["name"]] = sum(batch_size * run["steps"] / run["seconds"] for run in runs) / len(runs)
    return {
        "bytes_per_clip": {
            "file": sum(sizes) / len(sizes) if sizes else None,
            "frames_uint8": math.prod(clips.video.shape[2:]),
            "tokens": bits * tokens / 8,
            "tokens_int64": 8 * tokens,
        },
        "clips_per_second": speed,
        "trained_per_second": trained,
    }


def _rate(read: Callable[[int], object], count: int) -> float:
    start = time.perf_counter()
    for index in range(count):
        read(index)
    return count / (time.perf_counter() - start)


def recognition_result(
    kind: str,
    entries: Sequence[dict],
    predictions: Mapping[str, Sequence[Predictions]],
    *,
    data: Mapping,
    train_labels: Sequence[int] | np.ndarray,
    protocol: Mapping,
    tokenizer: VideoTokenizer | None,
    config: Mapping,
    wall_time_s: float,
    device: str = "cpu",
    **more,
) -> dict:
    """Build the whole result, see the top of this file.

    Args:
        entries: `results`. predictions: name of each entry -> its predictions per seed.
        train_labels: labels of the training clips, for the majority class.
        data, protocol, config, wall_time_s: stored in the result under these names.
        tokenizer: the tokenizer, or None. device: device of the networks, for the provenance.
        more: further values, such as `comparisons` and `costs`.
    """
    first = next(iter(predictions.values()))[0]
    classes = data["classes"]
    same_task_KK = same_task(classes)
    if same_task_KK is not None:
        add_tasks(entries, more.get("comparisons", ()), predictions, [task_of(classes[i]) for i in first.labels])
    control = None
    if len(train_labels):
        same = None if same_task_KK is None else same_task_KK.numpy()
        control = majority(np.asarray(train_labels), first.labels, len(classes), len(first.failures), same)
        control["class"] = MOST_FREQUENT if control["class"] is None else classes[control["class"]]
    clips = [
        {
            "id": name,
            "label": classes[label],
            "predicted": {
                entry: [classes[found.probabilities[i].argmax()] for found in seeds]
                for entry, seeds in predictions.items()
            },
        }
        for i, (name, label) in enumerate(zip(first.ids, first.labels, strict=True))
    ]
    result = {
        "schema": SCHEMA,
        "kind": kind,
        "data": {**data, "n_train": len(train_labels)},
        "protocol": dict(protocol),
        "tokenizer": None if tokenizer is None else tokenizer_record(tokenizer),
        "results": list(entries),
        "controls": {"majority": control},
        **more,
        "n_total": len(first.ids) + len(first.failures),
        "n_used": len(first.ids),
        "n_failed": len(first.failures),
        "failures": first.failures,
        "clips": clips,
        "config": config,
        "provenance": provenance(device),
        "wall_time_s": wall_time_s,
    }
    return cast(dict, plain(result))


def add_tasks(
    entries: Sequence[dict],
    comparisons: Sequence[dict],
    predictions: Mapping[str, Sequence[Predictions]],
    tasks: Sequence[str],
) -> None:
    """Add `tasks` to the results and comparisons of several motion tasks. tasks: task of each clip."""
    correct = {name: correct_of(found) for name, found in predictions.items()}
    inputs = {entry["name"]: entry["input"] for entry in entries}
    files = np.array([source_of(id) for id in next(iter(predictions.values()))[0].ids])
    for task in dict.fromkeys(tasks):
        own = np.flatnonzero(np.array(tasks) == task)
        for entry in entries:
            entry.setdefault("tasks", {})[task] = over_seeds(correct[entry["name"]][:, own], files[own].tolist())
        for pair in comparisons:
            names = pair["ours"], pair["theirs"]
            ours, theirs = (correct[name][:, own] for name in names)
            same_heads = inputs[names[0]] == inputs[names[1]]
            pair.setdefault("tasks", {})[task] = paired_ratio(ours, theirs, same_heads, files[own].tolist())


def data_record(
    source: ClipSource, splits: Mapping[str, str | None], classes: Sequence[str], train_failures: Sequence[dict] = ()
) -> dict:
    """Build `data`. train_failures: [{name, reason}] of training clips in memory that could not be read."""
    record = {**asdict(source), "splits": dict(splits), "classes": list(classes)}
    if source.task is None:
        del record["task"], record["clips"]
    return {**record, "train_failures": list(train_failures)}


def tokenizer_record(tokenizer: VideoTokenizer) -> dict:
    return {
        "name": tokenizer.config.name,
        "weight_hash": tokenizer.weight_hash,
        "stride": list(tokenizer.stride),
        "bits": tokenizer.bits,
    }


def head_record(head: Head) -> dict:
    """Return name and weight_hash of a head."""
    return {"name": head.config.name, "weight_hash": head.weight_hash}
