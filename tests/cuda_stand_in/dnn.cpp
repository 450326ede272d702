// cuDNN: batch norm by its own functions, convolutions by the graph interface.
//
// For every convolution there are four engines, from the one that a user would like best to the one that is always allowed:
// with tensor cores or without, repeatable or not. Which one libtorch picks shows what its settings come to.
#include "stand_in.h"

#include <cudnn.h>

#include <cstring>
#include <vector>

using namespace stand_in;

namespace {

struct Handle {
  cudaStream_t stream = nullptr;
};

Handle &of(cudnnHandle_t handle) { return *reinterpret_cast<Handle *>(handle); }

cudnnStatus_t call(cudnnHandle_t handle, const std::string &name) {
  bool done = enqueue(Work::Library, of(handle).stream, name) == cudaSuccess;
  return done ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_EXECUTION_FAILED;
}

struct Engine {
  const char *name;
  std::vector<cudnnBackendNumericalNote_t> notes;
};
const Engine ENGINES[] = {
    {"library calls/convolution on tensor cores, not repeatable", {CUDNN_NUMERICAL_NOTE_TENSOR_CORE, CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC}},
    {"library calls/convolution on tensor cores", {CUDNN_NUMERICAL_NOTE_TENSOR_CORE}},
    {"library calls/convolution, not repeatable", {CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC}},
    {"library calls/convolution", {}},
};
constexpr int64_t ENGINE_COUNT = sizeof ENGINES / sizeof ENGINES[0];
// Not nothing, so that a workspace is asked for.
constexpr int64_t WORKSPACE = 1 << 20;

struct Descriptor {
  cudnnBackendDescriptorType_t type;
  // Of engines, their configurations and plans.
  int64_t engine = -1;
};

Descriptor *of(cudnnBackendDescriptor_t descriptor) { return static_cast<Descriptor *>(descriptor); }

// The descriptor that an attribute names.
Descriptor *named(const void *elements) { return of(*static_cast<const cudnnBackendDescriptor_t *>(elements)); }

} // namespace

extern "C" {

size_t cudnnGetVersion() { return CUDNN_VERSION; }
size_t cudnnGetCudartVersion() { return CUDART_VERSION; }
const char *cudnnGetErrorString(cudnnStatus_t status) {
  return status == CUDNN_STATUS_SUCCESS ? "success" : "the stand-in for cuDNN failed";
}
void cudnnGetLastErrorString(char *text, size_t length) { std::strncpy(text, "the stand-in for cuDNN failed", length); }

cudnnStatus_t cudnnCreate(cudnnHandle_t *handle) {
  if (forbidden("cudnnCreate"))
    return CUDNN_STATUS_NOT_INITIALIZED;
  *handle = reinterpret_cast<cudnnHandle_t>(new Handle);
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
  return of(handle).stream = stream, CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnGetStream(cudnnHandle_t handle, cudaStream_t *stream) {
  return *stream = of(handle).stream, CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnCreateTensorDescriptor(cudnnTensorDescriptor_t *out) {
  *out = reinterpret_cast<cudnnTensorDescriptor_t>(new char);
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnDestroyTensorDescriptor(cudnnTensorDescriptor_t descriptor) {
  delete reinterpret_cast<char *>(descriptor);
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetTensorNdDescriptor(cudnnTensorDescriptor_t, cudnnDataType_t, int, const int[], const int[]) {
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(
    cudnnHandle_t, cudnnBatchNormMode_t, cudnnBatchNormOps_t, const cudnnTensorDescriptor_t,
    const cudnnTensorDescriptor_t, const cudnnTensorDescriptor_t, const cudnnTensorDescriptor_t,
    const cudnnActivationDescriptor_t, size_t *bytes) {
  return *bytes = WORKSPACE, CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnGetBatchNormalizationBackwardExWorkspaceSize(
    cudnnHandle_t, cudnnBatchNormMode_t, cudnnBatchNormOps_t, const cudnnTensorDescriptor_t,
    const cudnnTensorDescriptor_t, const cudnnTensorDescriptor_t, const cudnnTensorDescriptor_t,
    const cudnnTensorDescriptor_t, const cudnnTensorDescriptor_t, const cudnnActivationDescriptor_t, size_t *bytes) {
  return *bytes = WORKSPACE, CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnGetBatchNormalizationTrainingExReserveSpaceSize(cudnnHandle_t, cudnnBatchNormMode_t,
                                                                   cudnnBatchNormOps_t,
                                                                   const cudnnActivationDescriptor_t,
                                                                   const cudnnTensorDescriptor_t, size_t *bytes) {
  return *bytes = 1024, CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBatchNormalizationForwardTrainingEx(
    cudnnHandle_t handle, cudnnBatchNormMode_t, cudnnBatchNormOps_t, const void *, const void *,
    const cudnnTensorDescriptor_t, const void *, const cudnnTensorDescriptor_t, const void *,
    const cudnnTensorDescriptor_t, void *, const cudnnTensorDescriptor_t, const void *, const void *, double, void *,
    void *, double, void *, void *, cudnnActivationDescriptor_t, void *, size_t, void *, size_t) {
  return call(handle, "library calls/batch norm, forward");
}
cudnnStatus_t cudnnBatchNormalizationForwardInference(cudnnHandle_t handle, cudnnBatchNormMode_t, const void *,
                                                      const void *, const cudnnTensorDescriptor_t, const void *,
                                                      const cudnnTensorDescriptor_t, void *,
                                                      const cudnnTensorDescriptor_t, const void *, const void *,
                                                      const void *, const void *, double) {
  return call(handle, "library calls/batch norm, evaluation");
}
cudnnStatus_t cudnnBatchNormalizationBackwardEx(
    cudnnHandle_t handle, cudnnBatchNormMode_t, cudnnBatchNormOps_t, const void *, const void *, const void *,
    const void *, const cudnnTensorDescriptor_t, const void *, const cudnnTensorDescriptor_t, const void *,
    const cudnnTensorDescriptor_t, const void *, const cudnnTensorDescriptor_t, void *, const cudnnTensorDescriptor_t,
    void *, const cudnnTensorDescriptor_t, const void *, const void *, void *, void *, double, const void *,
    const void *, cudnnActivationDescriptor_t, void *, size_t, void *, size_t) {
  return call(handle, "library calls/batch norm, backward");
}

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t *out) {
  *out = new Descriptor{type};
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor) {
  delete of(descriptor);
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t descriptor) {
  auto type = of(descriptor)->type;
  bool planned = type == CUDNN_BACKEND_ENGINE_DESCRIPTOR || type == CUDNN_BACKEND_ENGINECFG_DESCRIPTOR ||
                 type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR;
  // Engines are known by the number that heuristics gave them; others are asked for by libtorch where those run out.
  bool known = of(descriptor)->engine >= 0 && of(descriptor)->engine < ENGINE_COUNT;
  return planned && !known ? CUDNN_STATUS_NOT_SUPPORTED : CUDNN_STATUS_SUCCESS;
}

// Descriptions of tensors and operations are taken as they come; what is followed is which engine was chosen.
cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t, int64_t, const void *elements) {
  switch (name) {
  case CUDNN_ATTR_ENGINE_GLOBAL_INDEX:
    of(descriptor)->engine = *static_cast<const int64_t *>(elements);
    break;
  case CUDNN_ATTR_ENGINECFG_ENGINE:
  case CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG:
    of(descriptor)->engine = named(elements)->engine;
    break;
  default:
    break;
  }
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t, int64_t room, int64_t *number, void *elements) {
  int64_t ignored, &found = number ? *number : ignored;
  auto *source = of(descriptor);
  found = 0;
  switch (name) {
  case CUDNN_ATTR_ENGINEHEUR_RESULTS:
    found = elements && room > 0 && room < ENGINE_COUNT ? room : ENGINE_COUNT;
    for (int64_t engine = 0; elements && engine < found && engine < room; ++engine)
      of(static_cast<cudnnBackendDescriptor_t *>(elements)[engine])->engine = engine;
    break;
  case CUDNN_ATTR_ENGINECFG_ENGINE:
  case CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG:
    found = 1;
    named(elements)->engine = source->engine;
    break;
  case CUDNN_ATTR_ENGINE_GLOBAL_INDEX:
    found = 1;
    *static_cast<int64_t *>(elements) = source->engine;
    break;
  case CUDNN_ATTR_ENGINE_NUMERICAL_NOTE:
    for (auto note : ENGINES[source->engine].notes) {
      if (elements && found < room)
        static_cast<cudnnBackendNumericalNote_t *>(elements)[found] = note;
      ++found;
    }
    break;
  case CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE:
  case CUDNN_ATTR_ENGINE_KNOB_INFO:
  case CUDNN_ATTR_ENGINECFG_KNOB_CHOICES:
    break;
  case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE:
    found = 1;
    *static_cast<int64_t *>(elements) = WORKSPACE;
    break;
  default:
    refuse("attribute " + std::to_string(name) + " of a cuDNN descriptor");
  }
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan, cudnnBackendDescriptor_t) {
  return call(handle, ENGINES[of(plan)->engine].name);
}

} // extern "C"
