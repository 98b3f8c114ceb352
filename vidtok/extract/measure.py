"""How fast decoding, the model, and both together are, in one run on the same videos."""

import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from vidtok.datasets import VideoError
from vidtok.extract.batches import Batches
from vidtok.extract.decoders import Decoders
from vidtok.extract.engine import extract, run
from vidtok.extract.features import FeatureModel
from vidtok.extract.meter import Meter
from vidtok.extract.output import Output
from vidtok.extract.plan import Item
from vidtok.extract.reading import Piece

ROUNDS = 3
FRAMES = 2000  # their pieces are held in memory, for the model alone


@dataclass(frozen=True)
class Speeds:
    """Frames per second: decode and model, each alone; together, with files written. All of one round."""

    decode: float
    model: float
    together: float

    @property
    def of_serial(self) -> float:
        """Share of what one after the other would reach, 1 / (1 / decode + 1 / model); above 1 where they overlap."""
        return self.together * (1 / self.decode + 1 / self.model)

    @property
    def of_slower(self) -> float:
        """Share of the slower stage's speed."""
        return self.together / min(self.decode, self.model)


def measure(items: Iterable[Item], decoders: Decoders, model: FeatureModel, container: str) -> tuple[int, list[Speeds]]:
    """(frames, speeds of each of `ROUNDS` rounds) on the first videos, up to `FRAMES` frames. Nothing is kept.

    Raises:
        ValueError: where no video can be read.
    """
    pieces: dict[Item, list[Piece]] = {}
    frames = 0

    def keep(item: Item, piece: Piece | VideoError) -> bool:
        nonlocal frames
        if isinstance(piece, VideoError):
            pieces.pop(item, None)
        else:
            # A copy: the decoder wants its memory back.
            pieces.setdefault(item, []).append(piece._replace(video=piece.video.clone()))
            frames += piece.video.shape[2]
        return frames < FRAMES

    _decode(items, decoders, keep)
    if not pieces:
        raise ValueError("no video could be read")
    good = [*pieces]
    parts = [(item, piece) for item in good for piece in pieces[item]]
    frames = sum(len(piece.info.timestamps) for _, piece in parts if piece.info is not None)
    _encode(parts[:1], model)  # warms up
    rounds = []
    for _ in range(ROUNDS):
        seconds = [
            _time(lambda: _decode(good, decoders, lambda item, piece: True)),
            _time(lambda: _encode(parts, model)),
            _time(lambda: _extract(good, decoders, model, container)),
        ]
        rounds.append(Speeds(*(frames / s for s in seconds)))
    return frames, rounds


def _decode(items: Iterable[Item], decoders: Decoders, take: Callable[[Item, Piece | VideoError], bool]) -> None:
    """take: gets the pieces, and says whether to begin with more items."""
    items, under_way, more = iter(items), 0, True
    while True:
        while more and under_way < 2 * decoders.slots:
            item = next(items, None)
            more = item is not None
            if more:
                decoders.put(item)
                under_way += 1
        if not under_way:
            return
        item, piece = decoders.get()
        under_way -= isinstance(piece, VideoError) or piece.ends_item
        more = take(item, piece) and more


def _encode(pieces: list[tuple[Item, Piece]], model: FeatureModel) -> None:
    batches = Batches(model)
    for item, piece in pieces:
        batches.add(item, piece)
        while lanes := batches.choose(flush=False):
            batches.run(lanes)
    while lanes := batches.choose(flush=True):
        batches.run(lanes)


def _extract(items: list[Item], decoders: Decoders, model: FeatureModel, container: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        meter = Meter(len(items))
        extract_here = partial(extract, decoders=decoders, model=model, meter=meter)
        run(Output(folder, model.settings, container, items, meter), extract_here)


def _time(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
