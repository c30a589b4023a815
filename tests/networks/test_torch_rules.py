"""Every rule against PyTorch's own operation in float64, on random inputs; a rule without a case fails."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeds

from landscape.networks.torch_rules import RULES

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'landscape-jax[torch]'")

SEED = int(seeds.generator().integers(2**31))
RNG = np.random.default_rng(SEED)


def normal(*shape: int) -> Any:
    return torch.from_numpy(RNG.normal(size=shape))


def positive(*shape: int) -> Any:
    return torch.from_numpy(RNG.uniform(0.1, 2, size=shape))


def inside(*shape: int) -> Any:
    """Strictly between −1 and 1."""
    return torch.from_numpy(RNG.uniform(-0.95, 0.95, size=shape))


def integers(high: int, *shape: int) -> Any:
    return torch.from_numpy(RNG.integers(0, high, size=shape))


def mask(*shape: int) -> Any:
    return torch.from_numpy(RNG.uniform(size=shape) < 0.6)


class Case:
    """Arguments of one operation."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.arguments, self.keywords = arguments, keywords


X, ROW, COLUMN = normal(3, 4), normal(4), normal(3, 1)
CASES: dict[str, list[Case]] = {}


def case(names: str, *arguments: Any, **keywords: Any) -> None:
    """One case for each of the operations named; a name without an overload has "default"."""
    for name in names.split():
        CASES.setdefault(name if "." in name else f"{name}.default", []).append(Case(*arguments, **keywords))


# Elementwise.
case("abs asinh atan ceil cos cosh digamma erf erfc exp exp2 expm1 floor hardsigmoid hardswish isfinite isinf isnan", X)
case("log_sigmoid mish neg reciprocal relu relu6 round selu sgn sigmoid sign silu sin sinh square tan tanh trunc", X)
case("hardsigmoid hardswish relu6 mish silu selu log_sigmoid", 6 * normal(5, 7))
case("log log10 log1p log2 sqrt rsqrt lgamma digamma", positive(3, 4))
case("acos asin atanh erfinv", inside(3, 4))
case("acosh", 1 + positive(3, 4))
case("bitwise_not logical_not", mask(3, 4))
case("bitwise_not", integers(9, 3, 4))
case("isfinite isinf isnan", torch.tensor([1.0, math.inf, -math.inf, math.nan, 0.0], dtype=torch.float64))
for other in (normal(3, 4), ROW, COLUMN, normal(2, 3, 4), X[0, 0]):
    case("add.Tensor sub.Tensor mul.Tensor div.Tensor rsub.Tensor maximum minimum atan2", X, other)
    case("eq.Tensor ge.Tensor gt.Tensor le.Tensor lt.Tensor ne.Tensor", X, other)
    case("fmod.Tensor remainder.Tensor floor_divide", X, other)
    case("pow.Tensor_Tensor", positive(3, 4), other)
    case("clamp.Tensor clamp_min.Tensor clamp_max.Tensor", X, other) if other.ndim < 3 else None
case("add.Tensor sub.Tensor rsub.Tensor", X, ROW, alpha=-2.5)
case("add.Scalar sub.Scalar rsub.Scalar", X, 1.5, 3)
case("mul.Scalar div.Scalar eq.Scalar ge.Scalar gt.Scalar le.Scalar lt.Scalar ne.Scalar fmod.Scalar", X, 0.7)
case("remainder.Scalar", X, 0.7)
case("remainder.Scalar fmod.Scalar eq.Scalar ge.Scalar", integers(9, 3, 4) - 4, 3)
case("bitwise_and.Tensor bitwise_or.Tensor bitwise_xor.Tensor logical_and logical_or logical_xor", mask(3, 4), mask(4))
case("bitwise_and.Scalar bitwise_or.Scalar bitwise_xor.Scalar", integers(9, 3, 4), 5)
for how in ("floor", "trunc", None):
    case("div.Tensor_mode", X, ROW, rounding_mode=how)
    case("div.Scalar_mode", X, 0.3, rounding_mode=how)
    case("div.Tensor_mode", integers(20, 3, 4) - 10, torch.tensor([3, -3, 4, 5]), rounding_mode=how)
case("pow.Tensor_Scalar", X, 3)
case("pow.Tensor_Scalar", positive(3, 4), -0.5)
case("pow.Scalar", 1.7, X)
case("clamp", X, -0.3, 0.4)
case("clamp", X, None, 0.4)
case("clamp.Tensor", X, ROW - 1, ROW + 1)
case("clamp clamp_min", torch.tensor([math.nan, -2.0, 2.0], dtype=torch.float64), 0.0)
case("clamp_max", X, 0.1)
case("masked_fill.Scalar", X, mask(4), -math.inf)
case("masked_fill.Tensor", X, mask(3, 1), torch.tensor(2.0, dtype=torch.float64))
case("where.self", mask(4), X, COLUMN)
case("where.ScalarSelf", mask(3, 4), 1.0, X)
case("where.ScalarOther", mask(3, 4), X, 0.0)
case("where.Scalar", mask(3, 4), 1.0, 0.0)
case("alias clone contiguous detach lift_fresh_copy", X)
case("_to_copy", X, dtype=torch.int32)
case("_to_copy", X)
case("dropout", X, 0.5, False)
case("elu", X)
case("elu", X, 1.3, 1.1, 0.7)
case("gelu", X)
case("gelu", X, approximate="tanh")
case("hardtanh", X)
case("hardtanh", X, -0.2, 0.3)
case("leaky_relu", X)
case("leaky_relu", X, 0.3)
case("logit", positive(3, 4) / 3)
case("logit", X, 0.1)
case("prelu", normal(2, 3, 4, 4), normal(3))
case("prelu", X, normal(1))
case("softplus", 10 * X)
case("softplus", X, 3.0, 1.0)

case("rrelu", X, 0.1, 0.5, False)
case("copysign.Tensor hypot", X, ROW)
case("copysign.Scalar", X, -1.0)
case("ldexp.Tensor", X, integers(5, 4) - 2)
case("copy", X, ROW)

# Shapes.
BOX = normal(2, 3, 4, 5)
case("view _unsafe_view reshape", BOX, [6, -1])
case("squeeze", normal(1, 3, 1))
case("squeeze.dim", normal(1, 3, 1), -1)
case("squeeze.dim", normal(1, 3, 1), 1)
case("squeeze.dims", normal(1, 3, 1), [0, 2])
case("split.Tensor unsafe_split.Tensor", BOX, 2, 1)
case("split.Tensor", BOX, 2, -1)
case("split_with_sizes", BOX, [1, 3], 2)
case("chunk", BOX, 2, -1)
case("chunk", normal(7), 3)
case("unbind.int", BOX, -2)
case("zeros ones", [2, 3])
case("zeros ones", [2, 3], dtype=torch.int64)
case("zeros_like ones_like", X)
case("new_zeros new_ones", X, [2, 3])
case("full", [2, 3], 1.5)
case("full_like", X, 2.5)
case("new_full", X, [2, 3], 4)
case("scalar_tensor", 3.5)
case("eye", 3)
case("eye.m", 3, 4)
case("arange", 5)
case("arange.start", 2, 7)
case("arange.start_step", 1, 9, 3)
case("arange.start_step", 0.0, 1.0, 0.25)
case("cat", [X, COLUMN], -1)
case("cat", [torch.zeros(0), X], 0)
case("stack", [X, 2 * X], 1)
case("constant_pad_nd", BOX, [1, 2, 0, 3], 1.5)
case("constant_pad_nd", BOX, [-1, 2, 0, -1])
case("pad", BOX, [1, 2, 3, 1])
case("pad", BOX, [1, 0], "constant", 2.0)
for how in ("reflect", "replicate", "circular"):
    case("pad", BOX, [2, 1, 1, 3], how)
    case("pad", normal(2, 3, 6), [2, 1], how)
case("diagonal", BOX, 1, 2, 3)
case("diagonal", X)
case("expand", X, [2, 3, 4])
case("expand", COLUMN, [5, -1, 6])
case("flatten.using_ints", BOX, 1)
case("flatten.using_ints", BOX, 1, 2)
case("flip", BOX, [0, -1])
case("permute", BOX, [0, -1, 1, 2])
case("repeat", X, [2, 1, 3])
case("roll", BOX, [1, -2], [2, 3])
case("roll", X, [3])
case("select.int", BOX, -1, -2)
case("select_scatter", X, ROW, 0, 1)
case("slice.Tensor", BOX, -1, 1, 9223372036854775807, 2)
case("slice.Tensor", BOX, 2, -3, -1)
case("slice.Tensor", BOX, 2, 3, 1)
case("slice_scatter", X, normal(3, 2), 1, 1, 9223372036854775807, 2)
case("t", X)
case("transpose.int", BOX, 1, -1)
case("tril triu", X)
case("tril triu", normal(2, 4, 4), -1)
case("unfold", BOX, 2, 2, 1)
case("unfold", normal(9), 0, 3, 2)
case("unsqueeze", X, -1)
case("empty.memory_format", [2, 3])

# Positions.
case("embedding", normal(7, 3), integers(7, 2, 5))
case("embedding", normal(7, 3), integers(7, 2, 5), 0)
case("gather", BOX, 1, integers(3, 2, 2, 3, 4))
case("gather", X, -1, integers(4, 3, 6))
case("index.Tensor", BOX, [None, integers(3, 2)])
case("index.Tensor", BOX, [integers(2, 3, 1), None, integers(4, 3)])
case("index.Tensor", BOX, [None, integers(3, 2), integers(4, 5, 1)])
case("index.Tensor", X, [-1 - integers(3, 5)])
case("index_put", X, [torch.tensor([2, 0])], normal(2, 4))
case("index_put", X, [torch.tensor([2, 0]), torch.tensor([1, 3])], torch.tensor(1.0, dtype=torch.float64))
case("index_put", X, [torch.tensor([2, 2, 0])], normal(3, 4), True)
case("index_select", BOX, 2, integers(4, 6))
case("one_hot", integers(5, 2, 3), 5)
case("scatter.src", X, 1, torch.argsort(normal(3, 3)), normal(3, 4))
case("scatter.value", X, 0, integers(3, 2, 4), 7.0)
case("scatter_add", X, 0, integers(3, 5, 3), normal(5, 4))
case("sort", BOX, 1, True)
case("sort", X)
case("sort.stable", integers(3, 3, 9), stable=True, dim=1, descending=False)
case("topk", X, 2)
case("topk", BOX, 2, 2, False)

case("kthvalue", BOX, 2, 1)
case("median.dim", BOX, -1, True)
case("median.dim", BOX, 2)
for mode in (0, 1, 2):
    case("_embedding_bag", normal(7, 3), integers(7, 9), torch.tensor([0, 2, 2, 6]), False, mode)
    case("_embedding_bag", normal(7, 3), integers(3, 9), torch.tensor([0, 4, 9]), False, mode, False, None, True, 1)
case("_embedding_bag", normal(7, 3), integers(7, 9), torch.tensor([0, 2, 6]), False, 0, False, normal(9))

# Reductions.
case("_softmax _log_softmax", BOX, 1, False)
case("softmax.int log_softmax.int", BOX, -1)
case("_safe_softmax", torch.where(torch.tensor([[True], [False], [True]]), X, -math.inf), -1)
case("all any", mask(3, 4))
case("all.dim any.dim", mask(3, 4), 1, True)
case("all.dims any.dims", mask(2, 3, 4), [0, 2])
case("max min mean sum prod", X)
case("amax amin", BOX, [1, -1], True)
case("argmax argmin", BOX)
case("argmax argmin", BOX, 1)
case("argmax argmin", BOX, -1, True)
case("cumsum cumprod cummax cummin logcumsumexp", BOX, -2)
for order in (2, 1, 3.0, 0, math.inf, -math.inf):
    case("linalg_vector_norm", BOX, order, [-1], True)
case("linalg_vector_norm", BOX)
case("linalg_vector_norm", torch.zeros(2, 3))
case("logsumexp", BOX, [1, 2])
case("max.dim min.dim", BOX, -1)
case("max.dim min.dim", BOX, 1, True)
case("mean.dim sum.dim_IntList", BOX, [0, -1], True)
case("sum.dim_IntList", BOX, None)
case("mean.dim", BOX, [2])
case("prod.dim_int", BOX, 1)
case("var.correction var_mean.correction", BOX, [1, 2], correction=0, keepdim=True)
case("var.correction var_mean.correction", BOX)

# Layers.
case("mm matmul", X, normal(4, 5))
case("matmul", BOX, normal(5, 6))
case("matmul", BOX, normal(3, 5, 2))
case("matmul", BOX, normal(5))
case("matmul", ROW, normal(2, 4, 3))
case("bmm", normal(2, 3, 4), normal(2, 4, 5))
case("mv", X, ROW)
case("dot", ROW, normal(4))
case("addmm", normal(5), X, normal(4, 5))
case("addmm", normal(3, 5), X, normal(4, 5), beta=0.5, alpha=2.0)
case("addmv", normal(3), X, ROW, beta=2, alpha=0.5)
case("baddbmm", normal(2, 3, 5), normal(2, 3, 4), normal(2, 4, 5), beta=0.3)
case("linear", BOX, normal(6, 5), normal(6))
case("linear", ROW, normal(6, 4))
case("bilinear", normal(2, 3), normal(2, 4), normal(5, 3, 4), normal(5))
for order in (2.0, 1.0, 3.0):
    case("_cdist_forward", normal(2, 3, 4), normal(2, 5, 4), order, None)
case("linalg_matrix_exp", 0.3 * normal(2, 3, 3))
case("linalg_inv_ex", 3 * torch.eye(4, dtype=torch.float64) + 0.3 * normal(2, 4, 4))
case("einsum", "bhtd, bhsd -> bhts", [normal(2, 3, 4, 5), normal(2, 3, 6, 5)])
case("einsum", "...i,i", [X, ROW])
for n in (1, 2, 3):
    image, window, one, zero = (9, 8, 7)[:n], (3, 2, 3)[:n], [1] * n, [0] * n
    case("convolution", normal(2, 4, *image), normal(6, 4, *window), normal(6), one, zero, one, False, zero, 1)
    case("convolution", normal(2, 4, *image), normal(6, 2, *window), None, [2] * n, one, [2] * n, False, zero, 2)
    case("convolution", normal(2, 4, *image), normal(8, 1, *window), normal(8), one, [2], [1], False, zero, 4)
    case("convolution", normal(2, 4, *image), normal(4, 3, *window), normal(3), one, zero, one, True, zero, 1)
    case("convolution", normal(2, 4, *image), normal(4, 3, *window), None, [3] * n, one, [2] * n, True, [2] * n, 2)
STATISTICS = (normal(3), positive(3))
case("batch_norm", BOX, normal(3), normal(3), *STATISTICS, False, 0.1, 1e-3, True)
case("batch_norm", normal(2, 3), None, None, *STATISTICS, False, 0.1, 1e-5, True)
case("_native_batch_norm_legit_no_training", BOX, normal(3), normal(3), *STATISTICS, 0.1, 1e-3)
case("group_norm", normal(2, 6, 3, 4), 3, normal(6), normal(6))
case("group_norm", normal(2, 6), 2, None, None, 1e-2)
case("instance_norm", BOX, normal(3), normal(3), None, None, True, 0.1, 1e-3, True)
case("instance_norm", BOX, None, None, *STATISTICS, False, 0.1, 1e-3, True)
case("layer_norm", BOX, [4, 5], normal(4, 5), normal(4, 5), 1e-3)
case("layer_norm", BOX, [5])
case("rms_norm", BOX, [5], normal(5), 1e-3)
case("rms_norm", BOX, [4, 5], None, 1e-6)
QKV = (normal(2, 4, 5, 3), normal(2, 4, 7, 3), normal(2, 4, 7, 6))
case("scaled_dot_product_attention", *QKV)
case("scaled_dot_product_attention", *QKV, scale=0.3)
case("scaled_dot_product_attention", *QKV, None, 0.0, True)
case("scaled_dot_product_attention", *QKV, normal(5, 7))
case("scaled_dot_product_attention", *QKV, mask(2, 1, 5, 7) | (torch.arange(7) == 0))
case("scaled_dot_product_attention", QKV[0], QKV[1][:, :2], QKV[2][:, :2], enable_gqa=True)
NOTHING = torch.ones(5, 7, dtype=torch.bool)
NOTHING[2] = False
case("scaled_dot_product_attention", *QKV, NOTHING)

# Pooling.
for n in (1, 2, 3):
    image, front = normal(2, 3, *(9, 8, 7)[:n]), f"pool{n}d"
    for name in (f"max_{front}", *([f"max_{front}_with_indices"] if n > 1 else [])):
        case(name, image, [3] * n, [2] * n, [1] * n)
        case(name, image, [2] * n)
        case(name, image, [3] * n, [2] * n, [1] * n, [2] * n, True)
        case(name, image, [2], [3], [1], [1], True)
    for ceil in (False, True):
        for counted in (True, False):
            case(f"avg_{front}", image, [3] * n, [2] * n, [1] * n, ceil, counted)
            case(f"avg_{front}", image, [2], [3], [0], ceil, counted)
    case(f"avg_{front}", image, [2] * n)
    for size in (1, 2, 3, 5):
        case(f"adaptive_avg_{front} adaptive_max_{front}", image, [size] * n)
case("avg_pool2d", BOX, [2, 2], [1, 1], [0, 0], False, True, 3)
case("im2col", BOX, [2, 3], [1, 1], [1, 0], [2, 1])
case("im2col", normal(3, 7, 7), [2, 2], [2, 2], [0, 0], [1, 1])
for n, kind in ((1, "linear1d"), (2, "bilinear2d"), (3, "trilinear3d")):
    image = normal(2, 3, *(6, 5, 4)[:n])
    for sizes in ([11, 7, 9][:n], [3, 4, 2][:n], [1] * n):
        case(f"upsample_nearest{n}d.vec", image, sizes, None)
        case(f"upsample_{kind}.vec", image, sizes, False, None)
        case(f"upsample_{kind}.vec", image, sizes, True, None)
    for factor in (2.0, 1.7, 0.6):
        case(f"upsample_nearest{n}d.vec", image, None, [factor] * n)
        case(f"upsample_{kind}.vec", image, None, False, [factor] * n)
        case(f"upsample_{kind}.vec", image, None, True, [factor] * n)

# Recurrent layers.


def recurrent(name: str, gates: int, states: int) -> None:
    for layers, both, biases, first in ((1, False, True, True), (2, True, True, False), (2, True, False, True)):
        width, depth = 5, layers * (1 + both)
        flat = []
        for k in range(depth):
            read = 4 if k < 1 + both else width * (1 + both)
            flat += [normal(gates * width, read), normal(gates * width, width)]
            flat += [normal(gates * width), normal(gates * width)] if biases else []
        starts = [normal(depth, 2, width) for _ in range(states)]
        start = starts if states == 2 else starts[0]
        case(f"{name}.input", normal(2, 6, 4), start if first else _longer(start), flat, biases, layers, 0.3, False,
             both, first)  # fmt: skip


def _longer(start: Any) -> Any:
    """States for the six examples of a batch whose second axis it is."""
    widen = [normal(s.shape[0], 6, s.shape[2]) for s in (start if isinstance(start, list) else [start])]
    return widen if isinstance(start, list) else widen[0]


recurrent("lstm", 4, 2)
recurrent("gru", 3, 1)
recurrent("rnn_tanh", 1, 1)
recurrent("rnn_relu", 1, 1)
PROJECTED = [t for k in range(2) for t in (normal(20, 4 if k == 0 else 3), normal(20, 3), normal(20), normal(20),
                                           normal(3, 5))]  # fmt: skip
case("lstm.input", normal(2, 6, 4), [normal(2, 2, 3), normal(2, 2, 5)], PROJECTED, True, 2, 0.0, False, False, True)


def test_every_rule_has_a_case() -> None:
    assert set(CASES) == set(RULES)


def in_jax(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        kind = {torch.float64: "float32", torch.int64: "int32"}.get(value.dtype)
        return jnp.asarray(value.numpy(), kind)
    if isinstance(value, list):
        return [in_jax(part) for part in value]
    return jnp.dtype({torch.int64: "int32"}.get(value, str(value)[6:])) if isinstance(value, torch.dtype) else value


@pytest.mark.parametrize("name", sorted(CASES))
def test_rule_equals_torch(name: str) -> None:
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(torch.ops.aten, packet), overload)
    for each in CASES[name]:
        wanted = operation(*each.arguments, **each.keywords)
        found = RULES[name](*map(in_jax, each.arguments), **{k: in_jax(v) for k, v in each.keywords.items()})
        many = isinstance(wanted, tuple | list)
        pairs = list(zip(found, wanted, strict=True)) if many else [(found, wanted)]
        for mine, theirs in pairs:
            if mine is None:  # positions and statistics that no rule reads
                continue
            assert jnp.shape(mine) == tuple(theirs.shape), each.arguments
            if packet.startswith("empty"):
                continue
            np.testing.assert_allclose(np.asarray(mine, float), theirs.double().numpy(), rtol=2e-4, atol=2e-5,
                                       err_msg=f"{name}{each.arguments} {each.keywords}, seed {SEED}")  # fmt: skip


@pytest.mark.parametrize("name", ["elu", "softplus", "linalg_vector_norm", "_safe_softmax", "selu"])
def test_derivatives_are_finite_where_a_branch_is_not_taken(name: str) -> None:
    x = jnp.asarray([[-200.0, 300.0, 0.5], [0.0, 0.0, 0.0], [-jnp.inf] * 3 if "safe" in name else [1.0, 2.0, 3.0]])
    more = {"linalg_vector_norm": (2, [-1]), "_safe_softmax": (-1,)}.get(name, ())
    slope = jax.grad(lambda t: RULES[f"{name}.default"](t, *more).sum())(x)
    assert np.isfinite(np.asarray(slope)).all()
