#!/usr/bin/env python3
"""Cut folders of clips into tar archives of at most 30 MB, for hosts that take uploads of limited size.

    python .relay/pack.py DATA OUT FOLDER...

Archives are DATA/FOLDER/FILE as FOLDER/FILE, uncompressed (the clips are), pack-00.tar and so on.
"""

import sys
import tarfile
from pathlib import Path

LIMIT = 30_000_000
BLOCK, RECORD = 512, 10_240  # of tar: a file takes a header and whole blocks, an archive whole records


def main(data: Path, out: Path, folders: list[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    packs, room = [], 0
    for folder in folders:
        for file in sorted(path for path in (data / folder).rglob("*") if path.is_file()):
            size = (1 + -(-file.stat().st_size // BLOCK)) * BLOCK
            if size > room:
                packs.append([])
                room = LIMIT - 2 * RECORD
            packs[-1].append(file)
            room -= size
    for number, files in enumerate(packs):
        with tarfile.open(out / f"pack-{number:02}.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
            for file in files:
                archive.add(file, file.relative_to(data))
    print(f"{len(packs)} packs in {out}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
