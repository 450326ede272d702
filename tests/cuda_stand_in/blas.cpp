// cuBLAS and cuBLASLt: a call is one launch on the handle's stream, counted with TF32 apart.
#include "stand_in.h"

// The 16-bit types need headers that PyTorch's wheels do not bring; only their names are needed here.
#define __CUDA_FP16_H__
#define __CUDA_BF16_H__
struct __half;
struct __nv_bfloat16;

#include <cublasLt.h>
#include <cublas_v2.h>

using namespace stand_in;

namespace {

struct Handle {
  cudaStream_t stream = nullptr;
  cublasMath_t math = CUBLAS_DEFAULT_MATH;
  cublasPointerMode_t pointers = CUBLAS_POINTER_MODE_HOST;
};

Handle &of(cublasHandle_t handle) { return *reinterpret_cast<Handle *>(handle); }

cublasStatus_t call(cudaStream_t stream, const char *name) {
  return enqueue(Work::Library, stream, name) == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

const char *precision(cudaDataType type, bool tf32) {
  switch (type) {
  case CUDA_R_32F: return tf32 ? "library calls/matrix product in TF32" : "library calls/matrix product in float32";
  case CUDA_R_64F: return "library calls/matrix product in float64";
  case CUDA_R_16BF: return "library calls/matrix product in bfloat16";
  case CUDA_R_16F: return "library calls/matrix product in float16";
  default: refuse("a matrix product of type " + std::to_string(type));
  }
}

cublasStatus_t product(cublasHandle_t handle, cudaDataType type) {
  return call(of(handle).stream, precision(type, of(handle).math & CUBLAS_TF32_TENSOR_OP_MATH));
}

cublasStatus_t product(cublasHandle_t handle, cudaDataType type, cublasComputeType_t compute) {
  bool tf32 = of(handle).math & CUBLAS_TF32_TENSOR_OP_MATH || compute == CUBLAS_COMPUTE_32F_FAST_TF32;
  return call(of(handle).stream, precision(type, tf32));
}

// What cuBLASLt asks to be described; only the type of the numbers and of the arithmetic is kept.
struct Description {
  cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
  cudaDataType type = CUDA_R_32F;
};

template <typename T> cublasStatus_t describe(T *out, Description description) {
  *out = reinterpret_cast<T>(new Description(description));
  return CUBLAS_STATUS_SUCCESS;
}

template <typename T> cublasStatus_t forget(T description) {
  delete reinterpret_cast<Description *>(description);
  return CUBLAS_STATUS_SUCCESS;
}

} // namespace

extern "C" {

// The real one takes memory for its workspace and waits.
cublasStatus_t cublasCreate_v2(cublasHandle_t *handle) {
  if (forbidden("cublasCreate"))
    return CUBLAS_STATUS_NOT_INITIALIZED;
  *handle = reinterpret_cast<cublasHandle_t>(new Handle);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) { return delete &of(handle), CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) {
  return of(handle).stream = stream, CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t, void *, size_t) { return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t mode) {
  return of(handle).math = mode, CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasGetMathMode(cublasHandle_t handle, cublasMath_t *mode) {
  return *mode = of(handle).math, CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetPointerMode_v2(cublasHandle_t handle, cublasPointerMode_t mode) {
  return of(handle).pointers = mode, CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t handle, cublasPointerMode_t *mode) {
  return *mode = of(handle).pointers, CUBLAS_STATUS_SUCCESS;
}

#define PRODUCTS(LETTER, NUMBER, TYPE)                                                                                \
  cublasStatus_t cublas##LETTER##gemm_v2(cublasHandle_t handle, cublasOperation_t, cublasOperation_t, int, int, int,  \
                                         const NUMBER *, const NUMBER *, int, const NUMBER *, int, const NUMBER *,    \
                                         NUMBER *, int) {                                                             \
    return product(handle, TYPE);                                                                                     \
  }                                                                                                                   \
  cublasStatus_t cublas##LETTER##gemmStridedBatched(                                                                  \
      cublasHandle_t handle, cublasOperation_t, cublasOperation_t, int, int, int, const NUMBER *, const NUMBER *,     \
      int, long long, const NUMBER *, int, long long, const NUMBER *, NUMBER *, int, long long, int) {                \
    return product(handle, TYPE);                                                                                     \
  }                                                                                                                   \
  cublasStatus_t cublas##LETTER##gemv_v2(cublasHandle_t handle, cublasOperation_t, int, int, const NUMBER *,          \
                                         const NUMBER *, int, const NUMBER *, int, const NUMBER *, NUMBER *, int) {   \
    return product(handle, TYPE);                                                                                     \
  }
PRODUCTS(S, float, CUDA_R_32F)
PRODUCTS(D, double, CUDA_R_64F)

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t, cublasOperation_t, int, int, int, const void *,
                            const void *, cudaDataType type, int, const void *, cudaDataType, int, const void *,
                            void *, cudaDataType, int, cublasComputeType_t compute, cublasGemmAlgo_t) {
  return product(handle, type, compute);
}
cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t, cublasOperation_t, int, int, int,
                                          const void *, const void *, cudaDataType type, int, long long, const void *,
                                          cudaDataType, int, long long, const void *, void *, cudaDataType, int,
                                          long long, int, cublasComputeType_t compute, cublasGemmAlgo_t) {
  return product(handle, type, compute);
}

size_t cublasLtGetVersion() { return CUBLAS_VERSION; }
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *out, cublasComputeType_t compute, cudaDataType_t) {
  return describe(out, {compute, CUDA_R_32F});
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t description) { return forget(description); }
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t, const void *,
                                              size_t) {
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *out, cudaDataType type, uint64_t, uint64_t, int64_t) {
  return describe(out, {CUBLAS_COMPUTE_32F, type});
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) { return forget(layout); }
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t, cublasLtMatrixLayoutAttribute_t, const void *,
                                                size_t) {
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *out) { return describe(out, {}); }
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) { return forget(preference); }
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t,
                                                    const void *, size_t) {
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatmulPreference_t, int, cublasLtMatmulHeuristicResult_t *out,
                                              int *number) {
  out[0] = {};
  *number = 1;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t product, const void *, const void *,
                              cublasLtMatrixLayout_t a, const void *, cublasLtMatrixLayout_t, const void *,
                              const void *, cublasLtMatrixLayout_t, void *, cublasLtMatrixLayout_t,
                              const cublasLtMatmulAlgo_t *, void *, size_t, cudaStream_t stream) {
  bool tf32 = reinterpret_cast<Description *>(product)->compute == CUBLAS_COMPUTE_32F_FAST_TF32;
  return call(stream, precision(reinterpret_cast<Description *>(a)->type, tf32));
}

} // extern "C"
