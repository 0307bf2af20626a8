"""CP-Flow: gradients of strongly convex networks as flows, inverted by convex optimisation.

References:
    Convex Potential Flows: Universal Probability Distributions with Optimal Transport and Convex
    Optimization (Huang, Chen, Tsirigotis & Courville, ICLR 2021), https://arxiv.org/abs/2012.05942
"""
