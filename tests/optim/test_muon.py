"""Shape letters: G matrices of one shape, R rows, C columns."""

import pytest
import torch
from torch import nn

from llada.optim.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 16, 40), (2, 40, 16)])
def test_orthogonalised_matrices_keep_their_singular_vectors(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    result = orthogonalise(matrices)
    in_the_same_basis = u.mT @ result @ vh.mT
    values = in_the_same_basis.diagonal(dim1=-2, dim2=-1)
    assert torch.allclose(in_the_same_basis, torch.diag_embed(values), atol=1e-4)
    assert values.min() > 0.1  # the smallest do not make it all the way to one
    assert 0.65 < values.median() < 1.2
    assert values.max() < 1.3


def test_muon_steps_equal_its_rule_matrix_by_matrix() -> None:
    """Two steps on two matrices of one shape and one of another, against the rule written out for each alone."""
    torch.manual_seed(1)
    parameters = [nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(3, 5))]
    expected = [p.detach().clone() for p in parameters]
    momenta = [torch.zeros_like(p) for p in parameters]
    muon = Muon(parameters, lr=0.1, momentum=0.9, weight_decay=0.5)
    for _ in range(2):
        for i, parameter in enumerate(parameters):
            gradient = torch.randn_like(parameter)
            parameter.grad = gradient.clone()
            momenta[i] = 0.9 * momenta[i] + 0.1 * gradient
            direction = orthogonalise((0.1 * gradient + 0.9 * momenta[i])[None])[0]
            rows, columns = parameter.shape
            expected[i] = expected[i] * (1 - 0.1 * 0.5) - 0.1 * max(1, rows / columns) ** 0.5 * direction
        muon.step()
    for parameter, value in zip(parameters, expected, strict=True):
        assert torch.allclose(parameter, value, atol=1e-5)


def test_muon_leaves_out_what_has_no_gradient() -> None:
    with_gradient, without = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    with_gradient.grad = torch.eye(2)
    Muon([with_gradient, without], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(without, torch.ones(2, 2))
    assert not torch.equal(with_gradient, torch.ones(2, 2))


def test_muon_goes_on_from_its_saved_state() -> None:
    def three_steps(interrupted: bool) -> torch.Tensor:
        parameter = nn.Parameter(torch.zeros(4, 4))
        muon = Muon([parameter], lr=0.1)
        generator = torch.Generator().manual_seed(2)
        for step in range(3):
            if interrupted and step == 2:
                state = muon.state_dict()
                muon = Muon([parameter], lr=0.1)
                muon.load_state_dict(state)
            parameter.grad = torch.randn(4, 4, generator=generator)
            muon.step()
        return parameter.detach()

    assert torch.equal(three_steps(interrupted=False), three_steps(interrupted=True))


def test_orthogonalising_in_bf16_is_near_fp32() -> None:
    matrices = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(0))
    exact, rounded = orthogonalise(matrices), orthogonalise(matrices, torch.bfloat16)
    assert rounded.dtype == torch.float32
    assert float((rounded - exact).norm() / exact.norm()) < 0.05
