"""Sampling an image or a volume at places: GridSample and AffineGrid."""

from __future__ import annotations

import functools

import onnx_ir as ir

from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import rule

_A = -0.75  # of the cubic convolution, as torch has it
#: By mode: the first neighbour, and the weight of each as a polynomial in the fraction (rows: powers; columns: taps).
_KERNELS: dict[str, tuple[int, list[list[float]]]] = {
    "nearest": (0, [[1.0]]),
    "linear": (0, [[1.0, 0.0], [-1.0, 1.0]]),
    "cubic": (
        -1,
        [
            [0.0, 1.0, 0.0, 0.0],
            [_A, 0.0, -_A, 0.0],
            [-2 * _A, -(_A + 3), 2 * _A + 3, _A],
            [_A, _A + 2, -(_A + 2), -_A],
        ],
    ),
}


def _what_moves(node: ir.Node) -> dict[str, str]:
    mode = node.attributes.get("mode")
    return {"Y": "X"} if mode is not None and mode.as_string() == "nearest" else {}


@rule("GridSample", "X grid", outputs=_what_moves)
def grid_sample(op: Adjoint) -> Cotangents:
    """Y is a sum over neighbours of X, weighted by a product of one weight per axis (torch's grid_sampler).

    dX: dY times the weights, added up at the neighbours. dgrid: the weight of one axis gives way to its derivative; it
    is 0 where the padding holds a place at the border. Mode nearest is constant in the grid.
    """
    b, taps = op.b, _Taps(op)
    if op.wants("X"):
        yield "X", _to_image(op, taps)
    if op.wants("grid"):
        grid = op["grid"]
        moved = b.op("Reshape", taps.slopes() * taps.slope, b.shape_of(grid), allowzero=1, shape=grid.shape)
        yield "grid", b.Cast(moved, to=grid.dtype)


def _to_image(op: Adjoint, taps: _Taps) -> ir.Value:
    b, X = op.b, op["X"]
    rows = b.Unsqueeze(taps.cotangents(), b.ints([2])) * b.Unsqueeze(taps.factors(), b.ints([3]))
    shape = b.Concat(taps.batch * taps.elements, taps.channels, axis=0)
    added = b.op("GatherGrad", rows, taps.rows(), shape, axis=0, domain="gradcut", dtype=rows.dtype)
    images = b.Reshape(added, b.Concat(taps.batch, taps.elements, taps.channels, axis=0), allowzero=1)
    moved = b.op("Transpose", images, perm=[0, 2, 1])
    return b.Cast(b.op("Reshape", moved, b.shape_of(X), allowzero=1, shape=X.shape), to=X.dtype)


class _Taps:
    """What each of the P places of each image reads: `taps` neighbours along each of `rank` axes.

    Along an axis they stand in the order of the grid's numbers, so the last axis of X comes first.

    Attributes:
        reached: the neighbours' coordinates as floats, [N, P, rank, taps], not yet held inside.
        weights, derivatives: [N, P, rank, taps]; `derivatives` by the coordinate. slope: of coordinates by the grid.
        inside: BOOL [N, P, rank, taps] where zeros are read outside, else None.
        batch, channels, elements, places: N, C, the size of one channel, P: INT64 [1].
    """

    def __init__(self, op: Adjoint) -> None:
        self.op, b, X = op, op.b, op["X"]
        self.rank = op.rank("X") - 2
        self.padding = op.attr("padding_mode", "zeros")
        self.mode = op.attr("mode", "linear").removeprefix("bi")
        self.batch, self.channels = b.dim(X, 0), b.dim(X, 1)
        self.sizes = [b.dim(X, axis) for axis in reversed(range(2, 2 + self.rank))]
        self.elements = b.ReduceProd(b.Concat(*self.sizes, axis=0), keepdims=1)
        self.places = b.ReduceProd(b.Concat(*(b.dim(op["grid"], 1 + a) for a in range(self.rank)), axis=0), keepdims=1)
        self._find(op.wide(op["grid"]))

    def _find(self, grid: ir.Value) -> None:
        b, kind = self.op.b, grid.dtype or ir.DataType.FLOAT
        self.size = b.Cast(b.Concat(*self.sizes, axis=0), to=kind)
        place = b.Reshape(grid, b.Concat(self.batch, self.places, b.ints([self.rank]), axis=0), allowzero=1)
        place, self.slope = self._unnormalized(place)
        if self.mode != "cubic" and self.padding != "zeros":
            place, held = self._held(place, self.size)
            self.slope = held * self.slope
        base = b.Round(place) if self.mode == "nearest" else b.Floor(place)
        first, kernel = _KERNELS[self.mode]
        self.weights, self.derivatives = self._polynomials(b.Unsqueeze(place - base, b.ints([3])), kernel, kind)
        offsets = b.constant([float(first + tap) for tap in range(len(kernel[0]))], kind)
        reached, size = b.Unsqueeze(base, b.ints([3])) + offsets, b.Unsqueeze(self.size, b.ints([1]))
        self.inside: ir.Value | None = None
        if self.padding == "zeros":
            self.inside = b.And(b.GreaterOrEqual(reached, 0.0), b.Less(reached, size))
        elif self.mode == "cubic":  # each neighbour on its own; the weights stay those of the place
            reached, _ = self._held(reached, size)
        self.reached = reached

    # --- where ---------------------------------------------------------------------------------------------------

    def _unnormalized(self, grid: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Coordinates in elements for those from -1 to 1, and their slope."""
        if self.op.attr("align_corners", 0):
            slope = (self.size - 1.0) * 0.5
            return (grid + 1.0) * slope, slope
        return ((grid + 1.0) * self.size - 1.0) * 0.5, self.size * 0.5

    def _held(self, place: ir.Value, size: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Coordinates brought inside, and the slope of that: 0 at the border and beyond, -1 where turned round."""
        b, zero = self.op.b, self.op.b.scalar_like(0.0, place)
        slope, last = b.scalar_like(1.0, place), size - 1.0
        if self.padding == "reflection":
            place, slope = self._reflected(place, size)
        free = b.And(b.Greater(place, 0.0), b.Less(place, last))
        return b.Min(b.Max(place, zero), last), b.Where(free, slope, zero)

    def _reflected(self, place: ir.Value, size: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Between the centres of the outer elements, or between their edges."""
        b, one = self.op.b, self.op.b.scalar_like(1.0, place)
        low, span = -0.5, size
        if self.op.attr("align_corners", 0):
            low, span = 0.0, b.Max(size - 1.0, one)  # of a single element any span will do: all are at 0
        distance = b.Abs(place - low)
        turns = b.Floor(distance / span)
        rest, odd = distance - turns * span, b.Equal(turns - b.Floor(turns * 0.5) * 2.0, one)
        sign = b.Where(b.Less(place, low), -one, one)
        return b.Where(odd, span - rest, rest) + low, b.Where(odd, -sign, sign)

    # --- how much ------------------------------------------------------------------------------------------------

    def _polynomials(self, t: ir.Value, kernel: list[list[float]], kind: ir.DataType) -> tuple[ir.Value, ir.Value]:
        """The weights at a fraction and their derivatives, by Horner's scheme."""
        b = self.op.b
        weights, derivatives = b.Expand(b.constant(kernel[-1], kind), b.Shape(t)), b.constant(0.0, kind)
        for row in reversed(kernel[:-1]):
            derivatives = derivatives * t + weights
            weights = weights * t + b.constant(row, kind)
        return weights, derivatives

    def _along(self, x: ir.Value, axis: int) -> ir.Value:
        """One axis of [N, P, rank, taps], as [N, P, .., taps, ..]."""
        b = self.op.b
        others = [2 + a for a in range(self.rank) if a != axis]
        return b.Unsqueeze(b.Gather(x, b.constant(axis), axis=2), b.ints(others))

    def _flat(self, x: ir.Value) -> ir.Value:
        """[N, P, taps, .., taps] as [N, P, K]."""
        b, count = self.op.b, len(_KERNELS[self.mode][1][0]) ** self.rank
        return b.Reshape(x, b.Concat(self.batch, self.places, b.ints([count]), axis=0), allowzero=1)

    def _all_inside(self) -> ir.Value | None:
        """BOOL [N, P, K]."""
        if self.inside is None:
            return None
        along = (self._along(self.inside, axis) for axis in range(self.rank))
        return self._flat(functools.reduce(self.op.b.And, along))

    def _product(self, by: int | None = None) -> ir.Value:
        """[N, P, K]: the weight of each neighbour, or its derivative by one coordinate."""
        parts = (self.derivatives if axis == by else self.weights for axis in range(self.rank))
        return self._flat(functools.reduce(self.op.b.Mul, map(self._along, parts, range(self.rank))))

    def factors(self) -> ir.Value:
        """[N, P, K]: what a neighbour counts, 0 outside."""
        weights, inside = self._product(), self._all_inside()
        return weights if inside is None else self.op.b.Where(inside, weights, self.op.b.scalar_like(0.0, weights))

    def rows(self) -> ir.Value:
        """INT64 [N, P, K]: the row of each neighbour among all places [N * elements, C]; outside, of one nearby."""
        b, int64 = self.op.b, ir.DataType.INT64
        last = b.Unsqueeze(b.Concat(*self.sizes, axis=0) - 1, b.ints([1]))
        held = b.Min(b.Max(b.Cast(self.reached, to=int64), b.constant(0, int64)), last)
        count = b.Range(b.constant(0, int64), b.Squeeze(self.batch, b.ints([0])), b.constant(1, int64), dtype=int64)
        row = b.Unsqueeze(count, b.ints(range(1, 2 + self.rank)))
        for axis in reversed(range(self.rank)):
            row = row * self.sizes[axis] + self._along(held, axis)
        return self._flat(row)

    def cotangents(self) -> ir.Value:
        """dY as [N, P, C]."""
        b, dY = self.op.b, self.op.wide(self.op.dY)
        flat = b.Reshape(dY, b.Concat(self.batch, self.channels, self.places, axis=0), allowzero=1)
        return b.op("Transpose", flat, perm=[0, 2, 1])

    def slopes(self) -> ir.Value:
        """[N, P, rank]: the cotangent of each coordinate."""
        b, X = self.op.b, self.op.wide(self.op["X"])
        images = b.Reshape(X, b.Concat(self.batch, self.channels, self.elements, axis=0), allowzero=1)
        shape = b.Concat(self.batch * self.elements, self.channels, axis=0)
        rows = b.Reshape(b.op("Transpose", images, perm=[0, 2, 1]), shape, allowzero=1)
        seen = b.MatMul(b.Gather(rows, self.rows(), axis=0), b.Unsqueeze(self.cotangents(), b.ints([3])))
        seen, inside = b.Squeeze(seen, b.ints([3])), self._all_inside()
        if inside is not None:
            seen = b.Where(inside, seen, b.scalar_like(0.0, seen))
        by = [b.ReduceSum(seen * self._product(by=axis), b.ints([2]), keepdims=1) for axis in range(self.rank)]
        return b.Concat(*by, axis=2)


@rule("AffineGrid", "theta")
def affine_grid(op: Adjoint) -> Cotangents:
    """grid = theta (x, y, 1) at each place: dtheta sums dY times (x, y, 1), the places as the operator makes them."""
    b, theta, size, dY = op.b, op["theta"], op["size"], op.wide(op.dY)
    rank, start, end = b.dim(theta, 1), b.ints([1]), b.ints([2**62])
    identity = b.op("EyeLike", b.zeros(b.Concat(rank, rank + 1, axis=0), dY.dtype or ir.DataType.FLOAT))
    one_image = b.Concat(start, b.Slice(size, start, end, b.ints([0])), axis=0)
    places = b.op("AffineGrid", b.Unsqueeze(identity, b.ints([0])), one_image, align_corners=op.attr("align_corners"))
    count = b.ReduceProd(b.Slice(size, b.ints([2]), end, b.ints([0])), keepdims=1)
    rows = b.Reshape(dY, b.Concat(b.dim(theta, 0), count, rank, axis=0), allowzero=1)
    across = b.op("Transpose", rows, perm=[0, 2, 1])
    linear = b.op("MatMul", across, b.Reshape(places, b.Concat(b.ints([1]), count, rank, axis=0), allowzero=1))
    shift = b.ReduceSum(across, b.ints([2]), keepdims=1)
    yield "theta", b.Cast(b.op("Concat", linear, shift, axis=2, shape=theta.shape), to=theta.dtype)
