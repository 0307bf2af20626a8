"""The way back through the gradient of the residual potential, and through its activations.

`network` goes from s to the activations, and from w back to grad Phi; its derivative goes the other
way round: from grad Phi upwards to w, then downwards through the activations to s.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowzoo_ot_flow.network import Weights


def upwards(
    p: Weights,
    slopes: Sequence[Tensor],
    z: Sequence[Tensor],
    curves: Sequence[Tensor],
    bent: Sequence[Tensor],
    first: Tensor,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Go back through z_1, ..., z_{M+1} = w: gradients of the slopes, of the matrices and of w."""
    columns = first.shape[1]
    pulled = first @ p.matrices[0][:, :columns].T  # with respect to tanh(q_i) z_{i+1}
    opening = torch.zeros_like(p.matrices[0])
    opening[:, :columns] = (slopes[0] * z[0]).T @ first
    forces, matrices, back = [], [opening], torch.zeros_like(pulled)
    for i, (slope, after, curve, bend) in enumerate(zip(slopes, z, curves, bent, strict=True)):
        if i:
            pulled = p.step * (back @ p.matrices[i].T)
            matrices.append(p.step * ((slope * after).T @ back))
        forces.append(torch.addcmul(pulled, slope, bend, value=-2).mul_(after))
        back = back.addcmul(pulled, slope).addcmul_(bend, curve)
    return forces, matrices, back.sum(0)


def downwards(
    p: Weights,
    s: Tensor,
    slopes: Sequence[Tensor],
    outputs: Sequence[Tensor],
    curves: Sequence[Tensor],
    forces: Sequence[Tensor],
    matrices: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """Go back through q_M, ..., q_0: gradients of s and of the biases; adds to the matrices'."""
    inputs = [s, *outputs]
    back: Tensor | None = None  # with respect to u_i
    biases: list[Tensor] = []
    for i in range(len(slopes) - 1, -1, -1):
        force = forces[i].mul_(curves[i])
        if back is not None:
            force.addcmul_(slopes[i], back, value=p.step if i else 1.0)
        biases.append(force.sum(0))
        matrices[i].addmm_(force.T, inputs[i])
        into = force @ p.matrices[i]
        back = into if back is None or not i else back.add_(into)
    assert back is not None
    return back, biases[::-1]


def quadratic(p: Weights, s: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of A and s through the first columns of s A^T A."""
    columns = first.shape[1]
    back = first @ p.A[:, :columns].T
    a = back.T @ s
    a[:, :columns] += (s @ p.A.T).T @ first
    return a, back @ p.A
