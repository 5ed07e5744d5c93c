"""Building blocks of update networks: single device, no solvers, no training."""

from attractor.nn.block import Block, compile_blocks
from attractor.nn.cells import Cells, CellsConfig, Recursion, RecursionConfig
from attractor.nn.convolution import ConvolutionUpdate, ConvolutionUpdateConfig

__all__ = [
    "Block",
    "Cells",
    "CellsConfig",
    "ConvolutionUpdate",
    "ConvolutionUpdateConfig",
    "Recursion",
    "RecursionConfig",
    "compile_blocks",
]
