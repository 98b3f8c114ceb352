"""The picture of a run's curves."""

import time

import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from vidtok.train.curves import PANELS, draw_curves, present, read_scalars, smooth


def test_scalars_of_a_resumed_run_and_their_picture(tmp_path):
    for steps, offset in ((range(1, 9), 1.0), (range(5, 13), 2.0)):  # the second part went on from step 4
        time.sleep(1.1)  # files are read by name, and within a second the 10th writer's comes before the 9th's
        with SummaryWriter(str(tmp_path / "scalars")) as writer:
            for step in steps:
                writer.add_scalar("reconstruction", offset + step, step)
                writer.add_scalar("entropy_codebook", 7.0, step)
    scalars = read_scalars(tmp_path)
    assert scalars["reconstruction"] == (list(range(1, 13)), [2, 3, 4, 5, *range(7, 15)])
    draw_curves({"run": scalars}, tmp_path / "curves.png")
    image = Image.open(tmp_path / "curves.png").convert("RGB")
    blue = sum(count for count, (r, g, b) in image.getcolors(1 << 24) if b > 150 and r < 100)
    assert blue > 100  # the first colour of the cycle
    with pytest.raises(ValueError, match="no scalars/"):
        read_scalars(tmp_path / "scalars")
    with pytest.raises(ValueError, match="no curves in a"):
        draw_curves({"a": {"other": ([1], [1.0])}}, tmp_path / "none.png")


def test_smooth_is_a_running_mean():
    assert smooth([1.0, 3.0, 5.0, 7.0], count=2) == [1.0, 2.0, 4.0, 6.0]
    assert smooth([1.0, 3.0]) == [1.0, 3.0]


def test_a_panel_has_validation_at_every_size():
    panel = PANELS["validation, PSNR in dB"]
    names = ["validation_psnr_256", "validation_psnr_128", "validation_psnr_best", "reconstruction"]
    assert present(panel, ["validation_psnr"]) == {"validation_psnr": ("", 1)}
    assert present(panel, names) == {"validation_psnr_256": ("256 px", 1), "validation_psnr_128": ("128 px", 1)}
    assert present(panel, ["reconstruction"]) == {}
