// Several processes that compute one step: c10d's TCPStore to meet, its Gloo backend to add and gather, NCCL where each has a
// GPU of its own, and batch norm over all of them. The wheels of PyTorch have no headers of Gloo: the backend is made through
// its exported constructor and used as a c10d::Backend. As in shim.cpp every function returns null or an error message.

#include "nccl.h"
#include "shared.h"

#include <ATen/ATen.h>
#include <c10/util/Logging.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>

extern "C" uint32_t sdclr_torch_version();

namespace {

using Milliseconds = std::chrono::milliseconds;
using Store = c10::intrusive_ptr<c10d::Store>;
using Options = c10::intrusive_ptr<c10d::Backend::Options>;

struct Group {
  Store store;
  // Null until the ranks have met.
  c10::intrusive_ptr<c10d::Backend> backend;
  // For tensors on the GPU; null where those go over the host.
  std::atomic<std::shared_ptr<Nccl>> nccl;
};

// Groups by number: a tensor that still has to be differentiated may outlive its group, and finds out.
std::mutex mutex;
std::map<int64_t, std::shared_ptr<Group>> groups;
int64_t made = 0;

std::shared_ptr<Group> group(int64_t id) {
  std::lock_guard<std::mutex> lock(mutex);
  auto found = groups.find(id);
  TORCH_CHECK(found != groups.end(), "the group of processes has ended");
  return found->second;
}

template <typename Function> Function *find(const char *name) {
  void *address = dlsym(RTLD_DEFAULT, name);
  TORCH_CHECK(address, "this libtorch has no ", name, ", which several processes need; use that of PyTorch 2.11.0");
  return reinterpret_cast<Function *>(address);
}

// c10d::ProcessGroupGloo, whose constructor's arguments are those of PyTorch 2.11.0: another version could write beside it.
c10::intrusive_ptr<c10d::Backend> gloo(const Store &store, int rank, int size, Milliseconds timeout) {
  uint32_t version = sdclr_torch_version();
  TORCH_CHECK(version == 0x020b00, "several processes need PyTorch 2.11.0 exactly, but that of ", version >> 16, ".",
              version >> 8 & 0xff, ".", version & 0xff, " is loaded; install torch==2.11.0, or train with one process");
  auto options = find<Options(Milliseconds)>(
      "_ZN4c10d16ProcessGroupGloo7Options14create_defaultENSt6chrono8durationIlSt5ratioILl1ELl1000EEEE");
  auto construct = find<void(void *, const Store &, int, int, Options)>(
      "_ZN4c10d16ProcessGroupGlooC1ERKN3c1013intrusive_ptrINS_5StoreENS1_6detail34intrusive_target_default_null_typeIS3_"
      "EEEEiiNS2_INS0_7OptionsENS5_ISA_EEEE");
  auto made = options(timeout);
  // More than the object takes in PyTorch 2.11.0. Its own destructor gives the memory back.
  constexpr size_t ROOM = 8192;
  void *memory = ::operator new(ROOM);
  std::memset(memory, 0, ROOM);
  try {
    construct(memory, store, rank, size, made);
  } catch (...) {
    ::operator delete(memory);
    throw;
  }
  return c10::intrusive_ptr<c10d::Backend>::unsafe_steal_from_new(static_cast<c10d::Backend *>(memory));
}

c10d::Backend &backend(const Group &group) {
  TORCH_CHECK(group.backend, "this process has no connection to the others");
  return *group.backend;
}

// The sum over all ranks, in place.
void sum(const Group &group, at::Tensor &tensor) {
  c10::NoGradGuard no_grad;
  if (auto nccl = group.nccl.load(); nccl && tensor.is_cuda())
    return nccl->sum(tensor);
  auto host = tensor.cpu().contiguous();
  std::vector<at::Tensor> list = {host};
  backend(group).allreduce(list)->wait();
  if (!host.is_same(tensor))
    tensor.copy_(host);
}

// [ranks, ...]: that of every rank, all of one shape.
at::Tensor gather(const Group &group, const at::Tensor &tensor) {
  c10::NoGradGuard no_grad;
  if (auto nccl = group.nccl.load(); nccl && tensor.is_cuda())
    return nccl->gather(tensor.detach());
  std::vector<at::Tensor> input = {tensor.detach().cpu().contiguous()};
  std::vector<std::vector<at::Tensor>> output(1);
  for (int i = 0; i < backend(group).getSize(); ++i)
    output[0].push_back(at::empty_like(input[0]));
  backend(group).allgather(output, input)->wait();
  return at::stack(output[0]).to(tensor.device());
}

// In what sums over ranks are computed: as libtorch's own batch norm adds up.
at::Tensor wide(const at::Tensor &x) {
  bool twice = x.is_cpu() || x.scalar_type() == at::kDouble;
  return x.to(twice ? at::kDouble : at::kFloat);
}

// Batch norm by the statistics of the batch of all ranks, of which x is a slice. Statistics are merged, and gradients
// added, in the order of the ranks: every rank has the same bits. The gradients of weight and bias are those of the slice.
struct BatchNorm : torch::autograd::Function<BatchNorm> {
  static at::Tensor forward(torch::autograd::AutogradContext *ctx, const at::Tensor &x, const at::Tensor &weight,
                            const at::Tensor &bias, const at::Tensor &running_mean, const at::Tensor &running_var,
                            int64_t id, double epsilon, double momentum) {
    auto ranks = group(id);
    int64_t channels = x.size(1);
    std::vector<int64_t> dims = x.dim() == 4 ? std::vector<int64_t>{0, 2, 3} : std::vector<int64_t>{0};
    auto [own_var, own_mean] = at::var_mean(wide(x), dims, /*correction=*/0);
    auto own_count = at::full({1}, static_cast<double>(x.numel() / channels), own_mean.options());
    auto rows = gather(*ranks, at::cat({own_mean, own_var * own_count, own_count}));
    auto means = rows.narrow(1, 0, channels), deviations = rows.narrow(1, channels, channels);
    auto counts = rows.narrow(1, 2 * channels, 1), total = counts.sum();
    auto mean = (means * counts).sum(0) / total;
    auto var = (deviations + counts * (means - mean).square()).sum(0) / total;
    auto move = [&](const at::Tensor &running, const at::Tensor &now) {
      running.copy_(wide(running) * (1.0 - momentum) + now * momentum);
    };
    move(running_mean, mean);
    move(running_var, var * total / (total - 1));
    auto invstd = (var + epsilon).sqrt().reciprocal().to(weight.scalar_type());
    mean = mean.to(weight.scalar_type());
    ctx->save_for_backward({x, weight, mean, invstd, total});
    ctx->saved_data["group"] = id;
    ctx->saved_data["epsilon"] = epsilon;
    // By given statistics, which is what libtorch calls evaluation. There it would find invstd in lower precision than in
    // training: so that the features have the bits of one process, invstd goes into the weight, and the variance is 1.
    return std::get<0>(at::native_batch_norm(x, invstd * weight, bias, mean, unit(mean, epsilon), false, 0.0, epsilon));
  }

  // A variance to which epsilon adds up to 1.
  static at::Tensor unit(const at::Tensor &mean, double epsilon) { return at::full_like(mean, 1.0 - epsilon); }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext *ctx,
                                                 torch::autograd::variable_list gradients) {
    auto saved = ctx->get_saved_variables();
    auto [x, weight, mean, invstd, total] = std::tie(saved[0], saved[1], saved[2], saved[3], saved[4]);
    double epsilon = ctx->saved_data["epsilon"].toDouble();
    const auto &dy = gradients[0];
    // Over the slice: the sums of dy (x - mean) and of dy. CUDA takes the last two statistics, the CPU those before.
    auto [none, products, dbias] =
        at::native_batch_norm_backward(dy, x, weight, mean, unit(mean, epsilon), mean, at::ones_like(mean), false, epsilon,
                                       {false, true, true});
    auto ranks = group(ctx->saved_data["group"].toInt());
    auto sums = gather(*ranks, at::stack({wide(products), wide(dbias)})).sum(0) / total;
    // The statistics come from the whole batch: dx = weight invstd (dy - mean(dy) - (x - mean) invstd^2 mean(dy (x - mean))).
    std::vector<int64_t> shape(x.dim(), 1);
    shape[1] = x.size(1);
    auto part = [&](const at::Tensor &t) { return t.to(weight.scalar_type()).view(shape); };
    auto slope = (x - part(mean)).mul_(part(sums[0] * wide(invstd).square()));
    auto dx = (dy - part(sums[1])).sub_(slope).mul_(part(invstd * weight)).to(x.scalar_type());
    return {dx, products * invstd, dbias, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

at::Tensor &tensor(void *pointer) { return *static_cast<at::Tensor *>(pointer); }

} // namespace

extern "C" {

// A store at host:port, which this process serves or asks; `out` becomes the number of a group that has not met yet.
char *sdclr_group_new(const char *host, uint16_t port, bool serve, int64_t milliseconds, int64_t *out) {
  return guarded([&] {
    // Our errors say what c10d warns of with a page of addresses each.
    FLAGS_caffe2_log_level = std::max(FLAGS_caffe2_log_level, 2);
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = serve;
    options.waitWorkers = false;
    options.timeout = Milliseconds(milliseconds);
    auto made_group = std::make_shared<Group>();
    made_group->store = c10::make_intrusive<c10d::TCPStore>(host, options);
    std::lock_guard<std::mutex> lock(mutex);
    *out = ++made;
    groups[made] = made_group;
  });
}

char *sdclr_group_free(int64_t id) {
  return guarded([&] {
    std::shared_ptr<Group> last;
    std::lock_guard<std::mutex> lock(mutex);
    auto found = groups.find(id);
    if (found == groups.end())
      return;
    last = found->second;
    groups.erase(found);
  });
}

// Closes the connections to the other ranks; the store stays.
char *sdclr_group_leave(int64_t id) {
  return guarded([&] {
    auto found = group(id);
    found->backend.reset();
    if (auto nccl = found->nccl.load())
      nccl->abort();
  });
}

// The NCCL that is there; 0 where there is none.
int32_t sdclr_nccl_version() { return Nccl::version(); }

char *sdclr_nccl_id(Nccl::Id *out) {
  return guarded([&] { *out = Nccl::id(); });
}

// Connects the GPUs of the ranks, all of which call this with the id that rank 0 made. From here on tensors on this rank's are
// exchanged between them.
char *sdclr_group_connect(int64_t id, const Nccl::Id *told, int32_t rank, int32_t size, int32_t device) {
  return guarded([&] {
    c10::Device gpu(c10::kCUDA, static_cast<c10::DeviceIndex>(device));
    group(id)->nccl = std::make_shared<Nccl>(*told, rank, size, gpu);
  });
}

// What went wrong between the GPUs, which the caller frees with sdclr_free; null where nothing did.
char *sdclr_group_failure(int64_t id, char **out) {
  return guarded([&] {
    auto failure = group(id)->nccl.load()->failure();
    *out = failure.empty() ? nullptr : message(failure.c_str());
  });
}

// Ends what is queued between the GPUs.
char *sdclr_group_abort(int64_t id) {
  return guarded([&] { group(id)->nccl.load()->abort(); });
}

// Joins the ranks, all of which call this, by what they tell each other under `prefix` in the store.
char *sdclr_group_join(int64_t id, const char *prefix, int32_t rank, int32_t size, int64_t milliseconds) {
  return guarded([&] {
    auto found = group(id);
    Store store = c10::make_intrusive<c10d::PrefixStore>(prefix, found->store);
    found->backend = gloo(store, rank, size, Milliseconds(milliseconds));
  });
}

// Adds one to the number under `key` of the store.
char *sdclr_group_count(int64_t id, const char *key, int64_t *out) {
  return guarded([&] { *out = group(id)->store->add(key, 1); });
}

char *sdclr_group_tell(int64_t id, const char *key, const char *text) {
  return guarded([&] { group(id)->store->set(key, std::string(text)); });
}

// The text under `key`, which the caller frees with sdclr_free; null where there is none yet.
char *sdclr_group_hear(int64_t id, const char *key, char **out) {
  return guarded([&] {
    auto store = group(id)->store;
    *out = nullptr;
    if (!store->check({key}))
      return;
    auto bytes = store->get(key);
    *out = message(std::string(bytes.begin(), bytes.end()).c_str());
  });
}

char *sdclr_group_sum(int64_t id, void *in_out) {
  return guarded([&] { sum(*group(id), tensor(in_out)); });
}

char *sdclr_group_gather(int64_t id, void *own, void *out) {
  return guarded([&] { tensor(out) = gather(*group(id), tensor(own)); });
}

// `parts`: weight, bias, running mean and variance.
char *sdclr_group_norm(int64_t id, void *x, void *const *parts, double epsilon, double momentum, void *out) {
  return guarded([&] {
    tensor(out) = BatchNorm::apply(tensor(x), tensor(parts[0]), tensor(parts[1]), tensor(parts[2]), tensor(parts[3]), id,
                                   epsilon, momentum);
  });
}

} // extern "C"
