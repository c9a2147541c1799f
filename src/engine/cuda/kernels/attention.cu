// softmax(Q K^T / sqrt(d)) V for each head (Vaswani et al. 2017, equation 1), in tiles with an online softmax (Milakov & Gimelshein 2018;
// Dao et al. 2022): no score ever leaves the block that made it. Grid (tiles of queries, heads, images).
//
// With m the largest score of a row so far and l the sum of its weights, a tile with largest score m' changes both by exp(m - max(m, m')).
#include "gpu.cuh"

struct Attention {
    const void *q, *k, *v; // (images, queries, heads, d), (images, keys, heads, d) twice, `stride` apart
    void *y;               // (images, queries, heads d)
    int queries, keys, heads, d;
    float scale;
    int causal; // a query sees the keys up to its own place
    int stride; // from one query, key or value to the next: heads d, or more where they lie beside each other
};
static_assert(sizeof(Attention) == 64, "as the host has it");

// Less than any score, and finite, so that differences are.
const float HIDDEN = -1e30f;

// ---- Tensor cores: 16-bit numbers, d a multiple of 8 and at most D, a multiple of 16.

const int ATTENTION_THREADS = 128, TILE = 64;
const float LOG2E = 1.4426950408889634f; // exp(x) = 2^(x log2 e)

// Copies rows first .. first + ROWS of one head to shared memory, zeros where there are none.
template <class T, int D, int ROWS, int THREADS> INLINE void load_rows(T *to, const T *from, int first, int rows, int d, int64_t stride) {
    const int STRIDE = D + 8; // an odd number of 16 bytes, so that eight rows lie in eight places
    for (int i = threadIdx.x; i < ROWS * D / 8; i += THREADS) {
        const int row = i / (D / 8), column = i % (D / 8) * 8;
        const bool there = first + row < rows && column < d;
        copy_async(to + row * STRIDE + column, there ? from + (first + row) * stride + column : from, there);
    }
}

// The place of one head of one image.
template <class T> struct Head {
    const T *q, *k, *v;
    T *y;
    int64_t stride, y_stride;

    INLINE Head(const Attention &a) : stride(a.stride), y_stride((int64_t)a.heads * a.d) {
        const int64_t queries = (int64_t)blockIdx.z * a.queries, keys = (int64_t)blockIdx.z * a.keys * stride + blockIdx.y * a.d;
        q = (const T *)a.q + queries * stride + blockIdx.y * a.d;
        k = (const T *)a.k + keys;
        v = (const T *)a.v + keys;
        y = (T *)a.y + queries * y_stride + blockIdx.y * a.d;
    }
};

// Writes two of a warp's 16 rows, `row` and the eighth after it, from what the tensor cores leave with this lane.
template <class T, int D> INLINE void finish_rows(const Attention &a, const Head<T> &head, int row, const float (&out)[D / 8][4], const float (&sum)[2]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float total = sum[half];
        total += shuffle_xor(total, 1);
        total += shuffle_xor(total, 2);
        const int at = row + half * 8;
        if (at >= a.queries) continue;
#pragma unroll
        for (int i = 0; i < D / 8; i++) {
            const int column = i * 8 + threadIdx.x % 4 * 2;
            if (column < a.d) *(uint32_t *)(head.y + at * head.y_stride + column) = pack<T>(out[i][2 * half] / total, out[i][2 * half + 1] / total);
        }
    }
}

// Four warps, STRIPS times 16 queries each: every key and value that is read serves all of them.
template <class T, int D, int STRIPS> INLINE void attention_tensor(const Attention &a) {
    SHARED_BYTES(memory);
    const int STRIDE = D + 8, PART = TILE * STRIDE;
    T *keys = (T *)memory, *values = keys + 2 * PART; // two tiles each, read in turn
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first = blockIdx.x * TILE * STRIPS;
    const Head<T> head(a);
    auto load = [&](T *to, const T *from, int row, int rows) { load_rows<T, D, TILE, ATTENTION_THREADS>(to, from, row, rows, a.d, head.stride); };

    // The queries pass through the second tiles to registers.
#pragma unroll
    for (int s = 0; s < STRIPS; s++) load(keys + (1 + 2 * s) * PART, head.q, first + s * TILE, a.queries);
    load(keys, head.k, 0, a.keys);
    load(values, head.v, 0, a.keys);
    copy_commit();
    copy_wait<0>();
    sync_block();
    uint32_t query[STRIPS][D / 16][4];
#pragma unroll
    for (int s = 0; s < STRIPS; s++)
#pragma unroll
        for (int i = 0; i < D / 16; i++)
            load_matrices(query[s][i], keys + (1 + 2 * s) * PART + (warp * 16 + lane % 16) * STRIDE + i * 16 + lane / 16 * 8);
    sync_block();

    float out[STRIPS][D / 8][4] = {}, largest[STRIPS][2], sum[STRIPS][2] = {};
#pragma unroll
    for (int s = 0; s < STRIPS; s++) largest[s][0] = largest[s][1] = HIDDEN;
    const float scale = a.scale * LOG2E;
    const int row = first + warp * 16 + lane / 4; // the eighth after it, and every TILE-th after both
    const int tiles = ceiling(a.keys, TILE);
    for (int tile = 0; tile < tiles; tile++) {
        const int stage = tile % 2;
        if (tile + 1 < tiles) {
            load(keys + (1 - stage) * PART, head.k, (tile + 1) * TILE, a.keys);
            load(values + (1 - stage) * PART, head.v, (tile + 1) * TILE, a.keys);
        }
        copy_commit();
        copy_wait<1>();
        sync_block();

        const T *key = keys + stage * PART, *value = values + stage * PART;
        float score[STRIPS][TILE / 8][4] = {};
#pragma unroll
        for (int i = 0; i < D / 16; i++)
#pragma unroll
            for (int j = 0; j < TILE / 16; j++) {
                uint32_t b[4];
                load_matrices(b, key + (j * 16 + lane / 16 * 8 + lane % 8) * STRIDE + i * 16 + lane / 8 % 2 * 8);
#pragma unroll
                for (int s = 0; s < STRIPS; s++) {
                    multiply_add<T>(score[s][2 * j], query[s][i], b[0], b[1]);
                    multiply_add<T>(score[s][2 * j + 1], query[s][i], b[2], b[3]);
                }
            }
        if (a.causal || (tile + 1) * TILE > a.keys) {
#pragma unroll
            for (int s = 0; s < STRIPS; s++)
#pragma unroll
                for (int j = 0; j < TILE / 8; j++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        const int at = tile * TILE + j * 8 + lane % 4 * 2 + e % 2;
                        if (at >= a.keys || (a.causal && at > row + s * TILE + e / 2 * 8)) score[s][j][e] = HIDDEN;
                    }
        }
#pragma unroll
        for (int s = 0; s < STRIPS; s++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float top = largest[s][half];
#pragma unroll
                for (int j = 0; j < TILE / 8; j++) top = fmaxf(top, fmaxf(score[s][j][2 * half], score[s][j][2 * half + 1]));
                top = fmaxf(top, shuffle_xor(top, 1));
                top = fmaxf(top, shuffle_xor(top, 2));
                const float fade = power_of_two((largest[s][half] - top) * scale), below = top * scale;
                largest[s][half] = top;
                float weights = 0;
#pragma unroll
                for (int j = 0; j < TILE / 8; j++)
#pragma unroll
                    for (int e = 2 * half; e < 2 * half + 2; e++) {
                        score[s][j][e] = power_of_two(score[s][j][e] * scale - below);
                        weights += score[s][j][e];
                    }
                sum[s][half] = sum[s][half] * fade + weights;
#pragma unroll
                for (int i = 0; i < D / 8; i++) {
                    out[s][i][2 * half] *= fade;
                    out[s][i][2 * half + 1] *= fade;
                }
            }
        }
#pragma unroll
        for (int j = 0; j < TILE / 16; j++) {
            // A result of one product is laid out as a factor of the next.
            uint32_t weight[STRIPS][4];
#pragma unroll
            for (int s = 0; s < STRIPS; s++)
#pragma unroll
                for (int e = 0; e < 4; e++) weight[s][e] = pack<T>(score[s][2 * j + e / 2][e % 2 * 2], score[s][2 * j + e / 2][e % 2 * 2 + 1]);
#pragma unroll
            for (int i = 0; i < D / 16; i++) {
                uint32_t b[4];
                load_matrices_transposed(b, value + (j * 16 + lane % 16) * STRIDE + i * 16 + lane / 16 * 8);
#pragma unroll
                for (int s = 0; s < STRIPS; s++) {
                    multiply_add<T>(out[s][2 * i], weight[s], b[0], b[1]);
                    multiply_add<T>(out[s][2 * i + 1], weight[s], b[2], b[3]);
                }
            }
        }
        sync_block();
    }

#pragma unroll
    for (int s = 0; s < STRIPS; s++) finish_rows<T, D>(a, head, row + s * TILE, out[s], sum[s]);
}

#ifdef GROUPS
// Two groups of warps (Hopper), 64 queries each; d at most 64. The tensor cores read keys and values by themselves, and a group's weights are
// made while the other group's products are. The scores become weights as in attention_tensor, in its own lines: with a function for both,
// ptxas lets no two products run at once (C7515).
const int GROUP_THREADS = 256, GROUP_STAGES = 3;

template <class T, int D> INLINE void attention_groups(const Attention &a) {
    SHARED_BYTES(memory);
    const int PART = TILE * LINE, CHUNKS = D / 8, SLOTS = (TILE * CHUNKS + GROUP_THREADS - 1) / GROUP_THREADS;
    T *queries = (T *)memory, *keys = queries + 2 * PART, *values = keys + GROUP_STAGES * PART;
    const int t = threadIdx.x, warp = t / 32, lane = t % 32, group = warp / 4;
    const int first = blockIdx.x * 2 * TILE;
    const Head<T> head(a);

    for (int i = t; i < 2 * TILE * CHUNKS; i += GROUP_THREADS) {
        const int row = i / CHUNKS, chunk = i % CHUNKS;
        const bool there = first + row < a.queries && chunk * 8 < a.d;
        copy_async(queries + chunk_at(row, chunk), there ? head.q + (first + row) * head.stride + chunk * 8 : head.q, there);
    }
    // This thread's chunks of a tile of keys, and of values, which move on by a tile.
    int64_t from[SLOTS];
    int rows[SLOTS], to[SLOTS];
#pragma unroll
    for (int i = 0; i < SLOTS; i++) {
        const int place = t + i * GROUP_THREADS, row = place / CHUNKS, chunk = place % CHUNKS;
        from[i] = row * head.stride + chunk * 8;
        to[i] = chunk_at(row, chunk);
        // A chunk beyond the head is zeros in every tile; beyond the tile there is none.
        rows[i] = place >= TILE * CHUNKS ? -1 : chunk * 8 < a.d ? row : 1 << 30;
    }
    const int tiles = ceiling(a.keys, TILE);
    int loading = 0;
    auto load = [&]() {
        if (loading < tiles) {
            const int stage = loading % GROUP_STAGES * PART;
#pragma unroll
            for (int i = 0; i < SLOTS; i++) {
                if (rows[i] < 0) continue;
                const bool there = rows[i] < a.keys;
                copy_async(keys + stage + to[i], there ? head.k + from[i] : head.k, there);
                copy_async(values + stage + to[i], there ? head.v + from[i] : head.v, there);
                from[i] += TILE * head.stride;
                rows[i] += TILE;
            }
        }
        loading++;
        copy_commit();
    };

    float out[D / 8][4] = {}, largest[2] = {HIDDEN, HIDDEN}, sum[2] = {0, 0};
    const float scale = a.scale * LOG2E;
    const int row = first + warp * 16 + lane / 4; // and the eighth after it
    load();
    for (int tile = 0; tile < tiles; tile++) {
        copy_wait<0>();
        group_sees_copies();
        // Behind it the tile is there for all, and the last but one has been read by all, which waited for that: its place takes the next.
        sync_block();
        load();
        const T *key = keys + tile % GROUP_STAGES * PART, *value = values + tile % GROUP_STAGES * PART;
        float score[TILE / 8][4];
        group_begin();
#pragma unroll
        for (int i = 0; i < D / 16; i++)
            group_multiply_add<T, TILE>(score, group_matrix(queries + group * PART, i), group_matrix(key, i), i > 0);
        group_commit();
        // The weighted values of the tile before as well.
        group_wait<0>();
        if (a.causal || (tile + 1) * TILE > a.keys) {
#pragma unroll
            for (int j = 0; j < TILE / 8; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int at = tile * TILE + j * 8 + lane % 4 * 2 + e % 2;
                    if (at >= a.keys || (a.causal && at > row + e / 2 * 8)) score[j][e] = HIDDEN;
                }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float top = largest[half];
#pragma unroll
            for (int j = 0; j < TILE / 8; j++) top = fmaxf(top, fmaxf(score[j][2 * half], score[j][2 * half + 1]));
            top = fmaxf(top, shuffle_xor(top, 1));
            top = fmaxf(top, shuffle_xor(top, 2));
            const float fade = power_of_two((largest[half] - top) * scale), below = top * scale;
            largest[half] = top;
            float weights = 0;
#pragma unroll
            for (int j = 0; j < TILE / 8; j++)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; e++) {
                    score[j][e] = power_of_two(score[j][e] * scale - below);
                    weights += score[j][e];
                }
            sum[half] = sum[half] * fade + weights;
#pragma unroll
            for (int i = 0; i < D / 8; i++) {
                out[i][2 * half] *= fade;
                out[i][2 * half + 1] *= fade;
            }
        }
        uint32_t weight[TILE / 16][4];
#pragma unroll
        for (int j = 0; j < TILE / 16; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) weight[j][e] = pack<T>(score[2 * j + e / 2][e % 2 * 2], score[2 * j + e / 2][e % 2 * 2 + 1]);
        group_begin();
#pragma unroll
        for (int j = 0; j < TILE / 16; j++) group_multiply_add_columns<T, D>(out, weight[j], group_columns(value, j));
        group_commit();
    }
    group_wait<0>();
    finish_rows<T, D>(a, head, row, out, sum);
}
#endif

// Wide heads, such as an autoencoder's single one: eight warps share 64 queries. Each makes the scores of 16 of them with 16 keys, and 64
// columns of the result for all of them.
const int WIDE_THREADS = 256, WIDE_KEYS = 32, WIDE_COLUMNS = 64;

template <class T, int D> INLINE void attention_wide(const Attention &a) {
    SHARED_BYTES(memory);
    static_assert(D == WIDE_THREADS / 32 * WIDE_COLUMNS, "a warp for each part of the columns");
    const int STRIDE = D + 8, WEIGHT_STRIDE = WIDE_KEYS + 8, SCORE_STRIDE = WIDE_KEYS + 4;
    T *queries = (T *)memory, *keys = queries + TILE * STRIDE, *values = keys + WIDE_KEYS * STRIDE;
    T *weights = values + WIDE_KEYS * STRIDE;              // (64, 32)
    float *scores = (float *)(weights + TILE * WEIGHT_STRIDE); // (64, 32)
    float *fades = scores + TILE * SCORE_STRIDE;           // (64)
    const int t = threadIdx.x, warp = t / 32, lane = t % 32, first = blockIdx.x * TILE;
    const Head<T> head(a);
    auto load = [&](T *to, const T *from, int tile) {
        load_rows<T, D, WIDE_KEYS, WIDE_THREADS>(to, from, tile * WIDE_KEYS, a.keys, a.d, head.stride);
        copy_commit();
    };

    load_rows<T, D, TILE, WIDE_THREADS>(queries, head.q, first, a.queries, a.d, head.stride);
    load(keys, head.k, 0);
    load(values, head.v, 0);
    const float scale = a.scale * LOG2E;
    const int strip = warp % 4 * 16, half = warp / 4 * 16; // this warp's scores
    const int row = t / 4, part = t % 4 * 8;               // this thread's weights
    float out[TILE / 16][WIDE_COLUMNS / 8][4] = {}, largest = HIDDEN, sum = 0;
    const int tiles = ceiling(a.keys, WIDE_KEYS);
    for (int tile = 0; tile < tiles; tile++) {
        copy_wait<1>();
        sync_block();
        float score[2][4] = {};
#pragma unroll 8
        for (int i = 0; i < D / 16; i++) {
            uint32_t left[4], right[4];
            load_matrices(left, queries + (strip + lane % 16) * STRIDE + i * 16 + lane / 16 * 8);
            load_matrices(right, keys + (half + lane / 16 * 8 + lane % 8) * STRIDE + i * 16 + lane / 8 % 2 * 8);
            multiply_add<T>(score[0], left, right[0], right[1]);
            multiply_add<T>(score[1], left, right[2], right[3]);
        }
#pragma unroll
        for (int e = 0; e < 8; e++)
            scores[(strip + lane / 4 + e / 2 % 2 * 8) * SCORE_STRIDE + half + e / 4 * 8 + lane % 4 * 2 + e % 2] = score[e / 4][e % 4];
        sync_block();
        // The keys have been read by all.
        if (tile + 1 < tiles) load(keys, head.k, tile + 1);
        else copy_commit();

        float mine[8], top = largest;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const int at = tile * WIDE_KEYS + part + j;
            mine[j] = at < a.keys && !(a.causal && at > first + row) ? scores[row * SCORE_STRIDE + part + j] : HIDDEN;
            top = fmaxf(top, mine[j]);
        }
        top = fmaxf(top, shuffle_xor(top, 1));
        top = fmaxf(top, shuffle_xor(top, 2));
        const float fade = power_of_two((largest - top) * scale), below = top * scale;
        largest = top;
        sum *= fade;
        Vector<T, 8> rounded;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const float weight = power_of_two(mine[j] * scale - below);
            sum += weight;
            rounded.at[j] = narrow<T>(weight);
        }
        *(Vector<T, 8> *)(weights + row * WEIGHT_STRIDE + part) = rounded;
        if (part == 0) fades[row] = fade;
        copy_wait<1>();
        sync_block();

#pragma unroll
        for (int s = 0; s < TILE / 16; s++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const float fade = fades[s * 16 + lane / 4 + e / 2 * 8];
#pragma unroll
                for (int i = 0; i < WIDE_COLUMNS / 8; i++) out[s][i][e] *= fade;
            }
#pragma unroll
        for (int j = 0; j < WIDE_KEYS / 16; j++) {
            uint32_t left[TILE / 16][4];
#pragma unroll
            for (int s = 0; s < TILE / 16; s++) load_matrices(left[s], weights + (s * 16 + lane % 16) * WEIGHT_STRIDE + j * 16 + lane / 16 * 8);
#pragma unroll
            for (int i = 0; i < WIDE_COLUMNS / 16; i++) {
                uint32_t right[4];
                load_matrices_transposed(right, values + (j * 16 + lane % 16) * STRIDE + warp * WIDE_COLUMNS + i * 16 + lane / 16 * 8);
#pragma unroll
                for (int s = 0; s < TILE / 16; s++) {
                    multiply_add<T>(out[s][2 * i], left[s], right[0], right[1]);
                    multiply_add<T>(out[s][2 * i + 1], left[s], right[2], right[3]);
                }
            }
        }
        sync_block();
        if (tile + 1 < tiles) load(values, head.v, tile + 1);
        else copy_commit();
    }

    sum += shuffle_xor(sum, 1);
    sum += shuffle_xor(sum, 2);
    if (part == 0) fades[row] = sum;
    sync_block();
#pragma unroll
    for (int s = 0; s < TILE / 16; s++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int r = s * 16 + lane / 4 + h * 8;
            if (first + r >= a.queries) continue;
            const float total = fades[r];
#pragma unroll
            for (int i = 0; i < WIDE_COLUMNS / 8; i++) {
                const int column = warp * WIDE_COLUMNS + i * 8 + lane % 4 * 2;
                if (column < a.d) *(uint32_t *)(head.y + (first + r) * head.y_stride + column) = pack<T>(out[s][i][2 * h] / total, out[s][i][2 * h + 1] / total);
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
    const int first = blockIdx.x * ROW_QUERIES;
    const Head<T> head(a);
    const int64_t stride = head.stride;
    const T *q = head.q, *k = head.k, *v = head.v;

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
    T *y = head.y + (first + row) * head.y_stride;
#pragma unroll
    for (int i = 0; i < PER; i++) {
        const int c = place + 16 * i;
        if (c < d) y[c] = narrow<T>(out[i] / sum);
    }
}

#define HEAD(T, D, STRIPS) \
    KERNEL(attention_##T##_##D, Attention, ATTENTION_THREADS) { attention_tensor<T, D, STRIPS>(args); }
#define HEADS(T)                                                                                    \
    HEAD(T, 48, 2) HEAD(T, 64, 2) HEAD(T, 80, 1) HEAD(T, 128, 1) HEAD(T, 160, 1)                    \
    KERNEL(attention_##T##_512, Attention, WIDE_THREADS) { attention_wide<T, 512>(args); }
#define ANY_HEAD(T)                                                                                 \
    KERNEL(attention_##T##_plain, Attention, ROW_THREADS) { attention_plain<T, 10>(args); }         \
    KERNEL(attention_##T##_plain_wide, Attention, ROW_THREADS) { attention_plain<T, 32>(args); }
#ifdef GROUPS
#define GROUP_HEADS(T)                                                                                            \
    KERNEL(attention_##T##_groups_48, Attention, GROUP_THREADS, 2) { attention_groups<T, 48>(args); }             \
    KERNEL(attention_##T##_groups_64, Attention, GROUP_THREADS, 2) { attention_groups<T, 64>(args); }
GROUP_HEADS(f16)
GROUP_HEADS(bf16)
#endif
HEADS(f16)
HEADS(bf16)
ANY_HEAD(f32)
ANY_HEAD(f16)
ANY_HEAD(bf16)
