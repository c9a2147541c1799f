// Normalisation: y = (x - E[x]) / sqrt(Var[x] + eps) * weight + bias, moments in f32.
//
// Group norm (Wu & He 2018) takes two kernels. The first sums x - k and (x - k)^2, with k a number of the group itself so
// that nothing cancels, over one chunk of the pixels of an image: grid (chunks, images). The second joins the sums of the chunks, always in the same
// order, and writes the map, with SiLU if it is asked for. Layer norm (Ba et al. 2016) is one kernel: a warp for each row.
#include "gpu.cuh"

struct GroupNorm {
    const void *first, *rest;  // (images, pixels, channels), in two parts
    const void *weight, *bias; // (channels)
    void *y;                   // (images, pixels, channels)
    float *sums;               // (images, chunks, groups, 2)
    int first_channels, rest_channels;
    int pixels, groups, chunks;
    float eps;
    int silu;
};
static_assert(sizeof(GroupNorm) == 80, "as the host has it");

const int NORM_THREADS = 256;

// The sum over LANES neighbouring lanes.
template <int LANES> INLINE float sum_of_lanes(float x) {
    for (int mask = LANES / 2; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
    return x;
}

// The number that stands for the mean of a group while it is not known.
template <class T> INLINE float group_origin(const Joined<T> &x, int64_t image, int pixels, int group, int width) {
    return wide(*x.at(image * pixels, group * width));
}

template <class T, int N> INLINE void group_sums(const GroupNorm &a) {
    SHARED_BYTES(memory);
    Joined<T> x = {(const T *)a.first, (const T *)a.rest, a.first_channels, a.rest_channels};
    const int channels = x.channels(), width = channels / a.groups, vectors = channels / N;
    float *by_channel = (float *)memory;           // (channels, 2)
    float *by_thread = by_channel + 2 * channels;  // (threads, N, 2)
    const int chunk = blockIdx.x, image = blockIdx.y, t = threadIdx.x;
    const int each = ceiling(a.pixels, a.chunks);
    const int begin = chunk * each, end = smaller(begin + each, a.pixels);

    for (int first = 0; first < vectors; first += NORM_THREADS) {
        const int columns = smaller(NORM_THREADS, vectors - first), rows = NORM_THREADS / columns;
        const int column = first + t % columns, row = t / columns;
        if (row < rows) {
            float origin[N], sum[N], square[N];
            for (int i = 0; i < N; i++) {
                origin[i] = group_origin(x, image, a.pixels, (column * N + i) / width, width);
                sum[i] = square[i] = 0;
            }
#pragma unroll 4
            for (int pixel = begin + row; pixel < end; pixel += rows) {
                const Vector<T, N> v = *(const Vector<T, N> *)x.at((int64_t)image * a.pixels + pixel, column * N);
#pragma unroll
                for (int i = 0; i < N; i++) {
                    const float d = wide(v.at[i]) - origin[i];
                    sum[i] += d;
                    square[i] += d * d;
                }
            }
            for (int i = 0; i < N; i++) {
                by_thread[2 * (t * N + i)] = sum[i];
                by_thread[2 * (t * N + i) + 1] = square[i];
            }
        }
        sync_block();
        for (int i = t; i < columns * N; i += NORM_THREADS) {
            float sum = 0, square = 0;
            for (int r = 0; r < rows; r++) {
                sum += by_thread[2 * (r * columns * N + i)];
                square += by_thread[2 * (r * columns * N + i) + 1];
            }
            by_channel[2 * (first * N + i)] = sum;
            by_channel[2 * (first * N + i) + 1] = square;
        }
        sync_block();
    }
    for (int g = t; g < a.groups; g += NORM_THREADS) {
        float sum = 0, square = 0;
        for (int c = g * width; c < (g + 1) * width; c++) {
            sum += by_channel[2 * c];
            square += by_channel[2 * c + 1];
        }
        float *out = a.sums + 2 * (((int64_t)image * a.chunks + chunk) * a.groups + g);
        out[0] = sum;
        out[1] = square;
    }
}

// Grid (shares of the pixels, images, columns by NORM_THREADS): a thread stays with its columns.
template <class T, int N> INLINE void group_apply(const GroupNorm &a) {
    SHARED_BYTES(memory);
    const int AT_ONCE = 4;
    Joined<T> x = {(const T *)a.first, (const T *)a.rest, a.first_channels, a.rest_channels};
    const int channels = x.channels(), width = channels / a.groups, vectors = channels / N;
    float *mean = (float *)memory, *deviation = mean + a.groups;
    const int image = blockIdx.y, t = threadIdx.x;
    const int columns = smaller(NORM_THREADS, vectors - blockIdx.z * NORM_THREADS), rows = NORM_THREADS / columns;
    const int c = (blockIdx.z * NORM_THREADS + t % columns) * N, step = gridDim.x * rows;
    // Threads that are left over have no pixels.
    int pixel = t / columns < rows ? blockIdx.x * rows + t / columns : a.pixels;

    // What the thread works on is on its way while the moments are joined.
    Vector<T, N> in[AT_ONCE];
    auto read = [&]() {
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (pixel + i * step < a.pixels) in[i] = *(const Vector<T, N> *)x.at((int64_t)image * a.pixels + pixel + i * step, c);
    };
    read();
    const Vector<T, N> weight = *(const Vector<T, N> *)((const T *)a.weight + c), bias = *(const Vector<T, N> *)((const T *)a.bias + c);

    // Eight threads for each group; all of a warp go round equally often.
    const float count = (float)a.pixels * width;
    for (int first = t / 32 * 4; first < a.groups; first += NORM_THREADS / 8) {
        const int g = smaller(first + t % 32 / 8, a.groups - 1);
        const float origin = group_origin(x, image, a.pixels, g, width);
        float sum = 0, square = 0;
#pragma unroll 8
        for (int chunk = t % 8; chunk < a.chunks; chunk += 8) {
            const Vector<float, 2> part = *(const Vector<float, 2> *)(a.sums + 2 * (((int64_t)image * a.chunks + chunk) * a.groups + g));
            sum += part.at[0];
            square += part.at[1];
        }
        sum = sum_of_lanes<8>(sum);
        square = sum_of_lanes<8>(square);
        const float d = sum / count, variance = fmaxf(square / count - d * d, 0.0f);
        if (t % 8 == 0) {
            mean[g] = origin + d;
            deviation[g] = 1.0f / sqrtf(variance + a.eps);
        }
    }
    sync_block();

    float scale[N], shift[N]; // y = x scale + shift
#pragma unroll
    for (int j = 0; j < N; j++) {
        const int g = (c + j) / width;
        scale[j] = wide(weight.at[j]) * deviation[g];
        shift[j] = wide(bias.at[j]) - mean[g] * scale[j];
    }
    while (pixel < a.pixels) {
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            if (pixel + i * step >= a.pixels) break;
            Vector<T, N> out;
#pragma unroll
            for (int j = 0; j < N; j++) {
                float y = wide(in[i].at[j]) * scale[j] + shift[j];
                if (a.silu) y = silu(y);
                out.at[j] = narrow<T>(y);
            }
            *(Vector<T, N> *)((T *)a.y + ((int64_t)image * a.pixels + pixel + i * step) * channels + c) = out;
        }
        pixel += AT_ONCE * step;
        read();
    }
}

struct LayerNorm {
    const void *x, *weight, *bias; // (rows, width), (width), (width)
    void *y;
    int rows, width;
    float eps;
};
static_assert(sizeof(LayerNorm) == 48, "as the host has it");

// LANES lanes for each row, which they keep: at most LAYER_EACH vectors of N numbers a lane, as the host has it. The mean, then the variance around it.
const int LAYER_EACH = 5;
template <class T, int N, int LANES> INLINE void layer_norm(const LayerNorm &a) {
    const int lane = threadIdx.x % LANES, vectors = a.width / N;
    const int64_t row = (int64_t)blockIdx.x * (NORM_THREADS / LANES) + threadIdx.x / LANES;
    const bool there = row < a.rows; // every lane takes part in the sums
    const Vector<T, N> *x = (const Vector<T, N> *)((const T *)a.x + (there ? row : 0) * a.width);
    Vector<T, N> in[LAYER_EACH];
    float sum = 0, square = 0;
#pragma unroll
    for (int i = 0; i < LAYER_EACH; i++)
        if (lane + i * LANES < vectors) in[i] = x[lane + i * LANES];
#pragma unroll
    for (int i = 0; i < LAYER_EACH; i++)
        if (lane + i * LANES < vectors)
            for (int j = 0; j < N; j++) sum += wide(in[i].at[j]);
    const float mean = sum_of_lanes<LANES>(sum) / a.width;
#pragma unroll
    for (int i = 0; i < LAYER_EACH; i++)
        if (lane + i * LANES < vectors)
            for (int j = 0; j < N; j++) {
                const float d = wide(in[i].at[j]) - mean;
                square += d * d;
            }
    const float scale = 1.0f / sqrtf(sum_of_lanes<LANES>(square) / a.width + a.eps);
    if (!there) return;
    Vector<T, N> *y = (Vector<T, N> *)((T *)a.y + row * a.width);
    const Vector<T, N> *weight = (const Vector<T, N> *)a.weight, *bias = (const Vector<T, N> *)a.bias;
#pragma unroll
    for (int i = 0; i < LAYER_EACH; i++) {
        const int at = lane + i * LANES;
        if (at >= vectors) continue;
        const Vector<T, N> w = weight[at], b = bias[at];
        Vector<T, N> out;
#pragma unroll
        for (int j = 0; j < N; j++) out.at[j] = narrow<T>((wide(in[i].at[j]) - mean) * scale * wide(w.at[j]) + wide(b.at[j]));
        y[at] = out;
    }
}

// A warp for each row, of any width: what does not stay with the lanes is found in the cache.
template <class T, int N> INLINE void layer_norm_wide(const LayerNorm &a) {
    const int lane = threadIdx.x % 32, vectors = a.width / N;
    const int64_t row = (int64_t)blockIdx.x * (NORM_THREADS / 32) + threadIdx.x / 32;
    if (row >= a.rows) return;
    const Vector<T, N> *x = (const Vector<T, N> *)((const T *)a.x + row * a.width);
    float sum = 0;
    for (int i = lane; i < vectors; i += 32)
        for (int j = 0; j < N; j++) sum += wide(x[i].at[j]);
    const float mean = sum_of_lanes<32>(sum) / a.width;
    float square = 0;
    for (int i = lane; i < vectors; i += 32)
        for (int j = 0; j < N; j++) {
            const float d = wide(x[i].at[j]) - mean;
            square += d * d;
        }
    const float scale = 1.0f / sqrtf(sum_of_lanes<32>(square) / a.width + a.eps);
    Vector<T, N> *y = (Vector<T, N> *)((T *)a.y + row * a.width);
    const Vector<T, N> *weight = (const Vector<T, N> *)a.weight, *bias = (const Vector<T, N> *)a.bias;
    for (int i = lane; i < vectors; i += 32) {
        Vector<T, N> out;
        for (int j = 0; j < N; j++)
            out.at[j] = narrow<T>((wide(x[i].at[j]) - mean) * scale * wide(weight[i].at[j]) + wide(bias[i].at[j]));
        y[i] = out;
    }
}

// By dtype and by how many numbers are read at once, rows also by their lanes.
#define NORMS(T, N)                                                                                     \
    KERNEL(group_sums_##T##_##N, GroupNorm, NORM_THREADS) { group_sums<T, N>(args); }                   \
    KERNEL(group_apply_##T##_##N, GroupNorm, NORM_THREADS) { group_apply<T, N>(args); }                 \
    KERNEL(layer_norm_##T##_##N##_wide, LayerNorm, NORM_THREADS) { layer_norm_wide<T, N>(args); }       \
    KERNEL(layer_norm_##T##_##N##_8, LayerNorm, NORM_THREADS) { layer_norm<T, N, 8>(args); }            \
    KERNEL(layer_norm_##T##_##N##_16, LayerNorm, NORM_THREADS) { layer_norm<T, N, 16>(args); }          \
    KERNEL(layer_norm_##T##_##N##_32, LayerNorm, NORM_THREADS) { layer_norm<T, N, 32>(args); }
NORMS(f32, 1)
NORMS(f32, 4)
NORMS(f16, 1)
NORMS(f16, 8)
NORMS(bf16, 1)
NORMS(bf16, 8)
