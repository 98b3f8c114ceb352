"""Markdown tables of speed, from the JSON of `vidtok bench`."""

from collections.abc import Mapping, Sequence

from vidtok.eval.report import markdown_row


def speed_table(result: Mapping) -> str:
    """Return the speed of a tokenizer in fp32 and bf16, from the JSON of `vidtok bench`."""

    def row(title: str, key: str, form: str, what: str, field: str, scale: float = 1.0) -> str:
        cells = []
        for precision in ("fp32", "bf16"):
            wanted = {"what": what, "precision": precision}
            rows = [row for row in result[key] if wanted.items() <= row.items()]
            # The first size, in the memory layout of `from_pretrained`.
            first = next(row for row in rows if row.get("layout", "channels-last") == "channels-last")
            cells.append(form.format(scale * first[field]))
        return markdown_row([title, *cells])

    clip, step, latent = (_shape(result[key][0]) for key in ("tokenizer", "train", "streaming"))
    lines = [
        markdown_row([f"`{result['model']}`", "fp32", "bf16"]),
        markdown_row(["---"] * 3),
        row(f"encode {clip}, frames/s", "tokenizer", "{:.0f}", "encode", "frames_per_s"),
        row("decode, frames/s", "tokenizer", "{:.0f}", "decode", "frames_per_s"),
        row("encode, GFLOP/s", "tokenizer", "{:.0f}", "encode", "gflop_per_s"),
        row("its convolutions alone, GFLOP/s", "tokenizer", "{:.0f}", "encode", "conv_gflop_per_s"),
        row(f"encode one latent of a stream, {latent}, ms", "streaming", "{:.0f}", "encode", "median_s", 1e3),
        row(f"training step of {step}, s", "train", "{:.2f}", "step", "median_s"),
        row("training step with discriminator, s", "train", "{:.1f}", "step with GAN", "median_s"),
    ]
    return "\n".join(lines)


def speed_ratio_table(result: Mapping) -> str:
    """Return speed ratios against other libraries, measured in the same run."""
    versions, loss = result["provenance"]["versions"], result["loss"]

    def row(title: str, ratio: Mapping) -> str:
        return markdown_row([title, f"{ratio['median']:.3g} ({ratio['lowest']:.3g} .. {ratio['highest']:.3g})"])

    lines = [
        markdown_row(["compared in the same run", "times as fast, median (lowest .. highest)"]),
        markdown_row(["---"] * 2),
        row(
            f"encode {_shape(result['tokenizer'][0])}: `magvit2-pytorch` {versions['magvit2-pytorch']}, the model of "
            "its README",
            result["encode_peer"]["ratio"],
        ),
        row(
            f"LFQ loss and gradient, {loss['bits']} bits, {loss['rows'][1]['tokens']} tokens: "
            f"`vector-quantize-pytorch` {versions['vector-quantize-pytorch']}",
            loss["ratio"],
        ),
        row(
            f"`magvit2` encode {_shape(result['magvit2'][0])}, bf16 and channels-last: itself in fp32, contiguous",
            result["magvit2_ratio"],
        ),
    ]
    return "\n".join(lines)


def machine_line(result: Mapping) -> str:
    """Return the machine, threads and load of a `vidtok bench`."""
    about = result["provenance"]
    machine = about["machine"]
    return (
        f"{machine['cpu']}, {about['threads']} of {machine['cores']} cores, torch {about['versions']['torch']}, "
        f"load {machine['load']:.0f}."
    )


def sampling_table(results: Sequence[Mapping]) -> str:
    """Return seconds of masked and next-token sampling, from the JSON of `vidtok bench generate`, one per device."""
    first = results[0]["rows"][0]
    what = "{steps} masked steps, {tokens} tokens, {depth} layers x {width}".format(**first, **first["trunk"])
    head = [what, "masked, s", "with cache, s", "without, s", "cache / masked", "without / masked"]
    lines = [markdown_row(head), markdown_row(["---"] * len(head))]
    for result in results:
        device = result["provenance"]["device"].replace("cpu", "CPU")
        for row in result["rows"]:
            cells = [f"{row[kind]['median_s']:.3g}" if kind in row else "" for kind in ("masked", "cached", "uncached")]
            cells += [f"{row[kind]['median']:.3g}" if kind in row else "" for kind in ("over_cached", "over_uncached")]
            lines.append(markdown_row([f"{device}, batch {row['batch']}", *cells]))
    return "\n".join(lines)


def reading_table(result: Mapping) -> str:
    """Return decoding rates of vidtok and of other libraries, from the JSON of `vidtok bench loader`."""
    rows = [row for row in result["rows"] if "reader" in row]
    readers = list(dict.fromkeys(row["reader"] for row in rows))
    head = ["frames/s (median ratio to decord, lowest; dB)", *readers]
    lines = [markdown_row(head), markdown_row(["---"] * len(head))]
    for of in dict.fromkeys(row["of"] for row in rows):
        found = {row["reader"]: row for row in rows if row["of"] == of}
        lines.append(markdown_row([of, *(_rate(found[name]) if name in found else "" for name in readers)]))
    memory = next(row for row in result["rows"] if "mb" in row)
    return (
        "\n".join(lines)
        + f"\n\nStreaming the {memory['of'].split()[0]} file takes {memory['mb']:.0f} MB above the start."
    )


def _rate(row: Mapping) -> str:
    ratio = "" if row["reader"] == "decord" else f" ({row['ratio']:.2f}, {row['lowest']:.2f}"
    quality = "" if row["psnr"] is None else f"{'; ' if ratio else ' ('}{row['psnr']:.1f} dB"
    return f"{row['frames_per_s']:.0f}{ratio}{quality}" + (")" if ratio or quality else "")


def _shape(row: Mapping) -> str:
    return "{batch} x {frames} x {side} x {side}".format(**{"batch": 1, **row})
