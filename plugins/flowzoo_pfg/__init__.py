"""A flow fitted by a loss on samples, as the Potential Flow Generator is.

A `discrepancy` says how far generated points are from data; the objective `generative` lowers it,
with the costs of the trajectories on which the points were made. The generator's potential flow is
made of the frame's parts: `gradient` of a potential, `rk1`, and the regularizer `hjb`.
"""
