"""What pyproject.toml cannot say yet without a warning: the one compiled file.

It is loaded through ctypes, so it needs a C compiler but no Python headers.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "llmctl.data.dedup._kernel",
            sources=["llmctl/data/dedup/kernel.c"],
            extra_compile_args=["-std=gnu11", "-O3"],
        )
    ]
)
