"""Compilation: a network's layers as programs of their own (torch.compile), where a compiler is at hand.

Off by default. On the CPU it was measured not to pay (docs/log.md): matrix products are most of a step and stay the
same library calls, and the first step waits for the compiler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedsmith.errors import ConfigurationError, MissingPartError
from embedsmith.sharding import layers_of

if TYPE_CHECKING:
    import torch


def require_compiler() -> str:
    """Return the C++ compiler that torch would call.

    Raises:
        MissingPartError: there is none.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return str(get_cpp_compiler())
    except (InvalidCxxCompiler, RuntimeError) as error:
        raise MissingPartError(
            f"compile is true, and torch finds no C++ compiler ({str(error).splitlines()[0]})",
            expected="g++ or clang++ on the PATH, or its name in CXX",
            action="install one (apt install g++), or leave compile out",
        ) from None


def compile_layers(network: torch.nn.Module) -> str:
    """Compile each layer of `network` (changed in place) for blocks of any shape; return a sentence on it.

    All layers of one form share one program; the names of weights stay. Attention over packed texts stays outside.

    Raises:
        MissingPartError: there is no C++ compiler. ConfigurationError: the network has no list of layers.
    """
    compiler = require_compiler()
    layers = layers_of(network)
    if not layers:
        raise ConfigurationError("compile is true, and the network has no layers", action="leave compile out")
    for layer in layers:
        layer.compile(dynamic=True)
    return f"{len(layers)} layers are compiled with {compiler}: the first step waits for it"
