"""Building blocks of update networks: single device, no solvers, no training."""

from attractor.nn.compiled import CompiledBlock, compile_blocks, input_device, unwrap_model
from attractor.nn.convolution import GatedConvolutionUpdate, GatedConvolutionUpdateConfig
from attractor.nn.grid import GridNetwork, GridNetworkConfig, TRMUpdate, TRMUpdateConfig
from attractor.nn.symmetric import CandidateEmbedding, CandidateHead, SymmetricUpdate, SymmetricUpdateConfig

__all__ = [
    "CandidateEmbedding",
    "CandidateHead",
    "CompiledBlock",
    "GatedConvolutionUpdate",
    "GatedConvolutionUpdateConfig",
    "GridNetwork",
    "GridNetworkConfig",
    "SymmetricUpdate",
    "SymmetricUpdateConfig",
    "TRMUpdate",
    "TRMUpdateConfig",
    "compile_blocks",
    "input_device",
    "unwrap_model",
]
