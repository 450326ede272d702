// What the C++ files share.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstring>
#include <exception>
#include <vector>

// A message without memory of its own.
inline char OUT_OF_MEMORY[] = "out of memory";

// A copy of `text` that the caller frees with sdclr_free; never null, which would mean success.
inline char *message(const char *text) noexcept {
  char *copy = strdup(text);
  return copy ? copy : OUT_OF_MEMORY;
}

// Null, or what `body` threw, as a message. Nothing that is thrown crosses into Rust, which could only abort.
template <typename F> char *guarded(F body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const std::exception &error) {
    return message(error.what());
  } catch (...) {
    return message("an exception of an unknown type");
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
