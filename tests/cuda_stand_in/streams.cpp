// Streams, events, capture and graphs.
//
// Time is a count: each work issued is one moment later. The host knows that everything up to a moment is done once it has
// waited for it, and not before: no order of events that a real device could show is kinder to code that does not wait.
#include "stand_in.h"

#include <pthread.h>

#include <cstdio>
#include <set>
#include <vector>

using namespace stand_in;

namespace {

uint64_t moment_issued = 0, moment_done = 0;
unsigned long long captures_begun = 0;

// Never destroyed, as libtorch uses them until the very end.
auto &legacy = *new Stream;
auto &streams = *new std::set<Stream *>{&legacy};
auto &captures = *new std::map<unsigned long long, Capture *>;

thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

std::uintptr_t this_thread() { return static_cast<std::uintptr_t>(pthread_self()); }

void merge(Clock &clock, const Clock &other) {
  for (auto &[stream, works] : other)
    if (clock[stream] < works)
      clock[stream] = works;
}

// The legacy stream may not be used beside a capture of a stream that waits for it.
Capture *blocked_legacy(const Stream *stream) {
  if (stream != &legacy)
    return nullptr;
  for (auto &[id, capture] : captures)
    if (capture->origin->blocking)
      return capture;
  return nullptr;
}

// The capture of a stream, once work may be put on it. `error`: why not.
Capture *capture_of(Stream *stream, const char *function, cudaError_t &error) {
  error = cudaSuccess;
  if (auto *capture = blocked_legacy(stream))
    error = spoil(capture, function, cudaErrorStreamCaptureImplicit);
  else if (stream->capture && stream->capture->invalid)
    error = fail(cudaErrorStreamCaptureInvalidated);
  return error == cudaSuccess ? stream->capture : nullptr;
}

Event *event_of(cudaEvent_t event) { return reinterpret_cast<Event *>(event); }

} // namespace

Stream *stand_in::stream_of(cudaStream_t handle) {
  if (handle == nullptr || handle == cudaStreamLegacy)
    return &legacy;
  auto *stream = reinterpret_cast<Stream *>(handle);
  return streams.count(stream) ? stream : nullptr;
}

uint64_t stand_in::issued() { return moment_issued; }
uint64_t stand_in::done() { return moment_done; }

void stand_in::wait(const std::string &function, uint64_t moment) {
  wait_for_ranks();
  count("waits");
  count("waits/" + function);
  if (moment_done < moment)
    moment_done = moment;
  land_copies(moment_done);
}

void stand_in::wait(const std::string &function) { wait(function, moment_issued); }

cudaError_t stand_in::spoil(Capture *capture, const char *function, cudaError_t error) {
  std::fprintf(stderr, "stand-in for CUDA: %s while a stream is being captured: error %d\n", function, int(error));
  count("spoiled captures/" + std::string(function));
  capture->invalid = true;
  return fail(error);
}

bool stand_in::forbidden(const char *function) {
  STAND_IN_LOCKED;
  bool found = false;
  for (auto &[id, capture] : captures) {
    bool own = capture->thread == this_thread() && capture->mode != cudaStreamCaptureModeRelaxed;
    bool others = thread_mode == cudaStreamCaptureModeGlobal && capture->mode == cudaStreamCaptureModeGlobal;
    if (thread_mode != cudaStreamCaptureModeRelaxed && (own || others)) {
      spoil(capture, function, cudaErrorStreamCaptureUnsupported);
      found = true;
    }
  }
  return found;
}

bool stand_in::forbidden_to_all(const char *function) {
  STAND_IN_LOCKED;
  for (auto &[id, capture] : captures)
    spoil(capture, function, cudaErrorStreamCaptureUnsupported);
  return !captures.empty();
}

cudaError_t stand_in::enqueue(Work work, cudaStream_t handle, const std::string &name) {
  STAND_IN_LOCKED;
  static const std::string GROUPS[] = {"kernels", "library calls", "copies", "fills"};
  Stream *stream = stream_of(handle);
  if (!stream)
    return fail(cudaErrorInvalidResourceHandle);
  bool elsewhere = stream->device >= 0 && stream->device != current_device();
  if (elsewhere && (work == Work::Kernel || work == Work::Library))
    return fail(cudaErrorInvalidResourceHandle);
  cudaError_t error;
  Capture *capture = capture_of(stream, name.c_str(), error);
  if (error != cudaSuccess)
    return error;
  if (capture) {
    capture->graph->nodes += 1;
    capture->graph->kernels += work == Work::Kernel || work == Work::Library;
    stream->clock[stream] += 1;
    count("captured " + GROUPS[int(work)]);
    return cudaSuccess;
  }
  stream->last = ++moment_issued;
  count(GROUPS[int(work)]);
  count(name);
  // Legal, but surely not what whoever captures a step wants.
  if (!captures.empty())
    count("issued beside a capture/" + name.substr(name.find('/') + 1));
  return cudaSuccess;
}

extern "C" {

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *handle, unsigned int flags, int priority) {
  STAND_IN_LOCKED;
  auto *stream = new Stream;
  stream->device = current_device();
  stream->blocking = !(flags & cudaStreamNonBlocking);
  stream->priority = priority;
  streams.insert(stream);
  *handle = reinterpret_cast<cudaStream_t>(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *handle) { return cudaStreamCreateWithPriority(handle, 0, 0); }

// Left where it is: a handle that is used after its end must not come up again as another's.
cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  STAND_IN_LOCKED;
  return streams.erase(stream_of(handle)) ? cudaSuccess : fail(cudaErrorInvalidResourceHandle);
}

cudaError_t cudaStreamGetPriority(cudaStream_t handle, int *priority) {
  STAND_IN_LOCKED;
  auto *stream = stream_of(handle);
  *priority = stream ? stream->priority : 0;
  return stream ? cudaSuccess : fail(cudaErrorInvalidResourceHandle);
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  STAND_IN_LOCKED;
  auto *stream = stream_of(handle);
  if (!stream)
    return fail(cudaErrorInvalidResourceHandle);
  if (stream->capture)
    return spoil(stream->capture, "cudaStreamSynchronize", cudaErrorStreamCaptureUnsupported);
  if (forbidden("cudaStreamSynchronize"))
    return fail(cudaErrorStreamCaptureUnsupported);
  wait("cudaStreamSynchronize", stream == &legacy ? moment_issued : stream->last);
  return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
  STAND_IN_LOCKED;
  auto *stream = stream_of(handle);
  if (!stream)
    return fail(cudaErrorInvalidResourceHandle);
  if (stream->capture)
    return spoil(stream->capture, "cudaStreamQuery", cudaErrorStreamCaptureUnsupported);
  if (forbidden("cudaStreamQuery"))
    return fail(cudaErrorStreamCaptureUnsupported);
  return stream->last <= moment_done ? cudaSuccess : fail(cudaErrorNotReady);
}

cudaError_t cudaDeviceSynchronize() {
  STAND_IN_LOCKED;
  if (forbidden_to_all("cudaDeviceSynchronize"))
    return fail(cudaErrorStreamCaptureUnsupported);
  wait("cudaDeviceSynchronize");
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned int) {
  *event = reinterpret_cast<cudaEvent_t>(new Event{current_device(), 0, 0, {}});
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  STAND_IN_LOCKED;
  delete event_of(event);
  return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t stream_handle, unsigned int flags) {
  STAND_IN_LOCKED;
  auto *stream = stream_of(stream_handle);
  auto *event = event_of(handle);
  if (!stream || event->device != (stream->device < 0 ? current_device() : stream->device))
    return fail(cudaErrorInvalidResourceHandle);
  cudaError_t error;
  Capture *capture = capture_of(stream, "cudaEventRecord", error);
  if (error != cudaSuccess)
    return error;
  if (capture && (flags & cudaEventRecordExternal)) {
    capture->graph->nodes += 1;
  } else if (capture) {
    event->capture = capture->id;
    event->clock = stream->clock;
  } else {
    event->capture = 0;
    stream->last = event->moment = ++moment_issued;
  }
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return cudaEventRecordWithFlags(event, stream, 0);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream_handle, cudaEvent_t handle, unsigned int flags) {
  STAND_IN_LOCKED;
  auto *stream = stream_of(stream_handle);
  auto *event = event_of(handle);
  if (!stream)
    return fail(cudaErrorInvalidResourceHandle);
  cudaError_t error;
  Capture *capture = capture_of(stream, "cudaStreamWaitEvent", error);
  if (error != cudaSuccess)
    return error;
  if (capture && (flags & cudaEventWaitExternal)) {
    capture->graph->nodes += 1;
    return cudaSuccess;
  }
  if (event->capture) {
    auto found = captures.find(event->capture);
    if (found == captures.end())
      return fail(cudaErrorCapturedEvent);
    if (capture && capture != found->second)
      return spoil(capture, "waiting for another capture's event", cudaErrorStreamCaptureMerge);
    if (stream == &legacy)
      return spoil(found->second, "the legacy stream's waiting for a captured event", cudaErrorStreamCaptureImplicit);
    // The stream joins the capture.
    stream->capture = found->second;
    merge(stream->clock, event->clock);
  } else if (capture && event->moment > 0) {
    return spoil(capture, "waiting for an event from outside", cudaErrorStreamCaptureIsolation);
  }
  return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t handle) {
  STAND_IN_LOCKED;
  auto *event = event_of(handle);
  if (event->capture)
    return fail(cudaErrorCapturedEvent);
  if (forbidden("cudaEventQuery"))
    return fail(cudaErrorStreamCaptureUnsupported);
  return event->moment <= moment_done ? cudaSuccess : fail(cudaErrorNotReady);
}

cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
  STAND_IN_LOCKED;
  auto *event = event_of(handle);
  if (event->capture)
    return fail(cudaErrorCapturedEvent);
  if (forbidden("cudaEventSynchronize"))
    return fail(cudaErrorStreamCaptureUnsupported);
  wait("cudaEventSynchronize", event->moment);
  return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
  STAND_IN_LOCKED;
  for (auto *event : {event_of(start), event_of(end)})
    if (event->moment > moment_done)
      return fail(cudaErrorNotReady);
  *milliseconds = 1;
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode *mode) {
  std::swap(thread_mode, *mode);
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  STAND_IN_LOCKED;
  auto *stream = stream_of(handle);
  if (!stream)
    return fail(cudaErrorInvalidResourceHandle);
  if (stream == &legacy)
    return fail(cudaErrorStreamCaptureUnsupported);
  if (stream->capture)
    return fail(cudaErrorIllegalState);
  stream->capture = new Capture{++captures_begun, mode, this_thread(), stream, false, new Graph};
  stream->clock = {{stream, 0}};
  captures[captures_begun] = stream->capture;
  count("captures begun");
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *graph) {
  STAND_IN_LOCKED;
  *graph = nullptr;
  auto *stream = stream_of(handle);
  if (!stream)
    return fail(cudaErrorInvalidResourceHandle);
  auto *capture = stream->capture;
  if (!capture)
    return fail(cudaErrorIllegalState);
  if (capture->origin != stream)
    return spoil(capture, "cudaStreamEndCapture of a stream that did not begin it", cudaErrorStreamCaptureUnmatched);
  if (capture->thread != this_thread() && capture->mode != cudaStreamCaptureModeRelaxed)
    return spoil(capture, "cudaStreamEndCapture by another thread", cudaErrorStreamCaptureWrongThread);
  cudaError_t error = capture->invalid ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
  for (auto *forked : streams) {
    if (forked->capture != capture)
      continue;
    // What is on a stream that joined must come before the end of the one that began.
    if (error == cudaSuccess && stream->clock[forked] != forked->clock[forked])
      error = spoil(capture, "cudaStreamEndCapture before another stream was joined", cudaErrorStreamCaptureUnjoined);
    if (forked != stream) {
      forked->capture = nullptr;
      forked->clock.clear();
    }
  }
  stream->capture = nullptr;
  stream->clock.clear();
  captures.erase(capture->id);
  if (error == cudaSuccess) {
    *graph = reinterpret_cast<cudaGraph_t>(capture->graph);
    count("captures ended");
    most("largest graph", capture->graph->nodes);
  }
  delete capture;
  return fail(error);
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus *status) {
  STAND_IN_LOCKED;
  auto *stream = stream_of(handle);
  *status = cudaStreamCaptureStatusNone;
  if (!stream)
    return fail(cudaErrorInvalidResourceHandle);
  if (auto *capture = blocked_legacy(stream))
    return spoil(capture, "cudaStreamIsCapturing of the legacy stream", cudaErrorStreamCaptureImplicit);
  if (stream->capture)
    *status = stream->capture->invalid ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus *status, unsigned long long *id,
                                     cudaGraph_t *graph, const cudaGraphNode_t **dependencies,
                                     const cudaGraphEdgeData **edges, size_t *number) {
  STAND_IN_LOCKED;
  if (graph || dependencies || edges || number)
    refuse("cudaStreamGetCaptureInfo of more than status and id");
  auto error = cudaStreamIsCapturing(handle, status);
  if (error == cudaSuccess && id && *status == cudaStreamCaptureStatusActive)
    *id = stream_of(handle)->capture->id;
  return error;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *number) {
  STAND_IN_LOCKED;
  if (nodes)
    refuse("cudaGraphGetNodes of more than their number");
  *number = reinterpret_cast<Graph *>(graph)->nodes;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long) {
  STAND_IN_LOCKED;
  if (!graph)
    return fail(cudaErrorInvalidValue);
  *executable = reinterpret_cast<cudaGraphExec_t>(new Graph(*reinterpret_cast<Graph *>(graph)));
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t handle) {
  STAND_IN_LOCKED;
  auto *stream = stream_of(handle);
  if (!stream)
    return fail(cudaErrorInvalidResourceHandle);
  if (stream->capture)
    refuse("cudaGraphLaunch into a capture");
  cudaError_t error;
  capture_of(stream, "cudaGraphLaunch", error);
  if (error != cudaSuccess)
    return error;
  stream->last = ++moment_issued;
  count("graph launches");
  count("replayed kernels", reinterpret_cast<Graph *>(executable)->kernels);
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<Graph *>(graph);
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  STAND_IN_LOCKED;
  delete reinterpret_cast<Graph *>(executable);
  return cudaSuccess;
}

} // extern "C"
