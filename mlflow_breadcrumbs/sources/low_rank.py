"""Fine-tuning of low rank: of every matrix only a product of two thin ones is learned (LoRA).

Hu et al., ICLR 2022, arXiv 2106.09685: W + (2·B·A), A [rank, columns] drawn, B [rows, rank] zero at
first; the factor is the usual alpha/rank of 16/8. What comes out is a whole model again, so it is
registered, merged and served as any other.
"""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize

SCALE = 2.0


class Product(nn.Module):
    """Adds the product of two thin matrices to a matrix.

    Args:
        matrix: [rows, columns], what is added to.
        rank: of the product.
        generator: draws A.
    """

    def __init__(self, matrix: torch.Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = matrix.shape
        first = torch.empty(rank, columns)
        nn.init.kaiming_uniform_(first, a=math.sqrt(5), generator=generator)
        self.first = nn.Parameter(first.to(matrix.device))
        self.second = nn.Parameter(torch.zeros(rows, rank, device=matrix.device))

    def forward(self, matrix: torch.Tensor) -> torch.Tensor:
        """The matrix with the product added."""
        return matrix + SCALE * (self.second @ self.first)


@contextlib.contextmanager
def adapted(
    tower: nn.Module, rank: int, generator: torch.Generator
) -> Iterator[list[nn.Parameter]]:
    """Let only products of a rank be learned; they are added to the matrices at the end.

    Args:
        tower: its linear layers and attention projections are adapted, all else is frozen.
        rank: at least 1; 0 leaves everything as it is.
        generator: draws what is drawn.

    Yields:
        The parameters to train.
    """
    if not rank:
        yield list(tower.parameters())
        return
    frozen = [parameter for parameter in tower.parameters() if parameter.requires_grad]
    matrices = [
        (module, name)
        for module in tower.modules()
        if isinstance(module, nn.Linear | nn.MultiheadAttention)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 2
    ]
    for parameter in frozen:
        parameter.requires_grad_(False)
    learned: list[nn.Parameter] = []
    for module, name in matrices:
        product = Product(getattr(module, name), rank, generator)
        parametrize.register_parametrization(module, name, product)
        learned += product.parameters()
    yield learned
    for module, name in matrices:
        parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    for parameter in tower.parameters():
        parameter.requires_grad_(True)
