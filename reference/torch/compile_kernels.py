"""Compiles a CUDA source with NVRTC for GPUs that need not be there, and prints what it has to say: nothing, if all is well.

    compile_kernels.py SOURCE OPTION...

Exits with 3 where this Python has no NVRTC.
"""

import ctypes
import sys
from pathlib import Path


def library(name):
    found = sorted(path for folder in sys.path for path in Path(folder).glob(f"nvidia/cu*/lib/{name}"))
    if not found:
        print(f"no {name} beside this Python", file=sys.stderr)
        sys.exit(3)
    return ctypes.CDLL(str(found[0]), mode=ctypes.RTLD_GLOBAL)


def main(source, options):
    # NVRTC looks for its headers' library by name, and finds it once it is loaded.
    library("libnvrtc-builtins.so.*.*")
    nvrtc = library("libnvrtc.so.*")
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), Path(source).read_bytes(), source.encode(), 0, None, None)
    options = [option.encode() for option in options]
    failure = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    print(log.value.decode().strip())
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
