"""Residual flows z = x + g(x): i-ResNet, whose g contracts, and IGNN, whose g is only kept small.

References:
    Invertible Residual Networks (Behrmann, Grathwohl, Chen, Duvenaud & Jacobsen, ICML 2019),
    https://arxiv.org/abs/1811.00995; Invertible Neural Networks for Graph Prediction (Xu, Cheng &
    Xie, 2022), https://arxiv.org/abs/2206.01163
"""
