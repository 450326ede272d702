// What tch does not expose of libtorch. Every function catches, and returns null or an error message
// that the caller frees with sdclr_free; mod.rs holds the safe wrappers.

#include "shared.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/ops/_fused_sgd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/randperm.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

extern "C" {

void sdclr_free(char *message) {
  if (message != OUT_OF_MEMORY)
    std::free(message);
}

// The version of the libtorch that is loaded, a byte a number: 0x020b00 is 2.11.0.
uint32_t sdclr_torch_version() { return static_cast<uint32_t>(aoti_torch_abi_version() >> 40); }

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

// torch._fused_sgd_ without Nesterov and dampening, at the rate that the tensor `lr` holds: on the host, or on the device.
char *sdclr_fused_sgd(void **params, void **grads, size_t count, void **buffers, size_t buffer_count,
                      double weight_decay, double momentum, void *lr) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    auto p = tensors(params, count), g = tensors(grads, count), b = tensors(buffers, buffer_count);
    const auto &rate = *static_cast<at::Tensor *>(lr);
    auto step = [&](auto value) {
      at::_fused_sgd_(p, g, b, weight_decay, momentum, value, /*dampening=*/0.0, /*nesterov=*/false,
                      /*maximize=*/false, /*is_first_step=*/false);
    };
    if (rate.is_cpu())
      step(rate.item<double>());
    else
      step(rate);
  });
}

// torch.autograd.grad of one output.
char *sdclr_gradients(void *output, void *gradient, void **inputs, size_t count, void **out) {
  return guarded([&] {
    auto from = tensors(&output, 1), with = tensors(&gradient, 1);
    auto gradients = torch::autograd::grad(from, tensors(inputs, count), with);
    for (size_t i = 0; i < count; ++i)
      *static_cast<at::Tensor *>(out[i]) = gradients[i];
  });
}

// First the older switches, which keep both generations of settings in agreement (libtorch throws where it finds them at
// odds), then each operation by name, so that nothing is inherited from an all-over setting.
char *sdclr_set_tf32(bool allow) {
  return guarded([&] {
    auto &context = at::globalContext();
    context.setAllowTF32CuBLAS(allow);
    context.setAllowTF32CuDNN(allow);
    auto precision = allow ? at::Float32Precision::TF32 : at::Float32Precision::IEEE;
    for (auto op : {at::Float32Op::MATMUL, at::Float32Op::CONV, at::Float32Op::RNN})
      context.setFloat32Precision(at::Float32Backend::CUDA, op, precision);
  });
}

// What the kernels will look at: bit 0 for cuBLAS, bit 1 for cuDNN's convolutions.
char *sdclr_tf32(int32_t *out) {
  return guarded([&] {
    auto &context = at::globalContext();
    auto on = [&](at::Float32Op op) {
      return context.float32Precision(at::Float32Backend::CUDA, op) == at::Float32Precision::TF32;
    };
    bool matmul = on(at::Float32Op::MATMUL), conv = on(at::Float32Op::CONV);
    TORCH_CHECK(context.allowTF32CuBLAS() == matmul && context.allowTF32CuDNN() == conv,
                "its older and newer TF32 settings disagree");
    *out = (matmul ? 1 : 0) | (conv ? 2 : 0);
  });
}

char *sdclr_set_deterministic(bool on) {
  return guarded([&] {
    auto &context = at::globalContext();
    context.setDeterministicAlgorithms(on, /*warn_only=*/false);
    // Memory is never read before it is written here: filling it first would only cost time.
    context.setDeterministicFillUninitializedMemory(false);
    context.setDeterministicCuDNN(on);
    context.setBenchmarkCuDNN(!on);
  });
}

// Bit 0: deterministic algorithms only (not just warned about), bit 1: cuDNN's too, bit 2: cuDNN tries which is fastest.
char *sdclr_determinism(int32_t *out) {
  return guarded([&] {
    auto &context = at::globalContext();
    bool algorithms = context.deterministicAlgorithms() && !context.deterministicAlgorithmsWarnOnly();
    *out = (algorithms ? 1 : 0) | (context.deterministicCuDNN() ? 2 : 0) | (context.benchmarkCuDNN() ? 4 : 0);
  });
}

// Fills `out` with a tensor of `bytes` bytes on the host, page-locked or not, whose values nobody has written.
char *sdclr_staging(int64_t bytes, bool pinned, void *out) {
  return guarded([&] {
    *static_cast<at::Tensor *>(out) = at::empty({bytes}, at::TensorOptions().dtype(at::kByte).pinned_memory(pinned));
  });
}

// Moves the tensor to page-locked memory.
char *sdclr_pin(void *tensor) {
  return guarded([&] {
    auto &pinned = *static_cast<at::Tensor *>(tensor);
    pinned = pinned.pin_memory();
  });
}

} // extern "C"
