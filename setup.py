"""What pyproject.toml cannot say yet without a warning: the compiled files.

They are loaded through ctypes, so they need a C compiler but no Python headers.
"""

from setuptools import Extension, setup

KERNELS = {
    "llmctl.data.clean._markup": "llmctl/data/clean/markup.c",
    "llmctl.data.dedup._kernel": "llmctl/data/dedup/kernel.c",
    "llmctl.inference._kernel": "llmctl/inference/kernel.c",
}

setup(
    ext_modules=[
        Extension(name, sources=[source], extra_compile_args=["-std=gnu11", "-O3", "-Wno-psabi"])
        for name, source in KERNELS.items()
    ]
)
