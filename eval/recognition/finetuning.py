"""Training of a recognition head: the task for the training loop, and the whole run with its test."""

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from timm.data import Mixup
from torch import Tensor, nn

from vidtok.configs.compose import compose_config, to_dict
from vidtok.eval.recognition.clips import build_clip_sources, build_protocol
from vidtok.eval.recognition.data import (
    HeadData,
    LabeledBatches,
    MemorySource,
    build_head_data,
    build_recognition_head,
    validate_mixing,
)
from vidtok.eval.recognition.inputs import ORIGINAL, Test, same_task
from vidtok.eval.recognition.results import data_record, head_record, recognition_result, result_entry
from vidtok.eval.report import format_table
from vidtok.extraction.model import open_tokenizer
from vidtok.files import write_json
from vidtok.heads import Head
from vidtok.tokenizer import VideoTokenizer
from vidtok.train.loop import build_schedule, train
from vidtok.train.run_folder import RunFolder, check_fingerprint
from vidtok.train.state import StopSignal, TrainState, build_state, join_processes

BEST = "best"  # folder of a run with the head of the chosen checkpoint


def finetune(*overrides: str, log: Callable[[str], None] = print, **settings) -> dict | None:
    """Train a recognition head end to end, choose its checkpoint on a part of the training clips, and test it once.

        finetune(head="vivit-tiny", data={"source": "train.csv", "root": "videos"}, trainer={"max_steps": 100})

    The run folder (setting `run`) keeps the config, checkpoints, heads and result.json. The same call resumes a stopped
    run.

    Args:
        overrides, settings: settings of configs/finetune.yaml, as hydra overrides or nested, see
            `vidtok.configs.compose`.
        log: called with each line of progress, and with the table at the end; in the main process only.

    Returns:
        A result of schema "vidtok.recognition/1" and kind "finetune". None in processes other than the main one, and
        if SIGTERM or Ctrl-C stopped the training.

    Raises:
        UserError: an unknown or missing setting.
        ValueError: settings that don't fit each other or the data, or a run folder of other settings.
    """
    cfg = compose_config("finetune", overrides, settings)
    plain = to_dict(cfg)
    start = time.perf_counter()
    processes = join_processes()
    log = processes.on_local_main_process(log)
    tokenizer = open_tokenizer(cfg.tokenizer, processes.device)
    head_data = build_head_data(plain, tokenizer)
    head = build_recognition_head(plain, head_data, tokenizer)
    arguments = build_recognition_training(plain, head, head_data, tokenizer)
    check_finetuning(plain, tokenizer)  # only now, so that a failed call leaves no folder
    folder = RunFolder(cfg.run)
    with StopSignal() as stop:
        text = OmegaConf.to_yaml(cfg, resolve=True)
        last = cast(Head, train(**arguments, run=folder, stop=stop, config_yaml=text, log=log))
    result = None
    if stop.requested:
        log("stopped before the test: the same command goes on")
    elif processes.is_main_process:
        result = evaluate_run(plain, arguments["state"], last, head_data, tokenizer, start)
        write_json(folder.path / "result.json", result)
        log(f"{format_table(result)}\nresult: {folder.path / 'result.json'}")
    processes.wait_for_everyone()
    processes.destroy_process_group()
    return result


def evaluate_run(
    settings: dict, state: TrainState, last: Head, head_data: HeadData, tokenizer: VideoTokenizer, start: float
) -> dict:
    """Test the chosen head of a run and return the result.

    state: final state of the training. last: its head. start: time at which the run started, for the wall-clock time.
    """
    folder, data, name, input = Path(settings["run"]), settings["data"], settings["name"], settings["input"]
    head, facts = chosen_head(last, folder)
    facts |= {"seed": settings["seed"], "steps": state.step, "seconds": state.seconds}
    predictions = head_data.test(head)
    shuffled = None if head_data.shuffled is None else [head_data.shuffled(head)]
    splits, source = {"train": data["train_split"], "test": data["val_split"]}, build_clip_sources(data)[0]
    groups = source.groups(predictions.ids) if source.task else None
    return recognition_result(
        "finetune",
        [result_entry(name, input, [(facts, predictions)], None, shuffled, groups)],
        {name: [predictions]},
        data=data_record(source, splits, head_data.classes, head_data.train_failures),
        train_labels=head_data.train.labels,
        protocol=build_protocol(data).record(),
        tokenizer=None if input in ORIGINAL else tokenizer,
        config=to_dict(OmegaConf.load(folder / "config.yaml"), resolve=False),  # the config of the training
        wall_time_s=time.perf_counter() - start,
        device=str(head.device),
    )


class RecognitionTask:
    """Recognition task: cross-entropy with label smoothing, mixup and cutmix. A batch is (x [B,...], labels [B]).

    Args:
        classes: number of classes.
        encode: maps a batch to the head's input, see `InputEncoder`; None, the batch is the input.
        smoothing: amount of label smoothing, 0 to 1.
        mixup, cutmix: alphas of timm's Mixup; 0, none. Ids can't be averaged, so they need mixup=0. cutmix exchanges
            rectangles of cells.
        mix_probability: probability that a batch is mixed.
        select: maps the EMA head to its predictions for clips that are held out from training. The head of the best
            checkpoint on these clips is kept in the run's folder `best/`. None, the last head is used.
        may_choose: maps a step to whether its checkpoint is a candidate; None, all are.
        asked: bool [classes,classes], row i: the classes among which a clip of class i is classified; None, all. See
            `vidtok.eval.recognition.inputs.same_task`.

    Raises:
        ValueError: smoothing outside 0 to 1, mixup of ids, or an odd number of clips to mix.
    """

    def __init__(
        self,
        classes: int,
        encode: Callable[[Tensor], Tensor] | None = None,
        smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_probability: float = 1.0,
        select: Test | None = None,
        may_choose: Callable[[int], bool] | None = None,
        asked: Tensor | None = None,
    ):
        if not 0 <= smoothing <= 1:
            raise ValueError(f"labels are smoothed by a share of 0 to 1, not task.smoothing={smoothing}")
        self.classes, self.encode, self.smoothing, self.select = classes, encode, smoothing, select
        self.may_choose, self.asked = may_choose, asked
        if asked is not None and (mixup or cutmix):
            raise ValueError("clips of several motion tasks can't be mixed: set task.mixup=0 and task.cutmix=0")
        self.mix_ids = mixup == 0
        self.mix = None
        if mixup or cutmix:
            self.mix = Mixup(
                mixup, cutmix, prob=mix_probability, label_smoothing=smoothing, num_classes=classes, mode="batch"
            )

    def terms(
        self, model: nn.Module, batch: tuple[Tensor, Tensor], step: int
    ) -> tuple[Tensor, dict[str, Tensor], None]:
        x, labels = batch
        if self.encode is not None:
            x = self.encode(x)
        if self.mix is None:
            logits = model(x)
            if self.asked is None:
                loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.smoothing)
            else:
                logits, loss = self._loss_among(logits, self.asked.to(labels.device)[labels], labels)
        else:
            x, targets = self._mixed(x, labels, step)
            logits = model(x)
            loss = F.cross_entropy(logits.float(), targets)
        return loss, {"cross_entropy": loss, "accuracy": (logits.argmax(1) == labels).float().mean()}, None

    def validate(self, model: Head, run: RunFolder, step: int) -> str | None:
        """Measure top-1 on the clips of `select`, and save the head if it is the best so far (ties: by loss)."""
        if self.select is None or not (self.may_choose is None or self.may_choose(step)):
            return None
        found = self.select(model)
        own = found.probabilities[np.arange(len(found.labels)), found.labels]
        score = {"step": step, "top1": float(found.correct_N.mean()), "loss": float(-np.log(own.clip(1e-12)).mean())}
        run.save_scalars({"select_top1": score["top1"], "select_loss": score["loss"]}, step)
        best = read_best(run.path)
        if best is None or (score["top1"], -score["loss"]) > (best["top1"], -best["loss"]):
            save_best(model, run.path, score)
            best = score
        return (
            f"{len(found.labels)} clips kept apart: top-1 {score['top1']:.3f}, loss {score['loss']:.3f}; "
            f"best so far {best['top1']:.3f} at step {best['step']}"
        )

    def progress(self, scalars: dict[str, float]) -> str:
        return f"cross-entropy {scalars['cross_entropy']:.3f}  accuracy {scalars['accuracy']:.3f}"

    def _loss_among(self, logits_BK: Tensor, asked_BK: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return (logits with -inf for classes of other tasks, cross-entropy over the remaining classes)."""
        logits_BK = logits_BK.float().masked_fill(~asked_BK, -torch.inf)
        log_BK = logits_BK.log_softmax(1).masked_fill(~asked_BK, 0)
        own, uniform = log_BK.gather(1, labels[:, None])[:, 0], log_BK.sum(1) / asked_BK.sum(1)
        return logits_BK, -((1 - self.smoothing) * own + self.smoothing * uniform).mean()

    def _mixed(self, x: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Mix the batch with itself in reverse order; return (inputs, soft targets [B,classes])."""
        assert self.mix is not None
        validate_mixing(not x.is_floating_point(), len(x), averaged=not self.mix_ids)
        before = np.random.get_state()  # timm draws from NumPy's global generator
        np.random.seed(torch.randint(2**31, ()).item())  # the loop has seeded torch for this step
        try:
            flat, targets = self.mix(x.clone().flatten(1, -3), labels)  # rectangles lie in the last two dimensions
        finally:
            np.random.set_state(before)
        return flat.view_as(x), targets


def read_best(run: Path) -> dict | None:
    """Return step, top1 and loss of the head in `best/`; None if there is none."""
    file = run / BEST / "chosen.json"
    return json.loads(file.read_text()) if file.exists() else None


def save_best(head: Head, run: Path, score: dict) -> None:
    new, final = run / f"{BEST}.new", run / BEST
    shutil.rmtree(new, ignore_errors=True)
    head.save_pretrained(new)
    (new / "chosen.json").write_text(json.dumps(score, indent=2) + "\n")
    old = run / f"{BEST}.old"
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)  # renamed, not deleted, so that a kill in between doesn't lose both
    new.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def chosen_head(last: Head, run: Path) -> tuple[Head, dict]:
    """Load the head of `best/` if a checkpoint was chosen, otherwise return the last head, which is in `model/`.

    Returns:
        (the head, {"chosen": step, top1 and loss, or "last"; "head": name and weight_hash}).
    """
    best = read_best(run)
    head = Head.from_pretrained(run / BEST, last.device) if best else last
    return head, {"chosen": best or "last", "head": head_record(head)}


CANDIDATES = 10  # number of checkpoints of a run among which the best is chosen

# The optimizer's state depends on the order of the head's parameters, so runs with another order are not resumed.
HEAD_ORDER = "embedding last, of ids by their bits"


def check_finetuning(settings: dict, tokenizer: VideoTokenizer) -> None:
    """Write the fingerprint of a run into its folder. Raises ValueError if the folder holds a run of other settings,
    even if its checkpoint has the same shapes."""
    data = settings["data"]
    facts: dict[str, Any] = {
        f"data.{key}": value for key, value in data.items() if key not in ("batch_size", "workers", "cache")
    }
    if data["reader"] == "auto":  # as in folders written before this setting existed
        del facts["data.reader"]
    for name in ("task", "frame_folders"):
        if data[name] is None:
            del facts[f"data.{name}"]
    # These settings are included because weights of other heads might have the same shapes.
    facts |= {key: settings[key] for key in ("input", "seed", "head", "head_options", "patch_merge", "task")}
    facts |= {"command": "finetune", "tokenizer": tokenizer.weight_hash, "parameters": HEAD_ORDER}
    if settings["init"]:
        facts["init"] = Head.from_pretrained(settings["init"]).weight_hash
    # Learning rate and trainer may change: a run that ended in NaN is resumed with a lower rate.
    facts["optimizer"] = {key: value for key, value in settings["optimizer"].items() if key != "lr"}
    check_fingerprint(Path(settings["run"]), facts)


def build_recognition_training(settings: dict, head: Head, head_data: HeadData, tokenizer: VideoTokenizer) -> dict:
    """Build the arguments of `vidtok.train.loop.train` from settings and the data of the head.

    head: see `build_recognition_head`.
    """
    data = settings["data"]
    source = {"name": tokenizer.config.name, "weight_hash": tokenizer.weight_hash}
    if settings["input"] == "hidden":
        source["layer"] = tokenizer.encoder.feature_layer
    head.record(
        classes=list(head_data.classes),
        tokenizer=None if settings["input"] in ORIGINAL else source,
        protocol=build_protocol(data).for_head()
        | ({"middle_frame": True} if settings["input"] == "frame" else {})
        | ({"grid_crop": side} if (side := data["grid_crop"]) else {}),
        class_counts=torch.bincount(torch.as_tensor(head_data.train.labels), minlength=head.num_classes).tolist(),
    )
    batches = LabeledBatches(head_data.train, data["batch_size"], settings["seed"])
    if isinstance(head_data.train, MemorySource):
        # No workers: there is nothing to prefetch, and each worker would copy the clips.
        settings = settings | {"trainer": settings["trainer"] | {"workers": 0}}
    arguments, may_choose = build_schedule(settings), None
    schedule, options = arguments["schedule"], arguments["options"]
    if not schedule.has_end:
        raise ValueError("a head is tested at the end of its run: set trainer.max_steps or trainer.max_minutes")
    if head_data.select is not None and schedule.max_minutes is None:
        # Candidates are chosen by step. Checkpoints by time, or at the step of a stop, would not be reproducible.
        every = options.save_steps or math.ceil(schedule.max_steps / CANDIDATES)
        arguments["options"] = replace(options, save_steps=every)

        def may_choose(step: int) -> bool:
            return step % every == 0 or step >= schedule.max_steps

    task = RecognitionTask(len(head_data.classes), head_data.encode, **settings["task"], select=head_data.select,
                           may_choose=may_choose, asked=same_task(head_data.classes))  # fmt: skip
    return {"task": task, "state": build_state(head, settings), "batches": batches, **arguments}
