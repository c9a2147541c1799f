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
#pragma once
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

// The tiles of k that a split adds up, of `all`.
INLINE void share(const Product &a, int all, int split, int &begin, int &end) {
    const int each = ceiling(all, a.splits);
    begin = smaller(split * each, all);
    end = smaller(begin + each, all);
}

// ---- With weights in tiles.

const int DEPTH = LINE; // of k at once

// Of a product whose weights lie in tiles.
INLINE int channel_blocks(const Product &a) { return ceiling(a.first_channels + a.rest_channels, DEPTH); }
INLINE int product_depths(const Product &a) { return channel_blocks(a) * a.kernel * a.kernel; }
INLINE int tiled_outputs(const Product &a) { return ceiling(a.outputs, 8) * 8; }
