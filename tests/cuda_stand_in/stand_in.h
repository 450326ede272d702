// A stand-in for NVIDIA's libraries that computes nothing: what its parts share. README.md says what it is for.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <string>

namespace stand_in {

// Guards everything here. Recursive, since CUDA's functions are made of each other.
std::recursive_mutex &lock();
#define STAND_IN_LOCKED std::lock_guard<std::recursive_mutex> stand_in_guard(stand_in::lock())

// Adds to a named count, which is written at the process's end to the file that CUDA_STAND_IN_COUNTS names.
void count(const std::string &name, uint64_t amount = 1);
// Keeps the largest value seen.
void most(const std::string &name, uint64_t value);

// The number of the device that this thread's calls go to.
int current_device();

// Ends the process: what is not understood must not pass for success.
[[noreturn]] void refuse(const std::string &what);

// Gives `error` to the caller, and to cudaGetLastError.
cudaError_t fail(cudaError_t error);

// How many of each stream's works another stream (or the host) knows to come before.
struct Stream;
using Clock = std::map<const Stream *, uint64_t>;

struct Graph {
  uint64_t nodes = 0, kernels = 0;
};

struct Capture {
  unsigned long long id;
  cudaStreamCaptureMode mode;
  std::uintptr_t thread;
  Stream *origin;
  bool invalid = false;
  Graph *graph;
};

struct Stream {
  // The device that it was made on; -1 for the legacy stream, which every device has.
  int device = -1;
  // Waits for the legacy stream and is waited for by it.
  bool blocking = true;
  int priority = 0;
  // What it is being captured into, if anything.
  Capture *capture = nullptr;
  // Of a capture: what has been put on it, and what it comes after.
  Clock clock;
  // The moment (see `issued`) of the last work put on it outside of captures.
  uint64_t last = 0;
};

struct Event {
  // That it was made on, and whose streams record it.
  int device;
  // 0: never recorded.
  uint64_t moment = 0;
  // The capture that it was recorded in, or 0.
  unsigned long long capture = 0;
  Clock clock;
};

// The stream of a handle; nullptr where there is none such.
Stream *stream_of(cudaStream_t handle);

enum class Work { Kernel, Library, Copy, Set };

// Puts work on a stream: counted (`name`: "kernels/...", "library calls/...", as the kind is), or recorded into the
// stream's capture.
cudaError_t enqueue(Work work, cudaStream_t stream, const std::string &name);

// The host waits for all that was issued up to `moment`: counted under the name of the function.
void wait(const std::string &function, uint64_t moment);
// Likewise, for everything.
void wait(const std::string &function);
// The moment of the last work issued, and up to which the host knows that all is done. The device is as slow as it can be:
// nothing is done before somebody waits for it.
uint64_t issued();
uint64_t done();

// Waits where what another rank should send never comes.
void wait_for_ranks();

// Whether device memory lies there; the process ends where it lies there in part.
bool is_device(const void *pointer, size_t bytes);

// Whether this thread must not make a call that CUDA calls unsafe while streams are being captured. If so the captures that
// forbid it are spoiled, and `function` is counted.
bool forbidden(const char *function);
// Likewise for calls that wait for the legacy stream or for the device.
bool forbidden_to_all(const char *function);
// Spoils a capture and says why.
cudaError_t spoil(Capture *capture, const char *function, cudaError_t error);

// Copies, as far as the host can see: what comes from the device reads as zero, a single byte as true.
cudaError_t copy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream, bool waits,
                 const char *function);
// Fills what copies that are done have brought to page-locked memory.
void land_copies(uint64_t moment);

} // namespace stand_in
