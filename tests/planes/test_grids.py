"""Grids around anchors and the axes that are refused."""

import numpy as np
import pytest
import seeds

import landscape as ls
from landscape.planes.grids import Grid, checked


def plane(anchors) -> ls.Plane:
    return ls.Plane(None, None, None, np.asarray(anchors, float))


@pytest.mark.parametrize("points", [2, 51, (3, 7), (7, 3)])
@pytest.mark.parametrize("margin", [0.0, 0.3, 2.0])
def test_the_rectangle_around_the_anchors_with_its_margin(points, margin: float) -> None:
    rng = seeds.generator()
    anchors = rng.normal(size=(3, 2)) * rng.uniform(0.1, 10, 2)
    grid = ls.grid_around(plane(anchors), points, margin)
    counts = (points, points) if isinstance(points, int) else points
    for axis, count, values in zip(grid, counts, anchors.T, strict=True):
        width = values.max() - values.min()
        assert len(axis) == count
        assert axis.dtype == np.float64
        np.testing.assert_allclose(axis[[0, -1]], [values.min() - margin * width, values.max() + margin * width])
        np.testing.assert_allclose(np.diff(axis), np.diff(axis)[0])


def test_fewer_than_two_anchors_and_anchors_in_a_row() -> None:
    for anchors in (np.zeros((0, 2)), np.zeros((1, 2))):
        grid = ls.grid_around(plane(anchors), 5, margin=0.5)
        np.testing.assert_allclose(grid.a, [-2, -1, 0, 1, 2])
        np.testing.assert_allclose(grid.b, [-2, -1, 0, 1, 2])
    grid = ls.grid_around(plane([[0, 1], [4, 1]]), 3, margin=0.25)
    np.testing.assert_allclose(grid.a, [-1, 2, 5])
    np.testing.assert_allclose(grid.b, [0, 1, 2])  # no height of its own: the room of the width


@pytest.mark.parametrize("points", [1, 0, -3, (1, 5), (5, 1), (3, 3, 3)])
def test_grids_of_one_point_are_refused(points) -> None:
    with pytest.raises(ValueError, match="at least 2 points along each axis; got"):
        ls.grid_around(plane([[0, 0], [1, 1]]), points)


@pytest.mark.parametrize("margin", [-0.1, np.nan, np.inf])
def test_margins_are_shares(margin: float) -> None:
    with pytest.raises(ValueError, match="margin must be a share"):
        ls.grid_around(plane([[0, 0], [1, 1]]), margin=margin)


@pytest.mark.parametrize("axis", [[0.0], [], [0.0, 0.0], [1.0, 0.5], [0.0, np.nan], [0.0, np.inf], [[0.0, 1.0]]])
@pytest.mark.parametrize("name", ["a", "b"])
def test_axes_that_do_not_increase_are_refused(axis, name: str) -> None:
    good = np.array([0.0, 1.0])
    with pytest.raises(ValueError, match=f"axis {name} must be at least 2 finite, strictly increasing"):
        checked(Grid(**{"a": good, "b": good, name: np.array(axis)}))


def test_any_increasing_axes_will_do_up_to_a_limit() -> None:
    grid = checked(Grid([0, 1, 10], np.float32([-1, 2])))
    assert grid.a.tolist() == [0, 1, 10]
    assert grid.b.dtype == np.float64
    many = np.arange(3000.0)
    with pytest.raises(ValueError, match="3,000 x 3,000"):
        checked(Grid(many, many))
