// Products by single warps, and in plain arithmetic: what every card has. Grid (tiles of m, tiles of n, splits).
#include "product.cuh"

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

// ---- Tensor cores: 16-bit numbers, the channels of both parts multiples of 8, weights in tiles. A block makes M x N numbers.

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
    KERNEL(product_##T##_64x64, Product, 128) { product_tensor<T, 64, 64, 32, 32>(args); }
#define ANY_CHANNELS(T)                                                                             \
    KERNEL(product_##T##_plain, Product, PLAIN_THREADS) { product_plain<T>(args); }                 \
    KERNEL(product_##T##_sum, Product, SUM_THREADS) { product_sum<T>(args); }
TILES(f16)
TILES(bf16)
ANY_CHANNELS(f32)
ANY_CHANNELS(f16)
ANY_CHANNELS(bf16)
