"""Which pieces go through the model together: next ones of different streams, of one shape."""

from collections import Counter, deque
from dataclasses import dataclass, field

from vidtok.extract.features import FeatureModel, Stream
from vidtok.extract.plan import Item
from vidtok.extract.reading import Info, Piece


@dataclass
class _Lane:
    item: Item
    clip: int | None
    stream: Stream = field(default_factory=Stream)
    waiting: deque[Piece] = field(default_factory=deque)


class Batches:
    """Pieces wait here until a batch is full, or until `limit` of them are waiting."""

    def __init__(self, model: FeatureModel):
        self.model = model
        self.limit = 4 * model.batch
        self.waiting = 0
        self._lanes: dict[tuple[str, int | None], _Lane] = {}

    def add(self, item: Item, piece: Piece) -> None:
        lane = self._lanes.setdefault((item.id, piece.clip), _Lane(item, piece.clip))
        lane.waiting.append(piece)
        self.waiting += 1

    def drop(self, item: Item) -> None:
        """All of an item that failed."""
        for key in [key for key, lane in self._lanes.items() if lane.item == item]:
            self.waiting -= len(self._lanes.pop(key).waiting)

    def choose(self, flush: bool) -> list[_Lane]:
        """Whose next pieces to run: a full batch; or the fullest, with `flush` or too many waiting; or none."""
        heads = {key: _kind(lane) for key, lane in self._lanes.items() if lane.waiting}
        if not heads:
            return []
        kind, count = Counter(heads.values()).most_common(1)[0]
        if count < self.model.batch and not flush and self.waiting < self.limit:
            return []
        return [self._lanes[key] for key, other in heads.items() if other == kind][: self.model.batch]

    def run(self, lanes: list[_Lane]) -> list[tuple[Item, int | None, Info, object]]:
        """One pass of the model. Returns (item, clip, info, features) of the streams that ended with it."""
        pieces = [lane.waiting.popleft() for lane in lanes]
        self.waiting -= len(pieces)
        self.model.push([lane.stream for lane in lanes], [piece.video for piece in pieces])
        ended = []
        for lane, piece in zip(lanes, pieces, strict=True):
            if piece.info is not None:
                del self._lanes[lane.item.id, lane.clip]
                ended.append((lane.item, lane.clip, piece.info, self.model.finish(lane.stream)))
        return ended


def _kind(lane: _Lane) -> tuple:
    piece = lane.waiting[0]
    return tuple(piece.video.shape), piece.first
