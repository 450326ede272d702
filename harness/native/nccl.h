// NVIDIA's exchange between GPUs, as far as a group of processes needs it.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <atomic>
#include <mutex>
#include <string>

// One rank's end of a communicator over processes with a GPU each. Exchanges are queued on the current stream, in the same
// order on every rank; nobody waits for them.
class Nccl {
public:
  // What makes the ranks find each other.
  struct Id {
    char bytes[128];
  };

  // Of the library that libtorch has loaded: 22809 is 2.28.9; 0 where there is none, or one with other functions.
  static int version();

  // A new one: rank 0 asks for it and tells the others.
  static Id id();

  // Joins the other ranks, and waits for them.
  Nccl(const Id &id, int rank, int size, c10::Device device);
  ~Nccl();
  Nccl(const Nccl &) = delete;

  // The sum over all ranks, in place.
  void sum(at::Tensor &tensor);

  // [ranks, ...]: that of every rank, all of one shape.
  at::Tensor gather(const at::Tensor &tensor);

  // What has gone wrong on the way to the other ranks; empty while nothing has.
  std::string failure();

  // Ends what is queued, which may wait for a rank that was lost. Later exchanges are errors. Called by another thread than
  // the one that exchanges, which may be inside NCCL: what that does on a GPU is not known yet (reports/gpu-status.md).
  void abort();

private:
  template <typename Function> void queue(const char *name, Function function);

  c10::Device device;
  int size;
  void *communicator = nullptr;
  std::atomic<bool> aborted = false;
  std::timed_mutex mutex;
};
