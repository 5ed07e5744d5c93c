"""Building blocks of update networks: single device, no solvers, no training."""

from attractor.nn.cells import Cells, CellsConfig, Recursion, RecursionConfig
from attractor.nn.convolution import ConvolutionUpdate, ConvolutionUpdateConfig

__all__ = ["Cells", "CellsConfig", "ConvolutionUpdate", "ConvolutionUpdateConfig", "Recursion", "RecursionConfig"]
