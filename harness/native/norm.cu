// Batch norm by the batch's statistics, then perhaps an addition and ReLU, forward and backward, of bfloat16
// activations: rows [M, C] with the channels innermost (channels_last), C a multiple of 8. NVRTC compiles this file for
// the GPU at hand, g++ (norm.cpp) as loops over blocks and threads, so that tests can check it on a CPU.
// Only the last lines are CUDA code: a kernel consists of two functions of a thread, with a barrier of the block between.
//
// Every thread owns 8 neighbouring channels (16 bytes, one load) and takes rows in turn. A block is up to 32 such columns
// wide, so that its threads read whole lines of memory, and 396 blocks share the work: three for each of an H100's 132
// multiprocessors, with 48 KiB of loads under way on each. Sums are float32 in a fixed order: the same bits always.

namespace batch_norm {

constexpr int THREADS = 256, WIDTH = 8;

struct Norm {
  long long rows;          // M
  int rows_of_part, parts; // rows that a block takes, and blocks that share them
  int channels, columns;   // C, and how many times 8 of them a block is wide
  float epsilon, momentum;
  const unsigned short *x, *residual, *out, *grad; // [M, C]
  unsigned short *to, *to_residual;                // [M, C]
  const float *weight, *bias;                      // [C]
  float *running_mean, *running_var;               // [C]
  float *mean, *invstd;                            // [C], of the batch
  float *sums;                                     // [parts, 2, C]
  float *gradients;                                // [4, C]: of weight, of bias, and both as dx takes them
};

enum class After { Nothing, Relu, AddRelu };

struct Place {
  int column, part, thread; // the block's two, and the thread's in it
};

// What is summed of a channel. Forward: how far the mean of `count` numbers is from the channel's first, which is mostly
// near, and their squares around that mean; sums around zero would lose a small variance. Backward: dz, and dz times
// what x is above the mean.
struct Sums {
  float count, first, second;
};

struct Shared {
  Sums sums[WIDTH * THREADS];
};

// ---- bfloat16 --------------------------------------------------------------------------------------------------------

struct alignas(16) Eight {
  unsigned words[4];
};

struct alignas(16) Floats {
  float of[WIDTH];
};

inline float to_float(unsigned bits) { return __builtin_bit_cast(float, bits); }

// The nearest, ties to even; NaN stays NaN.
inline unsigned round(float value) {
  unsigned bits = __builtin_bit_cast(unsigned, value);
  return (value != value ? bits | 0x400000u : bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
}

inline Eight load(const unsigned short *from) { return *reinterpret_cast<const Eight *>(from); }
inline void store(unsigned short *to, Eight eight) { *reinterpret_cast<Eight *>(to) = eight; }

inline Floats unpack(Eight eight) {
  Floats floats;
  for (int i = 0; i < 4; ++i) {
    floats.of[2 * i] = to_float(eight.words[i] << 16);
    floats.of[2 * i + 1] = to_float(eight.words[i] & 0xFFFF0000u);
  }
  return floats;
}

inline Eight pack(const Floats &floats) {
  Eight eight;
  for (int i = 0; i < 4; ++i)
    eight.words[i] = round(floats.of[2 * i]) | round(floats.of[2 * i + 1]) << 16;
  return eight;
}

inline Floats of_channels(const float *values, int channel) {
  return *reinterpret_cast<const Floats *>(values + channel);
}

// ---- Who does what ---------------------------------------------------------------------------------------------------

inline int lanes(const Norm &n) { return THREADS / n.columns; }

inline long long first_row(const Norm &n, int part) { return static_cast<long long>(part) * n.rows_of_part; }

inline int rows_in(const Norm &n, int part) {
  return part + 1 < n.parts ? n.rows_of_part : static_cast<int>(n.rows - first_row(n, part));
}

// What a thread walks through: `count` rows, the first of them `offset` numbers from the start, `stride` apart.
struct Walk {
  int channel, count, stride;
  long long offset;
};

inline Walk walk(const Norm &n, Place at) {
  int lane = at.thread / n.columns, channel = (at.column * n.columns + at.thread % n.columns) * WIDTH;
  int rows = rows_in(n, at.part) - lane;
  bool idle = lane >= lanes(n) || channel >= n.channels || rows <= 0;
  return {channel, idle ? 0 : (rows - 1) / lanes(n) + 1, lanes(n) * n.channels,
          (first_row(n, at.part) + lane) * n.channels + channel};
}

// From the last row to the first: the rows that the previous pass read last are still in the cache.
inline Walk backwards(Walk w) {
  return {w.channel, w.count, -w.stride, w.offset + (w.count - 1ll) * w.stride};
}

// use(offset, load(offset)) for every row, with the loads of ROWS of them under way at once.
template <int ROWS, typename Load, typename Use> inline void each(Walk w, Load load, Use use) {
  long long at = w.offset;
  int left = w.count;
  for (; left >= ROWS; left -= ROWS) {
    decltype(load(at)) loaded[ROWS];
    for (int i = 0; i < ROWS; ++i)
      loaded[i] = load(at + i * w.stride);
    for (int i = 0; i < ROWS; ++i, at += w.stride)
      use(at, loaded[i]);
  }
  for (; left > 0; --left, at += w.stride)
    use(at, load(at));
}

inline void no_more(const Norm &, Place, Shared &) {}

// Partial sums put together one after the other: of forward around the first's mean, as is done for numbers.
struct Moments {
  float count = 0, around = 0, sum = 0, squares = 0;

  inline void take(Sums part) {
    if (part.count == 0)
      return;
    if (count == 0)
      around = part.first;
    float apart = part.first - around;
    count += part.count;
    sum += part.count * apart;
    squares += part.second + part.count * apart * apart;
  }

  inline Sums all() const {
    float mean = count > 0 ? sum / count : 0, rest = squares - sum * mean;
    return {count, around + mean, rest < 0 ? 0 : rest};
  }
};

struct Totals {
  Sums total = {};

  inline void take(Sums part) { total = {0, total.first + part.first, total.second + part.second}; }
  inline Sums all() const { return total; }
};

// The sums over a block's threads: each thread sums one channel.
template <typename Gathered> inline void of_block(const Norm &n, Place at, Shared &shared) {
  int column = at.thread % n.columns, c = at.thread / n.columns, channel = (at.column * n.columns + column) * WIDTH + c;
  if (c >= WIDTH || channel >= n.channels)
    return;
  Gathered gathered;
  for (int lane = 0; lane < lanes(n); ++lane)
    gathered.take(shared.sums[c * THREADS + lane * n.columns + column]);
  float *to = n.sums + 2ll * at.part * n.channels + channel;
  to[0] = gathered.all().first;
  to[n.channels] = gathered.all().second;
}

// The sums of all parts of 8 channels, which a block finishes: every 32nd part to a thread.
template <typename Gathered> inline void of_parts(const Norm &n, Place at, Shared &shared) {
  Gathered gathered;
  for (int part = at.thread / WIDTH; part < n.parts; part += THREADS / WIDTH) {
    const float *from = n.sums + 2ll * part * n.channels + at.column * WIDTH + at.thread % WIDTH;
    gathered.take({static_cast<float>(rows_in(n, part)), from[0], from[n.channels]});
  }
  shared.sums[at.thread] = gathered.all();
}

// And then the sums of one of them.
template <typename Gathered> inline Sums of_channel(Place at, const Shared &shared) {
  Gathered gathered;
  for (int from = at.thread; from < THREADS; from += WIDTH)
    gathered.take(shared.sums[from]);
  return gathered.all();
}

// ---- Forward ---------------------------------------------------------------------------------------------------------

// Of a thread's rows, by sums around the first of them: the channel's first may be far away.
inline void moments(const Norm &n, Place at, Shared &shared) {
  Walk w = walk(n, at);
  Floats around = {}, sum = {}, squares = {};
  Floats base = unpack(load(n.x + (w.count ? w.channel : 0)));
  if (w.count)
    around = unpack(load(n.x + w.offset));
  each<4>(w, [&](long long offset) { return load(n.x + offset); },
       [&](long long, Eight eight) {
         Floats x = unpack(eight);
         for (int c = 0; c < WIDTH; ++c) {
           float apart = x.of[c] - around.of[c];
           sum.of[c] += apart;
           squares.of[c] += apart * apart;
         }
       });
  float count = static_cast<float>(w.count), share = w.count ? 1 / count : 0;
  for (int c = 0; c < WIDTH; ++c) {
    float mean = sum.of[c] * share, rest = squares.of[c] - sum.of[c] * mean;
    shared.sums[c * THREADS + at.thread] = {count, around.of[c] - base.of[c] + mean, rest < 0 ? 0 : rest};
  }
}

inline void statistics(const Norm &n, Place at, Shared &shared) {
  if (at.thread >= WIDTH)
    return;
  Sums all = of_channel<Moments>(at, shared);
  int channel = at.column * WIDTH + at.thread;
  float rows = static_cast<float>(n.rows), kept = 1 - n.momentum, mean = to_float(n.x[channel] << 16) + all.first;
  n.mean[channel] = mean;
  n.invstd[channel] = 1 / sqrtf(all.second / rows + n.epsilon);
  n.running_mean[channel] = kept * n.running_mean[channel] + n.momentum * mean;
  n.running_var[channel] = kept * n.running_var[channel] + n.momentum * (all.second / (rows - 1));
}

// The output of batch norm for one number. Backward recomputes it to see whether it was positive, and must get the same bits.
inline float normed(float x, float mean, float scale, float bias) { return fmaf(x - mean, scale, bias); }

struct Affine {
  Floats mean, scale, bias;

  Affine(const Norm &n, int channel)
      : mean(of_channels(n.mean, channel)), scale(of_channels(n.weight, channel)), bias(of_channels(n.bias, channel)) {
    Floats invstd = of_channels(n.invstd, channel);
    for (int c = 0; c < WIDTH; ++c)
      scale.of[c] *= invstd.of[c];
  }
};

struct Two {
  Eight a, b;
};

template <After AFTER> inline void apply(const Norm &n, Place at, Shared &) {
  Walk w = backwards(walk(n, at));
  if (!w.count)
    return;
  Affine affine(n, w.channel);
  each<4>(w,
       [&](long long offset) {
         return Two{load(n.x + offset), AFTER == After::AddRelu ? load(n.residual + offset) : Eight{}};
       },
       [&](long long offset, Two two) {
         Floats x = unpack(two.a), residual = unpack(two.b);
         for (int c = 0; c < WIDTH; ++c) {
           float y = normed(x.of[c], affine.mean.of[c], affine.scale.of[c], affine.bias.of[c]);
           if (AFTER == After::AddRelu)
             y += residual.of[c];
           x.of[c] = AFTER != After::Nothing && y <= 0 ? 0 : y; // NaN stays
         }
         store(n.to + offset, pack(x));
       });
}

// ---- Backward --------------------------------------------------------------------------------------------------------
// dz is the gradient after batch norm: dy where ReLU passed it. With an addition it is also the residual's gradient and
// is written; otherwise it is recomputed from x.

template <After AFTER> inline Floats gradient_of(const Affine &affine, Eight grad, const Floats &x, Eight out) {
  Floats dz = unpack(grad), y = unpack(out);
  for (int c = 0; c < WIDTH; ++c) {
    if (AFTER == After::Relu)
      y.of[c] = normed(x.of[c], affine.mean.of[c], affine.scale.of[c], affine.bias.of[c]);
    if (AFTER != After::Nothing && y.of[c] <= 0)
      dz.of[c] = 0;
  }
  return dz;
}

struct Three {
  Eight x, grad, out;
};

template <After AFTER> inline void sums(const Norm &n, Place at, Shared &shared) {
  Walk w = walk(n, at);
  Floats sum = {}, products = {};
  if (w.count) {
    Affine affine(n, w.channel);
    each<AFTER == After::AddRelu ? 2 : 4>(w,
         [&](long long offset) {
           return Three{load(n.x + offset), load(n.grad + offset), AFTER == After::AddRelu ? load(n.out + offset) : Eight{}};
         },
         [&](long long offset, Three three) {
           Floats x = unpack(three.x), dz = gradient_of<AFTER>(affine, three.grad, x, three.out);
           for (int c = 0; c < WIDTH; ++c) {
             sum.of[c] += dz.of[c];
             products.of[c] += dz.of[c] * (x.of[c] - affine.mean.of[c]);
           }
           if (AFTER == After::AddRelu)
             store(n.to_residual + offset, pack(dz));
         });
  }
  for (int c = 0; c < WIDTH; ++c)
    shared.sums[c * THREADS + at.thread] = {0, sum.of[c], products.of[c]};
}

inline void gradients(const Norm &n, Place at, Shared &shared) {
  if (at.thread >= WIDTH)
    return;
  Sums all = of_channel<Totals>(at, shared);
  int channel = at.column * WIDTH + at.thread;
  float invstd = n.invstd[channel], share = n.weight[channel] * invstd / static_cast<float>(n.rows);
  float *to = n.gradients + channel;
  to[0] = all.second * invstd;
  to[n.channels] = all.first;
  to[2 * n.channels] = share * all.first;
  to[3 * n.channels] = share * all.second * invstd * invstd;
}

template <After AFTER> inline void apply_gradient(const Norm &n, Place at, Shared &) {
  Walk w = backwards(walk(n, at));
  if (!w.count)
    return;
  Affine affine(n, w.channel);
  Floats level = of_channels(n.gradients + 2 * n.channels, w.channel);
  Floats slope = of_channels(n.gradients + 3 * n.channels, w.channel);
  each<AFTER == After::Relu ? 2 : 4>(w, [&](long long offset) { return Two{load(n.x + offset), load(n.grad + offset)}; },
       [&](long long offset, Two two) {
         Floats x = unpack(two.a), dz = gradient_of<AFTER>(affine, two.b, x, Eight{});
         for (int c = 0; c < WIDTH; ++c)
           x.of[c] = affine.scale.of[c] * dz.of[c] - level.of[c] - (x.of[c] - affine.mean.of[c]) * slope.of[c];
         store(n.to + offset, pack(x));
       });
}

#ifdef __CUDACC__
#define KERNEL(name, first, second)                                                                                    \
  extern "C" __global__ void __launch_bounds__(THREADS, 3) name(const Norm n) {                                        \
    __shared__ Shared shared;                                                                                          \
    Place at = {static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(threadIdx.x)};            \
    first(n, at, shared);                                                                                              \
    __syncthreads();                                                                                                   \
    second(n, at, shared);                                                                                             \
  }
#endif

// Every kernel: its name, what each thread of a block does, and what it does when all have done that.
#define KERNELS                                                                                                        \
  KERNEL(norm_moments, moments, of_block<Moments>)                                                                     \
  KERNEL(norm_statistics, of_parts<Moments>, statistics)                                                               \
  KERNEL(norm_apply, apply<After::Nothing>, no_more)                                                                   \
  KERNEL(norm_apply_relu, apply<After::Relu>, no_more)                                                                 \
  KERNEL(norm_apply_add_relu, apply<After::AddRelu>, no_more)                                                          \
  KERNEL(norm_sums, sums<After::Nothing>, of_block<Totals>)                                                            \
  KERNEL(norm_sums_relu, sums<After::Relu>, of_block<Totals>)                                                          \
  KERNEL(norm_sums_add_relu, sums<After::AddRelu>, of_block<Totals>)                                                   \
  KERNEL(norm_gradients, of_parts<Totals>, gradients)                                                                  \
  KERNEL(norm_apply_gradient, apply_gradient<After::Nothing>, no_more)                                                 \
  KERNEL(norm_apply_gradient_relu, apply_gradient<After::Relu>, no_more)

#ifdef __CUDACC__
KERNELS
#endif

} // namespace batch_norm
