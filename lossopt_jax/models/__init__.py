"""Models as two pure functions, a convolution that lanes share well, and the small reference networks that the configs train."""

from .adapters import Apply, Model, from_linen, from_nnx
from .convolution import conv_by_patches
from .networks import CNN, MLP, MODULES, RNN, Transformer, UNet

__all__ = ["CNN", "MLP", "MODULES", "RNN", "Apply", "Model", "Transformer", "UNet", "conv_by_patches", "from_linen", "from_nnx"]
