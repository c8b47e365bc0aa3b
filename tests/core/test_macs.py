"""MACs are those of torch's FlopCounterMode, which notes more than is asked for and takes twice the time."""

from __future__ import annotations

import pytest
import torch
from tiny import dit_pipeline, stable_diffusion
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from accel.core import macs
from accel.core.macs import count_macs


def attention(query, key, value, *args, out_shape=None, **kwargs) -> int:
    return sdpa_flop_count(query, key, value)  # torch's own for the fused kernels of CUDA


def expected(run) -> int:
    fused = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    with FlopCounterMode(display=False, custom_mapping=fused) as counter:
        run()
    return counter.get_total_flops() // 2


def unet():
    return stable_diffusion().unet(torch.ones(2, 4, 8, 8), torch.tensor(3), torch.ones(2, 5, 8))


def transformer():
    net = dit_pipeline().transformer
    return net(torch.ones(2, net.config.in_channels, 8, 8), torch.tensor([3, 3]), class_labels=torch.tensor([1, 2]))


def products():
    a, b = torch.ones(2, 3, 4), torch.ones(2, 4, 5)
    torch.einsum("bij,bjk->bik", a, b), a @ b, functional.linear(a, torch.ones(7, 4), torch.ones(7)), a[0] @ b[0, :, 0]
    functional.conv1d(a, torch.ones(6, 3, 2)), functional.conv_transpose1d(a, torch.ones(3, 6, 2), stride=2)
    return functional.scaled_dot_product_attention(a[None], a[None], a[None])


def gradient():
    x = torch.ones(1, 2, 6, 6, requires_grad=True)
    with torch.enable_grad():
        (functional.conv2d(x, torch.ones(3, 2, 3, 3, requires_grad=True)).sum() + (x[0, 0] @ x[0, 1]).sum()).backward()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("run", [unet, transformer, products, gradient])
def test_they_are_those_that_torch_counts(run, mode):
    if run is gradient and mode is torch.inference_mode:
        pytest.skip("which has none")
    with mode():
        found = count_macs(run)[1]
        assert found == expected(run) > 0
        assert count_macs(run)[1] == found


def test_what_runs_gives_its_result_and_is_counted_by_itself():
    """One context inside another counts for both, as those of torch do."""
    eye = torch.eye(3)
    (made, inner), outer = count_macs(lambda: count_macs(lambda: eye @ (2 * eye)))
    assert torch.equal(made, 2 * eye)
    assert (inner, outer) == (27, 27)


def test_a_formula_that_asks_for_tensors_gets_them():
    def formula(a, b, out_val):
        return int(a.sum() + b.sum() + out_val.sum())

    formula._get_raw = True
    eye = torch.eye(2)
    assert macs._flops(formula, (eye, eye), {}, eye) == 6
