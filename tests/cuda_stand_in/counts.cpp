// Counts, and the refusal of what is not understood.
#include "stand_in.h"

#include <cxxabi.h>
#include <execinfo.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <unordered_map>

namespace stand_in {

namespace {

// Never destroyed: libtorch calls until the very end of the process.
std::unordered_map<std::string, uint64_t> &counts() {
  static auto &counts = *new std::unordered_map<std::string, uint64_t>;
  return counts;
}

std::string readable(const std::string &name) {
  int status = 0;
  char *text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  std::string result = text ? text : name;
  std::free(text);
  std::string escaped;
  for (char c : result) {
    if (c == '"' || c == '\\')
      escaped += '\\';
    escaped += c;
  }
  return escaped;
}

// One JSON object of name and number. A process that never called CUDA writes nothing.
__attribute__((destructor)) void write_counts() {
  STAND_IN_LOCKED;
  const char *path = std::getenv("CUDA_STAND_IN_COUNTS");
  if (!path || counts().empty())
    return;
  FILE *file = std::fopen(path, "w");
  if (!file)
    return;
  std::map<std::string, uint64_t> sorted;
  for (auto &[name, number] : counts()) {
    auto slash = name.find('/') + 1;
    sorted[name.substr(0, slash) + readable(name.substr(slash))] += number;
  }
  const char *separator = "{\n";
  for (auto &[name, number] : sorted) {
    std::fprintf(file, "%s  \"%s\": %llu", separator, name.c_str(), static_cast<unsigned long long>(number));
    separator = ",\n";
  }
  std::fputs("\n}\n", file);
  std::fclose(file);
}

} // namespace

std::recursive_mutex &lock() {
  static auto &mutex = *new std::recursive_mutex;
  return mutex;
}

void count(const std::string &name, uint64_t amount) {
  STAND_IN_LOCKED;
  counts()[name] += amount;
  // Where the host waits, told on request.
  if (name.rfind("waits/", 0) == 0 && std::getenv("CUDA_STAND_IN_TRACE")) {
    void *frames[64];
    std::fprintf(stderr, "stand-in for CUDA: %s\n", name.c_str());
    backtrace_symbols_fd(frames, backtrace(frames, 64), 2);
  }
}

void most(const std::string &name, uint64_t value) {
  STAND_IN_LOCKED;
  auto &known = counts()[name];
  known = known < value ? value : known;
}

void refuse(const std::string &what) {
  std::fprintf(stderr, "stand-in for CUDA: %s is not known here\n", what.c_str());
  void *frames[64];
  backtrace_symbols_fd(frames, backtrace(frames, 64), 2);
  std::abort();
}

} // namespace stand_in

// How the generated list of unknown functions ends the process.
extern "C" void cuda_stand_in_refuse(const char *name) { stand_in::refuse(name); }
