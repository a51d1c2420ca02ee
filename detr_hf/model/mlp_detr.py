"""The box head of DETR (paper, section 3.2)."""

import itertools

import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """A stack of linear layers with ReLU between them (the box head has three).

    >>> import torch
    >>> from detr_hf.model import MLP
    >>> bbox_embed = MLP(input_dim=256, hidden_dim=256, output_dim=4, num_layers=3)
    >>> bbox_embed(torch.randn(6, 2, 100, 256)).sigmoid().shape  # cxcywh of 100 queries, 2 images, 6 layers
    torch.Size([6, 2, 100, 4])
    """

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int):
        super().__init__()
        widths = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = nn.ModuleList(nn.Linear(n, k) for n, k in itertools.pairwise(widths))

    def forward(self, states: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            states = F.relu(layer(states))
        return self.layers[-1](states)
