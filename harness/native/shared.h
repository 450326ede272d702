// What the C++ files share.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstring>
#include <exception>
#include <vector>

// Null, or what `body` threw, as a message that the caller frees with sdclr_free.
template <typename F> char *guarded(F body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception &error) {
    return strdup(error.what());
  }
}

// The tensors at `pointers`, which tch owns.
inline std::vector<at::Tensor> tensors(void **pointers, size_t count) {
  std::vector<at::Tensor> list;
  list.reserve(count);
  for (size_t i = 0; i < count; ++i)
    list.push_back(*static_cast<at::Tensor *>(pointers[i]));
  return list;
}
