"""Graph heads: the tokens behind a layer become a k-NN graph, the graph one capsule, the capsule an action.

    x = LN(W_in h)     z_ij = phi(x_i).psi(x_j) / sqrt(d_g)     N(i) = the k largest z_ij of row i, and i itself
    x_i <- x_i + ReLU( mean over heads sum_j a_ij W x_j ),   a_ij = softmax_N(i)( z_ij + LeakyReLU(u.[W x_i, W x_j]) )
    s = MLP( sum_i softmax_i(w_p.x_i) x_i ),   action = MLP(s)

z is log w up to a constant of its row, so that w_ij e^e_ij needs no exp that could overflow. Source: ActDistill, arXiv
2511.18082, as section 8 of our notes rebuilds it: a bottleneck of d_g instead of full width (1.9 M instead of 177 M
parameters a layer at width 4096), gathering instead of scattering, self-loops, residual, padding masked, no dropout.
Heads are auxiliary: they train, and are never shipped. E inner width, J capsule width, F numbers of the action.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS, LAYERS, ACTION = 4, 2, 256  # attention heads, layers of messages, width inside the action's MLP


@dataclass(frozen=True)
class HeadSizes:
    """What fixes the shape of a head. neighbours: k; 0 = no graph, every token by itself (ablation)."""

    width: int  # of the stream
    inner: int
    capsule: int
    outputs: int
    neighbours: int


class Heads(nn.Module):
    """One head for each of `depth` layers."""

    def __init__(self, sizes: HeadSizes, depth: int):
        super().__init__()
        self.heads = nn.ModuleList(Head(sizes) for _ in range(depth))

    def forward(self, streams_LBND: Sequence[Tensor], valid_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Capsules [L, B, J] and actions [L, B, F], float32."""
        found = [head(x, valid_BN) for head, x in zip(self.heads, streams_LBND, strict=True)]
        capsules, actions = zip(*found, strict=True)
        return torch.stack(capsules), torch.stack(actions)


class Head(nn.Module):
    """From the stream behind one layer to its capsule and its action."""

    def __init__(self, sizes: HeadSizes):
        super().__init__()
        self.sizes, inner = sizes, sizes.inner
        self.narrow, self.norm = nn.Linear(sizes.width, inner), nn.LayerNorm(inner)
        if sizes.neighbours:
            self.phi, self.psi = nn.Linear(inner, inner, bias=False), nn.Linear(inner, inner, bias=False)
        self.layers = nn.ModuleList(Messages(inner) if sizes.neighbours else Alone(inner) for _ in range(LAYERS))
        self.pool = nn.Linear(inner, 1, bias=False)
        self.capsule = nn.Sequential(nn.Linear(inner, inner // 2), nn.ReLU(), nn.Linear(inner // 2, sizes.capsule))
        last = nn.Linear(ACTION, sizes.outputs)
        self.action = nn.Sequential(nn.Linear(sizes.capsule, ACTION), nn.ReLU(), last)
        with torch.no_grad():  # the first actions are near 0, the middle of the normalised range
            last.weight.mul_(0.1)
            last.bias.zero_()

    def forward(self, x_BND: Tensor, valid_BN: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x_BND.device.type, enabled=False):
            x = self.norm(self.narrow(x_BND.float()))
            edges_BNN = self.edges(x, valid_BN) if self.sizes.neighbours else None
            for layer in self.layers:
                x = layer(x, edges_BNN)
            weight_BN = self.pool(x)[..., 0].masked_fill(~valid_BN, -torch.inf).softmax(dim=-1)
            capsule_BJ = self.capsule((weight_BN[..., None] * x).sum(dim=1))
            return capsule_BJ, self.action(capsule_BJ)

    def edges(self, x_BNE: Tensor, valid_BN: Tensor) -> Tensor:
        """log w [B, N, N]: -inf where token j is no neighbour of token i; every row of w sums to 1."""
        near = self.phi(x_BNE) @ self.psi(x_BNE).mT / math.sqrt(self.sizes.inner)
        near = near.masked_fill(~valid_BN[:, None, :], -torch.inf)
        best = near.detach().topk(min(self.sizes.neighbours, near.shape[-1]), dim=-1).indices
        kept = torch.eye(near.shape[-1], dtype=torch.bool, device=near.device).expand_as(near)
        kept = kept.scatter(-1, best, True) & valid_BN[:, None, :]
        return near.masked_fill(~kept, -torch.inf).log_softmax(dim=-1)


class Messages(nn.Module):
    """Graph attention: every token gathers from its neighbours."""

    def __init__(self, inner: int):
        super().__init__()
        self.value = nn.Linear(inner, HEADS * inner, bias=False)
        bound = (2 * inner) ** -0.5
        self.mine, self.theirs = (nn.Parameter(torch.empty(HEADS, 1, inner).uniform_(-bound, bound)) for _ in range(2))

    def forward(self, x_BNE: Tensor, edges_BNN: Tensor) -> Tensor:
        value_BKNE = self.value(x_BNE).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        return x_BNE + (self.weights(value_BKNE, edges_BNN) @ value_BKNE).mean(dim=1).relu()

    def weights(self, value_BKNE: Tensor, edges_BNN: Tensor) -> Tensor:
        """Who listens how much to whom [B, K, N, N]; every row sums to 1."""
        mine, theirs = ((value_BKNE * u).sum(dim=-1) for u in (self.mine, self.theirs))
        fit_BKNN = F.leaky_relu(mine[..., :, None] + theirs[..., None, :], 0.2)
        return (edges_BNN[:, None] + fit_BKNN).softmax(dim=-1)


class Alone(nn.Module):
    """The same step without a graph: no token hears of another before they are pooled."""

    def __init__(self, inner: int):
        super().__init__()
        self.value = nn.Linear(inner, inner, bias=False)

    def forward(self, x_BNE: Tensor, edges: None) -> Tensor:
        return x_BNE + self.value(x_BNE).relu()


def frozen(module: nn.Module) -> nn.Module:
    """The module itself, its parameters now buffers: saved, moved and copied into by name, and never trained."""
    for part in module.modules():
        for name, tensor in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, tensor.detach())
    return module


def depth_weights(gamma: float, depth: int) -> Tensor:
    """omega [L]: (l / (L-1))^gamma, scaled to a mean of 1."""
    places = torch.arange(depth, dtype=torch.float64) / max(depth - 1, 1)
    weights = places**gamma if depth > 1 else torch.ones(1, dtype=torch.float64)
    return (weights / weights.mean()).float()


def squares(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error over the last axis."""
    return (a - b).square().mean(dim=-1)
