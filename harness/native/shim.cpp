// What tch does not expose of libtorch. Every function catches, and returns null or an error message
// that the caller frees with sdclr_free; mod.rs holds the safe wrappers.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <torch/version.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <vector>

namespace {

template <typename F> char *guarded(F body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception &error) {
    return strdup(error.what());
  }
}

std::vector<at::Tensor> tensors(void **pointers, size_t count) {
  std::vector<at::Tensor> list;
  list.reserve(count);
  for (size_t i = 0; i < count; ++i)
    list.push_back(*static_cast<at::Tensor *>(pointers[i]));
  return list;
}

} // namespace

extern "C" {

void sdclr_free(char *message) { std::free(message); }

const char *sdclr_torch_version() { return TORCH_VERSION; }

// torch.randperm(n) of a CPU generator of its own, seeded with `seed`.
char *sdclr_randperm(int64_t n, uint64_t seed, int64_t *out) {
  return guarded([&] {
    auto generator = at::detail::createCPUGenerator(seed);
    auto order = at::randperm(n, generator, at::kLong);
    std::memcpy(out, order.const_data_ptr<int64_t>(), sizeof(int64_t) * n);
  });
}

// Uniform numbers in [0, 1) of a CPU generator of its own, written into the contiguous float tensor `out`.
char *sdclr_uniform(void *out, uint64_t seed) {
  return guarded([&] {
    auto generator = at::detail::createCPUGenerator(seed);
    static_cast<at::Tensor *>(out)->uniform_(0.0, 1.0, generator);
  });
}

// Standard normal numbers of a CPU generator of its own, written into the contiguous float tensor `out`.
char *sdclr_normal(void *out, uint64_t seed) {
  return guarded([&] {
    auto generator = at::detail::createCPUGenerator(seed);
    static_cast<at::Tensor *>(out)->normal_(0.0, 1.0, generator);
  });
}

// torch._fused_sgd_ without Nesterov and dampening.
char *sdclr_fused_sgd(void **params, void **grads, size_t count, void **buffers, size_t buffer_count,
                      double weight_decay, double momentum, double lr) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    auto p = tensors(params, count), g = tensors(grads, count), b = tensors(buffers, buffer_count);
    at::_fused_sgd_(p, g, b, weight_decay, momentum, lr, /*dampening=*/0.0, /*nesterov=*/false,
                    /*maximize=*/false, /*is_first_step=*/false);
  });
}

// Calls body(context, i) for every i below count on libtorch's own threads; what body computes stays on its thread.
char *sdclr_parallel_for(size_t count, void (*body)(void *, size_t), void *context) {
  return guarded([&] {
    at::parallel_for(0, static_cast<int64_t>(count), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        body(context, static_cast<size_t>(i));
    });
  });
}

char *sdclr_set_tf32(bool allow) {
  return guarded([&] {
    at::globalContext().setAllowTF32CuBLAS(allow);
    at::globalContext().setAllowTF32CuDNN(allow);
  });
}

bool sdclr_tf32() {
  return at::globalContext().allowTF32CuBLAS() || at::globalContext().allowTF32CuDNN();
}

} // extern "C"
