"""Test a trained head on the videos of a split."""

import time
from typing import Any

import numpy as np

from vidtok.eval.recognition.clips import ClipSource
from vidtok.eval.recognition.inputs import Predictions, predict, trained_on, views_of_dataset
from vidtok.eval.recognition.recognizer import load_head
from vidtok.eval.recognition.results import data_record, head_record, recognition_result, result_entry


def evaluate(
    head: str,
    source: str,
    *,
    root: str | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    task: str | None = None,
    checked: str | None = None,
    reader: str = "auto",
    frame_folders: float | None = None,
    split: str = "val",
    clips: int | None = None,
    model: str | None = None,
    recon: bool = False,
    no_shuffle: bool = False,
    protocol: str | None = None,
    batch_size: int = 8,
    workers: int = 0,
    device: str = "auto",
) -> dict:
    """Test a trained head on a split of labeled videos, and on the same videos with shuffled frames.

    Args:
        head: name of a shipped head, its folder or hub id.
        source, root, path_column, label_column, split_column, task, checked, reader, frame_folders: see `ClipSource`.
        split: name of the split. clips: largest number of videos; None, all.
        model: name of the tokenizer; None, the one that the head names.
        recon: test a head on pixels on reconstructed clips. A head that was trained on them needs no flag.
        no_shuffle: leave out the test on shuffled frames, which halves the work.
        protocol: frames x stride x segments x crops; None, the head's protocol.
        batch_size: number of videos per batch. workers: number of decoding processes.
        device: device of the head and the tokenizer.

    Returns:
        A result of schema "vidtok.recognition/1" and kind "recognition".

    Raises:
        ValueError: the tokenizer isn't the head's, a class or split is unknown, or no video can be read.
    """
    config = dict(locals())
    start = time.perf_counter()
    trained, encoder, views = load_head(head, model, device, recon, protocol)
    known = trained.config
    columns = path_column, label_column, split_column
    reading: dict[str, Any] = {
        "checked": checked,
        "reader": reader,
        "frame_folders": frame_folders,
        "task": task,
        "clips": clips,
    }
    videos = ClipSource(str(source), root, *columns, classes=known.classes, **reading)

    def test(shuffle: bool) -> Predictions:
        dataset = videos.open(split, views)
        dataset.keep(slice(clips))
        batches = views_of_dataset(dataset, batch_size, workers, shuffle, encoder.concat_segments)
        return predict(trained, batches, encoder)

    predictions, shuffled = test(shuffle=False), None if no_shuffle else [test(shuffle=True)]
    groups = videos.groups(predictions.ids) if task else None
    facts = {"seed": None, "head": head_record(trained)}
    return recognition_result(
        "recognition",
        [result_entry(known.name, trained_on(known), [(facts, predictions)], encoder.kind, shuffled, groups)],
        {known.name: [predictions]},
        data=data_record(videos, {"train": None, "test": split}, known.classes),
        train_labels=np.repeat(np.arange(trained.num_classes), known.class_counts or 0),
        protocol=views.record(),
        tokenizer=encoder.tokenizer,
        config=config,
        wall_time_s=time.perf_counter() - start,
        device=str(trained.device),
    )
