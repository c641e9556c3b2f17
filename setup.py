"""What pyproject.toml cannot say yet without a warning: the compiled files.

They are loaded through ctypes, so they need a C compiler but no Python headers.
"""

import platform

from setuptools import Extension, setup

KERNELS = {
    "llmctl.data.clean._markup": "llmctl/data/clean/markup.c",
    "llmctl.data.dedup._kernel": "llmctl/data/dedup/kernel.c",
}
MODELS = {  # with the headers that say what Python hands over
    "llmctl.model._native": (["attention", "fused", "softmax"], ["lanes", "native"]),
    "llmctl.inference._kernel": (["block", "choice", "decode", "kernel", "linear"], ["steps", "../model/lanes"]),
}
# One build for each kind of processor; which one is loaded is decided where it runs (llmctl/model/native.py).
LEVELS = {"": []}
if platform.machine().lower() in {"x86_64", "amd64"}:
    LEVELS |= {
        "_avx2": ["-march=x86-64-v3"],
        "_avx512": ["-march=x86-64-v4"],
        "_avx512bf16": ["-march=x86-64-v4", "-mavx512bf16"],
    }
PLAIN = ["-std=gnu11", "-O3"]


def folder(name: str) -> str:
    """Where the sources of an extension lie."""
    return name.rpartition(".")[0].replace(".", "/")


setup(
    ext_modules=[
        *(Extension(name, sources=[source], extra_compile_args=PLAIN) for name, source in KERNELS.items()),
        *(
            Extension(
                f"{name}{level}",
                sources=[f"{folder(name)}/{source}.c" for source in sources],
                depends=[f"{folder(name)}/{header}.h" for header in headers],
                extra_compile_args=[*PLAIN, "-Wno-psabi", *flags],
            )
            for name, (sources, headers) in MODELS.items()
            for level, flags in LEVELS.items()
        ),
    ]
)
