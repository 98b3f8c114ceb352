"""Files that Ray actors write themselves: `ActorFiles` in each actor, `ActorOutput` in the driver.

An actor writes files to a staging folder and publishes each complete one: it moves the file to the output folder, or
uploads it to the output's address. The driver gets a message about each video, and never its features.

    OUT/.ray-RUN.lock       lock that the driver of the run holds
    OUT/.ray-RUN/LIFE/      of one actor, from its start to its death
        staging/            files that the actor is writing
        gate/               made by the driver; every file passes through it by two renames

An actor that the cluster has lost may still be alive, on a machine without network. When the driver removes the folder
of its life, the actor can't publish anything more: a rename to a gate or out of it fails. Only then the driver looks
for what the actor has published and hands out the other videos again, so that no video is in the output twice. For an
address the staging folder is a temporary one on the actor's machine, and nothing stops such an actor. It may then
upload a video a second time; readers leave it out.
"""

import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from vidtok.errors import one_line
from vidtok.extraction.containers import SUFFIXES, open_writer, unlock
from vidtok.extraction.npz import REFUSED
from vidtok.extraction.output import Output
from vidtok.extraction.record import Entry, Record, RefusedName, Settings, describe, entry_of
from vidtok.extraction.sources import WorkItem
from vidtok.extraction.stats import Counts, ExtractionStats
from vidtok.files import RemoteFolder
from vidtok.remote import as_address, file_system, request

STAGING, GATE = "staging", "gate"


@dataclass(frozen=True, kw_only=True)
class Stored(Counts):
    """A video whose file an actor has published.

    Attributes:
        entry: of its first record.
        file: path of the file below the output folder. bytes: its size; in a file of many videos, that of the first.
    """

    entry: Entry
    file: str = ""
    bytes: int = 0


@dataclass(frozen=True)
class Published:
    """All videos of a file that an actor has published, as one message: a part of it can't be lost."""

    videos: list[Stored]


Message = tuple[str, "Published | Exception | None"]


@dataclass(frozen=True)
class Target:
    """Where an actor writes.

    Attributes:
        container: see `vidtok.extraction.containers.open_writer`.
        output: absolute path of the output folder, or its address.
        life: name of the actor's folder below it; "" for an address.
    """

    container: str
    output: str
    life: str = ""


class ActorFiles:
    """Writer of an actor.

    Raises:
        ValueError: this machine doesn't have the output folder that the driver has.
    """

    def __init__(self, target: Target):
        self._output, self._life = target.output, Path(target.output, target.life)
        if not target.life:
            self._staging = Path(tempfile.mkdtemp(prefix="vidtok-"))
        elif (self._life / GATE).is_dir():
            self._staging = self._life / STAGING
            self._staging.mkdir()
        else:
            machine = socket.gethostname()
            raise ValueError(
                f"{machine} doesn't see {target.output}: let the driver write, or give a folder of all machines"
            )
        self._names: dict[str, str] = {}
        self._writer = open_writer(self._staging, target.container, self._names)
        self._unpublished: dict[str, Stored] = {}

    def write(self, id: str, name: str, records: Sequence[Record]) -> Iterator[Message]:
        """Write the records of a video to a file that is called `name` if it holds one video.

        Yields:
            (id, None) once the video is written; then (id, `Published`) if its file is complete, also of other videos;
            or (id, error) if the file system refuses the name.
        """
        self._names[id] = name
        try:
            complete = self._writer.write(records)
        except RefusedName as error:
            yield id, error
            return
        finally:
            del self._names[id]
        self._unpublished[id] = Stored(**vars(Counts.of(records)), entry=entry_of(describe(records[0])))
        yield id, None
        yield from self._publish(complete, name)

    def complete(self) -> Iterator[Message]:
        """Complete the current shard, if there is one, and yield as `write` does."""
        yield from self._publish(self._writer.close())

    def _publish(self, ids: Sequence[str], name: str = "") -> Iterator[Message]:
        """Publish the file that has just been completed, which holds the videos `ids`. name: "" for a shard."""
        if not ids:
            return
        below = name or next(name for name in os.listdir(self._staging) if not name.startswith("."))
        path = self._staging / below
        size = path.stat().st_size
        try:
            self._move(path, below)
        except OSError as error:
            if error.errno not in REFUSED or not name:
                raise
            path.unlink(missing_ok=True)
            del self._unpublished[ids[0]]
            yield ids[0], RefusedName(one_line(error))
            return
        videos = [replace(self._unpublished.pop(id), file=below) for id in ids]
        videos[0] = replace(videos[0], bytes=size)
        yield ids[0], Published(videos)

    def _move(self, path: Path, below: str) -> None:
        if url := as_address(self._output):
            system, root = file_system(url)
            request(url, partial(system.put_file, str(path), f"{root.rstrip('/')}/{below}"))
            path.unlink()
            return
        target = Path(self._output, below)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(path, self._life / GATE / "file")
        os.replace(self._life / GATE / "file", target)


class ActorOutput(Output):
    """`Output` of a run whose actors write the files.

    Args:
        folder: of all machines; or a `RemoteFolder`, to whose address the actors upload.
        settings, container, items, stats, force: as of `Output`.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        settings: Settings,
        container: str,
        items: Iterable[WorkItem],
        stats: ExtractionStats,
        force: bool = False,
    ):
        super().__init__(folder, settings, container, items, stats, force)
        self._folder, self._container = Path(folder).absolute(), container
        self._remote = folder if isinstance(folder, RemoteFolder) else None
        self._sharded = container != "npz"
        self._published: set[str] = set()  # shards that actors have reported
        self._uploaded: set[str] = set()  # ids of videos whose files may be at the address alone
        if self._remote is not None:
            self._remote.send()  # settings.json comes before the first results
            return
        for lock_file in self._folder.glob(".ray-*.lock"):  # of drivers that were killed
            lock = FileLock(lock_file, thread_local=False)
            with suppress(Timeout):
                lock.acquire(timeout=0)
                _remove(lock_file.with_suffix(""))
                unlock(lock)
        self._run = self._folder / f".ray-{uuid.uuid4().hex[:12]}"
        self._lock = FileLock(f"{self._run}.lock", thread_local=False)
        self._lock.acquire()

    def target(self) -> Target:
        """Return the target of an actor that is about to start. May be called in any thread."""
        if self._remote is not None:
            return Target(self._container, self._remote.url)
        life = self._run / uuid.uuid4().hex[:12]
        (life / GATE).mkdir(parents=True)
        return Target(self._container, str(self._folder), life.relative_to(self._folder).as_posix())

    def fence(self, target: Target) -> None:
        """Keep an actor that was lost from publishing anything more. May be called in any thread."""
        if target.life:
            _remove(self._folder / target.life)

    def find_published(self, ids: Sequence[str]) -> dict[str, Stored]:
        """Find which of the videos of a lost actor it has published without a message; call `fence` before.

        Of the counts, only the frames of the first record are known.
        """
        if self._force:  # earlier results can't be told from new ones
            return {}
        if self._remote is not None:
            names = {self.writer.place(id) for id in ids}
            suffix = SUFFIXES[self._container]
            # Not failures.csv, which is newer here than at the address.
            self._remote.fetch(
                lambda below: (
                    below in names or (self._sharded and below.endswith(suffix) and below not in self._published)
                )
            )
        found = {id: self.writer.find(id) for id in ids}
        return {
            id: Stored(frames=entry.frames, records=1, tokens=0, damage="", entry=entry)
            for id, entry in found.items()
            if entry is not None
        }

    def take(self, item: WorkItem, records: "Sequence[Record] | Stored") -> bool:
        """Count a video that an actor has published, and release its lock."""
        assert isinstance(records, Stored)
        self.writer.adopt(records.entry, records.file, records.bytes)
        if self._sharded:
            self._published.add(records.file)
        elif self._remote is not None:
            self._uploaded.add(item.id)
        self._release([item.id])
        return True

    def _is_done(self, id: str) -> bool:
        return id in self._uploaded or super()._is_done(id)

    def close(self) -> None:
        self._end()
        super().close()

    def abandon(self) -> None:
        self._end()
        super().abandon()

    def _end(self) -> None:
        if self._remote is None:
            _remove(self._run)
            unlock(self._lock)


def _remove(folder: Path) -> None:
    """Remove a folder that another process may be using: first its name, by one rename."""
    dead = folder.with_name(f"{folder.name}.dead")
    with suppress(FileNotFoundError):
        os.rename(folder, dead)
    for path in (dead, folder):  # the process may have made the folder again, without a gate
        shutil.rmtree(path, ignore_errors=True)
