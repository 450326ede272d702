// The device and its kernels: an H100 as far as its properties go.
#include "stand_in.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <unordered_map>
#include <utility>

using namespace stand_in;

namespace {

constexpr int CAPABILITY = 90;
constexpr const char *NAME = "stand-in for an H100 that computes nothing";

thread_local cudaError_t last_error = cudaSuccess;
thread_local int thread_device = 0;

int device_count() {
  const char *number = std::getenv("CUDA_STAND_IN_DEVICES");
  return number ? std::atoi(number) : 1;
}

// The kernels by their host function. Never destroyed: libraries register as they load, before constructors here may run.
std::unordered_map<const void *, std::string> &kernels() {
  static auto &kernels = *new std::unordered_map<const void *, std::string>;
  return kernels;
}

struct Configuration {
  dim3 grid, block;
  size_t shared;
  void *stream;
};
thread_local Configuration configuration;

cudaError_t launch(const void *function, dim3 grid, dim3 block, cudaStream_t stream) {
  STAND_IN_LOCKED;
  auto found = kernels().find(function);
  if (found == kernels().end())
    return fail(cudaErrorInvalidDeviceFunction);
  uint64_t threads = uint64_t(block.x) * block.y * block.z;
  if (!grid.x || !grid.y || !grid.z || !threads || threads > 1024 || grid.y > 65535 || grid.z > 65535)
    return fail(cudaErrorInvalidConfiguration);
  return enqueue(Work::Kernel, stream, found->second);
}

int attribute(int attribute) {
  switch (attribute) {
  case cudaDevAttrMultiProcessorCount: return 132;
  case cudaDevAttrMaxThreadsPerBlock: return 1024;
  case cudaDevAttrMaxThreadsPerMultiProcessor: return 2048;
  case cudaDevAttrMaxBlocksPerMultiprocessor: return 32;
  case cudaDevAttrMaxSharedMemoryPerBlock: return 48 << 10;
  case cudaDevAttrMaxSharedMemoryPerBlockOptin: return 227 << 10;
  case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return 228 << 10;
  case cudaDevAttrMaxRegistersPerBlock: return 65536;
  case cudaDevAttrMaxGridDimX: return 2147483647;
  case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: return 65535;
  case cudaDevAttrClockRate: return 1980000;
  case cudaDevAttrMemoryClockRate: return 2619000;
  case cudaDevAttrGlobalMemoryBusWidth: return 5120;
  case cudaDevAttrWarpSize: return 32;
  case cudaDevAttrComputeCapabilityMajor: return CAPABILITY / 10;
  case cudaDevAttrComputeCapabilityMinor: return CAPABILITY % 10;
  case cudaDevAttrConcurrentManagedAccess: case cudaDevAttrPageableMemoryAccess: return 0;
  default: refuse("device attribute " + std::to_string(attribute));
  }
}

} // namespace

int stand_in::current_device() { return thread_device; }

cudaError_t stand_in::fail(cudaError_t error) {
  if (error != cudaSuccess)
    last_error = error;
  return error;
}

extern "C" {

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }

const char *cudaGetErrorString(cudaError_t error) {
  switch (error) {
  case cudaSuccess: return "no error";
  case cudaErrorMemoryAllocation: return "out of memory";
  case cudaErrorNotReady: return "device not ready";
  case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
  case cudaErrorStreamCaptureInvalidated: return "operation failed due to a previous error during capture";
  case cudaErrorStreamCaptureUnjoined: return "capturing stream has unjoined work";
  case cudaErrorStreamCaptureIsolation: return "dependency created on uncaptured work in another stream";
  case cudaErrorStreamCaptureImplicit: return "operation would make the legacy stream depend on a capturing blocking stream";
  case cudaErrorCapturedEvent: return "operation not permitted on an event last recorded in a capturing stream";
  default: break;
  }
  // One a thread and number, as callers keep the pointer.
  thread_local std::map<int, std::string> texts;
  return (texts[error] = "CUDA error " + std::to_string(int(error))).c_str();
}
const char *cudaGetErrorName(cudaError_t error) { return cudaGetErrorString(error); }

cudaError_t cudaGetDeviceCount(int *number) { return *number = device_count(), cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { return *device = thread_device, cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= device_count())
    return fail(cudaErrorInvalidDevice);
  thread_device = device;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int *can, int, int) { return *can = 0, cudaSuccess; }
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr which, int) {
  return *value = attribute(which), cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char *text, int length, int device) {
  std::snprintf(text, length, "0000:%02x:00.0", device);
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device) {
  if (device < 0 || device >= device_count())
    return fail(cudaErrorInvalidDevice);
  *properties = {};
  std::strcpy(properties->name, NAME);
  properties->totalGlobalMem = size_t(80) << 30;
  properties->sharedMemPerBlock = attribute(cudaDevAttrMaxSharedMemoryPerBlock);
  properties->sharedMemPerBlockOptin = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  properties->sharedMemPerMultiprocessor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  properties->reservedSharedMemPerBlock = 1 << 10;
  properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
  properties->warpSize = 32;
  properties->memPitch = 2147483647;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->maxBlocksPerMultiProcessor = 32;
  for (int axis = 0; axis < 3; ++axis) {
    properties->maxThreadsDim[axis] = axis < 2 ? 1024 : 64;
    properties->maxGridSize[axis] = axis < 1 ? 2147483647 : 65535;
  }
  properties->totalConstMem = 64 << 10;
  properties->major = CAPABILITY / 10;
  properties->minor = CAPABILITY % 10;
  properties->textureAlignment = 512;
  properties->multiProcessorCount = 132;
  properties->l2CacheSize = 50 << 20;
  properties->memoryBusWidth = 5120;
  properties->concurrentKernels = properties->unifiedAddressing = properties->canMapHostMemory = 1;
  properties->asyncEngineCount = 3;
  properties->cooperativeLaunch = properties->clusterLaunch = properties->streamPrioritiesSupported = 1;
  return cudaSuccess;
}

void **__cudaRegisterFatBinary(void *) {
  static void *handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void **) {}
void __cudaUnregisterFatBinary(void **) {}
void __cudaRegisterVar(void **, char *, char *, const char *, int, size_t, int, int) {}
void __cudaRegisterFunction(void **, const char *function, char *, const char *name, int, uint3 *, uint3 *, dim3 *,
                            dim3 *, int *) {
  STAND_IN_LOCKED;
  kernels()[function] = std::string("kernels/") + name;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, CUstream_st *stream) {
  configuration = {grid, block, shared, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  *grid = configuration.grid;
  *block = configuration.block;
  *shared = configuration.shared;
  *static_cast<void **>(stream) = configuration.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void *>(function));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **, size_t, cudaStream_t stream) {
  return launch(kernel, grid, block, stream);
}
cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **, size_t, cudaStream_t stream) {
  return launch(function, grid, block, stream);
}
cudaError_t cudaLaunchCooperativeKernel(const void *function, dim3 grid, dim3 block, void **, size_t,
                                        cudaStream_t stream) {
  return launch(function, grid, block, stream);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function, void **) {
  return launch(function, config->gridDim, config->blockDim, config->stream);
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *) {
  *attributes = {};
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 32;
  attributes->ptxVersion = attributes->binaryVersion = CAPABILITY;
  attributes->maxDynamicSharedSizeBytes = 48 << 10;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void *, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *, int threads, size_t,
                                                                   unsigned) {
  *blocks = threads > 0 ? 2048 / threads : 0;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *function, int threads, size_t bytes) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, bytes, 0);
}

// The driver, as far as libtorch and we ask it ourselves.
CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) { return *version = CUDART_VERSION, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int index) { return *device = index, CUDA_SUCCESS; }
CUresult cuDeviceGetName(char *name, int length, CUdevice) { return std::strncpy(name, NAME, length), CUDA_SUCCESS; }
CUresult cuDeviceGetPCIBusId(char *text, int length, CUdevice device) {
  return static_cast<CUresult>(cudaDeviceGetPCIBusId(text, length, device));
}
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute which, CUdevice) {
  return *value = attribute(which), CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned *flags, int *active) {
  *flags = 0;
  *active = 1;
  return CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext *context) {
  static char the_one;
  *context = reinterpret_cast<CUcontext>(&the_one);
  return CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice) { return cuCtxGetCurrent(context); }
CUresult cuCtxGetLimit(size_t *value, CUlimit) { return *value = 0, CUDA_SUCCESS; }
CUresult cuCtxSetLimit(CUlimit, size_t) { return CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult error, const char **text) {
  return *text = cudaGetErrorString(static_cast<cudaError_t>(error)), CUDA_SUCCESS;
}
CUresult cuPointerGetAttribute(void *value, CUpointer_attribute which, CUdeviceptr pointer) {
  if (which != CU_POINTER_ATTRIBUTE_DEVICE_POINTER)
    refuse("pointer attribute " + std::to_string(which));
  return *static_cast<CUdeviceptr *>(value) = pointer, CUDA_SUCCESS;
}

// Kernels compiled at run time. NVRTC asks for the driver's cache by this, and goes without.
CUresult cuGetExportTable(const void **, const CUuuid *) { return CUDA_ERROR_NOT_FOUND; }
CUresult cuModuleLoadData(CUmodule *module, const void *) {
  static char any;
  *module = reinterpret_cast<CUmodule>(&any);
  return CUDA_SUCCESS;
}
CUresult cuModuleLoad(CUmodule *module, const char *) { return cuModuleLoadData(module, nullptr); }
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute which, CUfunction) {
  return *value = which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : which == CU_FUNC_ATTRIBUTE_NUM_REGS ? 32 : 0,
         CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }
CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction *function, CUmodule, const char *name) {
  STAND_IN_LOCKED;
  auto *key = new char;
  kernels()[key] = std::string("kernels/") + name;
  *function = reinterpret_cast<CUfunction>(key);
  return CUDA_SUCCESS;
}
CUresult cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                        unsigned bz, unsigned, CUstream stream, void **, void **) {
  return static_cast<CUresult>(launch(function, dim3{gx, gy, gz}, dim3{bx, by, bz}, stream));
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **, void **) {
  dim3 grid{config->gridDimX, config->gridDimY, config->gridDimZ};
  dim3 block{config->blockDimX, config->blockDimY, config->blockDimZ};
  return static_cast<CUresult>(launch(function, grid, block, config->hStream));
}

} // extern "C"
