"""An optimiser that trains the convolutions of a network with orthogonal steps, and everything else with AdamW.

R rows, S columns of a kernel as a matrix, N kernels of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

# Coefficients of Jordan's quintic iteration. Three rounds bring values between 0.02 and 1 close to 1. They trained as
# well as the usual five.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ROUNDS = 3
_MOMENTUM = 0.95
_EPSILON = 1e-8
# Norms up to this one count as 0; its square is far above the smallest float32 number.
_SMALLEST_NORM = 1e-15
# Momenta of units that no longer learn settle at twenty times this value, and not at subnormal numbers.
_MOMENTUM_FLOOR = 1e-30


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised steps for convolution kernels; AdamW for all other weights.

    After Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks. A kernel is treated as a matrix
    with one row per output channel. The step is the orthogonal matrix nearest to its momentum, so all directions of a
    kernel learn at the same pace. That reaches a given loss with fewer images than AdamW, and costs a few products of
    small matrices per step. torch has an optimiser like this, `torch.optim.Muon`, but it takes only matrices, and
    Lightning takes only one optimiser.

    Args:
        groups: Parameter groups with `params`, `lr`, `weight_decay` and `orthogonal`: whether the parameters, of two or
            more dimensions, get orthogonal steps. If so, `lr` is the length of a step along every direction.
        betas: Decay of AdamW's moments.
        fused: Use AdamW's fused kernel.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], fused: bool) -> None:
        super().__init__(groups, {"lr": 1e-3, "weight_decay": 0.0, "orthogonal": False, "betas": betas, "fused": fused})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Takes one step.

        Args:
            closure: Computes the loss and its gradients first, if given.

        Returns:
            The loss of the closure.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:  # a frozen encoder's
                continue
            if group["orthogonal"]:
                self._orthogonal_step(parameters, group["lr"], group["weight_decay"])
            else:
                self._adamw_step(parameters, group)
        return loss

    def _orthogonal_step(self, parameters: list[Tensor], rate: float, weight_decay: float) -> None:
        shapes: dict[torch.Size, list[int]] = {}
        for index, parameter in enumerate(parameters):
            shapes.setdefault(parameter.shape, []).append(index)
        momenta = self._momenta(parameters)
        # In the order in which kernels with the layout channels_last are in memory.
        stacks = [torch.stack([momenta[index].movedim(1, -1).flatten(1) for index in same]) for same in shapes.values()]
        torch._foreach_mul_(parameters, 1 - rate * weight_decay)
        for same, steps in zip(shapes.values(), orthogonalize(stacks), strict=True):
            # Makes a tall kernel change its output as much as a wide one does.
            length = rate * max(1.0, steps.shape[1] / steps.shape[2]) ** 0.5
            steps = steps.view(-1, *parameters[same[0]].movedim(1, -1).shape).movedim(-1, 2)
            torch._foreach_add_([parameters[index] for index in same], list(steps), alpha=-length)

    def _momenta(self, parameters: list[Tensor]) -> list[Tensor]:
        """Nesterov's momentum of each gradient."""
        for parameter in parameters:
            if "momentum" not in self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters]
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
        torch._foreach_add_(momenta, _MOMENTUM_FLOOR)
        return list(torch._foreach_lerp(gradients, momenta, _MOMENTUM))

    def _adamw_step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                # AdamW reads it on the CPU unless it is fused.
                device = parameter.device if group["fused"] else "cpu"
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=_EPSILON,
            maximize=False,
        )


def orthogonalize(stacks: Sequence[Tensor]) -> list[Tensor]:
    """Brings the singular values of matrices close to 1, by Newton-Schulz iterations in float32 or TF32.

    The iterations run on the small square Gram matrices, on all those of the same size at once. Most of the remaining
    computation is the two products with the wide kernels.

    Args:
        stacks: Matrices `(N, R, S)`, with any N, R and S.

    Returns:
        `(N, R, S)` for each, with the same singular vectors. Singular values above 1/50 of a matrix's Frobenius norm
        end between 0.68 and 1.21; smaller ones may stay below. If a matrix has a norm below 1e-15, they are all 0.
    """
    wide = [stack.mT if stack.shape[1] > stack.shape[2] else stack for stack in stacks]
    with torch.autocast(wide[0].device.type, enabled=False):
        wide = [_of_unit_norm(stack) for stack in map(Tensor.float, wide)]
        grams: dict[int, list[Tensor]] = {}
        for stack in wide:
            grams.setdefault(stack.shape[1], []).append(_without_tiny(stack @ stack.mT))
        factors = {size: iter(_iterate(torch.cat(same)).split([len(g) for g in same])) for size, same in grams.items()}
        steps = [next(factors[stack.shape[1]]) @ stack for stack in wide]
    return [step.mT if step.shape != stack.shape else step for step, stack in zip(steps, stacks, strict=True)]


def _iterate(gram: Tensor) -> Tensor:
    """Factors that bring the singular values of matrices close to 1, computed from their Gram matrices `(N, R, R)`."""
    one = torch.eye(gram.shape[-1], device=gram.device)
    product = None
    for remaining in reversed(range(_ROUNDS)):
        factor = torch.baddbmm(_QUINTIC[0] * one + _QUINTIC[1] * gram, gram, gram, alpha=_QUINTIC[2])
        product = factor if product is None else factor @ product
        if remaining:
            gram = _without_tiny(factor @ gram @ factor)
    return product


def _of_unit_norm(stack: Tensor) -> Tensor:
    """Matrices `(N, R, S)` divided by their Frobenius norms; 0 if the norm is almost 0."""
    norm = stack.norm(dim=(1, 2), keepdim=True)
    return _without_tiny(stack * torch.where(norm > _SMALLEST_NORM, norm.reciprocal(), 0.0))


def _without_tiny(values: Tensor) -> Tensor:
    """Rounds values of up to about 1, in place, to multiples of about 1e-7.

    Units that no longer learn have momenta near 0. Products of these are subnormal numbers, and for each of them a CPU
    takes as long as for a hundred others.
    """
    return values.add_(1).sub_(1)
