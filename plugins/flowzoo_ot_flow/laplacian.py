"""The trace of the Hessian, chunk by chunk in cache, together with its own derivative.

With c_i = sig''(q_i) z_{i+1}, F = (K_0 E)^T with rows F_k (or its triangular factor, which has the
same products), and a unit weight on each sample, or a given one:

    tr = sum_k F_k^2 . c_0 + h sum_i l_i . c_i,    l_i = sum_k Y_ik^2,    Y_i = J_{i-1} K_i^T

The trace never feeds back into the trajectory, so its cotangent is known before the backward pass:
up to a factor it is the same for all samples of a mean. Its derivative with respect to slopes and
weights can therefore be formed while J and Y are at hand, by two products more, and no tensor of
(samples, dimensions, width) outlives its chunk.

References:
    OT-Flow (Onken et al., AAAI 2021), https://arxiv.org/abs/2006.00104, section 3: the trace. Its
    derivative and the folded form are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Method: TypeAlias = Literal["columns", "folded"]
CHUNK = 720 * 1024  # bytes of a (rows, dimensions, width) tensor; three are in use at a time
ACCELERATED = 64 * 1024**2  # the same where caches are larger and each call costs more
FOLDED = 512 * 1024  # bytes of folded weights up to which they stay there, too


@dataclass(frozen=True)
class Derivative:
    """The derivative of sum_n g_n h sum_i c_i . l_i, where g_n weighs sample n.

    Arguments:
        slopes: With respect to tanh(q_i) for i = 0, ..., M - 1, each (n, m).
        frame: With respect to F, (k, m).
        hidden: With respect to K_1, ..., K_M, each (m, m).
    """

    slopes: list[Tensor]
    frame: Tensor
    hidden: list[Tensor]


def cheapest(rows: int, frame: Tensor, layers: int) -> Method:
    """Return the faster way: folding saves passes over Y where samples are many, weights small."""
    k, m = frame.shape
    folds = layers == 1 and rows >= 4 * m and k * m * m * frame.element_size() <= FOLDED
    return "folded" if folds else "columns"


def sweep(
    method: Method,
    frame: Tensor,
    hidden: Sequence[Tensor],
    slopes: Sequence[Tensor],
    bends: Sequence[Tensor],
    weights: Tensor | None = None,
    derive: bool = True,
) -> tuple[list[Tensor], Derivative | None]:
    """Return l_1, ..., l_M, each (n, m), and the derivative where it is wanted.

    Arguments:
        method: `folded` is for one hidden layer only.
        frame: F (k, m).
        hidden: K_1, ..., K_M, each (m, m).
        slopes: tanh(q_i), i = 0, ..., M, each (n, m).
        bends: c_i, i = 0, ..., M, each (n, m).
        weights: The g_n (n,); all 1 when left out.
        derive: Whether the derivative is wanted.
    """
    frame = frame.contiguous()
    forces = bends[1:] if weights is None else [bend * weights[:, None] for bend in bends[1:]]
    if method == "folded":
        return _folded(frame, hidden[0], slopes[0], forces[0], derive)
    lengths = [torch.empty_like(slope) for slope in slopes[1:]]
    found = Derivative(
        [torch.empty_like(slope) for slope in slopes[:-1]],
        torch.zeros_like(frame),
        [torch.zeros_like(weight) for weight in hidden],
    )
    k, m = frame.shape
    room = CHUNK if frame.device.type == "cpu" else ACCELERATED
    rows = max(1, room // (k * m * frame.element_size()))
    for start in range(0, len(slopes[0]), rows):
        part = slice(start, start + rows)
        local = [slope[part] for slope in slopes]
        jacobians, images = _outward(frame, hidden, local, [length[part] for length in lengths])
        if derive:
            push = [force[part] for force in forces]
            turned = [slope[part] for slope in found.slopes]
            _inward(frame, hidden, local, push, jacobians, images, turned, found)
    return lengths, found if derive else None


def _outward(
    frame: Tensor, hidden: Sequence[Tensor], slopes: Sequence[Tensor], lengths: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Fill in the lengths of a chunk; return its J_0, ..., J_{M-1} and Y_1, ..., Y_M."""
    k, m = frame.shape
    jacobians, images = [slopes[0][:, None] * frame], []
    for i, weight in enumerate(hidden):
        image = (jacobians[i].view(-1, m) @ weight.T).view(-1, k, m)
        torch.sum(image * image, 1, out=lengths[i])
        images.append(image)
        if i + 1 < len(hidden):
            step, slope = 1 / len(hidden), slopes[i + 1][:, None]
            jacobians.append(torch.addcmul(jacobians[i], slope, image, value=step))
    return jacobians, images


def _inward(
    frame: Tensor,
    hidden: Sequence[Tensor],
    slopes: Sequence[Tensor],
    forces: Sequence[Tensor],
    jacobians: Sequence[Tensor],
    images: list[Tensor],
    turned: Sequence[Tensor],
    found: Derivative,
) -> None:
    """Add a chunk to the derivative; its part of the slopes' is `turned`. Uses the images up."""
    (_, m), h = frame.shape, 1 / len(hidden)
    back: Tensor | None = None  # with respect to J_i
    for i in reversed(range(len(hidden))):
        image = images[i]
        if back is None:
            pulled = image.mul_((2 * h * forces[i])[:, None])
        else:
            torch.sum(back * image, 1, out=turned[i + 1])
            turned[i + 1].mul_(h)
            pulled = image.mul_((2 * h * forces[i])[:, None])
            pulled.addcmul_(slopes[i + 1][:, None], back, value=h)
        found.hidden[i].addmm_(pulled.view(-1, m).T, jacobians[i].view(-1, m))
        through = (pulled.view(-1, m) @ hidden[i]).view_as(image)
        back = through if back is None else back.add_(through)
    assert back is not None
    found.frame.add_((back * slopes[0][:, None]).sum(0))
    torch.sum(back.mul_(frame), 1, out=turned[0])


def _folded(
    frame: Tensor, weight: Tensor, slope: Tensor, force: Tensor, derive: bool
) -> tuple[list[Tensor], Derivative | None]:
    """Do the same for one hidden layer, with the frame folded into its weight.

    Y_k = tanh(q_0) W_k with W_k = diag(F_k) K_1^T, one matrix for all samples: no J is formed, and
    sums over dimensions and samples become parts of matrix products.
    """
    (k, m), n = frame.shape, len(slope)
    folded = (frame.T[:, :, None] * weight.T[:, None, :]).reshape(m, k * m)
    image = slope @ folded
    by_row = image.view(n, k, m)
    length = (by_row * by_row).sum(1)
    if not derive:
        return [length], None
    by_row.mul_(force[:, None])
    back = 2 * (slope.T @ image).view(m, k, m)
    return [length], Derivative(
        [image @ (2 * folded.T)],
        (back * weight.T[:, None, :]).sum(2).T,
        [(back * frame.T[:, :, None]).sum(1).T],
    )
