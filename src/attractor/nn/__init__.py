"""Building blocks of update networks: single device, no solvers, no training."""

from attractor.nn.compiled import CompiledBlock, compile_blocks, input_device, unwrap_model
from attractor.nn.convolution import ConvolutionUpdate, ConvolutionUpdateConfig
from attractor.nn.grid import GridNetwork, GridNetworkConfig, TRMUpdate, TRMUpdateConfig

__all__ = [
    "CompiledBlock",
    "ConvolutionUpdate",
    "ConvolutionUpdateConfig",
    "GridNetwork",
    "GridNetworkConfig",
    "TRMUpdate",
    "TRMUpdateConfig",
    "compile_blocks",
    "input_device",
    "unwrap_model",
]
