// The kernels of norm.cu as one operation that autograd knows. On CUDA they are compiled for the device at hand and
// launched by the driver, whose functions are looked up at run time as its headers and libraries need not be there; on a
// CPU they are loops. As in shim.cpp every function that can fail returns null or an error message.

#include "nvrtc.h"
#include "shared.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/DeviceGuard.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "norm.cu"

namespace batch_norm {
namespace {

// ---- Kernels ---------------------------------------------------------------------------------------------------------

// The list of norm.cu, as numbers, names and functions.
#define KERNEL(name, first, second) name,
enum Kernel { KERNELS COUNT };
#undef KERNEL

#define KERNEL(name, first, second) #name,
constexpr const char *NAMES[] = {KERNELS};
#undef KERNEL

using Half = void (*)(const Norm &, Place, Shared &);
#define KERNEL(name, first, second) {first, second},
constexpr Half HALVES[][2] = {KERNELS};
#undef KERNEL

} // namespace
} // namespace batch_norm

namespace {

using namespace batch_norm;

struct Grid {
  int columns, parts;
};

// A block after the other, in it a thread after the other: each half by all threads before the next begins.
void loop(Kernel kernel, const Norm &n, Grid grid) {
  auto shared = std::make_unique<Shared>();
  for (int part = 0; part < grid.parts; ++part)
    for (int column = 0; column < grid.columns; ++column)
      for (auto half : HALVES[kernel])
        for (int thread = 0; thread < THREADS; ++thread)
          half(n, {column, part, thread}, *shared);
}

CudaKernels cuda("norm.cu", {std::begin(NAMES), std::end(NAMES)}, {"--std=c++17"});

void launch(Kernel kernel, const Norm &n, Grid grid, at::Device device) {
  if (device.is_cpu())
    return loop(kernel, n, grid);
  cuda.launch(kernel, device, {static_cast<unsigned>(grid.columns), static_cast<unsigned>(grid.parts)}, {THREADS, 1}, &n);
}

// ---- The operation ---------------------------------------------------------------------------------------------------

bool is_aligned(const at::Tensor &tensor) { return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0; }

bool takes(const at::Tensor &x) {
  return x.dim() == 4 && x.scalar_type() == at::kBFloat16 && x.size(1) % WIDTH == 0 &&
         x.is_contiguous(at::MemoryFormat::ChannelsLast) && x.numel() > x.size(1) && is_aligned(x);
}

at::Tensor channels_last(const at::Tensor &tensor) {
  auto found = tensor.contiguous(at::MemoryFormat::ChannelsLast);
  return is_aligned(found) ? found : found.clone();
}

const unsigned short *bits(const at::Tensor &tensor) {
  return static_cast<const unsigned short *>(tensor.const_data_ptr());
}
unsigned short *bits_of(at::Tensor &tensor) { return static_cast<unsigned short *>(tensor.mutable_data_ptr()); }

// Three blocks for each of an H100's 132 multiprocessors, which is as many as fit (80 registers a thread): one even wave.
constexpr int64_t BLOCKS = 396, COLUMNS = 32, ROWS_OF_THREAD = 4;

struct Shape {
  Norm n = {};
  Grid rows, channels; // the grids of those that go through the rows, and of those that finish channels

  explicit Shape(const at::Tensor &x) {
    int64_t groups = x.size(1) / WIDTH, columns = std::min(groups, COLUMNS);
    int64_t wide = (groups + columns - 1) / columns, rows = x.numel() / x.size(1), lanes = THREADS / columns;
    int64_t parts = std::max<int64_t>(BLOCKS / wide, 1);
    int64_t rows_of_part = std::max((rows + parts - 1) / parts, ROWS_OF_THREAD * lanes);
    TORCH_CHECK(rows_of_part < (1 << 30), "batch norm of ", rows, " numbers a channel, more than the kernels count");
    n.rows = rows;
    n.rows_of_part = static_cast<int>(rows_of_part);
    n.parts = static_cast<int>((rows + rows_of_part - 1) / rows_of_part);
    n.channels = static_cast<int>(x.size(1));
    n.columns = static_cast<int>(columns);
    this->rows = {static_cast<int>(wide), n.parts};
    channels = {static_cast<int>(groups), 1};
  }

  at::Tensor sums(const at::Tensor &x) { return floats(x, {n.parts, 2, n.channels}); }

  static at::Tensor floats(const at::Tensor &like, at::IntArrayRef shape) {
    return at::empty(shape, like.options().dtype(at::kFloat).memory_format(at::MemoryFormat::Contiguous));
  }
};

struct Settings {
  at::Tensor running_mean, running_var;
  After after;
  double epsilon, momentum;
};

Kernel of(After after, Kernel nothing, Kernel relu, Kernel add_relu) {
  return after == After::Nothing ? nothing : after == After::Relu ? relu : add_relu;
}

using torch::autograd::AutogradContext, torch::autograd::variable_list;

struct BatchNorm : torch::autograd::Function<BatchNorm> {
  static at::Tensor forward(AutogradContext *context, const at::Tensor &x, const at::Tensor &weight,
                            const at::Tensor &bias, const std::optional<at::Tensor> &residual, const Settings &settings) {
    c10::DeviceGuard guard(x.device());
    Shape shape(x);
    auto &n = shape.n;
    auto sums = shape.sums(x), statistics = Shape::floats(x, {2, n.channels}), y = at::empty_like(x);
    auto mean = statistics.select(0, 0), invstd = statistics.select(0, 1);
    n.epsilon = static_cast<float>(settings.epsilon);
    n.momentum = static_cast<float>(settings.momentum);
    n.x = bits(x);
    n.to = bits_of(y);
    n.weight = weight.const_data_ptr<float>();
    n.bias = bias.const_data_ptr<float>();
    n.running_mean = settings.running_mean.mutable_data_ptr<float>();
    n.running_var = settings.running_var.mutable_data_ptr<float>();
    n.mean = mean.mutable_data_ptr<float>();
    n.invstd = invstd.mutable_data_ptr<float>();
    n.sums = sums.mutable_data_ptr<float>();
    auto added = residual ? channels_last(*residual) : at::Tensor();
    if (residual)
      n.residual = bits(added);
    launch(norm_moments, n, shape.rows, x.device());
    launch(norm_statistics, n, shape.channels, x.device());
    launch(of(settings.after, norm_apply, norm_apply_relu, norm_apply_add_relu), n, shape.rows, x.device());
    context->save_for_backward({x, weight, bias, mean, invstd, residual ? y : at::Tensor()});
    context->saved_data["after"] = static_cast<int64_t>(settings.after);
    return y;
  }

  static variable_list backward(AutogradContext *context, variable_list grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "batch norm's kernels have no second derivative");
    auto saved = context->get_saved_variables();
    auto &x = saved[0], &weight = saved[1], &bias = saved[2], &mean = saved[3], &invstd = saved[4], &y = saved[5];
    auto after = static_cast<After>(context->saved_data["after"].toInt());
    c10::DeviceGuard guard(x.device());
    Shape shape(x);
    auto &n = shape.n;
    auto dy = channels_last(grads[0]), dx = at::empty_like(x), dz = y.defined() ? at::empty_like(x) : at::Tensor();
    auto sums = shape.sums(x), gradients = Shape::floats(x, {4, n.channels});
    n.x = bits(x);
    n.grad = bits(dy);
    n.to = bits_of(dx);
    n.weight = weight.const_data_ptr<float>();
    n.bias = bias.const_data_ptr<float>();
    n.mean = mean.mutable_data_ptr<float>();
    n.invstd = invstd.mutable_data_ptr<float>();
    n.sums = sums.mutable_data_ptr<float>();
    n.gradients = gradients.mutable_data_ptr<float>();
    if (y.defined()) {
      n.out = bits(y);
      n.to_residual = bits_of(dz);
    }
    launch(of(after, norm_sums, norm_sums_relu, norm_sums_add_relu), n, shape.rows, x.device());
    launch(norm_gradients, n, shape.channels, x.device());
    // dz has been through ReLU already.
    if (y.defined())
      n.grad = bits(dz);
    launch(of(after, norm_apply_gradient, norm_apply_gradient_relu, norm_apply_gradient), n, shape.rows, x.device());
    return {dx, gradients.select(0, 0), gradients.select(0, 1), dz, at::Tensor()};
  }
};

at::Tensor &tensor(void *pointer) { return *static_cast<at::Tensor *>(pointer); }

} // namespace

extern "C" {

// Compiles the kernels for a CUDA device, once.
char *sdclr_norm_load(int32_t device, const char *source) {
  return guarded([&] { cuda.load(at::Device(at::kCUDA, static_cast<at::DeviceIndex>(device)), source); });
}

// Whether sdclr_norm computes the batch norm of `x`.
char *sdclr_norm_takes(void *x, bool *out) {
  return guarded([&] { *out = takes(tensor(x)); });
}

// `parts`: weight, bias, running mean and variance. Without a residual, which may be null, ReLU follows where `relu`.
char *sdclr_norm(void *x, void *const *parts, void *residual, bool relu, double epsilon, double momentum, void *out) {
  return guarded([&] {
    TORCH_CHECK(takes(tensor(x)), "batch norm's kernels do not take ", tensor(x).toString(), " ", tensor(x).sizes());
    for (int i = 0; i < 4; ++i) {
      auto &part = tensor(parts[i]);
      TORCH_CHECK(part.scalar_type() == at::kFloat && part.numel() == tensor(x).size(1) && part.is_contiguous() &&
                      part.device() == tensor(x).device() && is_aligned(part),
                  "batch norm's kernels want ", tensor(x).size(1), " float32 on ", tensor(x).device(), ", got ",
                  part.toString(), " ", part.sizes());
    }
    auto added = residual ? std::optional(tensor(residual)) : std::nullopt;
    TORCH_CHECK(!added || (added->sizes() == tensor(x).sizes() && added->scalar_type() == at::kBFloat16 &&
                           added->device() == tensor(x).device()),
                "batch norm's kernels cannot add ", added ? added->toString() : "");
    auto after = added ? After::AddRelu : relu ? After::Relu : After::Nothing;
    Settings settings = {tensor(parts[2]), tensor(parts[3]), after, epsilon, momentum};
    tensor(out) = BatchNorm::apply(tensor(x), tensor(parts[0]), tensor(parts[1]), added, settings);
  });
}

} // extern "C"
