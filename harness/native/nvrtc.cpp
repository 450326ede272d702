// Kernels that are compiled at run time and launched by the driver.

#include "nvrtc.h"

#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include <dlfcn.h>

#include <string>

namespace {

// A function of NVRTC or the driver: PyTorch's libcaffe2_nvrtc is linked to both.
void *symbol(const char *name) {
  static void *const library = [] {
    void *found = dlopen("libcaffe2_nvrtc.so", RTLD_NOW);
    TORCH_CHECK(found, "the run-time compiler of CUDA cannot be loaded (", dlerror(),
                "); install the whole torch==2.11.0 with its nvidia packages, or use --device cpu");
    return found;
  }();
  void *address = dlsym(library, name);
  TORCH_CHECK(address, "this CUDA has no ", name, "; use a driver for CUDA 13 and PyTorch 2.11.0");
  return address;
}

template <typename... Arguments> int call(void *function, Arguments... arguments) {
  return reinterpret_cast<int (*)(Arguments...)>(function)(arguments...);
}

#define CUDA(name, ...)                                                                                                \
  do {                                                                                                                 \
    static void *const function = symbol(#name);                                                                       \
    int failure = call(function, __VA_ARGS__);                                                                         \
    TORCH_CHECK(failure == 0, #name " failed with CUDA's error ", failure);                                            \
  } while (false)

// `source` as machine code.
std::string compile(const char *file, const char *source, std::vector<const char *> options, int capability) {
  void *program = nullptr;
  CUDA(nvrtcCreateProgram, &program, source, file, 0, static_cast<const char **>(nullptr),
       static_cast<const char **>(nullptr));
  auto architecture = "--gpu-architecture=sm_" + std::to_string(capability);
  options.insert(options.end(), {architecture.c_str(), "--device-as-default-execution-space"});
  int failure = call(symbol("nvrtcCompileProgram"), program, static_cast<int>(options.size()),
                     static_cast<const char **>(options.data()));
  size_t size = 0;
  std::string text;
  CUDA(nvrtcGetProgramLogSize, program, &size);
  text.resize(size);
  CUDA(nvrtcGetProgramLog, program, text.data());
  TORCH_CHECK(failure == 0, file, " does not compile for sm_", capability, " (error ", failure,
              " of NVRTC): ", text.substr(0, text.find('\n')));
  CUDA(nvrtcGetCUBINSize, program, &size);
  text.resize(size);
  CUDA(nvrtcGetCUBIN, program, text.data());
  CUDA(nvrtcDestroyProgram, &program);
  return text;
}

} // namespace

void CudaKernels::load(c10::Device device, const char *source) {
  TORCH_CHECK(device.is_cuda() && device.index() >= 0 && device.index() < static_cast<int>(devices.size()),
              "there are no CUDA kernels for ", device);
  auto &place = devices[device.index()];
  if (place)
    return;
  std::lock_guard lock(loading);
  if (place)
    return;
  constexpr int CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76;
  int handle, major, minor;
  void *module;
  Loaded loaded;
  // libtorch's context of the device becomes the thread's, if it is not yet.
  c10::DeviceGuard guard(device);
  c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(device.index());
  CUDA(cuCtxGetCurrent, &loaded.context);
  CUDA(cuDeviceGet, &handle, static_cast<int>(device.index()));
  CUDA(cuDeviceGetAttribute, &major, CAPABILITY_MAJOR, handle);
  CUDA(cuDeviceGetAttribute, &minor, CAPABILITY_MINOR, handle);
  auto code = compile(file, source, options, 10 * major + minor);
  CUDA(cuModuleLoadData, &module, static_cast<const void *>(code.data()));
  for (auto name : names)
    CUDA(cuModuleGetFunction, &loaded.functions.emplace_back(), module, name);
  place = new Loaded(loaded);
}

void CudaKernels::launch(size_t kernel, c10::Device device, Grid grid, Grid block, const void *argument) const {
  const Loaded *loaded = devices[device.index()];
  TORCH_CHECK(loaded, file, " was not loaded for ", device);
  c10::DeviceGuard guard(device);
  // A thread may have had nothing to do with CUDA yet.
  void *current = nullptr;
  CUDA(cuCtxGetCurrent, &current);
  if (current != loaded->context)
    CUDA(cuCtxSetCurrent, loaded->context);
  auto stream = c10::impl::VirtualGuardImpl(device.type()).getStream(device);
  void *arguments[] = {const_cast<void *>(argument)};
  CUDA(cuLaunchKernel, loaded->functions[kernel], grid.columns, grid.rows, 1u, block.columns, block.rows, 1u, 0u,
       stream.native_handle(), static_cast<void **>(arguments), static_cast<void **>(nullptr));
}
