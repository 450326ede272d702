#pragma once

#include <cstring>
#include <exception>

// Null, or what `body` threw, as a message that the caller frees with sdclr_free.
template <typename F> char *guarded(F body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception &error) {
    return strdup(error.what());
  }
}
