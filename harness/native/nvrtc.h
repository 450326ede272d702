#pragma once

#include <c10/core/Device.h>

#include <array>
#include <atomic>
#include <mutex>
#include <vector>

// The kernels of one source file, compiled for the CUDA device at hand once there is one. CUDA's headers and libraries need
// not be there: its functions are looked up at run time.
class CudaKernels {
public:
  struct Grid {
    unsigned columns, rows;
  };

  // `file` is for messages; `options` go to NVRTC besides the device's architecture.
  CudaKernels(const char *file, std::vector<const char *> names, std::vector<const char *> options)
      : file(file), names(std::move(names)), options(std::move(options)) {}

  // Compiles `source` for a device, the first time; it waits for the device, so not while anything is recorded there.
  void load(c10::Device device, const char *source);

  // Queues kernel number `kernel` where the thread's work on the device goes. The kernel takes one argument, by value.
  void launch(size_t kernel, c10::Device device, Grid grid, Grid block, const void *argument) const;

private:
  // What a device needs to launch them; kept as long as the process lives.
  struct Loaded {
    void *context;
    std::vector<void *> functions;
  };

  const char *file;
  std::vector<const char *> names, options;
  std::mutex loading;
  std::array<std::atomic<const Loaded *>, 64> devices = {};
};
