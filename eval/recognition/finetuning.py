"""Training a recognition head: what the training loop asks of it."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from timm.data import Mixup
from torch import Tensor, nn

from vidtok.eval.recognition.data import validate_mixing
from vidtok.eval.recognition.prediction import Predictions
from vidtok.eval.recognition.protocol import build_protocol
from vidtok.heads import Head
from vidtok.heads.factory import build_head
from vidtok.tokenizer import VideoTokenizer
from vidtok.train.loop import build_schedule
from vidtok.train.run_folder import RunFolder
from vidtok.train.state import build_state

if TYPE_CHECKING:
    from vidtok.eval.recognition.data import HeadData

BEST = "best"  # folder of the run with the head of the checkpoint that was chosen


class RecognitionTask:
    """Cross-entropy with label smoothing, on clips that are mixed where wanted. A batch is (x [B,...], labels [B]).

    encode: what stands between the batch and the head, see `InputEncoder`; None, nothing. smoothing: of labels. mixup,
    cutmix: timm's alphas, 0 for none; ids can't be averaged, so for them mixup must be 0, while cutmix exchanges
    rectangles of cells. mix_probability: of mixing a batch at all. classes: how many.

    select: gives the averaged head's predictions on clips that are part of neither training nor the test; the head of
    the checkpoint that does best there is kept in the run's folder `best/`. None, no choice is made. may_choose: the
    steps whose checkpoints are candidates; None, all that are saved.

    Raises ValueError for smoothing outside 0 to 1, for mixup of ids, and for an odd number of clips to be mixed.
    """

    def __init__(
        self,
        classes: int,
        encode: Callable[[Tensor], Tensor] | None = None,
        smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_probability: float = 1.0,
        select: Callable[[nn.Module], Predictions] | None = None,
        may_choose: Callable[[int], bool] | None = None,
    ):
        if not 0 <= smoothing <= 1:
            raise ValueError(f"labels are smoothed by a share of 0 to 1, not task.smoothing={smoothing}")
        self.classes, self.encode, self.smoothing, self.select = classes, encode, smoothing, select
        self.may_choose = may_choose
        self.mix_ids = mixup == 0
        self.mix = None
        if mixup or cutmix:
            self.mix = Mixup(
                mixup, cutmix, prob=mix_probability, label_smoothing=smoothing, num_classes=classes, mode="batch"
            )

    def terms(self, model: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> tuple[dict[str, Tensor], Any]:
        x, labels = batch
        if self.encode is not None:
            x = self.encode(x)
        if self.mix is None:
            logits = model(x)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.smoothing)
        else:
            x, targets = self._mixed(x, labels, step)
            logits = model(x)
            loss = F.cross_entropy(logits.float(), targets)
        return {"cross_entropy": loss, "accuracy": (logits.argmax(1) == labels).float().mean()}, None

    def total(self, terms: dict[str, Tensor], step: int) -> Tensor:
        return terms["cross_entropy"]

    def validate(self, model: nn.Module, run: RunFolder, step: int) -> str | None:
        """Top-1 on the clips of `select`; keeps the head where it is the best so far (of equals, the lower loss)."""
        if self.select is None or not (self.may_choose is None or self.may_choose(step)):
            return None
        found = self.select(model)
        own = found.probabilities[np.arange(len(found.labels)), found.labels]
        score = {"step": step, "top1": float(found.correct_N.mean()), "loss": float(-np.log(own.clip(1e-12)).mean())}
        run.save_scalars({"select_top1": score["top1"], "select_loss": score["loss"]}, step)
        best = read_best(run.path)
        if best is None or (score["top1"], -score["loss"]) > (best["top1"], -best["loss"]):
            save_best(model, run.path, score)
        best = read_best(run.path)
        return (
            f"{len(found.labels)} clips kept apart: top-1 {score['top1']:.3f}, loss {score['loss']:.3f}; "
            f"best so far {best['top1']:.3f} at step {best['step']}"
        )

    def progress(self, scalars: dict[str, float]) -> str:
        return f"cross-entropy {scalars['cross_entropy']:.3f}  accuracy {scalars['accuracy']:.3f}"

    def _mixed(self, x: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The batch mixed with itself in reverse order, and soft targets [B,classes]."""
        validate_mixing(not x.is_floating_point(), len(x), averaged=not self.mix_ids)
        before = np.random.get_state()  # timm draws from here
        np.random.seed(torch.randint(2**31, ()).item())  # the loop has seeded torch for this step
        try:
            flat, targets = self.mix(x.clone().flatten(1, -3), labels)  # rectangles lie in the last two dimensions
        finally:
            np.random.set_state(before)
        return flat.view_as(x), targets


def read_best(run: Path) -> dict | None:
    """step, top1 and loss of the head in `best/`, or None."""
    file = run / BEST / "chosen.json"
    return json.loads(file.read_text()) if file.exists() else None


def save_best(head: nn.Module, run: Path, score: dict) -> None:
    new, final = run / f"{BEST}.new", run / BEST
    shutil.rmtree(new, ignore_errors=True)
    head.save_pretrained(new)
    (new / "chosen.json").write_text(json.dumps(score, indent=2) + "\n")
    old = run / f"{BEST}.old"
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)  # and not deleted: a kill in between would leave neither for long
    new.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def chosen_head(last: nn.Module, run: Path) -> tuple[nn.Module, dict]:
    """(the head of `best/` where a choice was made, else the last one of `model/`, as their files have it; which it is:
    {"chosen": step, top1 and loss, or "last"; "head": name and weight_hash})."""
    best = read_best(run)
    folder = run / (BEST if best else "model")
    head = Head.from_pretrained(folder, last.device)
    return head, {"chosen": best or "last", "head": head_record(head)}


def head_record(head: Head) -> dict:
    """name and weight_hash, see `Head`."""
    return {"name": head.config.name, "weight_hash": head.weight_hash}


CANDIDATES = 10  # checkpoints of a run that one is chosen among

# The optimizer's state goes by the order of the head's parameters: a run from before another order isn't gone on with.
HEAD_ORDER = "embedding last"


def check_finetuning(cfg: DictConfig, tokenizer: VideoTokenizer) -> None:
    """Notes in the run folder what its head is trained and tested on. Raises ValueError where that was something else:
    the checkpoint would fit, and its result would be of neither."""

    from vidtok.train.run_folder import check_fingerprint

    data = OmegaConf.to_container(cfg.data, resolve=True)
    facts = {f"data.{key}": value for key, value in data.items() if key not in ("batch_size", "workers", "cache")}
    facts |= {"command": "finetune", "input": cfg.input, "seed": cfg.seed, "tokenizer": tokenizer.weight_hash}
    plain = OmegaConf.to_container(cfg, resolve=True)
    facts |= {
        key: plain[key] for key in ("head", "head_options", "patch_merge")
    }  # of other heads the weights might fit
    facts |= {"task": plain["task"], "parameters": HEAD_ORDER}
    # The rate may change, as may what the loop is told: a run that ended in NaN goes on with a lower one.
    facts["optimizer"] = {key: value for key, value in plain["optimizer"].items() if key != "lr"}
    check_fingerprint(Path(cfg.run), facts)


def build_recognition_head(cfg: DictConfig, head_data: "HeadData", tokenizer: VideoTokenizer) -> "Head":
    """Untrained, of the config's seed; of `head_data` the kind, classes and grid matter."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    own = {"bits": tokenizer.bits, "channels": head_data.channels, "stride": tuple(tokenizer.stride)}
    torch.manual_seed(plain["seed"])  # of the initial weights
    return build_head(
        cfg, cfg.name, head_data.input, len(head_data.classes), head_data.grid(tokenizer.stride), plain["patch_merge"],
        own, plain["head_options"] or {},
    )  # fmt: skip


def build_recognition_training(cfg: DictConfig, head_data: "HeadData", tokenizer: VideoTokenizer) -> dict:
    """The arguments of `vidtok.train.loop.train` that config and material determine: for `vidtok eval finetune`."""
    from vidtok.eval.recognition.data import LabelledBatches, MemorySource

    plain = OmegaConf.to_container(cfg, resolve=True)
    head = build_recognition_head(cfg, head_data, tokenizer)
    reads_tokens = cfg.input != "pixels"
    head.record(
        classes=list(head_data.classes),
        tokenizer={"name": tokenizer.config.name, "weight_hash": tokenizer.weight_hash} if reads_tokens else None,
        protocol=build_protocol(cfg).for_head() | ({"cells": cells} if (cells := plain["data"]["cells"]) else {}),
        class_counts=torch.bincount(torch.as_tensor(head_data.train.labels), minlength=head.num_classes).tolist(),
    )
    batches = LabelledBatches(head_data.train, plain["data"]["batch_size"], plain["seed"])
    if isinstance(head_data.train, MemorySource):
        plain["trainer"]["workers"] = 0  # there is nothing to make ahead, and a worker would copy it all
    arguments, may_choose = build_schedule(plain), None
    schedule, options = arguments["schedule"], arguments["options"]
    if not schedule.has_end:
        raise ValueError("a head is tested at the end of its run: set trainer.max_steps or trainer.max_minutes")
    if head_data.select is not None and schedule.max_minutes is None:
        # By steps: a choice among checkpoints by the clock, or where a run was stopped, would not come out twice.
        every = options.save_steps or math.ceil(schedule.max_steps / CANDIDATES)
        arguments["options"] = replace(options, save_steps=every)

        def may_choose(step: int) -> bool:
            return step % every == 0 or step >= schedule.max_steps

    task = RecognitionTask(len(head_data.classes), head_data.encode, **plain["task"], select=head_data.select,
                           may_choose=may_choose)  # fmt: skip
    return {"task": task, "state": build_state(head, plain), "batches": batches, **arguments}
