// Lays weights out in the tiles that products read: see product.cuh.
#include "product.cuh"

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

KERNEL(tile_weight_f16, Tiling, TILING_THREADS) { tile_weight<f16>(args); }
KERNEL(tile_weight_bf16, Tiling, TILING_THREADS) { tile_weight<bf16>(args); }
