// Streams and graphs of CUDA. libtorch_cuda is loaded at run time, where there is one, and its headers need those of CUDA:
// streams go through the interface that libtorch has for every device, and at::cuda::CUDAGraph, which has no such
// interface, through its functions' addresses. As in shim.cpp every function returns null or an error message.

#include "shared.h"

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <utility>

extern "C" uint32_t sdclr_torch_version();

namespace {

const c10::impl::VirtualGuardImpl &cuda() {
  static const c10::impl::VirtualGuardImpl implementation(c10::DeviceType::CUDA);
  return implementation;
}

// The stream for a purpose, the same for good: libtorch keeps what was freed on a stream for that stream, and workspaces of
// cuBLAS for every stream and thread that have multiplied matrices, 32 MiB each as prepare() asks for.
c10::Stream stream_for(int32_t purpose, c10::DeviceIndex device) {
  static std::mutex mutex;
  static std::map<std::pair<int32_t, c10::DeviceIndex>, c10::Stream> streams;
  std::lock_guard<std::mutex> lock(mutex);
  auto found = streams.find({purpose, device});
  if (found == streams.end()) {
    auto stream = cuda().getStreamFromGlobalPool(c10::Device(c10::DeviceType::CUDA, device));
    found = streams.insert({{purpose, device}, stream}).first;
  }
  return found->second;
}

// What is queued on `later` from now on waits for what is on `earlier` now.
void order(c10::Stream earlier, c10::Stream later) {
  c10::Event event(c10::DeviceType::CUDA);
  event.record(earlier);
  event.block(later);
}

struct Side {
  c10::Stream stream;
  // Where work went before it came here.
  std::optional<c10::Stream> outer;

  explicit Side(c10::Stream stream) : stream(stream) {}

  void enter() {
    auto current = cuda().getStream(stream.device());
    order(current, stream);
    outer = cuda().exchangeStream(stream);
  }

  void leave() {
    if (outer)
      cuda().exchangeStream(*outer);
    outer.reset();
  }
};

// A function of at::cuda::CUDAGraph, by the name that the compiler of PyTorch 2.11 gave it.
template <typename Function> void find(Function *&function, const char *name) {
  void *address = dlsym(RTLD_DEFAULT, name);
  TORCH_CHECK(address, "this libtorch has no ", name, ", which CUDA graphs need; use that of PyTorch 2.11.0");
  function = reinterpret_cast<Function *>(address);
}

// What an at::cuda::CUDAGraph does. Its functions' arguments and its size are those of PyTorch 2.11.0: another version
// could read or write beside the object.
struct GraphFunctions {
  void (*construct)(void *, bool keep_graph);
  void (*destroy)(void *);
  c10::MempoolId_t (*pool)(void *);
  void (*capture_begin)(void *, c10::MempoolId_t, int mode);
  void (*capture_end)(void *);
  void (*replay)(void *);

  GraphFunctions() {
    uint32_t version = sdclr_torch_version();
    TORCH_CHECK(version == 0x020b00, "CUDA graphs need PyTorch 2.11.0 exactly, but that of ", version >> 16, ".",
                version >> 8 & 0xff, ".", version & 0xff, " is loaded; install torch==2.11.0, or train with --eager");
    find(construct, "_ZN2at4cuda9CUDAGraphC1Eb");
    find(destroy, "_ZN2at4cuda9CUDAGraphD1Ev");
    find(pool, "_ZN2at4cuda9CUDAGraph4poolEv");
    find(capture_begin, "_ZN2at4cuda9CUDAGraph13capture_beginESt4pairIyyE21cudaStreamCaptureMode");
    find(capture_end, "_ZN2at4cuda9CUDAGraph11capture_endEv");
    find(replay, "_ZN2at4cuda9CUDAGraph6replayEv");
  }
};

// Looked up once; a look-up that fails is tried again, and fails again.
const GraphFunctions &functions() {
  static const GraphFunctions found;
  return found;
}

constexpr int THREAD_LOCAL_CAPTURE = 1; // cudaStreamCaptureModeThreadLocal: other threads may go on pinning memory

struct Graph {
  c10::Device device;
  // An at::cuda::CUDAGraph, which takes 104 bytes in PyTorch 2.11.0.
  alignas(std::max_align_t) std::byte object[512];

  explicit Graph(c10::Device device) : device(device) {
    c10::DeviceGuard guard(device);
    functions().construct(object, /*keep_graph=*/false);
  }

  // It may throw: whoever deletes it catches.
  ~Graph() noexcept(false) { functions().destroy(object); }

  c10::MempoolId_t pool() { return functions().pool(object); }

  void begin(c10::MempoolId_t shared) {
    c10::DeviceGuard guard(device);
    // What earlier steps left in the allocator's hands, the graph's own pool can have.
    c10::getDeviceAllocator(c10::DeviceType::CUDA)->emptyCache();
    functions().capture_begin(object, shared, THREAD_LOCAL_CAPTURE);
  }

  void end() {
    c10::DeviceGuard guard(device);
    functions().capture_end(object);
  }

  void replay() {
    c10::DeviceGuard guard(device);
    functions().replay(object);
  }
};

} // namespace

extern "C" {

char *sdclr_side_new(int32_t purpose, int32_t device, void **out) {
  return guarded([&] { *out = new Side(stream_for(purpose, static_cast<c10::DeviceIndex>(device))); });
}

char *sdclr_side_free(void *side) {
  return guarded([&] { delete static_cast<Side *>(side); });
}

// Work goes to the side stream from here on, behind all that is queued where it went so far.
char *sdclr_side_enter(void *side) {
  return guarded([&] { static_cast<Side *>(side)->enter(); });
}

char *sdclr_side_leave(void *side) {
  return guarded([&] { static_cast<Side *>(side)->leave(); });
}

// What is queued from here on waits for what is on the side stream now.
char *sdclr_side_join(void *side) {
  return guarded([&] {
    auto stream = static_cast<Side *>(side)->stream;
    order(stream, cuda().getStream(stream.device()));
  });
}

// The most that libtorch's allocator ever took from a device, in bytes.
char *sdclr_device_peak(int32_t device, int64_t *out) {
  return guarded([&] {
    auto *allocator = c10::getDeviceAllocator(c10::DeviceType::CUDA);
    *out = allocator->initialized() ? allocator->getDeviceStats(static_cast<c10::DeviceIndex>(device)).reserved_bytes[0].peak : 0;
  });
}

// Waits for the device and gives back the memory that libtorch keeps: what a graph held, nobody else could have, and what
// was freed on a stream, only that stream.
char *sdclr_give_back() {
  return guarded([] { c10::getDeviceAllocator(c10::DeviceType::CUDA)->emptyCache(); });
}

char *sdclr_graph_new(void *side, void **out) {
  return guarded([&] { *out = new Graph(static_cast<Side *>(side)->stream.device()); });
}

char *sdclr_graph_free(void *graph) {
  return guarded([&] { delete static_cast<Graph *>(graph); });
}

// What is queued on the side stream, which is entered, is recorded from here on, its memory taken from the pool of
// `sharing` where that is not null.
char *sdclr_graph_begin(void *graph, void *sharing) {
  return guarded([&] {
    auto pool = sharing ? static_cast<Graph *>(sharing)->pool() : c10::MempoolId_t{0, 0};
    static_cast<Graph *>(graph)->begin(pool);
  });
}

char *sdclr_graph_end(void *graph) {
  return guarded([&] { static_cast<Graph *>(graph)->end(); });
}

char *sdclr_graph_replay(void *graph) {
  return guarded([&] { static_cast<Graph *>(graph)->replay(); });
}

} // extern "C"
