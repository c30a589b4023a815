"""How every primitive ties the axes of its operands and outputs together; a primitive without a rule pins them all.

A rule maps an equation and the axes of its operands to the axes of its outputs, or to None where it does not apply.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from landscape.compiler.interpreter import Equation
from landscape.symmetry.axes import Axis, atoms_of, concatenation, is_pinned, pin, product, root, unify

Axes = list[Axis]
Rule = Callable[[Equation, list[Axes]], list[Axes] | None]

ELEMENTWISE = frozenset(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp complex conj
    convert_element_type cos cosh digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac imag
    integer_pow is_finite le le_to lgamma log log1p logistic lt lt_to max min mul ne neg nextafter not or polygamma
    population_count pow real reduce_precision regularized_incomplete_beta rem round rsqrt select_n shift_left
    shift_right_arithmetic shift_right_logical sign sin sinh sqrt square sub tan tanh xor zeta""".split()
)
IDENTITY = frozenset("copy copy_p device_put optimization_barrier pvary sharding_constraint stop_gradient".split())
REDUCTIONS = frozenset("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor".split())
ORDERED = frozenset("cumsum cumprod cummax cummin cumlogsumexp".split())
WINDOWS = frozenset("reduce_window_max reduce_window_min reduce_window_sum".split())


def rule_of(name: str) -> Rule:
    """The rule of a primitive, by its name; one that returns None where there is none."""
    kinds = (
        (ELEMENTWISE, _elementwise),
        (IDENTITY, lambda e, xs: xs),
        (REDUCTIONS, _reduction),
        (ORDERED, _ordered),
        (WINDOWS, _window),
    )
    return next((rule for names, rule in kinds if name in names), SINGLE.get(name, lambda e, xs: None))


def shapes_of(equation: Equation) -> list[tuple[int, ...]]:
    """The shapes of an equation's outputs."""
    avals: list[Any] = [v.aval for v in equation.outvars]
    return [tuple(aval.shape) for aval in avals]


def _pin_all(axes: Sequence[Axis]) -> None:
    for axis in axes:
        pin(axis)


def _without(axes: Axes, gone: Sequence[int]) -> Axes:
    return [axis for k, axis in enumerate(axes) if k not in gone]


def _elementwise(e: Equation, xs: list[Axes]) -> list[Axes]:
    """Operands are of the output's shape or scalars."""
    (shape, *_), out = shapes_of(e), []
    for k, n in enumerate(shape):
        same = [x[k] for x in xs if len(x) == len(shape) and root(x[k]).size == n]
        for other in same[1:]:
            unify(same[0], other)
        out.append(same[0] if same else Axis(n))
    return [out] * len(e.outvars)


def _reduction(e: Equation, xs: list[Axes]) -> list[Axes]:
    """A reduction does not see the order of what it reduces."""
    return [_without(xs[0], e.params["axes"])]


def _argument(e: Equation, xs: list[Axes]) -> list[Axes]:
    """The place of the largest entry depends on the order."""
    _pin_all([xs[0][k] for k in e.params["axes"]])
    return [_without(xs[0], e.params["axes"])]


def _ordered(e: Equation, xs: list[Axes]) -> list[Axes]:
    pin(xs[0][e.params["axis"]])
    return [xs[0]]


def _sort(e: Equation, xs: list[Axes]) -> list[Axes]:
    """Operands are sorted together along one axis."""
    for x in xs:
        pin(x[e.params["dimension"]])
        for a, b in zip(xs[0], x, strict=True):
            unify(a, b)
    return xs


def _dot_general(e: Equation, xs: list[Axes]) -> list[Axes]:
    ((left, right), (left_batch, right_batch)), (l, r) = e.params["dimension_numbers"], xs
    for i, j in zip((*left, *left_batch), (*right, *right_batch), strict=True):
        unify(l[i], r[j])
    return [[*(l[i] for i in left_batch), *_without(l, (*left, *left_batch)), *_without(r, (*right, *right_batch))]]


def _convolution(e: Equation, xs: list[Axes]) -> list[Axes] | None:
    """Positions are pinned; channels are [group, channel of the group]."""
    (l, r), numbers = xs, e.params["dimension_numbers"]
    if e.params["batch_group_count"] != 1:
        return None
    lhs, rhs, result = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    _pin_all([*(l[k] for k in lhs[2:]), *(r[k] for k in rhs[2:])])
    groups = Axis(e.params["feature_group_count"])
    unify(l[lhs[1]], product([groups, r[rhs[1]]]))
    unify(r[rhs[0]], product([groups, Axis(root(r[rhs[0]]).size // groups.size)]))
    out = atoms_of(shapes_of(e)[0], True)
    out[result[0]], out[result[1]] = l[lhs[0]], r[rhs[0]]
    return [out]


def _broadcast(e: Equation, xs: list[Axes]) -> list[Axes]:
    out = atoms_of(shapes_of(e)[0])
    for axis, k in zip(xs[0], e.params["broadcast_dimensions"], strict=True):
        if root(axis).size == out[k].size:
            out[k] = axis
    return [out]


def _reshape(e: Equation, xs: list[Axes]) -> list[Axes] | None:
    """The smallest runs of axes of equal size on both sides are equal, row-major."""
    out = atoms_of(shapes_of(e)[0])
    left, right = ([a for a in axes if root(a).size != 1][::-1] for axes in (xs[0], out))
    if e.params.get("dimensions") is not None or any(root(a).size == 0 for a in (*left, *right)):
        return None
    while left:
        a, b = [left.pop()], [right.pop()]
        while _size(a) != _size(b):
            (a if _size(a) < _size(b) else b).append((left if _size(a) < _size(b) else right).pop())
        unify(product(a), product(b))
    return [out]


def _size(axes: Axes) -> int:
    return prod(root(a).size for a in axes)


def _transpose(e: Equation, xs: list[Axes]) -> list[Axes]:
    return [[xs[0][k] for k in e.params["permutation"]]]


def _squeeze(e: Equation, xs: list[Axes]) -> list[Axes]:
    return [_without(xs[0], [k % len(xs[0]) for k in e.params["dimensions"]])]


def _expand(e: Equation, xs: list[Axes]) -> list[Axes]:
    rest = iter(xs[0])
    return [[Axis(1) if k in e.params["dimensions"] else next(rest) for k in range(len(shapes_of(e)[0]))]]


def _cut(axis: Axis, sizes: Sequence[int]) -> Axes:
    """An axis cut into consecutive pieces of these sizes."""
    if is_pinned(axis):
        return atoms_of(sizes, True)
    parts = atoms_of(sizes)
    unify(axis, concatenation(parts))
    return parts


def _slice(e: Equation, xs: list[Axes]) -> list[Axes]:
    strides = e.params["strides"] or (1,) * len(xs[0])
    bounds = zip(xs[0], e.params["start_indices"], e.params["limit_indices"], strides, strict=True)
    return [[_sliced(*bound) for bound in bounds]]


def _sliced(axis: Axis, start: int, stop: int, stride: int) -> Axis:
    size = root(axis).size
    if (start, stop, stride) == (0, size, 1):
        return axis
    if stride == 1 and stop > start:
        return _cut(axis, (start, stop - start, size - stop))[1]
    pin(axis)
    return Axis(-(-(stop - start) // stride), pinned=True)


def _split(e: Equation, xs: list[Axes]) -> list[Axes]:
    k = e.params["axis"]
    return [[*xs[0][:k], part, *xs[0][k + 1 :]] for part in _cut(xs[0][k], e.params["sizes"])]


def _concatenate(e: Equation, xs: list[Axes]) -> list[Axes]:
    k, (first, *others) = e.params["dimension"], xs
    for x in others:
        for a, b in zip(_without(first, [k]), _without(x, [k]), strict=True):
            unify(a, b)
    return [[*first[:k], concatenation([x[k] for x in xs]), *first[k + 1 :]]]


def _pad(e: Equation, xs: list[Axes]) -> list[Axes]:
    changed = [any(config) for config in e.params["padding_config"]]
    return [_kept(xs[0], changed, shapes_of(e)[0])]


def _kept(axes: Axes, changed: Sequence[bool], shape: Sequence[int]) -> Axes:
    """Axes that an operation leaves alone stay; the others, and what they become, are pinned."""
    _pin_all([axis for axis, new in zip(axes, changed, strict=True) if new])
    return [Axis(n, pinned=True) if new else axis for axis, new, n in zip(axes, changed, shape, strict=True)]


def _reverse(e: Equation, xs: list[Axes]) -> list[Axes]:
    _pin_all([xs[0][k] for k in e.params["dimensions"]])
    return [xs[0]]


def _iota(e: Equation, xs: list[Axes]) -> list[Axes]:
    return [[Axis(n, pinned=k == e.params["dimension"]) for k, n in enumerate(shapes_of(e)[0])]]


def _window(e: Equation, xs: list[Axes]) -> list[Axes]:
    p, ones = e.params, (1,) * len(xs[0])
    sizes = (p["window_dimensions"], p["window_strides"], p.get("base_dilation", ones), p.get("window_dilation", ones))
    changed = [
        set(numbers) != {1} or tuple(padding) != (0, 0) for *numbers, padding in zip(*sizes, p["padding"], strict=True)
    ]
    return [_kept(xs[0], changed, shapes_of(e)[0])]


def _gather(e: Equation, xs: list[Axes]) -> list[Axes]:
    """Axes taken whole stay free, such as the features of an embedding; all that is indexed is pinned."""
    numbers, sizes, x = e.params["dimension_numbers"], e.params["slice_sizes"], xs[0]
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    whole = [k not in gone and k not in numbers.start_index_map and sizes[k] == root(a).size for k, a in enumerate(x)]
    _pin_all([*(a for a, w in zip(x, whole, strict=True) if not w), *xs[1]])
    out = atoms_of(shapes_of(e)[0], True)
    for k, o in zip([k for k in range(len(x)) if k not in gone], numbers.offset_dims, strict=True):
        out[o] = x[k] if whole[k] else out[o]
    return [out]


def _dynamic_slice(e: Equation, xs: list[Axes]) -> list[Axes]:
    changed = [n != root(a).size for a, n in zip(xs[0], e.params["slice_sizes"], strict=True)]
    return [_kept(xs[0], changed, shapes_of(e)[0])]


def _dynamic_update(e: Equation, xs: list[Axes]) -> list[Axes]:
    for a, b in zip(xs[0], xs[1], strict=True):
        unify(a, b)  # of different sizes: both are pinned
    return [xs[0]]


def _scatter(e: Equation, xs: list[Axes]) -> list[Axes]:
    """Axes that updates cover whole are those of the updates too; the others are pinned."""
    (x, indices, updates), numbers = xs, e.params["dimension_numbers"]
    gone = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    kept = [k for k in range(len(x)) if k not in gone]
    for k, u in zip(kept, numbers.update_window_dims, strict=True):
        if k not in numbers.scatter_dims_to_operand_dims:
            unify(x[k], updates[u])  # of different sizes: both are pinned
        else:
            _pin_all([x[k], updates[u]])
    window = set(numbers.update_window_dims)
    _pin_all([*indices, *(x[k] for k in gone), *(u for k, u in enumerate(updates) if k not in window)])
    return [x]


SINGLE: dict[str, Rule] = {
    "argmax": _argument,
    "argmin": _argument,
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "dot_general": _dot_general,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update,
    "expand_dims": _expand,
    "gather": _gather,
    "iota": _iota,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _reverse,
    "scatter": _scatter,
    "scatter-add": _scatter,
    "scatter-mul": _scatter,
    "scatter_add": _scatter,
    "scatter_mul": _scatter,
    "slice": _slice,
    "sort": _sort,
    "split": _split,
    "squeeze": _squeeze,
    "transpose": _transpose,
}
"""Primitives with a rule of their own."""
