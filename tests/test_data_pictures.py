"""Pictures: their density against the sum over pixels, their draws, and the files they are in."""

from __future__ import annotations

import math

import matplotlib.image
import numpy as np
import pytest
import torch

from flowzoo.data.picture_file import read_ink
from flowzoo.data.pictures import Picture, Rose, Tree
from flowzoo.data.pixels import PixelMixture
from flowzoo.errors import BadData, UserError

F64 = torch.float64
DRAWINGS = pytest.mark.parametrize("cls", [Rose, Tree], ids=lambda c: c.name)
HEART = Picture.examples[0]["path"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_ink(rows=9, columns=14, share=0.4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((rows, columns)) * (rng.random((rows, columns)) < share)


def by_sum(ink, x):
    """Log-density by the published protocol, written out: one Gaussian for every pixel."""
    rows, columns = ink.shape
    a, b = np.meshgrid(np.linspace(-4, 4, columns), np.linspace(4, -4, rows))
    std = torch.tensor([8 / columns / 2, 8 / rows / 2], dtype=F64)
    means = torch.from_numpy(np.stack([a.ravel(), b.ravel()], 1))
    weights = torch.from_numpy(ink.ravel() / ink.sum())
    square = ((x[:, None] - means) / std).square().sum(-1)
    return (weights.log() - 0.5 * square).logsumexp(1) - (2 * math.pi * std.prod()).log()


def save(path, pixels):
    np.save(path, pixels) if path.suffix == ".npy" else matplotlib.image.imsave(path, pixels)
    return path


# the density


@pytest.mark.parametrize("reach", [4.0, 30.0, 1e4])
def test_the_density_is_the_sum_over_pixels(reach):
    ink = random_ink()
    x = reach * (2 * torch.rand(500, 2, generator=generator(), dtype=F64) - 1)
    expected = by_sum(ink, x)
    torch.testing.assert_close(PixelMixture(ink).log_prob(x), expected, rtol=1e-12, atol=1e-12)


@DRAWINGS
def test_the_density_of_a_drawing_is_exact_in_its_blank_parts(cls):
    density = cls().density
    x = 5 * (2 * torch.rand(300, 2, generator=generator(), dtype=F64) - 1)
    found, expected = density.log_prob(x), by_sum(density._weights, x)
    assert (expected < -700).sum() > 50, "some places must lie where a plain sum underflows"
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-11)


def test_a_place_in_a_hole_is_as_near_to_many_pixels():
    line = np.arange(-30, 31)
    ink = (np.hypot(line, line[:, None]) > 20.5).astype(float)
    x = 0.3 * torch.rand(400, 2, generator=generator(), dtype=F64) - 0.15
    expected = by_sum(ink, x)
    assert (expected < -700).all(), "the places must lie where a plain sum underflows"
    torch.testing.assert_close(PixelMixture(ink).log_prob(x), expected, rtol=0, atol=3e-11)


def test_the_density_can_be_differentiated_near_and_far():
    density = PixelMixture(random_ink())
    x = torch.tensor([[0.3, 0.7], [3.0, -2.0], [60.0, -45.0]], dtype=F64, requires_grad=True)
    assert density.log_prob(x.detach())[2] < -700
    assert torch.autograd.gradcheck(density.log_prob, (x,), atol=1e-4)


@DRAWINGS
def test_log_prob_follows_the_dtype_and_has_no_value_at_no_place(cls):
    x = torch.tensor([[0.3, -1.0], [40.0, -30.0], [math.nan, 0.0]])
    found = cls().log_prob(x)
    assert found.dtype == torch.float32
    assert found.shape == (3,)
    exact = cls().log_prob(x.double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert found.isfinite().tolist() == [True, True, False]


# the entropy and the draws


def test_the_entropy_is_that_of_the_density():
    density = PixelMixture(read_ink_of_heart())
    line = torch.linspace(-5, 5, 301, dtype=F64)
    p = density.log_prob(torch.cartesian_prod(line, line)).exp()
    area = (line[1] - line[0]) ** 2
    assert float(p.sum() * area) == pytest.approx(1, abs=1e-9)
    quadrature = -float(torch.special.xlogy(p, p).sum() * area)
    assert density.entropy() == pytest.approx(quadrature, abs=1e-7)


def test_one_pixel_is_a_gaussian():
    ink = np.zeros((5, 20))
    ink[1, 4] = 7
    entropy = 1 + math.log(2 * math.pi * (4 / 5) * (4 / 20))
    assert PixelMixture(ink).entropy() == pytest.approx(entropy, abs=1e-9)
    x = PixelMixture(ink).sample(20_000, generator())
    assert x.mean(0).tolist() == pytest.approx([-4 + 4 * 8 / 19, 4 - 8 / 4], abs=0.03)
    assert x.std(0).tolist() == pytest.approx([0.2, 0.8], rel=0.03)


@DRAWINGS
def test_stated_entropies_are_those_of_the_drawings(cls):
    assert cls.entropy == pytest.approx(cls().density.entropy(points=6), abs=6e-7)
    nll = -cls().log_prob(cls().sample(10_000, generator(1)))
    assert abs(float(nll.mean()) - cls.entropy) < 4 * float(nll.std()) / 100


def test_pixels_are_drawn_as_often_as_they_are_dark():
    ink = np.zeros((40, 40))
    ink[5, 8], ink[5, 30], ink[30, 8] = 1, 2, 5
    x = PixelMixture(ink).sample(40_000, generator())
    right, below = x[:, 0] > 0, x[:, 1] < 0
    shares = [(~right & ~below), (right & ~below), (~right & below), (right & below)]
    assert [float(s.double().mean()) for s in shares] == pytest.approx(
        [1 / 8, 2 / 8, 5 / 8, 0], abs=0.01
    )


@DRAWINGS
def test_splits_repeat_and_are_independent(cls):
    data, again = (cls(train=40, val=30, test=20).load() for _ in range(2))
    assert (len(data.train), len(data.val), len(data.test), data.dim) == (40, 30, 20, 2)
    assert torch.equal(data.train, again.train)
    assert torch.equal(data.test, cls(train=400, val=30, test=20).load().test)
    assert not torch.equal(data.train[:20], data.test)
    assert not torch.equal(data.train, cls(train=40, val=30, test=20, seed=1).load().train)
    assert "not the published" in data.notes


@DRAWINGS
def test_drawings_lie_in_the_frame(cls):
    ink = cls().density._weights
    assert ink.shape == (256, 256)
    border = np.concatenate([ink[0], ink[-1], ink[:, 0], ink[:, -1]])
    assert not border.any()


def test_too_few_rows_are_refused():
    with pytest.raises(UserError, match="rose needs at least 2 rows"):
        Rose(val=1)


# files


def read_ink_of_heart():
    (file,) = Picture(HEART).files()
    return read_ink(file)


def test_a_picture_is_drawn_from_its_file():
    picture = Picture(HEART, train=200, val=50, test=5000)
    data = picture.load()
    ink = read_ink_of_heart()
    assert (data.name, data.title, len(data.train)) == ("heart", "heart", 200)
    assert data.entropy == pytest.approx(PixelMixture(ink).entropy())
    torch.testing.assert_close(data.log_prob(data.test), by_sum(ink, data.test))
    nll = -data.log_prob(data.test)
    assert abs(float(nll.mean()) - data.entropy) < 4 * float(nll.std()) / math.sqrt(5000)


def test_grey_and_colour_of_every_kind_give_the_same_ink(tmp_path):
    grey = np.array([[0, 51, 255], [102, 204, 153]], dtype=np.uint8)
    expected = (255.0 - grey) / 255
    files = {
        "grey.npy": grey,
        "unit.npy": grey / 255.0,
        "colour.npy": np.repeat(grey[:, :, None], 3, 2),
        "colour.png": np.repeat(grey[:, :, None], 3, 2),
        # black, more or less see-through, on white
        "shining.png": np.concatenate([np.zeros((2, 3, 3), np.uint8), 255 - grey[:, :, None]], 2),
    }
    for name, pixels in files.items():
        ink = read_ink(save(tmp_path / name, pixels))
        np.testing.assert_allclose(ink / ink.max(), expected, atol=1e-6, err_msg=name)


def test_green_is_lighter_than_red_and_red_than_blue(tmp_path):
    colours = np.eye(4, 3)[None]  # red, green, blue, black
    ink = read_ink(save(tmp_path / "a.npy", np.concatenate([colours, np.ones((1, 4, 3))])))
    np.testing.assert_allclose(ink, [[0.701, 0.413, 0.886, 1], [0, 0, 0, 0]], atol=1e-12)


def test_the_fingerprint_is_that_of_the_contents(tmp_path):
    a, b = (save(tmp_path / f"{k}.npy", random_ink(seed=0)) for k in "ab")
    c = save(tmp_path / "c.npy", random_ink(seed=1))
    assert Picture(str(a)).fingerprint() == Picture(str(b)).fingerprint()
    assert Picture(str(a)).fingerprint() != Picture(str(c)).fingerprint()
    assert Picture(str(a)).fingerprint() != Picture(str(a), seed=1).fingerprint()


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.full((4, 4), 0.5), "is blank: all its pixels are equally bright"),
        (np.array([[0, 1.0], [np.nan, 1]]), "column 1, row 2 is NaN"),
        (np.array([[0, 1.0], [np.inf, 1]]), "column 1, row 2 is not finite"),
        (np.zeros((2, 3, 4, 5)), r"has the shape \(2, 3, 4, 5\)"),
        (np.zeros(5), "has the shape"),
        (np.zeros((5, 5, 2)), r"grey numbers \(h, w\) or red, green and blue \(h, w, 3\)"),
        (np.zeros((5, 5, 4)), "has four channels"),
        (np.zeros((1, 5)), "has 1 x 5 pixels; it needs 2 x 2"),
        (np.array([["a", "b"], ["c", "d"]]), "is not a number"),
        (np.array([[{}, 1], [2, 3]], dtype=object), "is no readable .npy"),
    ],
    ids=["blank", "nan", "inf", "4d", "1d", "two", "four", "flat", "text", "pickled"],
)
def test_pixels_that_are_no_picture_are_refused(tmp_path, pixels, said):
    file = save(tmp_path / "a.npy", pixels)
    with pytest.raises(BadData, match=said) as caught:
        Picture(str(file)).load()
    assert str(file) in str(caught.value)


def test_files_that_are_no_picture_are_refused(tmp_path):
    good = save(tmp_path / "heart.png", np.tile(np.arange(200, dtype=np.uint8), (50, 1)))
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:-40])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "text.npy").write_text("hello")
    np.savez(tmp_path / "two.npz", a=np.eye(3), b=np.eye(3))
    (tmp_path / "two.npz").rename(tmp_path / "archive.npy")
    (tmp_path / "photo.jpg").write_text("hello")
    for name, said in {
        "hart.png": "There is no file .*did you mean heart.png",
        "cut.png": "is no readable .png image",
        "text.png": "is no readable .png image",
        "text.npy": "is no readable .npy array",
        "archive.npy": "is no readable .npy array",
        "photo.jpg": "a picture is a .png or a .npy",
    }.items():
        with pytest.raises(BadData, match=said):
            Picture(str(tmp_path / name)).load()
