// Kernels of the backend `native`: a list of operations over one batch, carried out by a single call.
//
// Layout: every value is [position][channel][row of the batch]. The batch is innermost, so that an instruction works on
// as many rows as a register holds and no layer needs im2col. `rows` is a multiple of 16. A layer that is linear in its
// weights is a list of (output position, input position, tap of the kernel): an affine layer has one of them, a
// convolution one for each output pixel and each input pixel under the kernel there.
// build.py compiles this file on first use, for the machine at hand; program.py writes the lists of operations.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

extern "C" {

struct Operation {
  int32_t code;
  int32_t size[15];
  double scale[3];
  const int32_t* table;
  const void* in[6];
  void* out[4];
};

}  // extern "C"

namespace {

enum Code { kApply, kWeights, kBias, kProducts, kLeaky, kMaxPool, kSelect, kScatter, kMean,
            kSpread, kSoftmax, kSoftmaxJet, kSigmoid, kSquare };

#ifdef __AVX512F__
constexpr int kBytes = 64, kTileRows = 12, kTileVectors = 2, kOuterRows = 6, kOuterColumns = 4;  // 32 registers
#else
constexpr int kBytes = 32, kTileRows = 6, kTileVectors = 2, kOuterRows = 3, kOuterColumns = 4;  // 16 registers
#endif

template <class T, int bytes = kBytes>
struct Simd {
  typedef T Vec __attribute__((vector_size(bytes), aligned(sizeof(T)), may_alias));
};
template <class T>
using Vec = typename Simd<T>::Vec;
template <class T>
constexpr int kLanes = kBytes / sizeof(T);

template <class T>
Vec<T> load(const T* p) { return *reinterpret_cast<const Vec<T>*>(p); }
template <class T>
void store(T* p, Vec<T> v) { *reinterpret_cast<Vec<T>*>(p) = v; }

// Sum of a register's numbers, by halves.
template <class T, int bytes>
T sum_halves(typename Simd<T, bytes>::Vec v) {
  if constexpr (bytes == sizeof(T)) {
    return v[0];
  } else {
    typedef typename Simd<T, bytes / 2>::Vec Half;
    union { typename Simd<T, bytes>::Vec whole; Half half[2]; } parts = {v};
    return sum_halves<T, bytes / 2>(parts.half[0] + parts.half[1]);
  }
}
template <class T>
T sum(Vec<T> v) { return sum_halves<T, kBytes>(v); }

// Calls body(start, size) for pieces of 0 .. total - 1, as even as can be: 16 by at most 12 is 8 + 8, not 12 + 4.
// The size is a constant of its type, so that a tile of that size stays in registers.
template <int most, class Body>
void piece(int start, int size, Body body) {
  if constexpr (most > 0) {
    if (size == most) return body(start, std::integral_constant<int, most>{});
    piece<most - 1>(start, size, body);
  }
}
template <int most, class Body>
void split(int total, Body body) {
  int start = 0;
  for (int pieces = (total + most - 1) / most; pieces > 0; --pieces) {
    const int size = (total - start + pieces - 1) / pieces;
    piece<most>(start, size, body);
    start += size;
  }
}

template <class T>
struct Kernels {
  static constexpr int lanes = kLanes<T>;
  const Operation& op;

  const T* in(int i) const { return static_cast<const T*>(op.in[i]); }
  T* out(int i = 0) const { return static_cast<T*>(op.out[i]); }

  // out[p, m, :] = bias[m] + sum over terms, over (q, tap) listed for p, over k: scale w[m, k, tap] x[q, k, :].
  // (m, k) are (output, input channel), or the other way round with the strides exchanged for the transposed layer.
  // in: w and x of each term, bias.  table: positions + 1 starts, then pairs (q, tap).
  struct Apply {
    int rows, positions, M, K, step_m, step_k, terms, first_m, first_k, channels_out, channels_in;
    const Operation& op;
    const T* bias;
    T* y;

    template <int R, int C>
    void tile(int p, int m, int b) const {
      Vec<T> total[R][C] = {};
      const int32_t* pairs = op.table + positions + 1;
      for (int t = 0; t < terms; ++t) {
        const T* weights = static_cast<const T*>(op.in[2 * t]) + m * step_m;
        const T* data = static_cast<const T*>(op.in[2 * t + 1]) + int64_t(first_k) * rows + b;
        for (int e = op.table[p]; e < op.table[p + 1]; ++e) {
          const T* x = data + int64_t(pairs[2 * e]) * channels_in * rows;
          const T* w = weights + pairs[2 * e + 1];
          for (int k = 0; k < K; ++k, x += rows, w += step_k) {
            Vec<T> column[C];
#pragma GCC unroll 16
            for (int c = 0; c < C; ++c) column[c] = load(x + c * lanes);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
              for (int c = 0; c < C; ++c) total[r][c] += w[r * step_m] * column[c];
          }
        }
        if (op.scale[t] != 1.0) {  // such a term comes first and alone, so that scaling the total scales the term
#pragma GCC unroll 16
          for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
            for (int c = 0; c < C; ++c) total[r][c] *= T(op.scale[t]);
        }
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        T* to = y + (int64_t(p) * channels_out + first_m + m + r) * rows + b;
        const T shift = bias ? bias[m + r] : T(0);
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) store<T>(to + c * lanes, total[r][c] + shift);
      }
    }

    template <int C>
    void column(int p, int b) const {
      split<kTileRows>(M, [&](int m, auto size) { tile<size, C>(p, m, b); });
    }

    void run() const {
      for (int p = 0; p < positions; ++p) {
        int b = 0;
        for (; b + kTileVectors * lanes <= rows; b += kTileVectors * lanes) column<kTileVectors>(p, b);
        for (; b < rows; b += lanes) column<1>(p, b);
      }
    }
  };

  void apply() const {
    const int32_t* s = op.size;
    for (int g = 0; g < s[7]; ++g) {
      const Operation group = at_group(g, s[8]);
      Apply{s[0], s[1], s[2], s[3], s[4], s[5], s[6], g * s[2], g * s[3], s[2] * s[7], s[3] * s[7], group,
            in(4) ? in(4) + g * s[2] : nullptr, out()}.run();
    }
  }

  // The same operation with its weights moved on to group g.
  Operation at_group(int g, int step) const {
    Operation shifted = op;
    for (int t = 0; t < op.size[6]; ++t) shifted.in[2 * t] = in(2 * t) + int64_t(g) * step;
    return shifted;
  }

  // gradient[m, k, tap] (+)= sum over terms, over (p, q) listed for tap, over rows: scale g[p, m, :] . x[q, k, :].
  // in: g and x of each term.  table: blocks * taps + 1 starts, then pairs (p, q); a block is what stays in the cache.
  struct Weights {
    int rows, taps, blocks, M, K, step_m, step_k, terms, first_m, first_k, channels_out, channels_in, add;
    const Operation& op;
    T* y;

    template <int R, int C>
    void tile(int block, int tap, int m, int k) const {
      const int32_t* starts = op.table + block * taps + tap;
      const int32_t* pairs = op.table + blocks * taps + 1;
      Vec<T> total[R][C] = {};
      for (int t = 0; t < terms; ++t) {
        const T* gs = static_cast<const T*>(op.in[2 * t]) + int64_t(first_m + m) * rows;
        const T* xs = static_cast<const T*>(op.in[2 * t + 1]) + int64_t(first_k + k) * rows;
        for (int e = starts[0]; e < starts[1]; ++e) {
          const T* g = gs + int64_t(pairs[2 * e]) * channels_out * rows;
          const T* x = xs + int64_t(pairs[2 * e + 1]) * channels_in * rows;
          for (int b = 0; b < rows; b += lanes) {
            Vec<T> right[C];
#pragma GCC unroll 16
            for (int c = 0; c < C; ++c) right[c] = load(x + c * rows + b);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
              const Vec<T> left = load(g + r * rows + b);
#pragma GCC unroll 16
              for (int c = 0; c < C; ++c) total[r][c] += left * right[c];
            }
          }
        }
        if (op.scale[t] != 1.0) {  // first and alone, as above
#pragma GCC unroll 16
          for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
            for (int c = 0; c < C; ++c) total[r][c] *= T(op.scale[t]);
        }
      }
      const bool keep = add || block > 0;
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) {
          T& to = y[(m + r) * step_m + (k + c) * step_k + tap];
          to = (keep ? to : T(0)) + sum<T>(total[r][c]);
        }
    }

    void run() const {
      // A single column leaves registers free for more rows.
      for (int block = 0; block < blocks; ++block)
        if (K == 1) {
          for (int tap = 0; tap < taps; ++tap)
            split<2 * kOuterRows>(M, [&](int m, auto size) { tile<size, 1>(block, tap, m, 0); });
        } else {
          split<kOuterRows>(M, [&](int m, auto height) {
            split<kOuterColumns>(K, [&](int k, auto width) {
              for (int tap = 0; tap < taps; ++tap) tile<height, width>(block, tap, m, k);
            });
          });
        }
    }
  };

  void weights() const {
    const int32_t* s = op.size;
    for (int g = 0; g < s[8]; ++g)
      Weights{s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], g * s[3], g * s[4], s[3] * s[8], s[4] * s[8], s[9], op,
              out() + int64_t(g) * s[10]}.run();
  }

  // out[m] (+)= sum over positions and rows of g[p, m, :].
  void bias() const {
    const int rows = op.size[0], positions = op.size[1], M = op.size[2];
    for (int m = 0; m < M; ++m) {
      Vec<T> total = {};
      for (int p = 0; p < positions; ++p) {
        const T* g = in(0) + (int64_t(p) * M + m) * rows;
        for (int b = 0; b < rows; b += lanes) total += load(g + b);
      }
      out()[m] = (op.size[3] ? out()[m] : T(0)) + sum<T>(total);
    }
  }

  // out = scale0 a b + scale1 c d + scale2 e f; the second and third where they are given.
  void products() const {
    const int64_t count = int64_t(op.size[0]) * op.size[1];
    const T *a = in(0), *b = in(1), *c = in(2), *d = in(3), *e = in(4), *f = in(5);
    T* y = out();
    const T u = T(op.scale[0]), v = T(op.scale[1]), w = T(op.scale[2]);
    for (int64_t i = 0; i < count; i += lanes) {
      Vec<T> total = u * load(a + i) * load(b + i);
      if (c) total += v * load(c + i) * load(d + i);
      if (e) total += w * load(e + i) * load(f + i);
      store<T>(y + i, total);
    }
  }

  // Leaky ReLU of slope scale0: out: y, and its derivative at x = in[0].
  void leaky() const {
    const int64_t count = int64_t(op.size[0]) * op.size[1];
    const Vec<T> slope = Vec<T>{} + T(op.scale[0]), one = Vec<T>{} + 1;
    for (int64_t i = 0; i < count; i += lanes) {
      const Vec<T> x = load(in(0) + i), zero = {};
      const Vec<T> below = op.scale[0] == 0 ? (x == x ? zero : x) : slope * x;  // slope 0: also of minus infinity
      store<T>(out(0) + i, x > 0 ? x : below);
      store<T>(out(1) + i, x > 0 ? one : slope);
    }
  }

  // Largest of each window: value and the number, within the window, of the position it comes from.
  // table: positions + 1 starts, then input positions.  size: rows, positions, channels, input positions.
  void max_pool() const {
    each([&](int p, int64_t at, int64_t channel) {
      Vec<T> best = load(in(0) + source(op.table[p], channel)), which = {};
      for (int e = op.table[p] + 1; e < op.table[p + 1]; ++e) {
        const Vec<T> x = load(in(0) + source(e, channel));
        const auto greater = (x > best) | (x != x);  // NaN wins, as in torch
        best = greater ? x : best;
        which = greater ? which * 0 + T(e - op.table[p]) : which;
      }
      store<T>(out(0) + at, best);
      store<T>(out(1) + at, which);
    });
  }

  // out = the input that the window chose.
  void select() const {
    each([&](int p, int64_t at, int64_t channel) {
      const Vec<T> which = load(in(1) + at);
      Vec<T> y = {};
      for (int e = op.table[p]; e < op.table[p + 1]; ++e)
        y = which == T(e - op.table[p]) ? load(in(0) + source(e, channel)) : y;
      store<T>(out() + at, y);
    });
  }

  // The transpose of select.
  void scatter() const {
    const bool disjoint = op.size[4];  // every input is in exactly one window: nothing to add to
    if (!disjoint) clear();
    each([&](int p, int64_t at, int64_t channel) {
      const Vec<T> which = load(in(1) + at), g = load(in(0) + at), zero = {};
      for (int e = op.table[p]; e < op.table[p + 1]; ++e) {
        T* to = out() + source(e, channel);
        const Vec<T> share = which == T(e - op.table[p]) ? g : zero;
        store<T>(to, disjoint ? share : load(to) + share);
      }
    });
  }

  // Weighted sum of each window, weights in[1][position], and its transpose.
  void mean() const {
    each([&](int p, int64_t at, int64_t channel) {
      Vec<T> total = {};
      for (int e = op.table[p]; e < op.table[p + 1]; ++e) total += load(in(0) + source(e, channel));
      store<T>(out() + at, in(1)[p] * total);
    });
  }
  void spread() const {
    clear();
    each([&](int p, int64_t at, int64_t channel) {
      const Vec<T> share = in(1)[p] * load(in(0) + at);
      for (int e = op.table[p]; e < op.table[p + 1]; ++e) {
        T* to = out() + source(e, channel);
        store<T>(to, load(to) + share);
      }
    });
  }

  int64_t source(int e, int64_t channel) const {
    return int64_t(op.table[op.size[1] + 1 + e]) * op.size[2] * op.size[0] + channel;
  }
  void clear() const { std::fill_n(out(), int64_t(op.size[0]) * op.size[2] * op.size[3], T(0)); }
  template <class Body>
  void each(Body body) const {
    const int64_t panel = int64_t(op.size[2]) * op.size[0];
    for (int p = 0; p < op.size[1]; ++p)
      for (int64_t i = 0; i < panel; i += lanes) body(p, p * panel + i, i);
  }

  // Cross-entropy -sum q log p over classes, for targets q that carry the weight of their row. size: rows, classes.
  // in: logits, q.  out: p, gradient (sum q) p - q, sum q, loss (+)=.
  void softmax() const {
    const int rows = op.size[0], classes = op.size[1];
    double loss = 0;
    for (int b = 0; b < rows; ++b) {
      const T *z = in(0) + b, *q = in(1) + b;
      T top = z[0], total = 0, mass = 0, linear = 0;
      for (int c = 1; c < classes; ++c) top = z[c * rows] > top || z[c * rows] != z[c * rows] ? z[c * rows] : top;
      for (int c = 0; c < classes; ++c) {
        const T e = std::exp(z[c * rows] - top);
        out(0)[c * rows + b] = e;
        total += e, mass += q[c * rows];
        if (q[c * rows] != 0) linear += q[c * rows] * (z[c * rows] - top);
      }
      for (int c = 0; c < classes; ++c) {
        T& p = out(0)[c * rows + b];
        p /= total;
        out(1)[c * rows + b] = mass * p - q[c * rows];
      }
      out(2)[b] = mass;
      if (mass != 0) loss += mass * std::log(total) - linear;
    }
    *out(3) = (op.size[2] ? *out(3) : T(0)) + T(loss);
  }

  // Jets of that gradient. in: p, z1, sum q, and for the second order p1, z2.  out: gradient's jet, p1.
  // p1 = p (z1 - p.z1);  p2 = p1 (z1 - p.z1) + p (z2 - p.z2 - p1.z1), z2 = 0 where it is not given.
  void softmax_jet() const {
    const int rows = op.size[0], classes = op.size[1];
    const bool second = op.size[2];
    const T *p = in(0), *z1 = in(1), *p1 = in(3), *z2 = in(4);
    for (int b = 0; b < rows; b += lanes) {
      Vec<T> u = {}, u1 = {};
      for (int c = 0; c < classes; ++c) {
        const int at = c * rows + b;
        u += load(p + at) * load(z1 + at);
        if (second) u1 += load(p1 + at) * load(z1 + at);
        if (second && z2) u1 += load(p + at) * load(z2 + at);
      }
      const Vec<T> mass = load(in(2) + b);
      for (int c = 0; c < classes; ++c) {
        const int at = c * rows + b;
        Vec<T> jet;
        if (second) {
          const Vec<T> bend = z2 ? load(z2 + at) - u1 : -u1;
          jet = load(p1 + at) * (load(z1 + at) - u) + load(p + at) * bend;
        } else {
          jet = load(p + at) * (load(z1 + at) - u);
          store<T>(out(1) + at, jet);
        }
        store<T>(out(0) + at, mass * jet);
      }
    }
  }

  // sum A softplus(z) - B z.  in: z, A, B.  out: gradient A s - B, A s', A s'', loss (+)=.
  void sigmoid() const {
    const int64_t count = int64_t(op.size[0]) * op.size[1];
    double loss = 0;
    for (int64_t i = 0; i < count; ++i) {
      const T z = in(0)[i], a = in(1)[i], b = in(2)[i], s = T(1) / (T(1) + std::exp(-z)), s1 = s * (T(1) - s);
      out(0)[i] = a * s - b, out(1)[i] = a * s1, out(2)[i] = a * s1 * (T(1) - 2 * s);
      loss += a * (std::max(z, T(0)) + std::log1p(std::exp(-std::abs(z)))) - b * z;
    }
    *out(3) = (op.size[2] ? *out(3) : T(0)) + T(loss);
  }

  // sum A/2 (z - y)^2.  in: z, A, y.  out: gradient A (z - y), loss (+)=.
  void square() const {
    const int64_t count = int64_t(op.size[0]) * op.size[1];
    double loss = 0;
    for (int64_t i = 0; i < count; ++i) {
      const T off = in(0)[i] - in(2)[i];
      out(0)[i] = in(1)[i] * off;
      loss += in(1)[i] * off * off / 2;
    }
    *out(3) = (op.size[2] ? *out(3) : T(0)) + T(loss);
  }

  void run() const {
    switch (op.code) {
      case kApply: return apply();
      case kWeights: return weights();
      case kBias: return bias();
      case kProducts: return products();
      case kLeaky: return leaky();
      case kMaxPool: return max_pool();
      case kSelect: return select();
      case kScatter: return scatter();
      case kMean: return mean();
      case kSpread: return spread();
      case kSoftmax: return softmax();
      case kSoftmaxJet: return softmax_jet();
      case kSigmoid: return sigmoid();
      case kSquare: return square();
    }
  }
};

}  // namespace

extern "C" void run_float(const Operation* operations, int count) {
  for (int i = 0; i < count; ++i) Kernels<float>{operations[i]}.run();
}
extern "C" void run_double(const Operation* operations, int count) {
  for (int i = 0; i < count; ++i) Kernels<double>{operations[i]}.run();
}
