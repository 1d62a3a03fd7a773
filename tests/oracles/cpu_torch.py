"""Lets PyPI's Linux wheel of PyTorch run on a machine that has none of NVIDIA's libraries.

PyPI carries PyTorch for Linux x86-64 only as its CUDA build, whose requirements (`nvidia-*`, `triton`) are another
2.5 GB to download and 4 GB on disk. The oracles use the CPU alone. So the wheel is installed with `--no-deps`, and this
script puts, beside PyTorch's own libraries, one empty stand-in for each NVIDIA library they name, so that the dynamic
linker is satisfied. Every function of a stand-in returns 0; none is called on the CPU, and `torch.cuda.is_available()`
is False because the stand-in reports no device.

Usage: `python cpu_torch.py` inside the virtual environment. Does nothing where `import torch` already works.
"""

import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

NVIDIA = re.compile(r"^lib(cu|nccl|nvrtc|nvToolsExt|nvJitLink)")
FUNCTION = re.compile(r"^(cu|nccl|nvrtc|nvtx|__cuda)\w+$")


def imports_torch() -> bool:
    """Whether a fresh interpreter can import torch."""
    return subprocess.run([sys.executable, "-c", "import torch"], capture_output=True, check=False).returncode == 0


def needed_libraries(library: Path) -> set[str]:
    """The NVIDIA sonames that `library` asks the linker for."""
    dynamic = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    return {name for name in re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic) if NVIDIA.match(name)}


def undefined_functions(library: Path) -> set[tuple[str, str]]:
    """The NVIDIA functions that `library` leaves to be found elsewhere, each with the symbol version it asks for.

    NVIDIA names a symbol version after the library that defines it; "" is a function without a version.
    """
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True
    ).stdout
    names = (line.split()[-1].partition("@") for line in symbols.splitlines() if line.strip())
    return {(name, version) for name, _, version in names if FUNCTION.match(name)}


def build(soname: str, functions: list[str], folder: Path) -> None:
    """Compiles `folder/soname` with `functions`, each returning 0, under the symbol version `soname`."""
    with tempfile.TemporaryDirectory() as temporary:
        source, versions = Path(temporary, "stand_in.c"), Path(temporary, "versions")
        source.write_text("".join(f"long {name}(void) {{ return 0; }}\n" for name in functions))
        versions.write_text(f"{soname} {{ global: *; }};\n")
        script = [f"-Wl,--version-script={versions}"]
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{soname}", *script, "-o", folder / soname, source],
            check=True,
        )


def main() -> None:
    """Builds the stand-ins and checks that torch computes."""
    if not imports_torch():
        folder = Path(sysconfig.get_path("purelib"), "torch", "lib")
        libraries = [library for library in sorted(folder.glob("*.so*")) if not NVIDIA.match(library.name)]
        sonames = sorted(set().union(*map(needed_libraries, libraries)))
        functions = sorted(set().union(*map(undefined_functions, libraries)))
        for soname in sonames:
            # A function without a version may be found in any loaded library: the first one holds them all.
            mine = [
                name for name, version in functions if version == soname or (version == "" and soname == sonames[0])
            ]
            build(soname, mine, folder)
    check = "import torch; assert (torch.ones(2, 3) @ torch.ones(3, 2)).sum() == 12; print('torch', torch.__version__)"
    subprocess.run([sys.executable, "-c", check], check=True)


if __name__ == "__main__":
    main()
