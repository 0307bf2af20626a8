"""flowzoo: flow-based generative models, compared honestly."""

__version__ = "0.1.0"
