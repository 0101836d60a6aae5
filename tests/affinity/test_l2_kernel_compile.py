"""The Triton kernels of L_G compiled for GPUs that this machine need not have."""

from __future__ import annotations

import pytest

from affsup_cli.affinity.batch import LARGEST_KERNEL

pytest.importorskip("triton", reason="Triton is not installed")

SHARED_BYTES = 99 * 1024  # of a block on GPUs of compute capability 8.6, 8.9 and 12.0: the least from 8.0 on

POINTERS = {"features": "*fp32", "labels": "*i64"} | dict.fromkeys(("statistics", "loss", "mass", "gradient"), "*fp32")
NUMBERS = dict.fromkeys(("nodes", "dimensions", "ignored"), "i32") | {"gamma": "fp32"}
CONSTANTS = {
    "IGNORES": False,
    "KEEPS_DIAGONAL": False,
    "FORM": "focal",
    "ROW_SOFTMAX": True,
    "ROW_AVERAGE": True,
    "NEEDS_GRADIENT": True,
}


@pytest.mark.parametrize("kernel", ["_row_statistics", "_combine"])
@pytest.mark.parametrize("nodes", [128, LARGEST_KERNEL])
def test_without_a_warning_and_in_the_shared_memory_of_any_gpu(kernel: str, nodes: int) -> None:
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from affsup_cli.affinity import l2_kernel

    function = getattr(l2_kernel, kernel)
    constants = CONSTANTS | l2_kernel.block_sizes(nodes, 64)
    types = POINTERS | NUMBERS | dict.fromkeys(constants, "constexpr")
    source = ASTSource(
        function,
        {name: types[name] for name in function.arg_names},
        {name: value for name, value in constants.items() if name in function.arg_names},
    )
    target = GPUTarget("cuda", 86, 32)
    compiled = compile_kernel(source, target=target, options=l2_kernel.compiler_options(nodes))
    assert 0 < compiled.metadata.shared <= SHARED_BYTES
