// NCCL through its C interface. libtorch_cuda loads the library, and no header of it need be there: what is declared here is the
// same in NCCL 2.14 and all later ones so far.

#include "nccl.h"

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <dlfcn.h>

#include <chrono>

namespace {

constexpr int SUCCESS = 0, IN_PROGRESS = 7;
constexpr int UINT8 = 1, FLOAT32 = 7, FLOAT64 = 8;
constexpr int SUM = 0;

template <typename Function> void find(Function *&function, const char *name) {
  void *address = dlsym(RTLD_DEFAULT, name);
  TORCH_CHECK(address, "this NCCL has no ", name, "; use that of PyTorch 2.11.0, or SDCLR_RANKS_EXCHANGE=gloo");
  function = reinterpret_cast<Function *>(address);
}

struct Functions {
  int (*id)(Nccl::Id *);
  int (*join)(void **communicator, int size, Nccl::Id, int rank);
  int (*all_reduce)(const void *, void *, size_t numbers, int type, int operation, void *communicator, void *stream);
  int (*all_gather)(const void *, void *, size_t numbers, int type, void *communicator, void *stream);
  int (*async_error)(void *communicator, int *);
  int (*abort)(void *communicator);
  const char *(*error)(int);
  const char *(*last_error)(void *);

  Functions() {
    find(id, "ncclGetUniqueId");
    find(join, "ncclCommInitRank");
    find(all_reduce, "ncclAllReduce");
    find(all_gather, "ncclAllGather");
    find(async_error, "ncclCommGetAsyncError");
    find(abort, "ncclCommAbort");
    find(error, "ncclGetErrorString");
    find(last_error, "ncclGetLastError");
  }
};

// Looked up once; a look-up that fails is tried again, and fails again.
const Functions &nccl() {
  static const Functions found;
  return found;
}

void check(const char *name, int result) {
  if (result == SUCCESS)
    return;
  // Of the last error of this process: which system call failed, and why.
  const char *why = nccl().last_error(nullptr);
  TORCH_CHECK(false, name, " failed: ", nccl().error(result), why && *why ? ": " : "", why ? why : "");
}

} // namespace

int Nccl::version() {
  auto get = reinterpret_cast<int (*)(int *)>(dlsym(RTLD_DEFAULT, "ncclGetVersion"));
  int version = 0;
  return get && get(&version) == SUCCESS && version / 10000 == 2 ? version : 0;
}

Nccl::Id Nccl::id() {
  Id id;
  check("ncclGetUniqueId", nccl().id(&id));
  return id;
}

Nccl::Nccl(const Id &id, int rank, int size, c10::Device device) : device(device), size(size) {
  c10::DeviceGuard guard(device);
  check("ncclCommInitRank", nccl().join(&communicator, size, id, rank));
}

// Not ncclCommDestroy, which waits for the others of this machine to call it too.
Nccl::~Nccl() { abort(); }

template <typename Function> void Nccl::queue(const char *name, Function function) {
  std::lock_guard<std::timed_mutex> lock(mutex);
  TORCH_CHECK(!aborted, "the exchange between the GPUs was ended");
  c10::DeviceGuard guard(device);
  auto stream = c10::impl::VirtualGuardImpl(device.type()).getStream(device);
  check(name, function(stream.native_handle()));
}

void Nccl::sum(at::Tensor &tensor) {
  TORCH_CHECK(tensor.is_contiguous() && (tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kDouble),
              "only contiguous floating-point numbers are summed over GPUs, not ", tensor.toString());
  int type = tensor.scalar_type() == at::kDouble ? FLOAT64 : FLOAT32;
  queue("ncclAllReduce", [&](void *stream) {
    return nccl().all_reduce(tensor.data_ptr(), tensor.data_ptr(), tensor.numel(), type, SUM, communicator, stream);
  });
}

at::Tensor Nccl::gather(const at::Tensor &tensor) {
  auto own = tensor.contiguous();
  auto shape = own.sizes().vec();
  shape.insert(shape.begin(), size);
  auto all = at::empty(shape, own.options());
  queue("ncclAllGather", [&](void *stream) {
    return nccl().all_gather(own.data_ptr(), all.data_ptr(), own.nbytes(), UINT8, communicator, stream);
  });
  return all;
}

std::string Nccl::failure() {
  std::unique_lock<std::timed_mutex> lock(mutex, std::try_to_lock);
  // Whoever is inside will find out.
  if (!lock || aborted)
    return "";
  int result = SUCCESS;
  check("ncclCommGetAsyncError", nccl().async_error(communicator, &result));
  return result == SUCCESS || result == IN_PROGRESS ? "" : nccl().error(result);
}

void Nccl::abort() {
  // Whoever is inside for longer waits for room in the queue of a GPU that waits for the lost rank: the abort ends that.
  std::unique_lock<std::timed_mutex> lock(mutex, std::chrono::seconds(1));
  if (aborted.exchange(true))
    return;
  // How it ends no longer matters: an abort has no later exchange.
  nccl().abort(communicator);
}
