// The product behind every convolution and every linear layer, on maps with their channels last:
//
//   y[m, n] = (sum over k of x[m, k] weight[n, k] + bias[n] + shift[image of m, n] + residual[m, n]) scale
//
// m counts the pixels of the result in all images, n its channels, and k the places under the kernel and the channels, (ky, kx, c): the matrix x is
// never made, each block gathers its tile of it from the map (an implicit product; Chetlur et al. 2014, section 3.2). A linear layer is a
// convolution with a kernel of 1 over a map of one line.
//
// Where y has too few tiles to fill the card, k is split: grid (tiles of m, tiles of n, splits), each split writes its sums in f32, and a
// second kernel adds them, always in the same order. No number of y depends on what else is in the batch but through that choice.
#include "gpu.cuh"

struct Product {
    const void *first, *rest; // (images, height, width, channels), in two parts
    const void *weight;       // (outputs, kernel, kernel, channels)
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
};
static_assert(sizeof(Product) == 136, "as the host has it");

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
    if (place.ky >= a.kernel || row < 0 || row >= a.enlarged_height || column < 0 || column >= a.enlarged_width) return nullptr;
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
template <class T, int W> INLINE void finish_or_keep(const Product &a, int row, int n, float (&sum)[W], const Vector<T, W> *beside = nullptr) {
    if (row >= product_rows(a) || n >= a.outputs) return;
    if (a.splits == 1) return finish<T, W>(a, row, n, sum, beside);
    float *part = a.parts + ((int64_t)blockIdx.z * product_rows(a) + row) * a.outputs + n;
#pragma unroll
    for (int i = 0; i < W; i += 4) {
        const float four[4] = {sum[i], sum[i + 1], sum[i + 2], sum[i + 3]};
        put<float, 4>(part + i, four, a.outputs - n - i, a.together);
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

// The tiles of k that this block adds up, of `all`.
INLINE void share(const Product &a, int all, int &begin, int &end) {
    const int each = ceiling(all, a.splits);
    begin = smaller(blockIdx.z * each, all);
    end = smaller(begin + each, all);
}

// ---- Tensor cores: 16-bit numbers, the channels of both parts multiples of 8. A block makes M x N numbers.

const int DEPTH = LINE; // of k at once

// Brings tiles of both matrices to shared memory, one depth after another. Each thread copies one chunk of every LINES-th row.
template <class T, int M, int N, int THREADS> struct Loader {
    static const int LINES = THREADS / 8, STAGE = (M + N) * DEPTH;
    const Joined<T> x;
    const int channels, k, chunk, line;
    Corner corners[M / LINES];
    Place place;
    // Where the chunks of x lie at `place`; up to `until` they go on from there.
    const T *from[M / LINES];
    bool there[M / LINES];
    int until;
    const T *weight; // of the first of this thread's columns
    int at, first_column;

    INLINE Loader(const Product &a, int first_row, int first_column, int begin)
        : x{(const T *)a.first, (const T *)a.rest, a.first_channels, a.rest_channels}, channels(x.channels()), k(a.kernel * a.kernel * channels),
          chunk(threadIdx.x % 8), line(threadIdx.x / 8), place(a, channels, begin * DEPTH + chunk * 8), at(begin * DEPTH + chunk * 8),
          first_column(first_column) {
#pragma unroll
        for (int i = 0; i < M / LINES; i++) corners[i] = Corner(a, first_row + line + i * LINES);
        weight = (const T *)a.weight + (int64_t)(first_column + line) * k;
        locate(a);
    }

    INLINE void locate(const Product &a) {
        until = place.c < x.first_channels ? x.first_channels : channels;
#pragma unroll
        for (int i = 0; i < M / LINES; i++) {
            const T *chunk = gathered(a, x, corners[i], place);
            there[i] = chunk != nullptr;
            from[i] = there[i] ? chunk - place.c : x.first;
        }
    }

    // The next depth, to a stage.
    INLINE void load(const Product &a, T *stage) {
#pragma unroll
        for (int i = 0; i < M / LINES; i++) copy_async(stage + chunk_at(line + i * LINES, chunk), from[i] + place.c, there[i]);
#pragma unroll
        for (int i = 0; i < N / LINES; i++) {
            const bool there = first_column + line + i * LINES < a.outputs && at < k;
            copy_async(stage + M * DEPTH + chunk_at(line + i * LINES, chunk), there ? weight + (int64_t)i * LINES * k + at : (const T *)a.weight, there);
        }
        at += DEPTH;
        if (place.c + DEPTH < until) {
            place.c += DEPTH;
        } else {
            place.advance(a, channels, DEPTH);
            locate(a);
        }
    }
};

// Finishes 16 x N numbers of a warp, held as the tensor cores leave them, by way of 16 (N + 8) numbers of shared memory of its own: what is
// read and written is then 16 bytes at once.
template <class T, int N> INLINE void finish_strip(const Product &a, float *own, int row, int column, const float (&sums)[N / 8][4]) {
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
            finish_or_keep<T, 8>(a, row + r, column + c, sum, ahead ? &beside[i] : nullptr);
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
    share(a, ceiling(a.kernel * a.kernel * (a.first_channels + a.rest_channels), DEPTH), begin, end);
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
    for (int i = 0; i < WM / 16; i++) finish_strip<T, WN>(a, own, first_row + warp_row + i * 16, first_column + warp_column, sums[i]);
}

#ifdef GROUPS
// By groups of four warps (Hopper), each 64 rows of all N columns: the tensor cores read both matrices from shared memory by
// themselves, and the next tiles are asked for meanwhile. The few lines that it begins with stand in both kernels: as a part of the loader
// they cost registers (168 to 209 with 128x64).
template <class T, int M, int N, int STAGES> INLINE void product_groups(const Product &a) {
    SHARED_BYTES(memory);
    using Load = Loader<T, M, N, M * 2>;
    T *stages = (T *)memory;
    const int warp = threadIdx.x / 32, group = warp / 4;
    const int first_row = blockIdx.x * M, first_column = blockIdx.y * N;
    int begin, end;
    share(a, ceiling(a.kernel * a.kernel * (a.first_channels + a.rest_channels), DEPTH), begin, end);
    Load loader(a, first_row, first_column, begin);
    int loading = begin;
    auto load = [&]() {
        if (loading < end) loader.load(a, stages + (loading - begin) % STAGES * Load::STAGE);
        loading++;
        copy_commit();
    };

    float sums[N / 8][4] = {};
    for (int i = 0; i < STAGES - 2; i++) load();
    for (int tile = begin; tile < end; tile++) {
        copy_wait<STAGES - 3>();
        group_sees_copies();
        // Now the tile is there for all, and the last but one has been read by all: its place takes the next.
        sync_block();
        const T *rows = stages + (tile - begin) % STAGES * Load::STAGE, *columns = rows + M * DEPTH;
        group_begin();
#pragma unroll
        for (int step = 0; step < DEPTH / 16; step++)
            group_multiply_add<T, N>(sums, group_matrix(rows + group * 64 * DEPTH, step), group_matrix(columns, step), true);
        group_commit();
        load();
        group_wait<1>();
    }
    group_wait<0>();
    copy_wait<0>();
    sync_block();
    finish_strip<T, N>(a, (float *)memory + warp * 16 * (N + 8), first_row + warp * 16, first_column, sums);
}
#endif

// ---- Plain arithmetic in f32: any dtype, any number of channels. A block makes 64 x 64 numbers, a thread 4 x 4 of them.

const int PLAIN_THREADS = 256, PLAIN_TILE = 64, PLAIN_DEPTH = 16;

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
    share(a, ceiling(k, PLAIN_DEPTH), begin, end);
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
            next_column[i] = n < a.outputs && at < k ? wide(((const T *)a.weight)[(int64_t)n * k + at]) : 0.0f;
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
    for (int i = 0; i < 4; i++) finish_or_keep<T, 4>(a, first_row + my_row + i, first_column + my_column, sums[i]);
}

#define TILES(T)                                                                                    \
    KERNEL(product_##T##_128x128, Product, 256) { product_tensor<T, 128, 128, 64, 32>(args); }      \
    KERNEL(product_##T##_128x64, Product, 128) { product_tensor<T, 128, 64, 64, 32>(args); }        \
    KERNEL(product_##T##_64x64, Product, 128) { product_tensor<T, 64, 64, 32, 32>(args); }
// Those of a pair are so small that two share a multiprocessor.
#define GROUP_TILES(T)                                                                                     \
    KERNEL(product_##T##_groups_128x128, Product, 256) { product_groups<T, 128, 128, 6>(args); }        \
    KERNEL(product_##T##_groups_128x128_pair, Product, 256, 2) { product_groups<T, 128, 128, 3>(args); } \
    KERNEL(product_##T##_groups_128x160, Product, 256) { product_groups<T, 128, 160, 5>(args); }        \
    KERNEL(product_##T##_groups_128x160_pair, Product, 256, 2) { product_groups<T, 128, 160, 3>(args); } \
    KERNEL(product_##T##_groups_128x256, Product, 256) { product_groups<T, 128, 256, 4>(args); }
#define ANY_CHANNELS(T)                                                                             \
    KERNEL(product_##T##_plain, Product, PLAIN_THREADS) { product_plain<T>(args); }                 \
    KERNEL(product_##T##_sum, Product, SUM_THREADS) { product_sum<T>(args); }
TILES(f16)
TILES(bf16)
#ifdef GROUPS
GROUP_TILES(f16)
GROUP_TILES(bf16)
#endif
ANY_CHANNELS(f32)
ANY_CHANNELS(f16)
ANY_CHANNELS(bf16)
