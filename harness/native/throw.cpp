// For a test: an exception, or a number, which C++ can throw too. Only programs that call it are linked with it.

#include "shared.h"

#include <stdexcept>

extern "C" char *sdclr_throw(bool number) {
  return guarded([&] {
    if (number)
      throw 1;
    throw std::runtime_error("thrown");
  });
}
