"""Compiles e5core/kernels/native while e5core is built or installed, where that is possible.

Without a compiler, or for another CPU, e5core is complete all the same.
"""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = "e5core/kernels/native"


class NativeBuildHook(BuildHookInterface):  # type: ignore[misc]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if libraries := build_module(Path(self.root)).build():
            build_data["artifacts"] += [f"{FOLDER}/{library.name}" for library in libraries]
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform_tag()}"


def build_module(root: Path) -> ModuleType:
    """e5core/kernels/native/build.py by its path, since importing e5core needs torch."""
    path = root / FOLDER / "build.py"
    spec = importlib.util.spec_from_file_location("e5core_native_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def platform_tag() -> str:
    from sysconfig import get_platform

    return get_platform().replace("-", "_").replace(".", "_")
