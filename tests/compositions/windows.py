"""Makers of convolutions, pools and resizing."""

from __future__ import annotations

import numpy as np

from tests.compositions.makers import makes
from tests.compositions.writer import Unfit, Writer

Attributes = dict[str, object]


def image(w: Writer, channels: int | None = None) -> str:
    """[N, C, spatial...] with one to three spatial axes."""
    n = w.rng.choice((1, 2, 2, 3))
    if channels is None and w.rng.random() < 0.5:
        return w.ranked(3, 4)
    sizes = [w.rng.randint(1, 5 if n < 3 else 3) for _ in range(n)]
    return w.like((w.rng.randint(1, 2), channels or w.rng.choice((1, 2, 4)), *sizes))


def window(w: Writer, x: str, dilated: bool = True) -> tuple[list[int], Attributes]:
    """A kernel, strides, dilations and pads; every window lies in what is padded."""
    spatial, rng = w.shape(x)[2:], w.rng
    kernel = [rng.randint(1, 3) for _ in spatial]
    attributes: Attributes = {}
    if rng.random() < 0.6:
        attributes["strides"] = [rng.randint(1, 3) for _ in spatial]
    if dilated and rng.random() < 0.4:
        attributes["dilations"] = [rng.randint(1, 2) for _ in spatial]
    if rng.random() < 0.25:
        attributes["auto_pad"] = rng.choice(("SAME_UPPER", "SAME_LOWER", "VALID"))
    elif rng.random() < 0.6:
        attributes["pads"] = [rng.randint(0, kernel[i % len(kernel)] - 1) for i in range(2 * len(kernel))]
    dilations = attributes.get("dilations", [1] * len(kernel))
    pads = attributes.get("pads", [0] * 2 * len(kernel))
    assert isinstance(dilations, list) and isinstance(pads, list)
    for i, size in enumerate(spatial):
        added = 0 if str(attributes.get("auto_pad", "")).startswith("SAME") else pads[i] + pads[i + len(kernel)]
        if size + added < (kernel[i] - 1) * dilations[i] + 1:
            raise Unfit
    return kernel, attributes


@makes("Conv")
def conv(w: Writer, op: str) -> None:
    x = image(w)
    channels = w.shape(x)[1]
    groups = w.rng.choice([g for g in (1, 1, 2, channels) if channels % g == 0])
    kernel, attributes = window(w, x)
    out = groups * w.rng.randint(1, 2)
    b = w.like((out,)) if w.rng.random() < 0.5 else ""
    w.op(op, x, w.like((out, channels // groups, *kernel)), b, group=groups, **attributes)


@makes("ConvTranspose")
def conv_transpose(w: Writer, op: str) -> None:
    x, rng = image(w), w.rng
    spatial, channels = w.shape(x)[2:], w.shape(x)[1]
    groups = rng.choice([g for g in (1, 1, 2) if channels % g == 0])
    kernel = [rng.randint(1, 3) for _ in spatial]
    strides, dilations = ([rng.randint(1, 2) for _ in spatial] for _ in range(2))
    attributes: Attributes = {"strides": strides, "dilations": dilations, "group": groups}
    if rng.random() < 0.4:
        attributes["output_padding"] = [rng.randint(0, s - 1) for s in strides]
    if rng.random() < 0.5:
        attributes["pads"] = [rng.randint(0, 1) for _ in range(2 * len(kernel))]
        reach = [s * (n - 1) + (k - 1) * d + 1 for n, k, s, d in zip(spatial, kernel, strides, dilations, strict=True)]
        if min(reach) <= 2:
            raise Unfit
    out = rng.randint(1, 2)
    b = w.like((groups * out,)) if rng.random() < 0.5 else ""
    w.op(op, x, w.like((channels, out, *kernel)), b, **attributes)


@makes("MaxPool AveragePool LpPool")
def pool(w: Writer, op: str) -> None:
    x = image(w)
    kernel, attributes = window(w, x, dilated=op == "MaxPool" or w.opset >= 19)
    if op != "LpPool" or w.opset >= 18:
        attributes["ceil_mode"] = w.rng.choice((0, 0, 1))
    if op == "AveragePool" and w.rng.random() < 0.5:
        attributes |= {"count_include_pad": 1, "ceil_mode": 0}
    if attributes.get("ceil_mode") and _begins_behind(w.shape(x)[2:], kernel, attributes):
        raise Unfit
    if op == "LpPool":
        attributes["p"] = w.rng.choice((1, 2, 3))
    w.op(op, x, kernel_shape=kernel, **attributes)


def _begins_behind(spatial: tuple[int, ...], kernel: list[int], a: Attributes) -> bool:
    """Whether `ceil_mode` adds a window that begins behind the input, which runtimes leave out and onnx counts."""
    if "auto_pad" in a:
        return False
    n = len(kernel)
    strides, dilations, pads = (
        a.get(name, [i] * n * m) for name, i, m in (("strides", 1, 1), ("dilations", 1, 1), ("pads", 0, 2))
    )
    assert isinstance(strides, list) and isinstance(dilations, list) and isinstance(pads, list)
    for i, size in enumerate(spatial):
        room = size + pads[i] + pads[n + i] - (kernel[i] - 1) * dilations[i] - 1
        if -(-room // strides[i]) * strides[i] >= size + pads[i]:
            return True
    return False


@makes("GlobalAveragePool GlobalMaxPool")
def whole(w: Writer, op: str) -> None:
    w.op(op, image(w))


@makes("GlobalLpPool")
def whole_norm(w: Writer, op: str) -> None:
    w.op(op, image(w), p=w.rng.choice((1, 2, 3)))


@makes("MaxUnpool")
def max_unpool(w: Writer, op: str) -> None:
    """Behind a MaxPool whose windows do not overlap; another tensor is put in its places now and then."""
    x = image(w)
    kernel = [min(size, w.rng.randint(1, 2)) for size in w.shape(x)[2:]]
    pooled, places = w.many("MaxPool", x, outputs=2, kernel_shape=kernel, strides=kernel)
    data = pooled if w.rng.random() < 0.5 else w.like(w.shape(places))
    whole = {"kernel_shape": kernel, "strides": kernel}
    if all(size % k == 0 for size, k in zip(w.shape(x)[2:], kernel, strict=True)):
        w.op(op, data, places, **whole)
    else:
        w.op(op, data, places, w.ints(w.shape(x)), **whole)


@makes("Resize")
def resize(w: Writer, op: str) -> None:
    x = w.like((*w.random_shape(2, 2), *(w.rng.randint(1, 4) for _ in range(w.rng.choice((1, 2))))))
    mode = w.rng.choice(("nearest", "linear", "cubic"))
    if mode == "cubic" and w.rank(x) != 4:
        raise Unfit
    spatial = w.shape(x)[2:]
    attributes: Attributes = {"mode": mode}
    places = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    attributes["coordinate_transformation_mode"] = w.rng.choice(places)
    if mode == "nearest":
        ways = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
        attributes["nearest_mode"] = w.rng.choice(ways)
    if w.rng.random() < 0.5:
        w.op(op, x, "", "", w.ints([*w.shape(x)[:2], *(w.rng.randint(1, 2 * size) for size in spatial)]), **attributes)
        return
    scales = np.float32([1, 1, *(w.rng.choice((0.5, 1.0, 2.0, 3.0)) for _ in spatial)])
    w.op(op, x, "", w.constant(scales), **attributes)
