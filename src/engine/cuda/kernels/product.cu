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
};
static_assert(sizeof(Product) == 136, "as the host has it");

INLINE int64_t product_rows(const Product &a) { return (int64_t)a.images * a.out_height * a.out_width; }

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
    INLINE Corner(const Product &a, int64_t row) {
        const int area = a.out_height * a.out_width;
        image = (int)(row / area);
        const int pixel = (int)(row % area);
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

// What follows the sum, for the columns n (even) and n + 1 of one row.
template <class T> INLINE void finish(const Product &a, int64_t row, int n, float even, float odd) {
    const bool two = n + 1 < a.outputs;
    if (a.bias) {
        const T *bias = (const T *)a.bias;
        even += wide(bias[n]);
        if (two) odd += wide(bias[n + 1]);
    }
    if (a.geglu) {
        const float gelu = 0.5f * odd * (1.0f + erff(odd * 0.70710678118654752f));
        ((T *)a.y)[row * (a.outputs / 2) + n / 2] = narrow<T>(even * gelu);
        return;
    }
    if (a.shift) {
        const T *shift = (const T *)a.shift + row / (a.out_height * a.out_width) * a.shift_stride;
        even += wide(shift[n]);
        if (two) odd += wide(shift[n + 1]);
    }
    const int64_t at = row * a.outputs + n;
    const bool together = two && a.outputs % 2 == 0;
    if (a.residual) {
        const T *residual = (const T *)a.residual;
        if (together) {
            const Vector<T, 2> pair = *(const Vector<T, 2> *)(residual + at);
            even += wide(pair.at[0]);
            odd += wide(pair.at[1]);
        } else {
            even += wide(residual[at]);
            if (two) odd += wide(residual[at + 1]);
        }
    }
    T *y = (T *)a.y;
    if (together) {
        *(Vector<T, 2> *)(y + at) = Vector<T, 2>{{narrow<T>(even * a.scale), narrow<T>(odd * a.scale)}};
    } else {
        y[at] = narrow<T>(even * a.scale);
        if (two) y[at + 1] = narrow<T>(odd * a.scale);
    }
}

// The end of a block: into the result or, where k is split, to the other parts.
template <class T> INLINE void finish_or_keep(const Product &a, int64_t row, int n, float even, float odd) {
    if (row >= product_rows(a) || n >= a.outputs) return;
    if (a.splits == 1) return finish<T>(a, row, n, even, odd);
    float *part = a.parts + (blockIdx.z * product_rows(a) + row) * a.outputs + n;
    part[0] = even;
    if (n + 1 < a.outputs) part[1] = odd;
}

const int SUM_THREADS = 256;

// Adds the parts: a thread for each two columns of a row.
template <class T> INLINE void product_sum(const Product &a) {
    const int pairs = ceiling(a.outputs, 2);
    const int64_t i = (int64_t)blockIdx.x * SUM_THREADS + threadIdx.x, size = product_rows(a) * a.outputs;
    if (i >= product_rows(a) * pairs) return;
    const int64_t row = i / pairs;
    const int n = (int)(i % pairs) * 2;
    float even = 0, odd = 0;
    for (int split = 0; split < a.splits; split++) {
        const float *part = a.parts + split * size + row * a.outputs + n;
        even += part[0];
        if (n + 1 < a.outputs) odd += part[1];
    }
    finish<T>(a, row, n, even, odd);
}

// The tiles of k that this block adds up, of `all`.
INLINE void share(const Product &a, int all, int &begin, int &end) {
    const int each = ceiling(all, a.splits);
    begin = smaller(blockIdx.z * each, all);
    end = smaller(begin + each, all);
}

// ---- Tensor cores: 16-bit numbers, the channels of both parts multiples of 8. A block makes M x N numbers, a warp WM x WN of them.

const int DEPTH = 32, STAGES = 4; // of k at once, and how many of them are on their way

// Four chunks of 16 bytes are a row; chunks are swapped so that eight rows, read at once, lie in eight places.
INLINE int chunk_at(int row, int chunk) { return row * DEPTH + ((chunk ^ (row / 2 % 4)) * 8); }

template <class T, int M, int N, int WM, int WN> INLINE void product_tensor(const Product &a) {
    SHARED_BYTES(memory);
    const int THREADS = M / WM * (N / WN) * 32, LINES = THREADS / 4, STAGE = (M + N) * DEPTH;
    T *stages = (T *)memory;
    const Joined<T> x = {(const T *)a.first, (const T *)a.rest, a.first_channels, a.rest_channels};
    const int channels = x.channels(), k = a.kernel * a.kernel * channels;
    const int t = threadIdx.x, warp = t / 32, lane = t % 32;
    const int64_t first_row = (int64_t)blockIdx.x * M;
    const int first_column = blockIdx.y * N;
    const int warp_row = warp % (M / WM) * WM, warp_column = warp / (M / WM) * WN;

    int begin, end;
    share(a, ceiling(k, DEPTH), begin, end);
    // This thread copies one chunk of every LINES-th row.
    const int chunk = t % 4, line = t / 4;
    Corner corners[M / LINES];
#pragma unroll
    for (int i = 0; i < M / LINES; i++) corners[i] = Corner(a, first_row + line + i * LINES);
    Place place(a, channels, begin * DEPTH + chunk * 8);
    int loading = begin;
    auto load = [&]() {
        if (loading < end) {
            T *stage = stages + (loading - begin) % STAGES * STAGE;
#pragma unroll
            for (int i = 0; i < M / LINES; i++) {
                const T *from = gathered(a, x, corners[i], place);
                copy_async(stage + chunk_at(line + i * LINES, chunk), from ? from : x.first, from != nullptr);
            }
            const int at = loading * DEPTH + chunk * 8;
#pragma unroll
            for (int i = 0; i < N / LINES; i++) {
                const int n = first_column + line + i * LINES;
                const bool there = n < a.outputs && at < k;
                const T *from = (const T *)a.weight + (there ? (int64_t)n * k + at : 0);
                copy_async(stage + M * DEPTH + chunk_at(line + i * LINES, chunk), from, there);
            }
            place.advance(a, channels, DEPTH);
            loading++;
        }
        copy_commit();
    };

    float sums[WM / 16][WN / 8][4] = {};
    for (int i = 0; i < STAGES - 1; i++) load();
    for (int tile = begin; tile < end; tile++) {
        copy_wait<STAGES - 2>();
        // Now the tile is there for all, and the one before has been read by all: its place takes the next.
        sync_block();
        load();
        const T *rows = stages + (tile - begin) % STAGES * STAGE, *columns = rows + M * DEPTH;
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
#pragma unroll
    for (int i = 0; i < WM / 16; i++)
#pragma unroll
        for (int j = 0; j < WN / 8; j++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                finish_or_keep<T>(a, first_row + warp_row + i * 16 + lane / 4 + half * 8,
                                  first_column + warp_column + j * 8 + lane % 4 * 2, sums[i][j][2 * half], sums[i][j][2 * half + 1]);
}

// ---- Plain arithmetic in f32: any dtype, any number of channels. A block makes 64 x 64 numbers, a thread 4 x 4 of them.

const int PLAIN_THREADS = 256, PLAIN_TILE = 64, PLAIN_DEPTH = 16;

template <class T> INLINE void product_plain(const Product &a) {
    SHARED_BYTES(memory);
    const int STRIDE = PLAIN_TILE + 4, LINES = PLAIN_THREADS / PLAIN_DEPTH, EACH = PLAIN_TILE / LINES;
    float *rows = (float *)memory, *columns = rows + PLAIN_DEPTH * STRIDE; // (depth, 64) both
    const Joined<T> x = {(const T *)a.first, (const T *)a.rest, a.first_channels, a.rest_channels};
    const int channels = x.channels(), k = a.kernel * a.kernel * channels;
    const int t = threadIdx.x, depth = t % PLAIN_DEPTH, line = t / PLAIN_DEPTH;
    const int64_t first_row = (int64_t)blockIdx.x * PLAIN_TILE;
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
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j += 2)
            finish_or_keep<T>(a, first_row + my_row + i, first_column + my_column + j, sums[i][j], sums[i][j + 1]);
}

#define TILES(T)                                                                                        \
    KERNEL(product_##T##_128x128, Product, 256, 2) { product_tensor<T, 128, 128, 64, 32>(args); }           \
    KERNEL(product_##T##_128x64, Product, 128) { product_tensor<T, 128, 64, 64, 32>(args); }             \
    KERNEL(product_##T##_64x64, Product, 128) { product_tensor<T, 64, 64, 32, 32>(args); }
#define ANY_CHANNELS(T)                                                                      \
    KERNEL(product_##T##_plain, Product, PLAIN_THREADS) { product_plain<T>(args); }   \
    KERNEL(product_##T##_sum, Product, SUM_THREADS) { product_sum<T>(args); }
TILES(f16)
TILES(bf16)
ANY_CHANNELS(f32)
ANY_CHANNELS(f16)
ANY_CHANNELS(bf16)
