"""The held-out clips by which a person sees how a run goes."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from vidtok.checks import check_video
from vidtok.datasets import MovingDigits, read_video, refuse_overlap
from vidtok.datasets.container import MEDIA_SUFFIXES, VIDEO_SUFFIXES
from vidtok.datasets.files import find_media


def read_fixed_clips(
    root: str | Path | None,
    clips: int,
    frames: int,
    size: int | Sequence[int],
    stride: tuple[int, int, int],
    training_files: Iterable[str] = (),
) -> list[Tensor]:
    """The first frames of some videos spread over a folder, float32 [1, 3, frames, size, size] in [-1, 1] each.

    Args:
        root: the folder; "digits", the ones that training doesn't see; None, no clips.
        clips: how many. Videos with fewer than `frames` frames are left out with a warning.
        frames: of each; 1 takes images, too.
        size: of the centre crop, pixels; several give each video at every size, one size after the other.
        stride: of the tokenizer, which frames and size must fit.
        training_files: among which no file of the folder may be.

    Raises:
        ValueError: for a shape that doesn't fit the stride, a folder without videos (or with too short ones alone), and
            files of the training.
    """
    if root is None:
        return []
    if clips < 1:
        raise ValueError(f"validation.clips={clips} must be at least 1; validation.root=null watches none")
    if not isinstance(size, int):
        if not size or len({*size}) < len(size) or not all(isinstance(one, int) for one in size):
            raise ValueError(f"validation.size={size} must be one or more different sizes in pixels")
        arguments = (stride, list(training_files))
        return [clip for one in size for clip in read_fixed_clips(root, clips, frames, one, *arguments)]
    if root == "digits":
        digits = MovingDigits("val", frames, size)
        found = [digits[i * len(digits) // clips].video for i in range(clips)]
    else:
        files = find_media(root, MEDIA_SUFFIXES if frames == 1 else VIDEO_SUFFIXES)
        refuse_overlap(training_files, files)
        chosen = files[:: max(1, len(files) // max(1, clips))][:clips]
        read = [read_video(path, size=(size, size), max_frames=frames) for path in chosen]
        found = [clip for clip in read if clip.shape[2] == frames]
        if len(found) < len(read):
            warnings.warn(f"{len(read) - len(found)} validation clips have fewer than {frames} frames", stacklevel=2)
        if not found:
            raise ValueError(f"validation.root={root} holds no video of {frames} frames or more")
    check_video(found[0], stride)
    return found
