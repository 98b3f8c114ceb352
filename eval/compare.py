"""The same head on the same clips with the same budget, reading tokens, codes, latents, features, pixels or
reconstructions: what of an action is left in the tokens?

A folder keeps all of it: clips/ (decoded once), encoded/ (by the tokenizer, once), runs/ARM-SEED/ (training, its head,
and predictions.npz once it has been tested). What is there is not made again.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch import nn

from .clip_store import ClipStore
from .inputs import InputEncoder, encode_all, shuffle_frames
from .labelled_clips import ClipSet
from .material import Material, Test, memory_material, memory_test
from .predict import Predictions
from .recognition import correct_of, result_entry
from .statistics import paired_ratio

Fit = Callable[[Material, str, int, Path], tuple[nn.Module, dict] | None]
TRANSFER = "pixels on recon"  # the paper's protocol: trained on pixels, tested on what the tokens keep of them


class Comparison:
    """arms: of `vidtok.eval.inputs.INPUTS`. seeds: of each. fit(material, arm, seed, folder) trains a head and returns
    it with the facts for its result, or None where it was stopped. encoder: arm -> `InputEncoder`.

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

    def run(self, fit: Fit, folder: Path, say=print) -> bool:
        """Trains and tests what is missing; False where it was stopped."""
        for arm in self.arms:
            missing = [seed for seed in self.seeds if not _done(folder, arm, seed)]
            if not missing:
                continue
            encoded = [self.encoded(arm, side) for side in ("train", "test", "shuffled")]
            for seed in missing:
                say(f"{arm}, seed {seed}")
                material = memory_material(
                    self.train, self.test, self.encoder(arm), *encoded,
                    self.groups, self.select, self.cells, self.batch_size, seed,
                )  # fmt: skip
                own = folder / "runs" / f"{arm}-{seed}"
                fitted = fit(material, arm, seed, own)
                if fitted is None:
                    return False
                head, facts = fitted
                tests = {"test": material.test, "shuffled": material.shuffled} | self._transfer(arm)
                found = {name: test(head) for name, test in tests.items()}
                _save(own, facts, found)
                say(f"{arm}, seed {seed}: " + ", ".join(f"{k} {v.correct_N.mean():.3f}" for k, v in found.items()))
        return True

    def results(self, folder: Path, reference: str) -> tuple[list[dict], dict[str, list[Predictions]], list[dict]]:
        """(entries, predictions by their names, comparisons with the reference), see `vidtok.eval.recognition`."""
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
