// Memory: of the device, which exists as addresses only, and of the host.
#include "stand_in.h"

#include <signal.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <vector>

using namespace stand_in;

namespace {

constexpr size_t DEVICE_BYTES = size_t(80) << 30;

struct Block {
  size_t bytes;
  bool device;
  // The number of the device that it was taken from, or for.
  int number;
};

// By address. Never destroyed, as libtorch frees until the very end.
auto &blocks = *new std::map<uintptr_t, Block>;
size_t taken = 0;

// Copies to page-locked memory that are not known to be done.
struct Landing {
  uint64_t moment;
  char *to;
  size_t bytes;
};
auto &landings = *new std::vector<Landing>;

const std::pair<const uintptr_t, Block> *block_of(const void *pointer) {
  auto address = reinterpret_cast<uintptr_t>(pointer);
  auto after = blocks.upper_bound(address);
  if (after == blocks.begin())
    return nullptr;
  auto &block = *--after;
  return address < block.first + block.second.bytes ? &block : nullptr;
}

bool is_pinned(const void *pointer) {
  auto block = block_of(pointer);
  return block && !block->second.device;
}

// Says so where the host looks at device memory, which has no bytes to look at.
void on_fault(int, siginfo_t *fault, void *) {
  signal(SIGSEGV, SIG_DFL);
  auto block = block_of(fault->si_addr);
  if (block && block->second.device)
    refuse("device memory read or written by the host");
  refuse("a segmentation fault");
}

__attribute__((constructor)) void watch_for_faults() {
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, nullptr);
}

void fill(void *to, size_t bytes) { std::memset(to, bytes == 1 ? 1 : 0, bytes); }

} // namespace

bool stand_in::is_device(const void *pointer, size_t bytes) {
  auto block = block_of(pointer);
  if (!block || !block->second.device)
    return false;
  if (reinterpret_cast<uintptr_t>(pointer) + bytes > block->first + block->second.bytes)
    refuse("an access past the end of device memory");
  return true;
}

void stand_in::land_copies(uint64_t moment) {
  std::vector<Landing> left;
  for (auto &landing : landings) {
    if (landing.moment <= moment)
      fill(landing.to, landing.bytes);
    else
      left.push_back(landing);
  }
  landings.swap(left);
}

cudaError_t stand_in::copy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream,
                           bool waits, const char *function) {
  STAND_IN_LOCKED;
  if (bytes == 0)
    return cudaSuccess;
  bool to_device = is_device(to, bytes), from_device = is_device(from, bytes);
  bool wrong = (kind == cudaMemcpyHostToDevice && (!to_device || from_device)) ||
               (kind == cudaMemcpyDeviceToHost && (to_device || !from_device)) ||
               (kind == cudaMemcpyDeviceToDevice && (!to_device || !from_device)) ||
               (kind == cudaMemcpyHostToHost && (to_device || from_device));
  if (wrong)
    return fail(cudaErrorInvalidValue);
  const void *host = to_device ? (from_device ? nullptr : from) : to;
  bool pageable = host && !is_pinned(host);
  std::string name = std::string(from_device ? "copies/from the device" : "copies/to the device") +
                     (!host ? ", on it" : pageable ? ", pageable" : ", page-locked");
  Stream *put_on = stream_of(stream);
  // CUDA would note the address and copy whatever lies there at each replay.
  if (pageable && put_on && put_on->capture)
    return spoil(put_on->capture, "a copy of pageable memory", cudaErrorStreamCaptureUnsupported);
  if (waits && forbidden_to_all(function))
    return fail(cudaErrorStreamCaptureUnsupported);
  if (auto error = enqueue(Work::Copy, stream, name); error != cudaSuccess)
    return error;
  if (!from_device && !to_device)
    std::memmove(to, from, bytes);
  // What comes from pageable memory is copied aside first: up to 64 KiB at once, more as the stream gets to it.
  if (waits)
    wait(function);
  else if (pageable && from_device)
    wait(std::string(function) + " to pageable memory");
  else if (pageable && bytes > 64 << 10)
    wait(std::string(function) + " of more than 64 KiB of pageable memory");
  if (from_device && host) {
    if (pageable || waits) {
      fill(to, bytes);
    } else if (!put_on->capture) {
      // Whoever looks before waiting sees what is no number.
      std::memset(to, 0xff, bytes);
      landings.push_back({issued(), static_cast<char *>(to), bytes});
    }
  }
  return cudaSuccess;
}

extern "C" {

cudaError_t cudaMalloc(void **pointer, size_t bytes) {
  STAND_IN_LOCKED;
  if (forbidden("cudaMalloc"))
    return fail(cudaErrorStreamCaptureUnsupported);
  if (bytes == 0) {
    *pointer = nullptr;
    return cudaSuccess;
  }
  if (taken + bytes > DEVICE_BYTES)
    return fail(cudaErrorMemoryAllocation);
  // Addresses without memory: the host cannot look at what is on the device, here as there.
  void *address = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED)
    return fail(cudaErrorMemoryAllocation);
  blocks[reinterpret_cast<uintptr_t>(address)] = {bytes, true, current_device()};
  taken += bytes;
  count("cudaMalloc");
  most("device bytes", taken);
  *pointer = address;
  return cudaSuccess;
}

cudaError_t cudaFree(void *pointer) {
  STAND_IN_LOCKED;
  if (!pointer)
    return cudaSuccess;
  if (forbidden("cudaFree"))
    return fail(cudaErrorStreamCaptureUnsupported);
  auto found = blocks.find(reinterpret_cast<uintptr_t>(pointer));
  if (found == blocks.end() || !found->second.device)
    return fail(cudaErrorInvalidValue);
  wait("cudaFree");
  munmap(pointer, found->second.bytes);
  taken -= found->second.bytes;
  blocks.erase(found);
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **pointer, size_t bytes, unsigned int) {
  STAND_IN_LOCKED;
  if (forbidden("cudaHostAlloc"))
    return fail(cudaErrorStreamCaptureUnsupported);
  if (posix_memalign(pointer, 4096, bytes) != 0)
    return fail(cudaErrorMemoryAllocation);
  blocks[reinterpret_cast<uintptr_t>(*pointer)] = {bytes, false, current_device()};
  count("cudaHostAlloc");
  count("page-locked bytes", bytes);
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void *pointer) {
  STAND_IN_LOCKED;
  if (forbidden("cudaFreeHost"))
    return fail(cudaErrorStreamCaptureUnsupported);
  wait("cudaFreeHost");
  blocks.erase(reinterpret_cast<uintptr_t>(pointer));
  std::free(pointer);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
  STAND_IN_LOCKED;
  *free = DEVICE_BYTES - taken;
  *total = DEVICE_BYTES;
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *attributes, const void *pointer) {
  STAND_IN_LOCKED;
  auto block = block_of(pointer);
  *attributes = {};
  attributes->type = !block ? cudaMemoryTypeUnregistered : block->second.device ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
  attributes->device = block ? block->second.number : -2;
  attributes->devicePointer = block ? const_cast<void *>(pointer) : nullptr;
  attributes->hostPointer = block && !block->second.device ? const_cast<void *>(pointer) : nullptr;
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
  return copy(to, from, bytes, kind, nullptr, true, "cudaMemcpy");
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return copy(to, from, bytes, kind, stream, false, "cudaMemcpyAsync");
}

cudaError_t cudaMemset(void *to, int, size_t bytes) {
  STAND_IN_LOCKED;
  if (!is_device(to, bytes))
    return fail(cudaErrorInvalidValue);
  if (forbidden_to_all("cudaMemset"))
    return fail(cudaErrorStreamCaptureUnsupported);
  return enqueue(Work::Set, nullptr, "fills/cudaMemset");
}

cudaError_t cudaMemsetAsync(void *to, int, size_t bytes, cudaStream_t stream) {
  STAND_IN_LOCKED;
  if (bytes != 0 && !is_device(to, bytes))
    return fail(cudaErrorInvalidValue);
  return enqueue(Work::Set, stream, "fills/cudaMemsetAsync");
}

} // extern "C"
