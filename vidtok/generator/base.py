"""What a generator is made of, as config.json stores it.

What all generators have in common: conditions, checks, loading and saving.

Legend: B batch, N tokens, D width, t h w the token grid, N = t h w in this order ("raster order in time").
"""

import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from vidtok.config import load_config
from vidtok.errors import nearest
from vidtok.generator import masks
from vidtok.generator.sampling import PerSampleRNG, check_numbers, guidance_scale, mask_ratio, sample_rngs
from vidtok.generator.transformer import Transformer
from vidtok.hub import PretrainedModel, find_pretrained, load_weights

SCHEMA = "vidtok.generator/2"  # of 1 the heads did not norm the low half of a token


@dataclass(frozen=True)
class GeneratorConfig:
    """All that is needed to rebuild a generator.

    Attributes:
        name: what results and files call it.
        kind: "masked", "autoregressive" or "diffusion".
        tokenizer, weight_hash: name and weights of the tokenizer that its tokens are of.
        bits: log2 of the codebook size.
        grid: (t, h, w) of its tokens.
        stride: pixels per token in (time, height, width); the first frame has tokens of its own.
        fps: of the clips that it was trained on, or None.
        classes: names; empty for a model without classes.
        width, depth, heads, dropout: of the trunk.
        arguments: of the kind, see its class.
        license: of the weights.
    """

    name: str
    kind: str
    tokenizer: str
    weight_hash: str
    bits: int
    grid: tuple[int, int, int]
    stride: tuple[int, int, int] = (4, 8, 8)
    fps: float | None = None
    classes: tuple[str, ...] = ()
    width: int = 256
    depth: int = 6
    heads: int = 4
    dropout: float = 0.0
    arguments: dict = field(default_factory=dict)
    license: str = "apache-2.0"

    def __post_init__(self):
        for name in ("grid", "stride", "classes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON and hydra have lists


def read_config(path: Path) -> GeneratorConfig:
    """Raises ValueError, naming the file, where it is no generator's config or of another schema."""
    return load_config(path, SCHEMA, GeneratorConfig, "generator")


@dataclass(frozen=True)
class Request:
    """What is to be sampled, checked: what `generate` gives to the `sample` of every kind.

    Attributes:
        ids_BN: int64, the given tokens, 0 elsewhere; known_N: bool, which are given.
        label_B: int64, class numbers; no class is the number after the last.
        draws: each sample's own random numbers.
        steps: of sampling. guidance: 1 is none.
        progress: called with the steps done and their number.
    """

    ids_BN: Tensor
    known_N: Tensor
    label_B: Tensor
    rng: PerSampleRNG
    steps: int
    guidance: float
    progress: Callable[[int, int], None]


@dataclass(frozen=True)
class Objective:
    """What is common to the objectives of all kinds.

    Attributes:
        label_smoothing: of the cross-entropies.
        label_drop: share of samples that are trained without their class, for guidance.
        tasks: weight of each of `vidtok.generator.masks.TASKS`, what a training sample is given of itself.
    """

    label_smoothing: float = 1e-4
    label_drop: float = 0.1
    tasks: Mapping[str, float] = field(default_factory=lambda: {"none": 1.0})

    def __post_init__(self):
        weights = self.tasks.values()
        if any(not (math.isfinite(weight) and weight >= 0) for weight in weights) or not sum(weights) > 0:
            raise ValueError(f"tasks need weights of at least 0, and one above it, not {dict(self.tasks)}")
        for name in ("label_smoothing", "label_drop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"objective.{name} is a share of 0 to 1, not {getattr(self, name)}")

    @property
    def given_prefix(self) -> int:
        """Latent frames that every sample of training begins with, at least; 0 where some have no prefix."""
        tasks = [name.split("-") for name, weight in self.tasks.items() if weight]
        counts = [(rest or ["1"])[0] if kind == "prefix" else "0" for kind, *rest in tasks]
        return min(int(count) if count.isdigit() else 0 for count in counts)  # what is no number is refused elsewhere


class Generator(PretrainedModel, nn.Module, tags=["video-generation"]):
    """A model of token grids. Subclasses are the kinds; `vidtok.generator.create_generator` makes one.

    Attributes:
        config: the `GeneratorConfig`.
        default_steps: of `generate`.
    """

    causal = False
    default_steps: int

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        self.trunk = Transformer(config.grid, config.width, config.depth, config.heads, self.causal, config.dropout)
        self.label_embed = nn.Embedding(len(config.classes) + 1, config.width)  # the last one: no class
        nn.init.normal_(self.label_embed.weight)

    @property
    def device(self) -> torch.device:
        return self.label_embed.weight.device

    # -------------------------------------------------------------- training

    def forward(self, batch: Mapping[str, Tensor], objective: Objective) -> dict[str, Tensor]:
        """One training pass: scalar terms, of which "loss" is minimised.

        Args:
            batch: ids int64 [B, t, h, w]; label int64 [B], -1 for none; seed int64 [B], of each sample's random draws;
                for diffusion latents float [B, K, t, h, w].
        """
        raise NotImplementedError

    def draw_conditions(self, batch: Mapping[str, Tensor], objective: Objective) -> tuple[PerSampleRNG, Tensor, Tensor]:
        """Each sample's random numbers; its class [B] (the number of classes where it is dropped); what it is given
        [B, N].

        All from the sample's own seed, so that it doesn't matter which process trains on it.
        """
        rng = PerSampleRNG(batch["seed"].to(self.device))
        label_B = self.number_labels(batch["label"])
        label_B = label_B.masked_fill(rng.uniform() < objective.label_drop, len(self.config.classes))
        tasks = {task: weight for task, weight in objective.tasks.items() if weight}
        which_B = rng.choice(list(tasks.values()))
        known_BN = torch.zeros(len(rng), self.tokens, dtype=torch.bool, device=self.device)
        for number, task in enumerate(tasks):
            mask_BN = masks.draw_masks(task, self.config.grid, rng).flatten(1)
            known_BN = torch.where((which_B == number)[:, None], mask_BN, known_BN)
        return rng, label_B, known_BN

    def number_labels(self, label_B: Tensor) -> Tensor:
        """-1, no class, as the last row of the embedding, and all of a model without classes."""
        classes = len(self.config.classes)
        return torch.where((label_B < 0) | (classes == 0), classes, label_B).to(self.device)

    # -------------------------------------------------------------- sampling

    @torch.no_grad()
    def generate(
        self,
        batch: int,
        label: int | str | Sequence[int | str] | None = None,
        prefix: Tensor | None = None,
        steps: int | None = None,
        guidance: float = 1.0,
        seed: int = 0,
        *,
        first: int = 0,
        known: tuple[Tensor, Tensor] | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
        **options,
    ) -> Tensor:
        """Token ids of new clips.

        Sample i depends on (seed, first + i) and its conditions alone, not on the batch it is drawn in.

        Args:
            batch: how many.
            label: class numbers or names, one for all or one each; None, free.
            prefix: int64 [batch or 1, n, h, w], the first latent frames; they stay as they are.
            steps: of sampling; None, the kind's own number. An autoregressive model has one per token.
            guidance: 1 is none; above it, logits are moved away from those without the class.
            seed, first: of the random draws; the number of the first sample.
            known: instead of a prefix, (ids int64 [batch or 1, t, h, w], mask bool [t, h, w] of `masks`).
            progress: called with the steps done and their number.
            options: of the kind, see its `sample`.

        Returns:
            int64 [batch, t, h, w].

        Raises:
            ValueError: for an unknown class, guidance without classes, conditions of another shape.
        """
        if batch < 1:
            raise ValueError(f"a batch has at least one sample, not {batch}")
        if guidance != 1 and label is None:
            raise ValueError("guidance needs a label: it moves away from the model without one")
        self.check_sampling(steps, guidance, **options)
        label_B = self.check_label(label, batch)
        ids_BN, known_N = self.check_known(prefix, known, batch)
        rng = sample_rngs(seed, first, batch, self.device)
        training = self.training
        self.eval()
        try:
            steps = steps or self.default_steps
            request = Request(ids_BN, known_N, label_B, rng, steps, guidance, progress)
            ids_BN = self.sample(request, **options)
        finally:
            self.train(training)
        return ids_BN.unflatten(1, self.config.grid)

    def sample(self, request: Request, **options) -> Tensor:
        """int64 ids [B, N], those of the request where they are known."""
        raise NotImplementedError

    def check_sampling(self, steps: int | None = None, guidance: float = 1.0, **options) -> None:
        """Raises ValueError for settings of `generate` that this kind doesn't have, or that are out of their range."""
        known = [name for name in inspect.signature(self.sample).parameters if name != "request"]
        if unknown := [name for name in options if name not in known]:
            raise ValueError(f"{self.config.kind} sampling has no {unknown[0]!r}: {nearest(unknown[0], known)}")
        check_numbers({"steps": steps, "guidance": guidance, **options})
        if guidance != 1 and not self.config.classes:
            raise ValueError(f"guidance needs classes, and generator {self.config.name!r} has none")
        if "schedule" in options:
            mask_ratio(options["schedule"], 0.5)
        if "guidance_schedule" in options:
            guidance_scale(options["guidance_schedule"], 1.0, 0.5)

    def check_label(self, label, batch: int) -> Tensor:
        """Class numbers int64 [batch]; no class is the number after the last."""
        classes = self.config.classes
        if label is None:
            return torch.full((batch,), len(classes), device=self.device)
        labels = [label] * batch if isinstance(label, int | str) else list(label)
        if len(labels) != batch:
            raise ValueError(f"{len(labels)} labels for a batch of {batch}")
        numbers = []
        for one in labels:
            if isinstance(one, str) and one in classes:
                numbers.append(classes.index(one))
            elif not isinstance(one, str) and 0 <= int(one) < len(classes):
                numbers.append(int(one))
            else:
                known = f"0 .. {len(classes) - 1}: {', '.join(classes[:20])}" if classes else "none, as it has none"
                raise ValueError(f"no class {one!r}: {self.config.name} knows {known}")
        return torch.tensor(numbers, device=self.device)

    def check_known(self, prefix: Tensor | None, known, batch: int) -> tuple[Tensor, Tensor]:
        """(ids [batch, N], 0 where unknown; mask [N])."""
        grid = self.config.grid
        if prefix is not None and known is not None:
            raise ValueError("give a prefix or known tokens, not both")
        ids, mask = known if known is not None else (torch.zeros(1, *grid, dtype=torch.long), masks.nothing(grid))
        if prefix is not None:
            if prefix.ndim != 4 or prefix.shape[2:] != grid[1:] or len(prefix) not in (1, batch):
                raise ValueError(f"a prefix is [{batch}, n, {grid[1]}, {grid[2]}], not {list(prefix.shape)}")
            if prefix.dtype != torch.long:
                raise ValueError(f"a prefix is of int64 token ids, not {prefix.dtype}")
            mask = masks.prefix(grid, prefix.shape[1])
            ids = torch.cat([prefix, prefix.new_zeros(len(prefix), grid[0] - prefix.shape[1], *grid[1:])], 1)
        if ids.shape[1:] != grid or len(ids) not in (1, batch) or mask.shape != grid or mask.dtype != torch.bool:
            raise ValueError(f"known tokens are [{batch}, {grid}] with a mask of {grid}, not {list(ids.shape)}")
        if ids.min() < 0 or ids.max() >= 2**self.config.bits:
            raise ValueError(f"token ids lie in 0 .. {2**self.config.bits - 1}, not {ids.min()} .. {ids.max()}")
        return ids.expand(batch, *grid).flatten(1).to(self.device), mask.flatten().to(self.device)

    def guided(self, guidance: float, label_B: Tensor) -> Tensor:
        """The conditions of one pass, [B, D], or [2 B, D] with those without a class behind where there is guidance."""
        if guidance != 1:
            label_B = torch.cat([label_B, torch.full_like(label_B, len(self.config.classes))])
        return self.label_embed(label_B)

    # --------------------------------------------------------- load and save

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike, device: str | torch.device = "cpu", **hub_arguments
    ) -> "Generator":
        """Load a trained generator in evaluation mode; see `vidtok.generator.from_pretrained`."""
        from vidtok.generator import SHIPPED, create_generator  # which knows all kinds

        config, weights = find_pretrained(name, "generator", SHIPPED, **hub_arguments)
        generator = create_generator(read_config(config))
        generator.set_file_hash(load_weights(generator, weights))
        return generator.eval().to(device)

    def _describe(self) -> tuple[str, str]:
        config = self.config
        return SCHEMA, (
            f"A {config.kind} generator of `{config.tokenizer}` tokens (weights `{config.weight_hash}`) for vidtok: "
            "`vidtok.generator.from_pretrained(PATH)`."
        )

    @property
    def tokens(self) -> int:
        return math.prod(self.config.grid)


def classifier_free_guidance(logits: Tensor, guidance: float, batch: int) -> Tensor:
    """[2 B, ...] with and without class to [B, ...], guided; [B, ...] without guidance as it is."""
    if len(logits) == batch:
        return logits
    given, free = logits.chunk(2)
    return free + guidance * (given - free)
