// The views of augment.cu on the CPU and, through NVRTC, on CUDA.

#include "nvrtc.h"
#include "shared.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <cstdint>
#include <vector>

#include "augment.cu"

#if defined(__x86_64__) && defined(__gnu_linux__)
#define FOR_WIDER_VECTORS __attribute__((flatten, target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define FOR_WIDER_VECTORS __attribute__((flatten))
#endif

// One view, whose data stays in the cache.
FOR_WIDER_VECTORS void sdclr_augment_view(const augment::Batch &batch, int index, unsigned char *scratch) {
  unsigned long long sum = 0;
  for (int phase = 0; phase < augment::PHASES; ++phase)
    augment::run(phase, batch, index, scratch, &sum, augment::Alone());
}

extern "C" {

char *sdclr_augment_cpu(const augment::Batch *batch) {
  return guarded([&] {
    at::parallel_for(0, batch->count, 1, [&](int64_t begin, int64_t end) {
      std::vector<unsigned char> scratch(batch->scratch_most);
      for (int64_t index = begin; index < end; ++index)
        sdclr_augment_view(*batch, static_cast<int>(index), scratch.data());
    });
  });
}

// Queues the work; a block of threads for each view.
char *sdclr_augment_cuda(const augment::Batch *batch, int32_t index, const char *source) {
  return guarded([&] {
    // Multiplications and additions stay apart, as on the CPU.
    static CudaKernels kernels("augment.cu", {"augment_views"}, {"--std=c++20", "--fmad=false"});
    c10::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index));
    kernels.load(device, source);
    if (batch->count == 0)
      return;
    auto scratch = at::empty({batch->scratch_all}, at::device(device).dtype(at::kByte));
    auto argument = *batch;
    argument.scratch = scratch.mutable_data_ptr<uint8_t>();
    kernels.launch(0, device, {static_cast<unsigned>(batch->count), 1}, {32, 8}, &argument);
  });
}

// Computes views as CUDA does, thread by thread of blocks of columns x rows. The threads of a phase run in forward or reverse
// order; the result of a phase must not depend on that order.
char *sdclr_augment_like_cuda(const augment::Batch *batch, int columns, int rows, bool backwards) {
  return guarded([&] {
    std::vector<unsigned char> memory(batch->scratch_all);
    for (int index = 0; index < batch->count; ++index) {
      unsigned long long sum = 0;
      unsigned char *scratch = memory.data() + reinterpret_cast<const augment::View *>(batch->table)[index].scratch;
      for (int phase = 0; phase < augment::PHASES; ++phase)
        for (int i = 0; i < columns * rows; ++i) {
          int place = backwards ? columns * rows - 1 - i : i;
          augment::Thread thread{place % columns, place / columns, columns, rows};
          augment::run(phase, *batch, index, scratch, &sum, thread);
        }
    }
  });
}

} // extern "C"
