"""Base class of generators, their config (config.json) and training objective.

Legend: B batch, N tokens, D width, t h w the token grid, N = t h w in this order (raster order, time first).
"""

import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vidtok.errors import nearest
from vidtok.generator import masks
from vidtok.generator.sampling import PerSampleRNG, check_numbers, guidance_scale, mask_ratio, sample_rngs
from vidtok.generator.transformer import Transformer
from vidtok.hub import PRETRAINED, PretrainedModel, find_pretrained, list_shipped, load_config, load_weights

SHIPPED = PRETRAINED / "generators"
SCHEMA = "vidtok.generator/2"  # in /1 the heads did not normalize the embedding of the low bits
# Parts of parameter names in weights and checkpoints of earlier versions.
RENAMED_PARAMETERS = {"enter": "proj_in", "leave": "proj_out", "sharpness": "qk_scale"}


def rename_parameter(name: str) -> str:
    """Return the current name of a parameter, given its name in this or an earlier version."""
    return ".".join(RENAMED_PARAMETERS.get(part, part) for part in name.split("."))


@dataclass(frozen=True)
class GeneratorConfig:
    """Architecture of a generator, and the tokens and classes that it was trained on.

    Attributes:
        name: name of the generator in results and files.
        kind: "masked", "autoregressive" or "diffusion".
        tokenizer: name of the tokenizer.
        weight_hash: hash of the tokenizer's weights.
        bits: log2 of the codebook size.
        grid: (t, h, w) of the tokens.
        stride: pixels per token in (time, height, width); the first frame has tokens of its own.
        fps: frames per second of the training clips; None, various or unknown.
        classes: the name of each class number; empty for an unconditional model.
        tasks: tasks of the training, see `Objective`; empty, not recorded (earlier versions).
        width, depth, heads, dropout: see `vidtok.generator.transformer.Transformer`.
        arguments: further arguments of the kind's class.
        license: license of the weights.
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
    tasks: tuple[str, ...] = ()
    width: int = 256
    depth: int = 6
    heads: int = 4
    dropout: float = 0.0
    arguments: dict = field(default_factory=dict)
    license: str = "apache-2.0"

    def __post_init__(self):
        for name in ("grid", "stride", "classes", "tasks"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON and hydra have lists

    @property
    def needs_video(self) -> bool:
        """Whether every training sample had given tokens; False if the tasks aren't recorded."""
        return bool(self.tasks) and "none" not in self.tasks


def read_config(path: Path) -> GeneratorConfig:
    """Read a config file; raise ValueError if it is not a generator's config or of another schema."""
    return load_config(path, SCHEMA, GeneratorConfig, "generator")


@dataclass(frozen=True)
class Request:
    """Validated conditions and settings, which `generate` passes to the `sample` method of every kind.

    Attributes:
        ids_BN: int64, the known tokens, 0 elsewhere.
        known_N: bool, whether a token is known.
        label_B: int64, class numbers; the number of classes stands for no class.
        rng: random numbers of each sample.
        steps: number of sampling steps.
        guidance: scale of classifier-free guidance; 1, none.
        progress: called with (steps done, all steps).
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
    """Settings of the training objective that all kinds share.

    Attributes:
        label_smoothing: label smoothing of the cross-entropies, 0 to 1.
        class_dropout_prob: probability that a sample is trained without its class, for classifier-free guidance.
        tasks: {task: weight}, relative frequency of each of `vidtok.generator.masks.TASKS` in training. A task selects
            the tokens of a sample that are given to the model.

    Raises:
        ValueError: a value out of its range.
    """

    label_smoothing: float = 1e-4
    class_dropout_prob: float = 0.1
    tasks: Mapping[str, float] = field(default_factory=lambda: {"none": 1.0})

    def __post_init__(self):
        weights = self.tasks.values()
        if any(not (math.isfinite(weight) and weight >= 0) for weight in weights) or not sum(weights) > 0:
            raise ValueError(f"tasks need weights of at least 0, and one above 0, not {dict(self.tasks)}")
        for name in ("label_smoothing", "class_dropout_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"objective.{name} is a share of 0 to 1, not {getattr(self, name)}")

    @property
    def given_prefix(self) -> int:
        """Minimal prefix in training, in latent frames; 0 if some samples have no prefix."""
        tasks = [name.split("-") for name, weight in self.tasks.items() if weight]
        counts = [(rest or ["1"])[0] if kind == "prefix" else "0" for kind, *rest in tasks]
        return min(int(count) if count.isdigit() else 0 for count in counts)  # `check_task` rejects other counts


class Generator(PretrainedModel, tags=["video-generation"]):
    """Base class of generators. The subclasses are its kinds, built by `vidtok.generator.create_generator`.

    Args:
        config: the config.
        positions: "both", "learned" or "rotary", see `vidtok.generator.transformer.Transformer`.

    Attributes:
        config: the `GeneratorConfig`.
        causal: whether the transformer is causal.
    """

    config: GeneratorConfig
    compiled_parts: ClassVar[tuple[str, ...]] = ("trunk",)
    compiled_methods = ("generate",)
    causal = False

    def __init__(self, config: GeneratorConfig, positions: str = "both"):
        super().__init__()
        self.config = config
        sizes = config.grid, config.width, config.depth, config.heads
        self.trunk = Transformer(*sizes, self.causal, config.dropout, positions)
        self.label_embed = nn.Embedding(len(config.classes) + 1, config.width)  # the last one: no class
        nn.init.normal_(self.label_embed.weight)

    @property
    def device(self) -> torch.device:
        return self.label_embed.weight.device

    @property
    def default_steps(self) -> int:
        """Number of sampling steps if none is given."""
        raise NotImplementedError

    # -------------------------------------------------------------- training

    def forward(self, batch: Mapping[str, Tensor], objective: Objective) -> dict[str, Tensor]:
        """Compute scalar training terms; the term "loss" is minimized.

        Args:
            batch: "ids", int64 [B, t, h, w]; "label", int64 [B], -1 for none; "seed", int64 [B], seed of each sample's
                random numbers; for diffusion also "latents", float [B, K, t, h, w].
            objective: settings of the objective.
        """
        raise NotImplementedError

    def draw_conditions(self, batch: Mapping[str, Tensor], objective: Objective) -> tuple[PerSampleRNG, Tensor, Tensor]:
        """Draw the conditions of each training sample from its own seed, independently of the process and batch.

        Returns:
            (random number generators; class numbers int64 [B], the number of classes if dropped; known tokens,
            bool [B, N]).
        """
        rng = PerSampleRNG(batch["seed"].to(self.device))
        label_B = self.number_labels(batch["label"])
        label_B = label_B.masked_fill(rng.uniform() < objective.class_dropout_prob, len(self.config.classes))
        tasks = {task: weight for task, weight in objective.tasks.items() if weight}
        which_B = rng.choice(list(tasks.values()))
        known_BN = torch.zeros(len(rng), self.tokens, dtype=torch.bool, device=self.device)
        for number, task in enumerate(tasks):
            mask_BN = masks.draw_masks(task, self.config.grid, rng).flatten(1)
            known_BN = torch.where((which_B == number)[:, None], mask_BN, known_BN)
        return rng, label_B, known_BN

    def number_labels(self, label_B: Tensor) -> Tensor:
        """Replace -1 (no class), and all labels of an unconditional model, by the number of classes."""
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
        """Sample token ids of new clips.

        Sample i is a function of (seed, first + i) and its conditions, independent of the batch.

        Args:
            batch: number of samples.
            label: class number or name for all samples, or one for each; None, no class.
            prefix: int64 [batch or 1, n, h, w], the first n latent frames, which are kept.
            steps: number of sampling steps; None, `default_steps`. An autoregressive model has one step per token.
            guidance: scale of classifier-free guidance, at least 0; 1, none.
            seed: seed of the random numbers.
            first: number of the first sample.
            known: instead of a prefix, (ids int64 [batch or 1, t, h, w], mask bool [t, h, w], see `masks`).
            progress: called with (steps done, all steps).
            options: sampling options of the kind, see its `sample` method.

        Returns:
            int64 [batch, t, h, w].

        Raises:
            ValueError: an unknown class or option, a value out of range, guidance without a label, or conditions of
                another shape.
        """
        if batch < 1:
            raise ValueError(f"a batch has at least one sample, not {batch}")
        if guidance != 1 and label is None:
            raise ValueError("guidance needs a label: give one, or guidance=1")
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

    def sample(self, request: Request, *args: Any, **options: Any) -> Tensor:
        """Sample int64 ids [B, N]; known tokens keep the ids of the request. The options depend on the kind."""
        raise NotImplementedError

    def check_sampling(self, steps: int | None = None, guidance: float = 1.0, **options) -> None:
        """Raise ValueError for settings of `generate` that this kind doesn't have, or that are out of range."""
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
        """Convert labels to class numbers, int64 [batch]; the number of classes stands for no class.

        Raises:
            ValueError: an unknown class, or a wrong number of labels.
        """
        classes = self.config.classes
        if label is None:
            return torch.full((batch,), len(classes), device=self.device)
        labels = [label] * batch if isinstance(label, int | str) else list(label)
        if len(labels) != batch:
            raise ValueError(f"{len(labels)} labels for a batch of {batch}: give one, or one for each sample")
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
        """Validate a prefix or known tokens -> (ids [batch, N], 0 if unknown; mask [N]).

        Raises:
            ValueError: both are given, or a wrong shape, dtype or id.
        """
        grid = self.config.grid
        if prefix is not None and known is not None:
            raise ValueError("give a prefix or known tokens, not both")
        ids, mask = known if known is not None else (torch.zeros(1, *grid, dtype=torch.long), masks.nothing(grid))
        if prefix is not None:
            if prefix.ndim != 4 or prefix.shape[2:] != grid[1:] or len(prefix) not in (1, batch):
                raise ValueError(f"a prefix is [{batch}, n, {grid[1]}, {grid[2]}], not {list(prefix.shape)}")
            if prefix.dtype != torch.long:
                raise ValueError(f"a prefix holds int64 token ids, not {prefix.dtype}")
            mask = masks.prefix(grid, prefix.shape[1])
            ids = torch.cat([prefix, prefix.new_zeros(len(prefix), grid[0] - prefix.shape[1], *grid[1:])], 1)
        if ids.shape[1:] != grid or len(ids) not in (1, batch) or mask.shape != grid or mask.dtype != torch.bool:
            raise ValueError(f"known tokens are [{batch}, {grid}] with a mask of {grid}, not {list(ids.shape)}")
        if ids.min() < 0 or ids.max() >= 2**self.config.bits:
            raise ValueError(f"token ids lie in 0 .. {2**self.config.bits - 1}, not {ids.min()} .. {ids.max()}")
        return ids.expand(batch, *grid).flatten(1).to(self.device), mask.flatten().to(self.device)

    def guided(self, guidance: float, label_B: Tensor) -> Tensor:
        """Embed the classes, [B, D]; with guidance [2 B, D], where the second half is without a class."""
        if guidance != 1:
            label_B = torch.cat([label_B, torch.full_like(label_B, len(self.config.classes))])
        return self.label_embed(label_B)

    # --------------------------------------------------------- load and save

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the hub's takes other arguments
        cls, name: str | os.PathLike, device: str | torch.device = "cpu", **hub_arguments
    ) -> "Generator":
        """Load a trained generator in evaluation mode; see `vidtok.generator.from_pretrained`."""
        from vidtok.generator import create_generator  # imported late, since it imports all kinds

        config, weights = find_pretrained(name, "generator", SHIPPED, **hub_arguments)
        generator = create_generator(read_config(config))
        generator.set_file_hash(load_weights(generator, weights, rename_parameter))
        return generator.eval().to(device)

    def _describe(self) -> tuple[str, str]:
        config = self.config
        return SCHEMA, (
            f"A {config.kind} generator of `{config.tokenizer}` tokens (weights `{config.weight_hash}`) for vidtok: "
            "`vidtok.generator.from_pretrained(PATH)`."
        )

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *arguments) -> None:
        """Load a state of this or an earlier version; also called for checkpoints."""
        for name in [name for name in state_dict if name.startswith(prefix) and rename_parameter(name) != name]:
            state_dict[rename_parameter(name)] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    @property
    def tokens(self) -> int:
        """Number of tokens N of a clip."""
        return math.prod(self.config.grid)


def classifier_free_guidance(logits: Tensor, guidance: float | Tensor, batch: int) -> Tensor:
    """Combine logits with and without class, [2 B, ...] -> [B, ...]; logits [B, ...] (no guidance) are unchanged."""
    if len(logits) == batch:
        return logits
    given, free = logits.chunk(2)
    return free + guidance * (given - free)


def list_shipped_generators() -> list[str]:
    """List the names that `from_pretrained` accepts without a download."""
    return list_shipped(SHIPPED)
