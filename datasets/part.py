"""The share of a batch that one process of several makes."""

Part = tuple[int, int]  # (index, count): that one of `count` equal slices of a batch
WHOLE: Part = (0, 1)


def rows_of(part: Part, size: int) -> range:
    """The rows of a part of a batch of `size`. Raises ValueError where the batch doesn't divide into such parts."""
    index, count = part
    rows, rest = divmod(size, count)
    if rest:
        raise ValueError(f"a batch of {size} doesn't divide into {count} equal parts: change the batch size")
    return range(index * rows, (index + 1) * rows)
