"""The run: videos in, records out, the model busy while others decode."""

from collections.abc import Callable, Iterator
from dataclasses import asdict

import numpy as np
import torch

from vidtok.datasets import VideoError
from vidtok.extract.batches import Batches
from vidtok.extract.decoders import Decoders
from vidtok.extract.features import FeatureModel
from vidtok.extract.meter import Meter
from vidtok.extract.output import Output
from vidtok.extract.plan import Item
from vidtok.extract.reading import Info
from vidtok.extract.record import Record, RecordMeta, Settings
from vidtok.padding import coded_size

Result = tuple[Item, "list[Record] | Exception"]
NextItem = Callable[[], "Item | None"]


def run(
    output: Output, extract: Callable[[NextItem], Iterator[Result]], report: Callable[[], None] = lambda: None
) -> None:
    """Does all that `output` has to do. report: called whenever something was done.

    extract: the function below with a model and decoders, or `Fleet.extract`, the same on other machines.

    Raises:
        OSError: where the disk is full, ...; all that is complete stays.
    """
    try:
        while True:
            for item, result in extract(output.next):
                if isinstance(result, Exception):
                    output.fail(item, reason(result))
                else:
                    output.take(item, result)
                report()
            if not output.flush():
                break
    except KeyboardInterrupt:
        output.close()
        raise
    except BaseException:
        output.abandon()
        raise
    output.close()


def extract(next_item: NextItem, decoders: Decoders, model: FeatureModel, meter: Meter) -> Iterator[Result]:
    """All records of one video after the other, or the error that it ended in, in the order in which they end.

    next_item: gives the videos, and None when there are no more. Only those that are being decoded, and a few pieces
    of them, are in memory.
    """
    batches = Batches(model)
    decoding: dict[str, Item] = {}  # pieces are still to come
    clips: dict[str, list[Record]] = {}  # of videos that are not complete
    failed: set[str] = set()  # videos that the model could not take, of which pieces are still to come
    more = True
    while True:
        while more and len(decoding) < 2 * decoders.slots:
            item = next_item()
            more = item is not None
            if more:
                decoding[item.id] = item
                decoders.put(item)
        if decoding:
            with meter.stage("read"):
                item, piece = decoders.get()
            ends = isinstance(piece, VideoError) or piece.ends_item
            if ends:
                del decoding[item.id]
            if item.id in failed:
                failed -= {item.id} if ends else set()
            elif isinstance(piece, VideoError):
                batches.drop(item)
                clips.pop(item.id, None)
                yield item, piece
            else:
                batches.add(item, piece)
        while lanes := batches.choose(flush=not decoding):
            try:
                with meter.stage("infer"):
                    ended = batches.run(lanes)
            except (MemoryError, torch.OutOfMemoryError) as error:
                for item in {lane.item.id: lane.item for lane in lanes}.values():
                    batches.drop(item)
                    clips.pop(item.id, None)
                    failed |= {item.id} & decoding.keys()
                    yield item, error
                continue
            for item, clip, info, features in ended:
                records = clips.setdefault(item.id, [])
                records.append(make_record(item, clip, info, features, model.settings))
                meter.frames += len(info.timestamps)
                if len(records) == (info.clips or 1):
                    yield item, sorted(clips.pop(item.id), key=lambda record: record.meta.clip or 0)
        if not decoding and not more:
            return


def make_record(item: Item, clip: int | None, info: Info, features: np.ndarray, settings: Settings) -> Record:
    cells = features.size if settings.feature == "ids" else features[0].size
    meta = RecordMeta(
        **asdict(settings),
        fps=info.fps,
        frames=len(info.timestamps),
        size=info.size,
        coded_size=coded_size(info.size, settings.stride),
        native_size=info.native_size,
        native_fps=info.native_fps,
        source=item.path.rpartition("/")[2] if item.path else "",
        source_bytes=info.source_bytes,
        reader=info.reader,
        bytes_per_token=features.nbytes / cells if features.ndim > 1 else None,
        clip=clip,
        clips=info.clips,
    )
    return Record(item.id, item.label, item.split, features, info.timestamps, meta)


def reason(error: Exception) -> str:
    """Why a video failed, on one line, without its name."""
    text = error.reason if isinstance(error, VideoError) else str(error)
    return " ".join(text.split())
