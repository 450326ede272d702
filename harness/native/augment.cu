// The pre-training views of a batch (REFERENCE.md "Augmentation"): one source for the CPU, where augment.cpp includes it, and
// for CUDA, where NVRTC compiles it. In: uint8 images of any sizes, [N, 3, H, W] or end to end with their channels
// interleaved, and the table that harness/augment/plan.rs packs. Out: uint8 views [N, 3, height, width].
//
// A view is computed in phases. On CUDA one block computes a view: its threads divide each phase and synchronise after it. On
// the CPU one thread does all phases while the view is in its cache. We use C floats where PIL does and doubles where it
// uses doubles, with one rounding per operation: the compiler must not fuse a multiplication and an addition.

namespace augment {

typedef unsigned char u8;

// What is done to one view.
struct View {
  // Where the first byte of the rectangle that is resized lies in the images, and where the view's own scratch memory begins.
  long long place, scratch;
  // Bytes from one row of the image to the next and from one channel to the next, and rows of the rectangle.
  int row, plane, height;
  // Where in the table the taps of rows and columns lie, and whether columns are mirrored.
  int rows, columns, flip;
  // Operations of the jitter in their order, each at most once, and their factors; for hue, steps of 1/255 turn.
  int operations[4];
  float factors[4];
  int grayscale;
  // Whole radius of the box, or -1: no blur. Weights of a pixel inside it and of the two at its edges, times 2^24.
  int blur;
  unsigned inside, edge;
};

enum Operation { NOTHING, BRIGHTNESS, CONTRAST, SATURATION, HUE };

struct Batch {
  const u8 *images;
  // View by view a View, then taps: of each length that is resized how many each pixel of the result has, where the first
  // of each lies in the line, and their weights times 2^22.
  const int *table;
  u8 *views;
  // On CUDA that of all views.
  u8 *scratch;
  // Bytes on the CPU of the view that needs most, and on CUDA of all.
  long long scratch_most, scratch_all;
  // Bytes from one pixel of an image to the next.
  int step;
  int height, width, count;
};

// One thread that does all of a view, several neighbouring pixels at once.
struct Alone {
  static constexpr int STRIP = 32;
  static constexpr int x = 0, y = 0, columns = 1, rows = 1;
};

// One thread of a block of rows x columns.
struct Thread {
  static constexpr int STRIP = 1;
  int x, y, columns, rows;
};

inline int smaller(int a, int b) { return a < b ? a : b; }
inline int larger(int a, int b) { return a > b ? a : b; }
inline int between(int low, int value, int high) { return smaller(larger(value, low), high); }

// How lines of one length become lines of `size` pixels.
struct Taps {
  int count;
  const int *first, *weights;

  Taps(const Batch &batch, int place, int size)
      : count(batch.table[place]), first(batch.table + place + 1), weights(first + size) {}
};

template <int N> struct Constant {
  constexpr operator int() const { return N; }
};

// Calls body with `value`: on the CPU, common values are passed as constants, so that they get specialised loops.
template <int... COMMON, class F> inline void known(int value, F body) {
#ifndef __CUDACC__
  if (((value == COMMON && (body(Constant<COMMON>()), true)) || ...))
    return;
#endif
  body(value);
}

// Taps of a line that grows, or stays as it is.
constexpr int ENLARGING = 5;

constexpr int HALF = 1 << 21;

// Rounds and clips a sum of weighted pixels that already includes HALF.
inline u8 rounded(int sum) { return static_cast<u8>(between(0, sum >> 22, 255)); }

template <int N> struct Strip {};

// Calls body with the start of each strip of a line of `length` pixels; the last one may begin inside the one before.
template <class T, class F> inline void strips(int length, T thread, F body) {
  if (length < T::STRIP)
    for (int x = thread.x; x < length; x += thread.columns)
      body(x, Strip<1>());
  else
    for (int x = thread.x * T::STRIP; x < length; x += thread.columns * T::STRIP)
      body(smaller(x, length - T::STRIP), Strip<T::STRIP>());
}

template <int N, class C>
inline void weigh(const u8 *__restrict pixels, int stride, const int *__restrict weights, C count, u8 *__restrict target) {
  int sums[N];
  for (int i = 0; i < N; ++i)
    sums[i] = HALF;
  for (int tap = 0; tap < count; ++tap)
    for (int i = 0; i < N; ++i)
      sums[i] += weights[tap] * pixels[tap * stride + i];
  for (int i = 0; i < N; ++i)
    target[i] = rounded(sums[i]);
}

#ifndef __CUDACC__
// A longer line, which no JPEG has, would take too much scratch memory (LONGEST_LINE of harness/augment/plan.rs).
constexpr int LONGEST_LINE = 1 << 16;

// `narrow` on the CPU for interleaved channels. Eight rows are laid side by side, four bytes for a pixel of each, so that
// neighbouring bytes have the same weights; `rows` is scratch memory for them, before and after, and for a row of the result.
inline void narrow_pixels(const Batch &batch, const View &view, const Taps &taps, const u8 *__restrict image,
                          u8 *__restrict narrowed, u8 *__restrict rows) {
  constexpr int ROWS = 8, BYTES = 4 * ROWS;
  const long long width = batch.width, plane = view.height * width, length = taps.first[width - 1] + taps.count;
  u8 *__restrict resized = rows + BYTES * length;
  u8 *__restrict line = resized + BYTES * width;
  known<ENLARGING>(taps.count, [&](auto count) {
    for (int y = 0; y < view.height; y += ROWS) {
      const int some = smaller(ROWS, view.height - y);
      for (int row = 0; row < some; ++row) {
        const u8 *from = image + (y + row) * view.row;
        u8 *to = rows + 4 * row;
        // With a byte of the next pixel, which the last one of an image lacks.
        for (long long x = 0; x < length - 1; ++x)
          __builtin_memcpy(to + BYTES * x, from + 3 * x, 4);
        __builtin_memcpy(to + BYTES * (length - 1), from + 3 * (length - 1), 3);
      }
      for (long long x = 0; x < width; ++x)
        weigh<BYTES>(rows + BYTES * taps.first[x], BYTES, taps.weights + x * count, count, resized + BYTES * x);
      for (int row = 0; row < some; ++row) {
        const u8 *from = resized + 4 * row;
        for (long long x = 0; x < width; ++x)
          __builtin_memcpy(line + 4 * (view.flip ? width - 1 - x : x), from + BYTES * x, 4);
        u8 *__restrict red = narrowed + (y + row) * width, *__restrict green = red + plane, *__restrict blue = green + plane;
        for (long long x = 0; x < width; ++x) {
          red[x] = line[4 * x];
          green[x] = line[4 * x + 1];
          blue[x] = line[4 * x + 2];
        }
      }
    }
  });
}
#endif

// Resizes the rows of the crop to the width of the view.
template <class T> inline void narrow(const Batch &batch, const View &view, u8 *__restrict narrowed, T thread) {
  const Taps taps(batch, view.columns, batch.width);
  const u8 *image = batch.images + view.place;
#ifndef __CUDACC__
  if constexpr (T::STRIP > 1)
    if (batch.step == 3 && taps.first[batch.width - 1] + taps.count <= LONGEST_LINE)
      return narrow_pixels(batch, view, taps, image, narrowed, narrowed + 3LL * view.height * batch.width);
#endif
  known<1>(batch.step, [&](auto step) {
    known<ENLARGING>(taps.count, [&](auto count) {
      for (int x = thread.x; x < batch.width; x += thread.columns) {
        const u8 *column = image + taps.first[x] * step;
        const int *weights = taps.weights + x * count;
        u8 *target = narrowed + (view.flip ? batch.width - 1 - x : x);
        for (int channel = 0; channel < 3; ++channel)
          for (int y = thread.y; y < view.height; y += thread.rows) {
            const u8 *pixels = column + channel * view.plane + y * view.row;
            int sum = HALF;
            for (int tap = 0; tap < count; ++tap)
              sum += weights[tap] * pixels[tap * step];
            target[(channel * view.height + y) * batch.width] = rounded(sum);
          }
      }
    });
  });
}

// Resizes the columns of the narrowed crop to the height of the view.
template <class T>
inline void shorten(const Batch &batch, const View &view, const u8 *narrowed, u8 *pixels, T thread) {
  const Taps taps(batch, view.rows, batch.height);
  const int width = batch.width;
  known<ENLARGING>(taps.count, [&](auto count) {
    for (int channel = 0; channel < 3; ++channel)
      for (int y = thread.y; y < batch.height; y += thread.rows) {
        const u8 *lines = narrowed + (channel * view.height + taps.first[y]) * width;
        u8 *target = pixels + (channel * batch.height + y) * width;
        strips(width, thread, [&]<int N>(int x, Strip<N>) {
          weigh<N>(lines + x, width, taps.weights + y * count, count, target + x);
        });
      }
  });
}

struct Pixel {
  int red, green, blue;
};

// PIL's L.
inline int luma(Pixel pixel) {
  return (19595 * pixel.red + 38470 * pixel.green + 7471 * pixel.blue + 32768) >> 16;
}

// grey + factor * (value - grey), truncated to 8 bits.
inline int blend(int value, int grey, float factor) {
#ifdef __CUDA_ARCH__
  // The product is rounded before the addition; the compiler must not fuse them.
  float mixed = __fadd_rn(__fmul_rn(static_cast<float>(value - grey), factor), static_cast<float>(grey));
#else
  float mixed = static_cast<float>(value - grey) * factor + static_cast<float>(grey);
#endif
  mixed = mixed < 255.0f ? mixed : 255.0f;
  return static_cast<int>(mixed > 0.0f ? mixed : 0.0f);
}

inline Pixel blend(Pixel pixel, int grey, float factor) {
  return {blend(pixel.red, grey, factor), blend(pixel.green, grey, factor), blend(pixel.blue, grey, factor)};
}

// PIL's 8-bit H of a pixel whose largest channel is `value`, and `chroma` above the smallest. It keeps the sixths and the
// turns as floats, and computes between them in doubles.
inline int hue_of(Pixel pixel, int value, int chroma) {
  // How far each channel lies below the largest, as a share of the chroma; without any, 0.
  const float whole = static_cast<float>(larger(chroma, 1));
  const double red = static_cast<float>(value - pixel.red) / whole;
  const double green = static_cast<float>(value - pixel.green) / whole;
  const double blue = static_cast<float>(value - pixel.blue) / whole;
  const double others = pixel.green == value ? red + 2.0 - blue : green + 4.0 - red;
  const float sixths = static_cast<float>(pixel.red == value ? blue - green : others);
  // A whole turn is added to make negative hues positive.
  const double turns = static_cast<double>(sixths) / 6.0 + 1.0;
  const float rest = static_cast<float>(turns >= 1.0 ? turns - 1.0 : turns);
  return static_cast<int>(static_cast<double>(rest) * 255.0);
}

// 8-bit HSV and back, H moved by `steps` modulo 256. PIL rounds its floats of V, S and the way around the circle; these
// are ratios of whole numbers, which never lie half-way (2 V (65025 - S F) is even, 65025 odd) and far enough from it that
// a float gives the same for every H, S and V. The quotients of less than 2^24 are truncated as exactly.
inline Pixel turn(Pixel pixel, int steps) {
  const int value = larger(larger(pixel.red, pixel.green), pixel.blue);
  const int chroma = value - smaller(smaller(pixel.red, pixel.green), pixel.blue);
  const int saturation = static_cast<int>(static_cast<float>(255 * chroma) / static_cast<float>(larger(value, 1)));
  const int sixths = ((hue_of(pixel, value, chroma) + steps) & 255) * 6;
  const int sector = sixths / 255, fraction = sixths - 255 * sector;
  // From the largest channel down to the smallest: all of the way and then less in even sectors, none and then more in odd.
  const int way = sector & 1 ? fraction : 255 - fraction;
  const int smallest = static_cast<int>(static_cast<float>(value * (255 - saturation) + 127) * (1.0f / 255));
  const int middle = static_cast<int>(static_cast<float>(value * (65025 - saturation * way) + 32512) * (1.0f / 65025));
  // Each channel is the largest for two sectors, the middle one at either side of them, and else the smallest: adding at
  // least 256, 0, or at most -256 to the middle picks it. (H = 255 lies in sector 6, which is as sector 0.)
  const int twice = 2 * sector, red = twice - 5, green = twice - 3, blue = twice - 7;
  const auto channel = [&](int lift) { return between(smallest, middle + 128 * lift, value); };
  return {channel(larger(red, -red) - 3), channel(3 - larger(green, -green)), channel(3 - larger(blue, -blue))};
}

template <class T, class F>
inline void change(u8 *__restrict red, u8 *__restrict green, u8 *__restrict blue, int count, T thread, F body) {
  for (int i = thread.y * thread.columns + thread.x; i < count; i += thread.rows * thread.columns) {
    const Pixel pixel = body(Pixel{red[i], green[i], blue[i]});
    red[i] = static_cast<u8>(pixel.red);
    green[i] = static_cast<u8>(pixel.green);
    blue[i] = static_cast<u8>(pixel.blue);
  }
}

template <class T> inline void add_luma(const u8 *pixels, int count, unsigned long long *sum, T thread) {
  unsigned long long own = 0;
  for (int i = thread.y * thread.columns + thread.x; i < count; i += thread.rows * thread.columns)
    own += static_cast<unsigned>(luma({pixels[i], pixels[count + i], pixels[2 * count + i]}));
#ifdef __CUDA_ARCH__
  atomicAdd(sum, own);
#else
  *sum += own;
#endif
}

// The grey that contrast blends with: the mean, halves rounded up.
inline int mean(unsigned long long sum, int count) {
  return static_cast<int>((2 * sum + count) / (2ULL * count));
}

template <class T>
inline void adjust(u8 *pixels, int count, int operation, float factor, unsigned long long sum, T thread) {
  const auto all = [&](auto body) { change(pixels, pixels + count, pixels + 2 * count, count, thread, body); };
  switch (operation) {
  case BRIGHTNESS:
    return all([=](Pixel pixel) { return blend(pixel, 0, factor); });
  case CONTRAST: {
    const int grey = mean(sum, count);
    return all([=](Pixel pixel) { return blend(pixel, grey, factor); });
  }
  case SATURATION:
    return all([=](Pixel pixel) { return blend(pixel, luma(pixel), factor); });
  case HUE: {
    const int steps = static_cast<int>(factor);
    return all([=](Pixel pixel) { return turn(pixel, steps); });
  }
  }
}

// N neighbouring pixels of a box blur; at(o) is where the pixel o steps off the first lies. 16 bits hold the sum of the widest
// box (MAX_SIGMA of harness/augment/blur.rs).
template <int N, class W, class F> inline void box(const View &view, W whole, u8 *__restrict target, F at) {
  unsigned short sums[N] = {};
  for (int offset = -whole; offset <= whole; ++offset) {
    const u8 *pixels = at(offset);
    for (int i = 0; i < N; ++i)
      sums[i] += pixels[i];
  }
  const u8 *before = at(-whole - 1), *after = at(whole + 1);
  for (int i = 0; i < N; ++i) {
    const unsigned inside = sums[i], edges = static_cast<unsigned>(before[i] + after[i]);
    target[i] = static_cast<u8>((inside * view.inside + edges * view.edge + (1u << 23)) >> 24);
  }
}

// One box along the rows, edges replicated: on the CPU in `extended`, scratch memory for a row with them.
template <class T>
inline void blur_along(const Batch &batch, const View &view, const u8 *source, u8 *target, u8 *extended, T thread) {
  const int lines = 3 * batch.height, width = batch.width;
  known<0, 1>(view.blur, [&](auto whole) {
    const auto border = whole + 1;
    for (int y = thread.y; y < lines; y += thread.rows) {
      const u8 *line = source + y * width;
      u8 *to = target + y * width;
      if constexpr (T::STRIP == 1) {
        for (int x = thread.x; x < width; x += thread.columns)
          box<1>(view, whole, to + x, [&](int o) { return line + between(0, x + o, width - 1); });
      } else {
        __builtin_memset(extended, line[0], border);
        __builtin_memcpy(extended + border, line, width);
        __builtin_memset(extended + border + width, line[width - 1], border);
        strips(width, thread, [&]<int N>(int x, Strip<N>) {
          box<N>(view, whole, to + x, [&](int o) { return extended + border + x + o; });
        });
      }
    }
  });
}

// One box down the columns, edges replicated.
template <class T>
inline void blur_down(const Batch &batch, const View &view, const u8 *source, u8 *target, T thread) {
  const int height = batch.height, width = batch.width;
  known<0, 1>(view.blur, [&](auto whole) {
    for (int channel = 0; channel < 3; ++channel)
      for (int y = thread.y; y < height; y += thread.rows) {
        const u8 *plane = source + channel * height * width;
        u8 *to = target + (channel * height + y) * width;
        strips(width, thread, [&]<int N>(int x, Strip<N>) {
          box<N>(view, whole, to + x, [&](int o) { return plane + between(0, y + o, height - 1) * width + x; });
        });
      }
  });
}

// Narrow; shorten; of each operation of the jitter first the sum, then the change; grey; three boxes along, three down.
constexpr int PHASES = 2 + 2 * 4 + 1 + 6;

// A thread's share of one phase of a view. No thread reads or writes what another thread writes in the same phase.
template <class T>
inline void run(int phase, const Batch &batch, int index, u8 *scratch, unsigned long long *sum, T thread) {
  const View &view = reinterpret_cast<const View *>(batch.table)[index];
  const int count = batch.height * batch.width;
  u8 *pixels = batch.views + 3LL * index * count;
  if (phase == 0) {
    if (thread.x == 0 && thread.y == 0)
      *sum = 0;
    narrow(batch, view, scratch, thread);
  } else if (phase == 1) {
    shorten(batch, view, scratch, pixels, thread);
  } else if (phase < 10) {
    const int position = (phase - 2) / 2, operation = view.operations[position];
    if (phase % 2 == 1)
      adjust(pixels, count, operation, view.factors[position], *sum, thread);
    else if (operation == CONTRAST)
      add_luma(pixels, count, sum, thread);
  } else if (phase == 10) {
    if (view.grayscale)
      change(pixels, pixels + count, pixels + 2 * count, count, thread, [](Pixel pixel) {
        const int grey = luma(pixel);
        return Pixel{grey, grey, grey};
      });
  } else if (view.blur >= 0) {
    const int pass = phase - 11;
    const bool back = pass % 2 == 1;
    const u8 *source = back ? scratch : pixels;
    u8 *target = back ? pixels : scratch;
    if (pass < 3)
      blur_along(batch, view, source, target, scratch + 3LL * count, thread);
    else
      blur_down(batch, view, source, target, thread);
  }
}

} // namespace augment

#ifdef __CUDACC__
extern "C" __global__ void __launch_bounds__(256, 4) augment_views(augment::Batch batch) {
  __shared__ unsigned long long sum;
  const augment::Thread thread = {static_cast<int>(threadIdx.x), static_cast<int>(threadIdx.y),
                                  static_cast<int>(blockDim.x), static_cast<int>(blockDim.y)};
  const int index = static_cast<int>(blockIdx.x);
  augment::u8 *scratch = batch.scratch + reinterpret_cast<const augment::View *>(batch.table)[index].scratch;
  for (int phase = 0; phase < augment::PHASES; ++phase) {
    augment::run(phase, batch, index, scratch, &sum, thread);
    __syncthreads();
  }
}
#endif
