"""Building blocks of update networks: single device, no solvers, no training."""

from attractor.nn.convolution import ConvolutionUpdate, ConvolutionUpdateConfig

__all__ = ["ConvolutionUpdate", "ConvolutionUpdateConfig"]
