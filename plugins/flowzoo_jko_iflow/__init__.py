"""JKO-iFlow: a chain of small flows trained one after another, each a step towards the noise.

Block k is a proximal step of KL( . || N(0, I)) in the Wasserstein metric from where the blocks
before it left the points. `growing` is the chain, with as many blocks in use as were trained, and
`window` a part of a block; the objective `jko` trains it, with `steps` for the step sizes and their
reparametrisation, `stopping`, and `push`, which moves the points on and measures each block.
`difference` is the published divergence without derivatives, `steepest` the regulariser towards
the steepest descent.

References:
    Normalizing flow neural networks by JKO scheme (Xu, Cheng & Xie, NeurIPS 2023),
    https://arxiv.org/abs/2212.14424
"""
