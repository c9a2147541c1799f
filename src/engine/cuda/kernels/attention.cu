// softmax(Q K^T / sqrt(d)) V for each head (Vaswani et al. 2017, equation 1), in tiles with an online softmax (Milakov & Gimelshein 2018;
// Dao et al. 2022): no score ever leaves the block that made it. Grid (tiles of queries, heads, images).
//
// With m the largest score of a row so far and l the sum of its weights, a tile with largest score m' changes both by exp(m - max(m, m')).
#include "gpu.cuh"

struct Attention {
    const void *q, *k, *v; // (images, queries, heads d), (images, keys, heads d) twice
    void *y;               // (images, queries, heads d)
    int queries, keys, heads, d;
    float scale;
    int causal; // a query sees the keys up to its own place
};
static_assert(sizeof(Attention) == 56, "as the host has it");

// Less than any score, and finite, so that differences are.
const float HIDDEN = -1e30f;

// ---- Tensor cores: 16-bit numbers, d a multiple of 8 and at most D, a multiple of 16. Four warps, 16 queries each.

const int ATTENTION_THREADS = 128, TILE = 64;

// Copies rows first .. first + TILE of one head to shared memory, zeros where there are none.
template <class T, int D> INLINE void load_tile(T *to, const T *from, int first, int rows, int d, int64_t stride) {
    const int STRIDE = D + 8; // an odd number of 16 bytes, so that eight rows lie in eight places
    for (int i = threadIdx.x; i < TILE * D / 8; i += ATTENTION_THREADS) {
        const int row = i / (D / 8), column = i % (D / 8) * 8;
        const bool there = first + row < rows && column < d;
        copy_async(to + row * STRIDE + column, there ? from + (first + row) * stride + column : from, there);
    }
}

template <class T, int D> INLINE void attention_tensor(const Attention &a) {
    SHARED_BYTES(memory);
    const int STRIDE = D + 8, PART = TILE * STRIDE;
    T *keys = (T *)memory, *values = keys + 2 * PART; // two tiles each, read in turn
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int first = blockIdx.x * TILE, head = blockIdx.y, image = blockIdx.z;
    const int64_t stride = (int64_t)a.heads * a.d;
    const T *q = (const T *)a.q + (int64_t)image * a.queries * stride + head * a.d;
    const T *k = (const T *)a.k + (int64_t)image * a.keys * stride + head * a.d;
    const T *v = (const T *)a.v + (int64_t)image * a.keys * stride + head * a.d;

    // The queries pass through the second tile of the keys to registers.
    load_tile<T, D>(keys + PART, q, first, a.queries, a.d, stride);
    load_tile<T, D>(keys, k, 0, a.keys, a.d, stride);
    load_tile<T, D>(values, v, 0, a.keys, a.d, stride);
    copy_commit();
    copy_wait<0>();
    sync_block();
    uint32_t query[D / 16][4];
#pragma unroll
    for (int i = 0; i < D / 16; i++)
        load_matrices(query[i], keys + PART + (warp * 16 + lane % 16) * STRIDE + i * 16 + lane / 16 * 8);
    sync_block();

    float out[D / 8][4] = {};
    float largest[2] = {HIDDEN, HIDDEN}, sum[2] = {0, 0};
    const float scale = a.scale * 1.4426950408889634f; // exp(x) = 2^(x log2 e)
    const int row = first + warp * 16 + lane / 4;      // and the eighth after it
    const int tiles = ceiling(a.keys, TILE);
    for (int tile = 0; tile < tiles; tile++) {
        const int stage = tile % 2;
        if (tile + 1 < tiles) {
            load_tile<T, D>(keys + (1 - stage) * PART, k, (tile + 1) * TILE, a.keys, a.d, stride);
            load_tile<T, D>(values + (1 - stage) * PART, v, (tile + 1) * TILE, a.keys, a.d, stride);
        }
        copy_commit();
        copy_wait<1>();
        sync_block();

        const T *key = keys + stage * PART, *value = values + stage * PART;
        float score[TILE / 8][4] = {};
#pragma unroll
        for (int i = 0; i < D / 16; i++)
#pragma unroll
            for (int j = 0; j < TILE / 16; j++) {
                uint32_t b[4];
                load_matrices(b, key + (j * 16 + lane / 16 * 8 + lane % 8) * STRIDE + i * 16 + lane / 8 % 2 * 8);
                multiply_add<T>(score[2 * j], query[i], b[0], b[1]);
                multiply_add<T>(score[2 * j + 1], query[i], b[2], b[3]);
            }

        float top[2] = {largest[0], largest[1]};
#pragma unroll
        for (int j = 0; j < TILE / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int at = tile * TILE + j * 8 + lane % 4 * 2 + e % 2;
                const bool seen = at < a.keys && !(a.causal && at > row + e / 2 * 8);
                score[j][e] = seen ? score[j][e] * scale : HIDDEN;
                top[e / 2] = fmaxf(top[e / 2], score[j][e]);
            }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            top[half] = fmaxf(top[half], shuffle_xor(top[half], 1));
            top[half] = fmaxf(top[half], shuffle_xor(top[half], 2));
            const float fade = exp2f(largest[half] - top[half]);
            largest[half] = top[half];
            sum[half] *= fade;
#pragma unroll
            for (int i = 0; i < D / 8; i++) {
                out[i][2 * half] *= fade;
                out[i][2 * half + 1] *= fade;
            }
        }
#pragma unroll
        for (int j = 0; j < TILE / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                score[j][e] = exp2f(score[j][e] - largest[e / 2]);
                sum[e / 2] += score[j][e];
            }
#pragma unroll
        for (int j = 0; j < TILE / 16; j++) {
            // A result of one product is laid out as a factor of the next.
            const uint32_t weight[4] = {pack<T>(score[2 * j][0], score[2 * j][1]), pack<T>(score[2 * j][2], score[2 * j][3]),
                                        pack<T>(score[2 * j + 1][0], score[2 * j + 1][1]),
                                        pack<T>(score[2 * j + 1][2], score[2 * j + 1][3])};
#pragma unroll
            for (int i = 0; i < D / 16; i++) {
                uint32_t b[4];
                load_matrices_transposed(b, value + (j * 16 + lane % 16) * STRIDE + i * 16 + lane / 16 * 8);
                multiply_add<T>(out[2 * i], weight, b[0], b[1]);
                multiply_add<T>(out[2 * i + 1], weight, b[2], b[3]);
            }
        }
        sync_block();
    }

#pragma unroll
    for (int half = 0; half < 2; half++) {
        float total = sum[half];
        total += shuffle_xor(total, 1);
        total += shuffle_xor(total, 2);
        const int at = row + half * 8;
        if (at >= a.queries) continue;
        T *y = (T *)a.y + ((int64_t)image * a.queries + at) * stride + head * a.d;
#pragma unroll
        for (int i = 0; i < D / 8; i++) {
            const int column = i * 8 + lane % 4 * 2;
            if (column < a.d) *(uint32_t *)(y + column) = pack<T>(out[i][2 * half] / total, out[i][2 * half + 1] / total);
        }
    }
}

// ---- Plain arithmetic in f32: any dtype, any d up to 16 * PER. 16 queries to a block, 16 threads for each.

const int ROW_THREADS = 256, ROW_QUERIES = 16, ROW_KEYS = 32;

template <class T, int PER> INLINE void attention_plain(const Attention &a) {
    SHARED_BYTES(memory);
    const int d = a.d, STRIDE = d + 1;
    float *query = (float *)memory;                    // (16, d)
    float *tile = query + ROW_QUERIES * STRIDE;      // (32, d): keys, then values
    float *score = tile + ROW_KEYS * STRIDE;         // (16, 32)
    const int t = threadIdx.x, row = t / 16, place = t % 16;
    const int first = blockIdx.x * ROW_QUERIES, head = blockIdx.y, image = blockIdx.z;
    const int64_t stride = (int64_t)a.heads * d;
    const T *q = (const T *)a.q + (int64_t)image * a.queries * stride + head * d;
    const T *k = (const T *)a.k + (int64_t)image * a.keys * stride + head * d;
    const T *v = (const T *)a.v + (int64_t)image * a.keys * stride + head * d;

    for (int i = t; i < ROW_QUERIES * d; i += ROW_THREADS) {
        const int r = i / d, c = i % d;
        query[r * STRIDE + c] = first + r < a.queries ? wide(q[(first + r) * stride + c]) * a.scale : 0.0f;
    }
    float out[PER] = {};
    float largest = HIDDEN, sum = 0;
    for (int begin = 0; begin < a.keys; begin += ROW_KEYS) {
        sync_block();
        for (int i = t; i < ROW_KEYS * d; i += ROW_THREADS) {
            const int r = i / d, c = i % d;
            tile[r * STRIDE + c] = begin + r < a.keys ? wide(k[(begin + r) * stride + c]) : 0.0f;
        }
        sync_block();
        float mine[2] = {0, 0};
        for (int c = 0; c < d; c++) {
            const float x = query[row * STRIDE + c];
            mine[0] += x * tile[place * STRIDE + c];
            mine[1] += x * tile[(place + 16) * STRIDE + c];
        }
        float top = largest;
        for (int j = 0; j < 2; j++) {
            const int at = begin + place + 16 * j;
            if (at >= a.keys || (a.causal && at > first + row)) mine[j] = HIDDEN;
            top = fmaxf(top, mine[j]);
        }
        for (int mask = 8; mask > 0; mask /= 2) top = fmaxf(top, shuffle_xor(top, mask));
        const float fade = expf(largest - top);
        largest = top;
        sum *= fade;
        for (int i = 0; i < PER; i++) out[i] *= fade;
        for (int j = 0; j < 2; j++) {
            const float weight = expf(mine[j] - top);
            sum += weight;
            score[row * ROW_KEYS + place + 16 * j] = weight;
        }
        sync_block();
        for (int i = t; i < ROW_KEYS * d; i += ROW_THREADS) {
            const int r = i / d, c = i % d;
            tile[r * STRIDE + c] = begin + r < a.keys ? wide(v[(begin + r) * stride + c]) : 0.0f;
        }
        sync_block();
        for (int j = 0; j < ROW_KEYS; j++) {
            const float weight = score[row * ROW_KEYS + j];
#pragma unroll
            for (int i = 0; i < PER; i++) {
                const int c = place + 16 * i;
                if (c < d) out[i] += weight * tile[j * STRIDE + c];
            }
        }
    }
    for (int mask = 8; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    if (first + row >= a.queries) return;
    T *y = (T *)a.y + ((int64_t)image * a.queries + first + row) * stride + head * d;
#pragma unroll
    for (int i = 0; i < PER; i++) {
        const int c = place + 16 * i;
        if (c < d) y[c] = narrow<T>(out[i] / sum);
    }
}

#define HEAD(T, D) \
    KERNEL(attention_##T##_##D, Attention, ATTENTION_THREADS) { attention_tensor<T, D>(args); }
#define ANY_HEAD(T)                                                                             \
    KERNEL(attention_##T##_plain, Attention, ROW_THREADS) { attention_plain<T, 10>(args); } \
    KERNEL(attention_##T##_wide, Attention, ROW_THREADS) { attention_plain<T, 32>(args); }
#define HEADS(T) HEAD(T, 48) HEAD(T, 64) HEAD(T, 80) HEAD(T, 128) HEAD(T, 160)
HEADS(f16)
HEADS(bf16)
ANY_HEAD(f32)
ANY_HEAD(f16)
ANY_HEAD(bf16)
