// Products by groups of warps (Hopper): 16-bit numbers, the channels of both parts multiples of 8, weights in tiles.
#include "product.cuh"

#ifdef GROUPS
// Finishes 16 x N numbers of a warp, held as the tensor cores leave them, by way of 16 (N / 2 + 4) numbers of shared memory of its own, half of the
// columns after the other.
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
    int pixel = 0;        // of the first,
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
    int first, last; // of y
    bool one_image;  // whether one shift serves them all
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
        int depth = piece.begin + ahead;
        const T *weight = (const T *)a.weight + ((int64_t)depth * outputs + piece.column) * DEPTH;
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

// A second group that brings is worth its registers; 256 columns leave none.
#define PIPES(T)                                                                       \
    KERNEL(product_##T##_pipe_128, Product, 512) { product_pipe<T, 128, 7, 2>(args); } \
    KERNEL(product_##T##_pipe_160, Product, 512) { product_pipe<T, 160, 6, 2>(args); } \
    KERNEL(product_##T##_pipe_256, Product, 384) { product_pipe<T, 256, 4, 1>(args); }
PIPES(f16)
PIPES(bf16)
#endif
