// NCCL, as far as we call it: communicators, and what is exchanged through them. Nothing is, and nobody waits for another rank,
// but with CUDA_STAND_IN_LOST: then what is exchanged never ends, as where a rank was lost, until the communicator is aborted.
#include "stand_in.h"

// NCCL's header asks for those of short floats, which need more than the wheels bring; it uses nothing of them.
#define __CUDA_FP16_H__
#define __CUDA_BF16_H__
#define __CUDA_FP8_H__
#include <nccl.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <set>
#include <thread>

using namespace stand_in;

struct ncclComm {
  int size, device;
};

namespace {

constexpr char MARK[] = "stand-in for NCCL";

// Never destroyed, as calls may come until the very end.
auto &communicators = *new std::set<ncclComm_t>;
std::atomic<bool> stuck = false;

bool loses() {
  static const bool loses = std::getenv("CUDA_STAND_IN_LOST");
  return loses;
}

ncclResult_t exchange(const char *name, ncclComm_t communicator, const void *from, void *to, size_t sent, size_t received,
                      cudaStream_t stream) {
  STAND_IN_LOCKED;
  if (!communicators.count(communicator) || communicator->device != current_device())
    return ncclInvalidArgument;
  auto *on = stream_of(stream);
  if (!on || (on->device >= 0 && on->device != communicator->device) || !is_device(from, sent) || !is_device(to, received))
    return ncclInvalidArgument;
  if (enqueue(Work::Library, stream, std::string("library calls/nccl/") + name) != cudaSuccess)
    return ncclUnhandledCudaError;
  // Also of what is captured: how often, and how much.
  count(std::string("nccl/") + name);
  count(std::string("nccl/bytes of ") + name, sent);
  stuck = loses();
  return ncclSuccess;
}

size_t bytes(ncclDataType_t type) {
  switch (type) {
  case ncclUint8: return 1;
  case ncclFloat32: return 4;
  case ncclFloat64: return 8;
  // Nothing else is exchanged here.
  default: refuse("NCCL's type " + std::to_string(type));
  }
}

} // namespace

// Called with the lock held, by whoever waits for the device: nobody else gets to it meanwhile, as nothing on it ends.
void stand_in::wait_for_ranks() {
  while (stuck)
    std::this_thread::yield();
}

extern "C" {

ncclResult_t ncclGetVersion(int *version) { return *version = NCCL_VERSION_CODE, ncclSuccess; }

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
  std::memset(id, 0, sizeof *id);
  std::strcpy(id->internal, MARK);
  return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t *communicator, int size, ncclUniqueId id, int rank) {
  STAND_IN_LOCKED;
  if (std::strcmp(id.internal, MARK) != 0 || rank < 0 || rank >= size)
    return ncclInvalidArgument;
  *communicator = new ncclComm{size, current_device()};
  communicators.insert(*communicator);
  count("nccl/communicators");
  return ncclSuccess;
}

ncclResult_t ncclAllReduce(const void *from, void *to, size_t numbers, ncclDataType_t type, ncclRedOp_t operation,
                           ncclComm_t communicator, cudaStream_t stream) {
  if (operation != ncclSum)
    refuse("NCCL's operation " + std::to_string(operation));
  return exchange("sums", communicator, from, to, numbers * bytes(type), numbers * bytes(type), stream);
}

ncclResult_t ncclAllGather(const void *from, void *to, size_t numbers, ncclDataType_t type, ncclComm_t communicator,
                           cudaStream_t stream) {
  size_t sent = numbers * bytes(type);
  return exchange("gathers", communicator, from, to, sent, communicator->size * sent, stream);
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t *error) { return *error = ncclSuccess, ncclSuccess; }

// First of all whoever waits is let go, who holds the lock.
ncclResult_t ncclCommAbort(ncclComm_t communicator) {
  stuck = false;
  STAND_IN_LOCKED;
  if (!communicators.erase(communicator))
    return ncclInvalidArgument;
  count("nccl/aborts");
  return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t) { return "an error of the stand-in"; }
const char *ncclGetLastError(ncclComm_t) { return ""; }

} // extern "C"
