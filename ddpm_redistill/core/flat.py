"""All that is trained as one vector: the optimizer, clipping and the average take one operation, not one a tensor."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.utils import clip_grads_with_norm_

NORM_PIECE = 1024  # elements: the norm is one of norms of so many, since a float32 sum of 36 M squares is wrong by 2e-3
ALIGNMENT = 16  # elements, 64 bytes of float32: kernels for tensor cores need 16 bytes, those of a CPU like 64


class FlatParameters:
    """Makes parameters views of one vector, and their gradients views of that vector's gradient; in place.

    Hand ``vector`` (N,) to the optimizer and zero its gradient with ``set_to_none=False``: a backward pass adds to it.
    On a small network, whose tensors number hundreds and are short, an update is then several times as fast. Each
    parameter begins at a multiple of ``ALIGNMENT`` and keeps its strides (channels-last too); what lies between two is
    0 and has no gradient.
    """

    def __init__(self, parameters: dict[str, nn.Parameter]):
        """``parameters``: by name, of one dtype and on one device, each dense in memory.

        Raises:
            ValueError: they are not.
        """
        if len({(parameter.dtype, parameter.device) for parameter in parameters.values()}) != 1:
            raise ValueError("parameters of one dtype and on one device are needed")
        self.parameters = parameters
        self.offsets, size = {}, 0
        for name, parameter in parameters.items():
            self.offsets[name] = size
            size += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
        like = next(iter(parameters.values())).detach()
        self.vector = nn.Parameter(like.new_zeros(-(-size // NORM_PIECE) * NORM_PIECE))
        self.gradient = self.vector.grad = torch.zeros_like(self.vector)
        values, self.gradients = self.views(self.vector.detach()), self.views(self.gradient)
        for name, parameter in parameters.items():
            values[name].copy_(parameter.detach())
            parameter.data, parameter.grad = values[name], self.gradients[name]

    def views(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """A vector (N,) -> its pieces by the names of the parameters, in their shapes and strides; no copy."""
        return {
            name: vector[self.offsets[name] :].as_strided(parameter.shape, parameter.stride())
            for name, parameter in self.parameters.items()
        }

    def add_gradients(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """Add the gradient of each parameter, None for one without, to the vector's."""
        there = {
            name: gradient for name, gradient in zip(self.parameters, gradients, strict=True) if gradient is not None
        }
        if there:
            torch._foreach_add_([self.gradients[name] for name in there], list(there.values()))

    def clip_gradient(self, max_norm: float) -> torch.Tensor:
        """Scale a gradient that is longer to ``max_norm`` -> its Euclidean norm before, a scalar."""
        norm = torch.linalg.vector_norm(torch.linalg.vector_norm(self.gradient.view(-1, NORM_PIECE), dim=1))
        clip_grads_with_norm_(self.vector, max_norm, norm)
        return norm

    def release(self) -> None:
        """Give every parameter memory of its own again, and no gradient: saved or copied alone, it is not the whole."""
        for parameter in self.parameters.values():
            parameter.data, parameter.grad = parameter.detach().clone(memory_format=torch.contiguous_format), None
