"""What pyproject.toml cannot say yet without a warning: the compiled files.

They are loaded through ctypes, so they need a C compiler but no Python headers.
"""

import platform

from setuptools import Extension, setup

KERNELS = {
    "llmctl.data.clean._markup": "llmctl/data/clean/markup.c",
    "llmctl.data.dedup._kernel": "llmctl/data/dedup/kernel.c",
}
ENGINE = [f"llmctl/inference/{name}.c" for name in ("block", "kernel", "linear")]
# One build for each kind of processor; which one is loaded is decided where it runs (llmctl/inference/kernel.py).
LEVELS = {"": []}
if platform.machine().lower() in {"x86_64", "amd64"}:
    LEVELS |= {
        "_avx2": ["-march=x86-64-v3"],
        "_avx512": ["-march=x86-64-v4"],
        "_avx512bf16": ["-march=x86-64-v4", "-mavx512bf16"],
    }
PLAIN = ["-std=gnu11", "-O3"]

setup(
    ext_modules=[
        *(Extension(name, sources=[source], extra_compile_args=PLAIN) for name, source in KERNELS.items()),
        *(
            Extension(
                f"llmctl.inference._kernel{level}",
                sources=ENGINE,
                depends=["llmctl/inference/lanes.h"],
                extra_compile_args=[*PLAIN, "-Wno-psabi", *flags],
            )
            for level, flags in LEVELS.items()
        ),
    ]
)
