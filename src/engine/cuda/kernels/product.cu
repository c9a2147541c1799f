// The product behind every convolution and every linear layer, on maps with their channels last:
//
//   y[m, n] = (sum over k of x[m, k] weight[n, k] + bias[n] + shift[image of m, n] + residual[m, n]) scale
//
// m counts the pixels of the result in all images, n its channels, and k the places under the kernel and the channels, (ky, kx, c): the matrix x is
// never made, each block gathers its tile of it from the map (an implicit product; Chetlur et al. 2014, section 3.2). A linear layer is a
// convolution with a kernel of 1 over a map of one line.
//
// The weights of 16-bit numbers whose channels come by eights are laid out once, in the tiles that shared memory takes: (depths, outputs, 64), a
// depth being 64 channels of one place under the kernel, places first. Channels are filled up to 64 and outputs to 8 by zeros, and the
// eight chunks of a row lie as `chunk_at` has them. Other weights are (outputs, places, channels).
//
// Where y has too few tiles to fill the card, k is split: each split writes its sums in f32, and a second kernel adds them, always in the same
// order. No number of y depends on what else is in the batch but through that choice.
#include "gpu.cuh"

struct Product {
    const void *first, *rest; // (images, height, width, channels), in two parts
    const void *weight;
    const void *bias;         // (outputs) or null
    const void *shift;        // (images, outputs) with `shift_stride` numbers from one image to the next, or null
    const void *residual;     // as y, or null
    void *y;                  // (m, outputs)
    float *parts;             // (splits, m, outputs) where k is split
    int first_channels, rest_channels;
    int images, height, width;           // of the map in memory
    int enlarged_height, enlarged_width; // what the convolution sees: the map by nearest neighbours
    int out_height, out_width, outputs;
    int kernel, stride, padding; // zeros before the first row and column
    int shift_stride, splits;
    float scale;
    // y is (m, outputs / 2): an even column times GELU of the odd one beside it (GEGLU, Shazeer 2020).
    int geglu;
    int together; // eight columns of bias, shift, residual, y and parts may be read or written 16 bytes at once
    int tiled;    // the weights lie in tiles
    int unused;
};
static_assert(sizeof(Product) == 144, "as the host has it");

INLINE int product_rows(const Product &a) { return a.images * a.out_height * a.out_width; }

// The line of a map of `from` lines that line `i` of its enlargement to `to` repeats, rounded as torch's `interpolate` does.
INLINE int nearest(int i, int from, int to) {
    if (from == to) return i;
    if (to == 2 * from) return i / 2;
    return smaller((int)(i * ((float)from / (float)to)), from - 1);
}

// Where a row of the matrix x begins: a pixel of the result, as the place in the map under the kernel's first corner.
struct Corner {
    int image, y, x;

    Corner() = default;
    INLINE Corner(const Product &a, int row) {
        const int area = a.out_height * a.out_width, pixel = row % area;
        image = row / area;
        // A row beyond the last lies beside the map everywhere.
        y = row < product_rows(a) ? pixel / a.out_width * a.stride - a.padding : -(1 << 28);
        x = pixel % a.out_width * a.stride - a.padding;
    }
};

// A place in k, moving on.
struct Place {
    int ky, kx, c;

    INLINE Place(int ky, int kx, int c) : ky(ky), kx(kx), c(c) {}
    INLINE Place(const Product &a, int channels, int k) {
        const int tap = k / channels;
        c = k % channels;
        ky = tap / a.kernel;
        kx = tap % a.kernel;
    }
    INLINE void advance(const Product &a, int channels, int by) {
        for (c += by; c >= channels; c -= channels)
            if (++kx == a.kernel) {
                kx = 0;
                ky++;
            }
    }
};

// The numbers of matrix x from a place on, or null where zeros stand: beside the map and after the last place.
template <class T> INLINE const T *gathered(const Product &a, const Joined<T> &x, const Corner &corner, const Place &place) {
    const int row = corner.y + place.ky, column = corner.x + place.kx;
    if (place.ky >= a.kernel || place.c >= x.channels() || row < 0 || row >= a.enlarged_height || column < 0 || column >= a.enlarged_width) return nullptr;
    const int from_row = nearest(row, a.height, a.enlarged_height), from_column = nearest(column, a.width, a.enlarged_width);
    return x.at(((int64_t)corner.image * a.height + from_row) * a.width + from_column, place.c);
}

// What follows the sum, for W columns of one row from column n on; W is even.
template <class T, int W> INLINE void add(float (&sum)[W], const T *from, int columns, bool together) {
    if (together) {
        const Vector<T, W> v = *(const Vector<T, W> *)from;
#pragma unroll
        for (int i = 0; i < W; i++) sum[i] += wide(v.at[i]);
    } else {
#pragma unroll
        for (int i = 0; i < W; i++)
            if (i < columns) sum[i] += wide(from[i]);
    }
}

template <class T, int W> INLINE void put(T *to, const float (&sum)[W], int columns, bool together) {
    if (together) {
        Vector<T, W> v;
#pragma unroll
        for (int i = 0; i < W; i++) v.at[i] = narrow<T>(sum[i]);
        *(Vector<T, W> *)to = v;
    } else {
#pragma unroll
        for (int i = 0; i < W; i++)
            if (i < columns) to[i] = narrow<T>(sum[i]);
    }
}

// `beside` is the residual where it has been read already.
template <class T, int W> INLINE void finish(const Product &a, int row, int n, float (&sum)[W], const Vector<T, W> *beside = nullptr) {
    const int columns = a.outputs - n;
    const bool together = a.together;
    if (a.bias) add<T, W>(sum, (const T *)a.bias + n, columns, together);
    if (a.geglu) {
        float gated[W / 2];
#pragma unroll
        for (int i = 0; i < W / 2; i++) gated[i] = sum[2 * i] * gelu(sum[2 * i + 1]);
        put<T, W / 2>((T *)a.y + (int64_t)row * (a.outputs / 2) + n / 2, gated, columns / 2, together);
        return;
    }
    if (a.shift) add<T, W>(sum, (const T *)a.shift + (int64_t)(row / (a.out_height * a.out_width)) * a.shift_stride + n, columns, together);
    const int64_t at = (int64_t)row * a.outputs + n;
    if (beside) add<T, W>(sum, beside->at, columns, true);
    else if (a.residual) add<T, W>(sum, (const T *)a.residual + at, columns, together);
#pragma unroll
    for (int i = 0; i < W; i++) sum[i] *= a.scale;
    put<T, W>((T *)a.y + at, sum, columns, together);
}

// The end of a block: into the result or, where k is split, to the other parts.
template <class T, int W>
INLINE void finish_or_keep(const Product &a, int split, int row, int n, float (&sum)[W], const Vector<T, W> *beside = nullptr) {
    if (row >= product_rows(a) || n >= a.outputs) return;
    if (a.splits == 1) return finish<T, W>(a, row, n, sum, beside);
    const int AT_ONCE = W < 4 ? W : 4;
    float *part = a.parts + ((int64_t)split * product_rows(a) + row) * a.outputs + n;
#pragma unroll
    for (int i = 0; i < W; i += AT_ONCE) {
        float some[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) some[j] = sum[i + j];
        put<float, AT_ONCE>(part + i, some, a.outputs - n - i, a.together);
    }
}

const int SUM_THREADS = 256, SUM_COLUMNS = 4;

// Adds the parts: a thread for each four columns of a row.
template <class T> INLINE void product_sum(const Product &a) {
    const int W = SUM_COLUMNS, each = ceiling(a.outputs, W);
    const unsigned i = blockIdx.x * SUM_THREADS + threadIdx.x;
    const int row = i / each, n = i % each * W;
    if (row >= product_rows(a)) return;
    const int64_t size = (int64_t)product_rows(a) * a.outputs;
    const float *part = a.parts + (int64_t)row * a.outputs + n;
    float sum[W] = {};
#pragma unroll 4
    for (int split = 0; split < a.splits; split++) add<float, W>(sum, part + split * size, a.outputs - n, a.together);
    finish<T, W>(a, row, n, sum);
}

// The tiles of k that a split adds up, of `all`.
INLINE void share(const Product &a, int all, int split, int &begin, int &end) {
    const int each = ceiling(all, a.splits);
    begin = smaller(split * each, all);
    end = smaller(begin + each, all);
}

// ---- Tensor cores: 16-bit numbers, the channels of both parts multiples of 8, weights in tiles.

const int DEPTH = LINE; // of k at once

// Of a product whose weights lie in tiles.
INLINE int channel_blocks(const Product &a) { return ceiling(a.first_channels + a.rest_channels, DEPTH); }
INLINE int product_depths(const Product &a) { return channel_blocks(a) * a.kernel * a.kernel; }
INLINE int tiled_outputs(const Product &a) { return ceiling(a.outputs, 8) * 8; }

// Brings tiles of both matrices to shared memory, one depth after another, all the channels of a place before the next place. Each thread copies
// one chunk of every LINES-th row.
template <class T, int M, int N, int THREADS> struct Loader {
    static const int LINES = THREADS / 8, STAGE = (M + N) * DEPTH;
    const Joined<T> x;
    const int channels, blocks, chunk, line;
    Corner corners[M / LINES];
    int block, ky, kx, c;
    // Where the chunks of x lie at `c`; up to `until` they go on from there.
    const T *from[M / LINES];
    bool there[M / LINES];
    int until;
    const int first_column, outputs;

    INLINE Loader(const Product &a, int first_row, int first_column, int begin)
        : x{(const T *)a.first, (const T *)a.rest, a.first_channels, a.rest_channels}, channels(x.channels()), blocks(channel_blocks(a)),
          chunk(threadIdx.x % 8), line(threadIdx.x / 8), block(begin % blocks), ky(begin / blocks / a.kernel), kx(begin / blocks % a.kernel),
          c(block * DEPTH + chunk * 8), first_column(first_column), outputs(tiled_outputs(a)) {
#pragma unroll
        for (int i = 0; i < M / LINES; i++) corners[i] = Corner(a, first_row + line + i * LINES);
        locate(a);
    }

    INLINE void locate(const Product &a) {
        until = c < x.first_channels ? x.first_channels : channels;
#pragma unroll
        for (int i = 0; i < M / LINES; i++) {
            const T *chunk = gathered(a, x, corners[i], Place{ky, kx, c});
            there[i] = chunk != nullptr;
            from[i] = there[i] ? chunk - c : x.first;
        }
    }

    // The next depth, to a stage.
    INLINE void load(const Product &a, T *stage) {
#pragma unroll
        for (int i = 0; i < M / LINES; i++) copy_async(stage + chunk_at(line + i * LINES, chunk), from[i] + c, there[i]);
        const T *tile = (const T *)a.weight + ((int64_t)(block * a.kernel + ky) * a.kernel + kx) * outputs * DEPTH;
#pragma unroll
        for (int i = 0; i < N / LINES; i++) {
            const bool there = first_column + line + i * LINES < outputs;
            const int at = chunk_at(line + i * LINES, chunk);
            copy_async(stage + M * DEPTH + at, there ? tile + first_column * DEPTH + at : (const T *)a.weight, there);
        }
        c += DEPTH;
        if (++block == blocks) {
            block = 0;
            c = chunk * 8;
            if (++kx == a.kernel) {
                kx = 0;
                ky++;
            }
            locate(a);
        } else if (c >= until) {
            locate(a);
        }
    }
};

// A weight as checkpoints have it, (outputs, channels, places), to tiles.
struct Tiling {
    const void *weight;
    void *tiles;
    int outputs, channels, places;
    int pairs; // row 2i of the tiles is row i, and row 2i + 1 is row i + outputs / 2
};
static_assert(sizeof(Tiling) == 32, "as the host has it");

const int TILING_THREADS = 256;

// A thread for each chunk.
template <class T> INLINE void tile_weight(const Tiling &a) {
    const int high = ceiling(a.outputs, 8) * 8, blocks = ceiling(a.channels, DEPTH);
    const unsigned i = blockIdx.x * TILING_THREADS + threadIdx.x, row = i / 8;
    if (row >= (unsigned)(blocks * a.places * high)) return;
    const int n = row % high, place = row / high % a.places, first = row / high / a.places * DEPTH + (i % 8 ^ n % 8) * 8;
    const int from = a.pairs ? n % 2 * (a.outputs / 2) + n / 2 : n;
    Vector<T, 8> chunk;
#pragma unroll
    for (int j = 0; j < 8; j++)
        chunk.at[j] = n < a.outputs && first + j < a.channels ? ((const T *)a.weight)[((int64_t)from * a.channels + first + j) * a.places + place] : narrow<T>(0);
    ((Vector<T, 8> *)a.tiles)[i] = chunk;
}

// Finishes 16 x N numbers of a warp, held as the tensor cores leave them, by way of 16 (N + 8) numbers of shared memory of its own: what is
// read and written is then 16 bytes at once.
template <class T, int N> INLINE void finish_strip(const Product &a, int split, float *own, int row, int column, const float (&sums)[N / 8][4]) {
    // A lane finishes EACH times eight numbers, AHEAD of which it waits for at once.
    const int STRIDE = N + 8, CHUNKS = N / 8, EACH = CHUNKS / 2, AHEAD = EACH % 5 == 0 ? 5 : EACH % 4 == 0 ? 4 : EACH, lane = threadIdx.x % 32;
    const bool ahead = a.residual && a.together && a.splits == 1;
    Vector<T, 8> beside[AHEAD];
    auto read_ahead = [&](int first) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int place = lane + (first + i) * 32, r = row + place / CHUNKS, n = column + place % CHUNKS * 8;
            if (r < product_rows(a) && n < a.outputs) beside[i] = *(const Vector<T, 8> *)((const T *)a.residual + (int64_t)r * a.outputs + n);
        }
    };
    if (ahead) read_ahead(0);
    sync_warp();
#pragma unroll
    for (int j = 0; j < N / 8; j++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            *(Vector<float, 2> *)(own + (lane / 4 + half * 8) * STRIDE + j * 8 + lane % 4 * 2) = Vector<float, 2>{{sums[j][2 * half], sums[j][2 * half + 1]}};
    sync_warp();
    for (int first = 0; first < EACH; first += AHEAD) {
        if (ahead && first > 0) read_ahead(first);
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int place = lane + (first + i) * 32, r = place / CHUNKS, c = place % CHUNKS * 8;
            float sum[8];
#pragma unroll
            for (int j = 0; j < 8; j++) sum[j] = own[r * STRIDE + c + j];
            finish_or_keep<T, 8>(a, split, row + r, column + c, sum, ahead ? &beside[i] : nullptr);
        }
    }
}

// By single warps, each WM x WN numbers.
template <class T, int M, int N, int WM, int WN> INLINE void product_tensor(const Product &a) {
    SHARED_BYTES(memory);
    const int THREADS = M / WM * (N / WN) * 32, STAGES = 3;
    using Load = Loader<T, M, N, THREADS>;
    T *stages = (T *)memory;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int first_row = blockIdx.x * M, first_column = blockIdx.y * N;
    const int warp_row = warp % (M / WM) * WM, warp_column = warp / (M / WM) * WN;
    int begin, end;
    share(a, product_depths(a), blockIdx.z, begin, end);
    Load loader(a, first_row, first_column, begin);
    int loading = begin;
    auto load = [&]() {
        if (loading < end) loader.load(a, stages + (loading - begin) % STAGES * Load::STAGE);
        loading++;
        copy_commit();
    };

    float sums[WM / 16][WN / 8][4] = {};
    for (int i = 0; i < STAGES - 1; i++) load();
    for (int tile = begin; tile < end; tile++) {
        copy_wait<STAGES - 2>();
        // Now the tile is there for all, and the one before has been read by all: its place takes the next.
        sync_block();
        load();
        const T *rows = stages + (tile - begin) % STAGES * Load::STAGE, *columns = rows + M * DEPTH;
#pragma unroll
        for (int step = 0; step < DEPTH / 16; step++) {
            uint32_t left[WM / 16][4], right[WN / 16][4];
#pragma unroll
            for (int i = 0; i < WM / 16; i++)
                load_matrices(left[i], rows + chunk_at(warp_row + i * 16 + lane % 16, step * 2 + lane / 16));
#pragma unroll
            for (int j = 0; j < WN / 16; j++)
                load_matrices(right[j], columns + chunk_at(warp_column + j * 16 + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
#pragma unroll
            for (int i = 0; i < WM / 16; i++)
#pragma unroll
                for (int j = 0; j < WN / 16; j++) {
                    multiply_add<T>(sums[i][2 * j], left[i], right[j][0], right[j][1]);
                    multiply_add<T>(sums[i][2 * j + 1], left[i], right[j][2], right[j][3]);
                }
        }
    }
    copy_wait<0>();
    sync_block();
    float *own = (float *)memory + warp * 16 * (WN + 8);
#pragma unroll
    for (int i = 0; i < WM / 16; i++) finish_strip<T, WN>(a, blockIdx.z, own, first_row + warp_row + i * 16, first_column + warp_column, sums[i]);
}

#ifdef GROUPS
// The same by way of 16 (N / 2 + 4) numbers, half of the columns after the other.
template <class T, int N> INLINE void finish_halves(const Product &a, int split, float *own, int row, int column, const float (&sums)[N / 8][4]) {
    const int STRIDE = N / 2 + 4, CHUNKS = N / 16, lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        sync_warp();
#pragma unroll
        for (int j = 0; j < CHUNKS; j++)
#pragma unroll
            for (int lower = 0; lower < 2; lower++) {
                const float *two = sums[half * CHUNKS + j] + 2 * lower;
                *(Vector<float, 2> *)(own + (lane / 4 + lower * 8) * STRIDE + j * 8 + lane % 4 * 2) = Vector<float, 2>{{two[0], two[1]}};
            }
        sync_warp();
        for (int i = lane; i < 16 * CHUNKS; i += 32) {
            const int r = i / CHUNKS, c = i % CHUNKS * 8;
            float sum[8];
#pragma unroll
            for (int j = 0; j < 8; j++) sum[j] = own[r * STRIDE + c + j];
            finish_or_keep<T, 8>(a, split, row + r, column + half * (N / 2) + c, sum);
        }
    }
}

// By groups of four warps (Hopper), a block for each multiprocessor, which makes one tile after another. One group or two bring both matrices to a
// ring of stages, depth by depth: they gather rows of x, and a tile of the weights is one copy. Two more multiply, 64 rows of all N columns
// each, by tensor cores that read shared memory themselves. Behind a tile's depths each of the two has a stage of its own, which comes with what is
// added to its rows; there it writes what becomes of them, and goes on while they are copied out.
const int PIPE_ROWS = 128;

// A block's piece of work: a tile of y, and the depths of a split.
struct Piece {
    int row, column, split, begin, end;

    INLINE Piece(const Product &a, int number, int n) {
        const int rows = ceiling(product_rows(a), PIPE_ROWS), columns = ceiling(a.outputs, n);
        split = number / (rows * columns);
        number %= rows * columns;
        // Of the map and the weights the larger is read by blocks that run at the same time.
        const bool across = a.images * a.height * a.width > a.outputs * a.kernel * a.kernel;
        row = (across ? number / columns : number % rows) * PIPE_ROWS;
        column = (across ? number % columns : number / rows) * n;
        share(a, product_depths(a), split, begin, end);
    }
};

// Where a thread's rows of x lie, every STEP-th of EACH: the place under the kernel's first corner, and a bit for each place under the kernel that
// lies in the map. For kernels of at most 30 places over a map as it is or twice as large.
template <int EACH, int STEP> struct Rows {
    int pixel;            // of the first,
    uint32_t after[EACH]; // and how many after it each lies
    // Above them, where the map is twice as large, whether the corner's row and column are odd.
    uint32_t inside[EACH];
    static const int ODD_ROW = 30, ODD_COLUMN = 31;

    INLINE static bool as_it_is(const Product &a) {
        return a.kernel * a.kernel <= ODD_ROW && a.enlarged_height == a.height && a.enlarged_width == a.width;
    }
    INLINE static bool twice(const Product &a) {
        return a.kernel * a.kernel <= ODD_ROW && a.enlarged_height == 2 * a.height && a.enlarged_width == 2 * a.width;
    }

    // Of a map that is twice as large: from the corner to a place, in pixels.
    INLINE uint32_t step(const Product &a, int i, int ky, int kx) const {
        return ((inside[i] >> ODD_ROW & 1) + ky >> 1) * a.width + ((inside[i] >> ODD_COLUMN) + kx >> 1);
    }

    INLINE void locate(const Product &a, int row) {
        if (a.kernel == 1 && a.stride == 1 && a.padding == 0 && as_it_is(a)) {
            pixel = row;
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                after[i] = i * STEP;
                inside[i] = row + i * STEP < product_rows(a);
            }
            return;
        }
        const int area = a.out_height * a.out_width, halves = twice(a) ? 1 : 0;
        int image = row / area, y = row % area / a.out_width, x = row % area % a.out_width;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int first_y = y * a.stride - a.padding, first_x = x * a.stride - a.padding;
            const int here = (image * a.height + (first_y >> halves)) * a.width + (first_x >> halves);
            if (i == 0) pixel = here;
            after[i] = here - pixel;
            uint32_t columns = 0;
            for (int k = 0; k < a.kernel; k++) columns |= (uint32_t)((unsigned)(first_x + k) < (unsigned)a.enlarged_width) << k;
            inside[i] = halves ? (uint32_t)(first_y & 1) << ODD_ROW | (uint32_t)(first_x & 1) << ODD_COLUMN : 0;
            if (image < a.images)
                for (int k = 0; k < a.kernel; k++)
                    if ((unsigned)(first_y + k) < (unsigned)a.enlarged_height) inside[i] |= columns << k * a.kernel;
            for (x += STEP; x >= a.out_width; x -= a.out_width)
                if (++y == a.out_height) {
                    y = 0;
                    image++;
                }
        }
    }
};

// A thread's way through k: the place under the kernel, and where the numbers of its first row lie there.
template <class T> struct Way {
    const Joined<T> x;
    int ky, kx, c;
    uint32_t bit;    // of the place, 0 behind the last channel
    uint32_t stride; // bytes from a pixel to the next
    const char *at;

    INLINE Way(const Product &a, int depth, int chunk, int pixel) : x{(const T *)a.first, (const T *)a.rest, a.first_channels, a.rest_channels} {
        const int taps = a.kernel * a.kernel, tap = depth % taps;
        ky = tap / a.kernel, kx = tap % a.kernel, c = depth / taps * DEPTH + chunk * 8;
        begin(a, pixel);
    }
    INLINE void begin(const Product &a, int pixel) {
        stride = (c < x.first_channels ? x.first_channels : x.rest_channels) * sizeof(T);
        at = (const char *)x.at(0, c) + (int64_t)(pixel + ky * a.width + kx) * stride;
        bit = c < x.channels() ? 1u << (ky * a.kernel + kx) : 0;
    }
    INLINE void advance(const Product &a, int pixel) {
        at += stride;
        bit <<= 1;
        if (++kx < a.kernel) return;
        kx = 0;
        at += (int64_t)(a.width - a.kernel) * stride;
        if (++ky < a.kernel) return;
        ky = 0;
        c += DEPTH;
        if (c >= x.first_channels && c - DEPTH < x.first_channels) {
            begin(a, pixel);
        } else {
            at += DEPTH * (int)sizeof(T) - (int64_t)a.kernel * a.width * stride;
            bit = c < x.channels() ? 1 : 0;
        }
    }
};

// The ring of stages in shared memory: a stage has rows of x and below them rows of weights, and two barriers, passed when it is full and when it
// is empty.
template <class T, int N, int STAGES> struct Ring {
    static const int ROWS = PIPE_ROWS, STAGE = (ROWS + N) * DEPTH * sizeof(T), WEIGHTS = ROWS * DEPTH * sizeof(T);
    const uint32_t memory;
    int stage = 0;
    uint32_t parity = 0; // of how often it went round

    INLINE uint32_t here() const { return memory + stage * STAGE; }
    INLINE uint32_t full(int stage) const { return memory + STAGES * STAGE + stage * 8; }
    INLINE uint32_t empty(int stage) const { return full(stage + STAGES); }
    INLINE void next() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
    INLINE void wait_full() const { barrier_wait(full(stage), parity); }
    INLINE void wait_empty() const { barrier_wait(empty(stage), parity ^ 1); }
};

// The stage where a group of warps finishes its rows.
template <class T, int N> struct Finish {
    static const int ROWS = 64, PITCH = N + 8; // an odd number of 16 bytes, so that eight rows lie in eight places
    T *rows, *bias, *shift;
    int first, last;            // of y
    bool one_image;             // whether one shift serves them all
    int columns;

    INLINE Finish(const Product &a, const Piece &piece, int group, T *stage)
        : rows(stage), bias(stage + ROWS * PITCH), shift(bias + N), first(piece.row + group * ROWS), last(smaller(first + ROWS, product_rows(a)) - 1),
          columns(smaller(a.outputs - piece.column, N)) {
        const int area = a.out_height * a.out_width;
        one_image = first <= last && first / area == last / area;
    }
    // Whether rows pass through the stage in the result's dtype, by copies of 16 bytes.
    INLINE static bool whole(const Product &a) { return a.splits == 1 && a.together && (!a.geglu || a.outputs % 16 == 0); }

    // Brings what is added, by 128 threads.
    INLINE void bring(const Product &a, const Piece &piece, int t, uint32_t full) {
        const bool any = whole(a);
        const bool residual = any && a.residual, biased = any && a.bias, shifted = any && a.shift && one_image;
        const int bytes = columns * sizeof(T), count = last - first + 1;
        if (t == 0) barrier_expect(full, bytes * ((residual && count > 0 ? count : 0) + biased + shifted));
        if (residual && t < count) copy_bulk(shared_address(rows + t * PITCH), (const T *)a.residual + (int64_t)(first + t) * a.outputs + piece.column, bytes, full);
        if (biased && t == ROWS) copy_bulk(shared_address(bias), (const T *)a.bias + piece.column, bytes, full);
        if (shifted && t == ROWS + 32) {
            const int image = first / (a.out_height * a.out_width);
            copy_bulk(shared_address(shift), (const T *)a.shift + (int64_t)image * a.shift_stride + piece.column, bytes, full);
        }
    }
};

// Brings all that a block's pieces take, as the ring has room; where two groups of warps do, every other stage each. A thread copies one chunk of every
// 16th row of x. An instruction here costs as much as six elsewhere: a lone warp waits for each.
template <class T, int N, int STAGES, int BRING> INLINE void bring_stages(const Product &a, unsigned char *memory, int pieces, int group) {
    const int t = threadIdx.x % 128, chunk = t % 8, line = t / 8, LINES = 16, EACH = PIPE_ROWS / LINES;
    const int outputs = tiled_outputs(a);
    using Mine = Rows<EACH, LINES>;
    const bool as_it_is = Mine::as_it_is(a), twice = Mine::twice(a);
    const uint32_t place = chunk_at(line, chunk) * sizeof(T);
    Ring<T, N, STAGES> ring{shared_address(memory)};
    int ahead = group; // how many stages come before this group's next
    for (int i = 0; i < group; i++) ring.next();
    for (int number = blockIdx.x; number < pieces; number += gridDim.x) {
        const Piece piece(a, number, N);
        Mine rows;
        if (as_it_is || twice) rows.locate(a, piece.row + line);
        Way<T> way(a, piece.begin, chunk, rows.pixel);
        for (int i = 0; i < ahead; i++) way.advance(a, rows.pixel);
        const int bytes = smaller(N, outputs - piece.column) * DEPTH * sizeof(T);
        const T *weight = (const T *)a.weight + ((int64_t)(piece.begin + ahead) * outputs + piece.column) * DEPTH;
        int depth = piece.begin + ahead;
        for (; depth < piece.end; depth += BRING) {
            ring.wait_empty();
            if (t == 0) {
                barrier_expect(ring.full(ring.stage), bytes);
                copy_bulk(ring.here() + ring.WEIGHTS, weight, bytes, ring.full(ring.stage));
            }
            const uint32_t to = ring.here() + place;
            if (as_it_is) {
#pragma unroll
                for (int i = 0; i < EACH; i++) copy_async(to + i * LINES * DEPTH * sizeof(T), way.at + (uint64_t)rows.after[i] * way.stride, rows.inside[i] & way.bit);
            } else if (twice) {
                const char *corner = (const char *)way.x.at(0, way.c) + (int64_t)rows.pixel * way.stride;
#pragma unroll
                for (int i = 0; i < EACH; i++) {
                    const uint32_t pixels = rows.after[i] + rows.step(a, i, way.ky, way.kx);
                    copy_async(to + i * LINES * DEPTH * sizeof(T), corner + (uint64_t)pixels * way.stride, rows.inside[i] & way.bit);
                }
            } else {
#pragma unroll 1
                for (int i = 0; i < EACH; i++) {
                    const T *from = gathered(a, way.x, Corner(a, piece.row + line + i * LINES), Place(way.ky, way.kx, way.c));
                    copy_async(to + i * LINES * DEPTH * sizeof(T), from ? from : way.x.first, from != nullptr);
                }
            }
            copy_arrives(ring.full(ring.stage));
            weight += (int64_t)BRING * outputs * DEPTH;
#pragma unroll
            for (int i = 0; i < BRING; i++) {
                way.advance(a, rows.pixel);
                ring.next();
            }
        }
        for (; depth < piece.end + 2; depth += BRING) {
            ring.wait_empty();
            Finish<T, N>(a, piece, depth - piece.end, (T *)(memory + ring.stage * ring.STAGE)).bring(a, piece, t, ring.full(ring.stage));
            copy_arrives(ring.full(ring.stage));
            for (int i = 0; i < BRING; i++) ring.next();
        }
        ahead = depth - (piece.end + 2);
    }
    copy_wait<0>();
}

template <class T, int N, int STAGES, int BRING> INLINE void product_pipe(const Product &a) {
    SHARED_BYTES(memory);
    const int t = threadIdx.x, number_of_warp = warp_of_block(), WARPS = 8;
    const int pieces = ceiling(product_rows(a), PIPE_ROWS) * ceiling(a.outputs, N) * a.splits;
    Ring<T, N, STAGES> ring{shared_address(memory)};
    if (t == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(ring.full(i), 128 + 1); // who bring, and the one of them who says what more comes
            barrier_init(ring.empty(i), WARPS);
        }
        barriers_ready();
    }
    sync_block();

    if (number_of_warp < 4 * BRING) {
        keep_registers<BRING == 1 ? 120 : 80>();
        bring_stages<T, N, STAGES, BRING>(a, memory, pieces, number_of_warp / 4);
        return;
    }

    take_registers<BRING == 1 ? 192 : 176>();
    const int PITCH = Finish<T, N>::PITCH, warp = number_of_warp - 4 * BRING, group = warp / 4, lane = t % 32;
    const bool whole = Finish<T, N>::whole(a);
    int held = -1; // the stage from which rows are copied out
    for (int number = blockIdx.x; number < pieces; number += gridDim.x) {
        const Piece piece(a, number, N);
        float sums[N / 8][4];
        if (piece.begin == piece.end)
#pragma unroll
            for (int j = 0; j < N / 8; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) sums[j][e] = 0;
        int last = -1;
        for (int depth = piece.begin; depth < piece.end; depth++, ring.next()) {
            ring.wait_full();
            const uint64_t left = group_matrix_at(ring.here() + group * 64 * DEPTH * sizeof(T)), right = group_matrix_at(ring.here() + ring.WEIGHTS);
            group_begin();
#pragma unroll
            for (int step = 0; step < DEPTH / 16; step++) group_multiply_add<T, N>(sums, left + 2 * step, right + 2 * step, depth > piece.begin || step > 0);
            group_commit();
            if (held >= 0) {
                if (lane < 16) bulk_wait_read();
                sync_warp();
                if (lane == 0) barrier_arrive(ring.empty(held));
                held = -1;
            }
            group_wait<1>();
            if (lane == 0 && last >= 0) barrier_arrive(ring.empty(last));
            last = ring.stage;
        }
        group_wait<0>();
        if (lane == 0 && last >= 0) barrier_arrive(ring.empty(last));

        // The other group's stage is nothing to this one.
        auto pass = [&]() {
            ring.wait_full();
            if (lane == 0) barrier_arrive(ring.empty(ring.stage));
            ring.next();
        };
        if (group == 1) pass();
        ring.wait_full();
        const Finish<T, N> finish(a, piece, group, (T *)(memory + ring.stage * ring.STAGE));
        T *own = finish.rows + warp % 4 * 16 * PITCH;
        const int first = finish.first + warp % 4 * 16;
        if (!whole) {
            finish_halves<T, N>(a, piece.split, (float *)own, first, piece.column, sums);
            sync_warp();
            if (lane == 0) barrier_arrive(ring.empty(ring.stage));
        } else {
            const int mine = lane / 4, pair = lane % 4 * 2; // its rows, this and the eighth after it, and columns of each eight
            if (a.shift && !finish.one_image) {
#pragma unroll
                for (int j = 0; j < N / 8; j++)
#pragma unroll
                    for (int half = 0; half < 2; half++)
                        if (first + mine + half * 8 <= finish.last && j * 8 < finish.columns) {
                            const int image = (first + mine + half * 8) / (a.out_height * a.out_width);
                            float two[2] = {sums[j][2 * half], sums[j][2 * half + 1]};
                            add<T, 2>(two, (const T *)a.shift + (int64_t)image * a.shift_stride + piece.column + j * 8 + pair, 2, true);
                            sums[j][2 * half] = two[0], sums[j][2 * half + 1] = two[1];
                        }
            }
            const bool shifted = a.shift && finish.one_image;
#pragma unroll
            for (int j = 0; j < N / 8; j++) {
                float added[2] = {};
                if (a.bias) add<T, 2>(added, finish.bias + j * 8 + pair, 2, true);
                if (shifted) add<T, 2>(added, finish.shift + j * 8 + pair, 2, true);
#pragma unroll
                for (int e = 0; e < 4; e++) sums[j][e] += added[e % 2];
            }
            if (a.geglu) {
#pragma unroll
                for (int j = 0; j < N / 8; j++) {
                    // Neighbours change rows, so that each has two numbers of one.
                    const bool odd = lane % 2;
                    const float upper = sums[j][0] * gelu_16(sums[j][1]), lower = sums[j][2] * gelu_16(sums[j][3]), other = shuffle_xor(odd ? upper : lower, 1);
                    *(uint32_t *)(own + (mine + (odd ? 8 : 0)) * PITCH + j * 4 + lane % 4 / 2 * 2) = odd ? pack<T>(other, lower) : pack<T>(upper, other);
                }
            } else {
#pragma unroll
                for (int j = 0; j < N / 8; j++)
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        Vector<T, 2> *to = (Vector<T, 2> *)(own + (mine + half * 8) * PITCH + j * 8 + pair);
                        float x = sums[j][2 * half], y = sums[j][2 * half + 1];
                        if (a.residual) x += wide(to->at[0]), y += wide(to->at[1]);
                        *(uint32_t *)to = pack<T>(x * a.scale, y * a.scale);
                    }
            }
            group_sees_copies();
            sync_warp();
            const int halves = a.geglu ? 2 : 1;
            if (lane < 16) {
                T *to = (T *)a.y + (int64_t)(first + lane) * (a.outputs / halves) + piece.column / halves;
                if (first + lane <= finish.last) copy_bulk_out(to, own + lane * PITCH, finish.columns / halves * sizeof(T));
                bulk_commit();
            }
            held = ring.stage;
        }
        ring.next();
        if (group == 0) pass();
    }
    if (lane < 16) bulk_wait_read();
}
#endif

// ---- Plain arithmetic in f32: any dtype, any number of channels. A block makes 64 x 64 numbers, a thread 4 x 4 of them.

const int PLAIN_THREADS = 256, PLAIN_TILE = 64, PLAIN_DEPTH = 16;

// Where a weight lies in tiles.
INLINE int64_t tiled(const Product &a, int n, const Place &place) {
    const int64_t depth = (place.c / DEPTH * a.kernel + place.ky) * a.kernel + place.kx;
    return (depth * tiled_outputs(a) + n / 8 * 8) * DEPTH + chunk_at(n % 8, place.c % DEPTH / 8) + place.c % 8;
}

template <class T> INLINE void product_plain(const Product &a) {
    SHARED_BYTES(memory);
    const int STRIDE = PLAIN_TILE + 4, LINES = PLAIN_THREADS / PLAIN_DEPTH, EACH = PLAIN_TILE / LINES;
    float *rows = (float *)memory, *columns = rows + PLAIN_DEPTH * STRIDE; // (depth, 64) both
    const Joined<T> x = {(const T *)a.first, (const T *)a.rest, a.first_channels, a.rest_channels};
    const int channels = x.channels(), k = a.kernel * a.kernel * channels;
    const int t = threadIdx.x, depth = t % PLAIN_DEPTH, line = t / PLAIN_DEPTH;
    const int first_row = blockIdx.x * PLAIN_TILE;
    const int first_column = blockIdx.y * PLAIN_TILE;
    const int my_row = t / 16 * 4, my_column = t % 16 * 4;

    int begin, end;
    share(a, ceiling(k, PLAIN_DEPTH), blockIdx.z, begin, end);
    Corner corners[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) corners[i] = Corner(a, first_row + line + i * LINES);
    Place place(a, channels, begin * PLAIN_DEPTH + depth);
    float next_row[EACH], next_column[EACH];
    auto load = [&](int tile) {
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const T *from = gathered(a, x, corners[i], place);
            next_row[i] = from ? wide(*from) : 0.0f;
            const int n = first_column + line + i * LINES, at = tile * PLAIN_DEPTH + depth;
            next_column[i] = n < a.outputs && at < k ? wide(((const T *)a.weight)[a.tiled ? tiled(a, n, place) : (int64_t)n * k + at]) : 0.0f;
        }
        place.advance(a, channels, PLAIN_DEPTH);
    };

    float sums[4][4] = {};
    if (begin < end) load(begin);
    for (int tile = begin; tile < end; tile++) {
        sync_block();
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            rows[depth * STRIDE + line + i * LINES] = next_row[i];
            columns[depth * STRIDE + line + i * LINES] = next_column[i];
        }
        sync_block();
        if (tile + 1 < end) load(tile + 1);
#pragma unroll
        for (int d = 0; d < PLAIN_DEPTH; d++) {
            const Vector<float, 4> left = *(const Vector<float, 4> *)(rows + d * STRIDE + my_row);
            const Vector<float, 4> right = *(const Vector<float, 4> *)(columns + d * STRIDE + my_column);
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) sums[i][j] += left.at[i] * right.at[j];
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) finish_or_keep<T, 4>(a, blockIdx.z, first_row + my_row + i, first_column + my_column, sums[i]);
}

#define TILES(T)                                                                                    \
    KERNEL(product_##T##_128x128, Product, 256) { product_tensor<T, 128, 128, 64, 32>(args); }      \
    KERNEL(product_##T##_128x64, Product, 128) { product_tensor<T, 128, 64, 64, 32>(args); }        \
    KERNEL(product_##T##_64x64, Product, 128) { product_tensor<T, 64, 64, 32, 32>(args); }         \
    KERNEL(tile_weight_##T, Tiling, TILING_THREADS) { tile_weight<T>(args); }
// A second group that brings is worth its registers; 256 columns leave none.
#define PIPES(T)                                                                \
    KERNEL(product_##T##_pipe_128, Product, 512) { product_pipe<T, 128, 7, 2>(args); } \
    KERNEL(product_##T##_pipe_160, Product, 512) { product_pipe<T, 160, 6, 2>(args); } \
    KERNEL(product_##T##_pipe_256, Product, 384) { product_pipe<T, 256, 4, 1>(args); }
#define ANY_CHANNELS(T)                                                                             \
    KERNEL(product_##T##_plain, Product, PLAIN_THREADS) { product_plain<T>(args); }                 \
    KERNEL(product_##T##_sum, Product, SUM_THREADS) { product_sum<T>(args); }
TILES(f16)
TILES(bf16)
#ifdef GROUPS
PIPES(f16)
PIPES(bf16)
#endif
ANY_CHANNELS(f32)
ANY_CHANNELS(f16)
ANY_CHANNELS(bf16)
