"""Records of data, the synthetic teacher, and real files equal to what a plain reader finds in them."""

import gzip
import os
import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeds

from landscape import Dataset, MultiBranch, Problem, datasets, losses, networks
from landscape.arrays import trees
from landscape.datasets import downloads


def plain_mnist(root, part):
    def content(kind):
        return gzip.decompress((root / f"MNIST/raw/{part}-{kind}-ubyte.gz").read_bytes())

    return (
        np.frombuffer(content("images-idx3"), np.uint8, offset=16).reshape(-1, 784),
        np.frombuffer(content("labels-idx1"), np.uint8, offset=8),
    )


def plain_cifar(root, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open(root / "cifar-10-batches-py" / name, "rb") as file:
            batch = pickle.load(
                file, encoding="bytes"
            )  # the files are the published ones: their checksums were compared
    return batch[b"data"], np.array(batch[b"labels"])


# the record ----------------------------------------------------------------------------------------------------------


def test_weights_are_one_by_default_and_arrays_stay_where_they_are():
    for make, kind in ((np.ones, np.ndarray), (jnp.ones, jax.Array)):
        data = Dataset(make((4, 3), np.float32), make(4, np.int32))
        assert isinstance(data.x, kind)
        assert isinstance(data.weight, kind)
        assert data.weight.dtype == np.float32
        np.testing.assert_array_equal(data.weight, np.ones(4))
        assert len(data) == 4


@pytest.mark.parametrize(
    ("x", "y", "weight", "message"),
    [
        (np.ones((4, 3)), np.ones(5), None, "x \\[N, ...\\], y \\[N\\]"),
        (np.ones((4, 3)), np.ones(4), np.ones(3), "x \\[N, ...\\], y \\[N\\]"),
        (np.ones((0, 3)), np.ones(0), None, "one or more"),
        (np.ones(()), np.ones(()), None, "one or more"),
        (np.array([[1.0], [np.nan]]), np.ones(2), None, "x holds values that are not finite: 1 of 2"),
        (jnp.array([[1.0], [jnp.inf]]), np.ones(2), None, "x holds values that are not finite: 1 of 2"),
        (np.ones((2, 1)), np.array([1, -np.inf]), None, "y holds values that are not finite"),
        (np.ones((2, 1)), np.ones(2), np.array([1, np.nan]), "weight holds values that are not finite"),
        (np.ones((2, 1)), np.ones(2), np.array([1.0, -1.0]), "must not be negative"),
        (np.ones((2, 1)), np.ones(2), np.zeros(2), "one at least must be positive"),
    ],
)
def test_wrong_data_are_refused(x, y, weight, message):
    with pytest.raises(ValueError, match=message):
        Dataset(x, y, weight)


def test_passes_through_jit_and_tree_map_as_a_pytree():
    data = Dataset(np.arange(6.0, dtype="f4").reshape(3, 2), np.ones(3, "f4"), name="small")
    assert float(jax.jit(lambda d: (d.x.sum(1) * d.weight).sum())(data)) == 15
    part = jax.tree.map(lambda leaf: leaf[1:], data)
    assert isinstance(part, Dataset)
    assert (len(part), part.name) == (2, "small")
    assert float(jax.jit(lambda d: Dataset(d.x[:2], d.y[:2]).weight.sum())(data)) == 2


def test_shown_in_one_line():
    data = Dataset(np.zeros((300, 10, 2), "f4"), np.zeros(300, "i4"), name="mine")
    assert repr(data) == "Dataset(mine: x [300, 10, 2] float32, y [300] int32)"


def test_fingerprint_is_that_of_the_contents():
    x, y = np.arange(6.0).reshape(3, 2), np.ones(3)
    print_ = Dataset(x, y).fingerprint
    assert len(print_) == 64
    assert print_ == Dataset(jnp.asarray(x), y, name="another").fingerprint if jnp.asarray(x).dtype == x.dtype else True
    assert print_ == Dataset(x.copy(), y, name="another").fingerprint
    assert (
        len({print_, Dataset(x, y, 2 * y).fingerprint, Dataset(x + 1, y).fingerprint, Dataset(x, -y).fingerprint}) == 4
    )


# the teacher ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("examples", "inputs", "hidden"), [(1000, 10, 11), (50, 3, 2), (20, 2, 1)])
def test_the_teacher_labels_every_example_and_attains_zero_risk(examples, inputs, hidden):
    seed = seeds.draw()
    data = datasets.synthetic_teacher(jax.random.key(seed), examples, inputs, hidden)
    first, last = (np.asarray(layer["kernel"], np.float64) for layer in data.teacher)
    f = np.maximum(np.asarray(data.x, np.float64) @ first[:, :, 0].T, 0) @ last[:, 0, 0]
    assert data.x.shape == (examples, inputs)
    np.testing.assert_array_equal(data.y, np.sign(f), err_msg=f"seed {seed}")
    margins = np.asarray(data.y) * f
    assert margins.min() >= 1, seed
    assert np.maximum(0, 1 - margins).mean() == 0, seed


def test_the_teacher_is_a_point_of_the_network_it_names():
    seed = seeds.draw()
    data = datasets.synthetic_teacher(jax.random.key(seed))
    network = MultiBranch(networks.relu_branch(10), 11, average=False)
    problem = Problem(data, network, losses.hinge)
    assert jax.tree.map(jnp.shape, data.teacher) == jax.tree.map(jnp.shape, network.init(jax.random.key(0)))
    assert float(problem.risk(data.teacher)) < 1e-5, seed
    assert float(problem.risk(network.init(jax.random.key(0)))) > 0.1, seed


def test_the_teacher_is_standard_gaussian_and_the_same_for_the_same_key():
    data = datasets.synthetic_teacher(jax.random.key(7), examples=20_000)
    x = np.asarray(data.x)
    assert abs(x.mean()) < 0.02
    assert abs(x.std() - 1) < 0.02
    np.testing.assert_allclose(x.T @ x / len(x), np.eye(10), atol=0.06)
    assert data.fingerprint == datasets.synthetic_teacher(jax.random.key(7), examples=20_000).fingerprint
    with trees.float64():
        assert data.fingerprint == datasets.synthetic_teacher(jax.random.key(7), examples=20_000).fingerprint
    assert data.fingerprint != datasets.synthetic_teacher(jax.random.key(8), examples=20_000).fingerprint


@pytest.mark.parametrize("sizes", [(0, 10, 11), (10, 0, 11), (10, 10, 0), (-1, 10, 11)])
def test_a_teacher_without_size_is_refused(sizes):
    with pytest.raises(ValueError, match="must be at least 1"):
        datasets.synthetic_teacher(jax.random.key(0), *sizes)


# real files ----------------------------------------------------------------------------------------------------------


def test_mnist_equals_a_plain_reader_and_every_pixel_is_standardised(data_root):
    data = datasets.mnist(data_root)
    pixels, labels = plain_mnist(data_root, "train")
    x = np.asarray(data.x)
    assert (x.shape, x.dtype, data.y.dtype) == ((60_000, 784), np.float32, np.int32)
    np.testing.assert_array_equal(data.y, labels)
    rows = seeds.generator().integers(0, 60_000, 500)
    mean, std = pixels.mean(0), pixels.std(0)
    wanted = (pixels[rows] - mean) / np.where(std > 0, std, 1)
    np.testing.assert_allclose(x[rows], wanted, rtol=1e-6, atol=1e-6)
    varied = std > 0
    assert varied.sum() == 717
    np.testing.assert_allclose(x.mean(0, dtype=np.float64), 0, atol=1e-6)
    np.testing.assert_allclose(x.std(0, dtype=np.float64)[varied], 1, atol=1e-6)
    assert (x[:, ~varied] == 0).all()


def test_cifar10_equals_a_plain_reader_and_every_pixel_is_standardised(data_root):
    data = datasets.cifar10(data_root)
    batches = [plain_cifar(data_root, f"data_batch_{k}") for k in range(1, 6)]
    pixels, labels = (np.concatenate(part) for part in zip(*batches, strict=True))
    assert data.x.shape == (50_000, 3072)
    np.testing.assert_array_equal(data.y, labels)
    rng = seeds.generator()
    columns, rows = rng.integers(0, 3072, 40), rng.integers(0, 50_000, 40)
    some = pixels[:, columns].astype(np.float64)
    got = np.asarray(data.x)[:, columns]
    np.testing.assert_allclose(got[rows], ((some - some.mean(0)) / some.std(0))[rows], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got.mean(0, dtype=np.float64), 0, atol=1e-6)
    np.testing.assert_allclose(got.std(0, dtype=np.float64), 1, atol=1e-6)


def test_the_test_split_is_standardised_by_the_training_set(data_root):
    train, _ = plain_mnist(data_root, "train")
    pixels, labels = plain_mnist(data_root, "t10k")
    data = datasets.mnist(data_root, split="test")
    std = train.std(0)
    np.testing.assert_allclose(
        data.x[::50],
        np.where(std > 0, (pixels[::50] - train.mean(0)) / np.where(std > 0, std, 1), 0),
        rtol=1e-5,
        atol=1e-5,
    )
    np.testing.assert_array_equal(data.y, labels)
    np.testing.assert_array_equal(datasets.cifar10(data_root, split="test").y, plain_cifar(data_root, "test_batch")[1])


@pytest.mark.parametrize("load", [datasets.mnist, datasets.cifar10])
def test_a_selection_is_a_part_of_the_whole_in_its_order(load, data_root):
    seed = seeds.draw()
    rng = np.random.default_rng(seed)
    limit, classes = int(rng.integers(10, 300)), tuple(int(c) for c in rng.permutation(10)[:3])
    whole = load(data_root, limit=9000)
    first = load(data_root, limit=limit)
    np.testing.assert_array_equal(first.x, whole.x[:limit])
    kept = np.flatnonzero(np.isin(whole.y, classes))[:limit]
    some = load(data_root, limit=limit, classes=classes)
    np.testing.assert_array_equal(some.x, whole.x[kept], err_msg=str(seed))
    np.testing.assert_array_equal(np.asarray(classes)[some.y], whole.y[kept], err_msg=str(seed))


def test_images_have_channels_last(data_root):
    flat, images = (datasets.cifar10(data_root, limit=20, images=shaped) for shaped in (False, True))
    assert images.x.shape == (20, 32, 32, 3)
    for n, row, column, channel in seeds.generator().integers(0, [20, 32, 32, 3], (30, 4)):
        assert images.x[n, row, column, channel] == flat.x[n, 1024 * channel + 32 * row + column]
    digits = datasets.mnist(data_root, limit=3, images=True)
    assert digits.x.shape == (3, 28, 28, 1)
    np.testing.assert_array_equal(digits.x.reshape(3, -1), datasets.mnist(data_root, limit=3).x)


def test_a_limit_reads_no_more_batches_than_it_needs(data_root, tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    os.symlink(data_root / "cifar-10-batches-py/data_batch_1", folder / "data_batch_1")
    assert len(datasets.cifar10(tmp_path, limit=300)) == 300
    with pytest.raises(FileNotFoundError, match=r"data_batch_2 is missing in .* \(wanted 31,035,320 bytes\)"):
        datasets.cifar10(tmp_path, limit=10_001)


def test_unpacked_digits_are_the_same(data_root, tmp_path):
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for packed in (data_root / "MNIST/raw").glob("train-*.gz"):
        (raw / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    assert datasets.mnist(tmp_path, limit=700).fingerprint == datasets.mnist(data_root, limit=700).fingerprint


def test_the_folder_comes_from_the_variable(data_root, monkeypatch):
    monkeypatch.setenv(downloads.VARIABLE, str(data_root))
    assert datasets.mnist(limit=50).fingerprint == datasets.mnist(data_root, limit=50).fingerprint


@pytest.mark.parametrize("load", [datasets.mnist, datasets.cifar10])
@pytest.mark.parametrize(
    "options",
    [{"split": "validation"}, {"limit": 0}, {"classes": ()}, {"classes": (3, 3)}, {"classes": (3, 10)}],
)
def test_a_wrong_selection_is_refused_before_any_file_is_looked_for(load, options, tmp_path):
    with pytest.raises(ValueError, match=r"must be .*got"):
        load(tmp_path / "nowhere", **options)


# pickles -------------------------------------------------------------------------------------------------------------


class Attack:
    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("function", [os.system, eval, getattr, np.load, np.frombuffer])
def test_a_pickle_that_calls_something_is_refused_and_does_nothing(function, protocol, tmp_path):
    witness = tmp_path / "witness"
    content = pickle.dumps({"data": np.ones(3), "labels": [Attack(function, f"touch {witness}")]}, protocol)
    with pytest.raises(pickle.UnpicklingError, match="arrays and builtins only"):
        datasets.read_batch(content)
    assert not witness.exists()


def test_arrays_of_objects_are_refused():
    with pytest.raises(pickle.UnpicklingError, match="arrays of numbers only"):
        datasets.read_batch(pickle.dumps({"data": np.array([{}, []], dtype=object)}, 4))


def test_arrays_and_builtins_come_out_as_they_went_in():
    data = seeds.generator().integers(0, 256, (5, 7)).astype(np.uint8)
    got = datasets.read_batch(pickle.dumps({"data": data, "labels": [1, 2], "name": "batch"}, 4))
    np.testing.assert_array_equal(got["data"], data)
    assert (got["labels"], got["name"]) == ([1, 2], "batch")
