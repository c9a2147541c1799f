// A libcuda.so.1 for machines without a card: the program's own kernels run as kernels/emulator.h runs them, candle's few beside them are written
// out below, and everything happens at once, in order. It shows what the program asks of the driver and in which order: arguments, memory
// given back twice or never, work that a recording (CUDA graph) may not hold. It shows nothing of a card.
//
// Memory is NaN when it is given out and again when it is given back. A recording keeps its blocks at their addresses, forgets what they held
// before each start, and takes no copy to or from the host, no waiting, and no block of outside to be given back, as the driver.
//
//   STAND_IN_SAYS=1    tells at the end of blocks that were never given back, of the most that was held at once, of launches and recordings
//   STAND_IN_COUNTS=1  leaves out work of more than one block or 4096 bytes, so that the memory of large checkpoints can be counted; pictures
//                      are one colour
//   STAND_IN_CORES=N   multiprocessors, 132 unless given: other plans of products and norms
//   STAND_IN_MEMORY=N  bytes that are given out at once, beside them those of one recording; more is CUDA_ERROR_OUT_OF_MEMORY
//   STAND_IN_BLOCK=N   bytes of the largest block that is given out
//   STAND_IN_RECORDED=N  bytes that a recording may take
//   STAND_IN_FAILS=N   a recording fails at its step N, and with it all that comes before its end
#include <stdio.h>
#include <stdlib.h>
#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include "../../../src/engine/cuda/kernels/all.cu"

namespace {

enum Status { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901 };

int refuse(int status, const char *why) {
    fprintf(stderr, "stand-in: %s\n", why);
    return status;
}

const bool counts = getenv("STAND_IN_COUNTS");

// Whether it is left out to touch so many bytes.
bool left_out(size_t bytes) { return counts && bytes > 4096; }

void copy(char *to, const void *from, size_t bytes) {
    if (!left_out(bytes)) memcpy(to, from, bytes);
}

using Work = std::function<void()>;
struct Block {
    char *at;
    size_t bytes;

    void forget() const {
        if (!counts) memset(at, 0xff, bytes);
    }
};
struct Graph {
    std::vector<Work> steps;
    std::vector<Block> blocks;
    size_t held = 0, most = 0; // bytes of its blocks between their beginning and end
    int starts = 0;
    bool there = false; // its memory is taken
};

Graph *recording; // or null
std::map<char *, Block> given;
size_t given_bytes;    // outside of recordings
size_t recorded_bytes; // what the recordings hold at most
size_t kept_bytes;     // what is kept for recordings until it is trimmed
size_t most_bytes;     // of all, at once
long launches;

void hold(size_t &bytes, long more) {
    bytes += more;
    kept_bytes = std::max(kept_bytes, recorded_bytes);
    most_bytes = std::max(most_bytes, given_bytes + kept_bytes);
}

// Whether so many bytes are more than a variable of the environment allows.
bool beyond(const char *variable, size_t bytes) {
    const char *most = getenv(variable);
    return most && bytes > (size_t)atoll(most);
}

// Whether so many bytes more are too many. What is kept for recordings that are gone serves nobody else.
bool full(size_t bytes) { return beyond("STAND_IN_MEMORY", given_bytes + kept_bytes - recorded_bytes + bytes); }

// Whether the recording has failed.
bool failed() {
    const char *step = getenv("STAND_IN_FAILS");
    return recording && step && recording->steps.size() >= (size_t)atoi(step);
}

int submit(Work work) {
    if (failed()) return CAPTURE_INVALIDATED;
    if (recording) recording->steps.push_back(work);
    else work();
    return SUCCESS;
}

struct AtTheEnd {
    ~AtTheEnd() {
        if (!getenv("STAND_IN_SAYS")) return;
        size_t bytes = 0;
        for (auto &entry : given) bytes += entry.second.bytes;
        fprintf(stderr, "stand-in: %zu blocks of %zu bytes not given back, %zu bytes at most at once; %ld launches\n", given.size(), bytes, most_bytes, launches);
    }
} at_the_end;

// ---- candle's kernels, by the dtype in their names; arithmetic in f64, rounded once.

struct Numbers {
    char *at;
    std::string dtype;

    size_t size() const { return dtype == "f16" || dtype == "bf16" ? 2 : dtype == "f64" || dtype == "i64" ? 8 : dtype == "u8" ? 1 : 4; }
    double get(size_t i) const {
        const char *p = at + i * size();
        if (dtype == "f16") return wide(*(const f16 *)p);
        if (dtype == "bf16") return wide(*(const bf16 *)p);
        if (dtype == "f32") return *(const float *)p;
        if (dtype == "f64") return *(const double *)p;
        if (dtype == "u32") return *(const uint32_t *)p;
        if (dtype == "i64") return *(const int64_t *)p;
        return *(const uint8_t *)p;
    }
    void set(size_t i, double x) const {
        char *p = at + i * size();
        if (dtype == "f16") *(f16 *)p = narrow<f16>((float)x);
        else if (dtype == "bf16") *(bf16 *)p = narrow<bf16>((float)x);
        else if (dtype == "f32") *(float *)p = (float)x;
        else if (dtype == "f64") *(double *)p = x;
        else if (dtype == "u32") *(uint32_t *)p = (uint32_t)x;
        else if (dtype == "i64") *(int64_t *)p = (int64_t)x;
        else *(uint8_t *)p = (uint8_t)x;
    }
};

// Where number i of a tensor lies: by sizes and strides in the card's memory, or in order if there are none.
struct Order {
    size_t axes;
    const size_t *sizes, *strides;

    Order(size_t axes, const size_t *table, size_t which = 1) : axes(axes), sizes(table), strides(table ? table + which * axes : nullptr) {}
    size_t operator()(size_t i) const {
        if (!sizes) return i;
        size_t at = 0;
        for (size_t axis = axes; axis-- > 0; i /= sizes[axis]) at += i % sizes[axis] * strides[axis];
        return at;
    }
};

const std::map<std::string, double (*)(double)> UNARY = {
    {"copy", [](double x) { return x; }},
    {"abs", [](double x) { return fabs(x); }},
    {"neg", [](double x) { return -x; }},
    {"sqr", [](double x) { return x * x; }},
    {"sqrt", [](double x) { return sqrt(x); }},
    {"exp", [](double x) { return exp(x); }},
    {"log", [](double x) { return log(x); }},
    {"recip", [](double x) { return 1 / x; }},
    {"tanh", [](double x) { return tanh(x); }},
    {"relu", [](double x) { return x > 0 ? x : 0; }},
    {"sigmoid", [](double x) { return 1 / (1 + exp(-x)); }},
    {"silu", [](double x) { return x / (1 + exp(-x)); }},
    {"gelu", [](double x) { return x / 2 * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))); }},
    {"gelu_erf", [](double x) { return x / 2 * (1 + erf(x * 0.7071067811865476)); }},
};
const std::map<std::string, double (*)(double, double)> BINARY = {
    {"add", [](double x, double y) { return x + y; }},        {"sub", [](double x, double y) { return x - y; }},
    {"mul", [](double x, double y) { return x * y; }},        {"div", [](double x, double y) { return x / y; }},
    {"maximum", [](double x, double y) { return fmax(x, y); }}, {"minimum", [](double x, double y) { return fmin(x, y); }},
};

// A launch's parameters.
struct Given {
    void **at;

    template <class T> T as(int i) const { return *(T *)at[i]; }
    size_t size(int i) const { return as<size_t>(i); }
    const size_t *table(int i) const { return as<const size_t *>(i); }
    Numbers numbers(int i, const std::string &dtype) const { return {as<char *>(i), dtype}; }
    double scalar(int i, const std::string &dtype) const { return Numbers{(char *)at[i], dtype}.get(0); }
};

// The kernel of this name as work, or none.
Work candle_kernel(const std::string &name, unsigned blocks, Given p) {
    const size_t cut = name.rfind('_');
    const std::string kind = name.substr(0, cut), dtype = name.substr(cut + 1);
    const auto starts = [&](const char *text) { return kind.rfind(text, 0) == 0; };
    if (kind == "affine") {
        const size_t n = p.size(0);
        const Order order(p.size(1), p.table(2));
        const Numbers x = p.numbers(3, dtype), y = p.numbers(4, dtype);
        const double mul = p.scalar(5, dtype), add = p.scalar(6, dtype);
        return [=] { for (size_t i = 0; i < n; i++) y.set(i, (x.at ? x.get(order(i)) : y.get(i)) * mul + add); };
    }
    if (starts("cast_")) {
        const size_t n = p.size(0);
        const Order order(p.size(1), p.table(2));
        const Numbers x = p.numbers(3, kind.substr(5)), y = p.numbers(4, dtype);
        return [=] { for (size_t i = 0; i < n; i++) y.set(i, x.get(order(i))); };
    }
    if (kind == "fill") {
        const Numbers y = p.numbers(0, dtype);
        const double value = p.scalar(1, dtype);
        const size_t n = p.size(2);
        return [=] { for (size_t i = 0; i < n; i++) y.set(i, value); };
    }
    if (kind == "const_set") {
        const size_t n = p.size(0);
        const Order order(p.size(1), p.table(2));
        const double value = p.scalar(3, dtype);
        const Numbers y = p.numbers(4, dtype);
        return [=] { for (size_t i = 0; i < n; i++) y.set(order(i), value); };
    }
    if (kind == "copy2d") {
        const Numbers x = p.numbers(0, dtype), y = p.numbers(1, dtype);
        const size_t rows = p.as<uint32_t>(2), columns = p.as<uint32_t>(3), from = p.as<uint32_t>(4), to = p.as<uint32_t>(5);
        const size_t size = x.size();
        return [=] { for (size_t i = 0; i < rows; i++) memcpy(y.at + i * to * size, x.at + i * from * size, columns * size); };
    }
    if (kind == "fast_sum" || kind == "fast_sum_small") {
        const size_t results = kind == "fast_sum" ? blocks : p.size(0), each = p.size(1);
        const Order order(p.size(2), p.table(3));
        const Numbers x = p.numbers(4, dtype), y = p.numbers(5, dtype);
        return [=] {
            for (size_t i = 0; i < results; i++) {
                double sum = 0;
                for (size_t j = 0; j < each; j++) sum += x.get(order(i * each + j));
                y.set(i, sum);
            }
        };
    }
    if (kind == "softmax") {
        const Numbers x = p.numbers(0, dtype), y = p.numbers(1, dtype);
        const size_t rows = blocks, columns = p.as<int32_t>(2);
        return [=] {
            for (size_t i = 0; i < rows; i++) {
                double most = -INFINITY, sum = 0;
                for (size_t j = 0; j < columns; j++) most = fmax(most, x.get(i * columns + j));
                for (size_t j = 0; j < columns; j++) sum += exp(x.get(i * columns + j) - most);
                for (size_t j = 0; j < columns; j++) y.set(i * columns + j, exp(x.get(i * columns + j) - most) / sum);
            }
        };
    }
    if (starts("is_")) { // index_select of a contiguous tensor
        const size_t n = p.size(0), rows = p.size(7), ids = p.size(8), right = p.size(9);
        const Numbers id = p.numbers(3, kind.substr(3)), x = p.numbers(4, dtype), y = p.numbers(5, dtype);
        return [=] {
            for (size_t i = 0; i < n; i++) {
                const size_t left = i / (ids * right), row = (size_t)id.get(i / right % ids);
                y.set(i, x.get((left * rows + row) * right + i % right));
            }
        };
    }
    const auto unary = UNARY.find(kind.substr(1));
    if (kind[0] == 'u' && unary != UNARY.end()) {
        const size_t n = p.size(0);
        const Order order(p.size(1), p.table(2));
        const Numbers x = p.numbers(3, dtype), y = p.numbers(4, dtype);
        const auto f = unary->second;
        return [=] { for (size_t i = 0; i < n; i++) y.set(i, f(x.at ? x.get(order(i)) : y.get(i))); };
    }
    const auto binary = BINARY.find(kind.substr(1));
    if (kind[0] == 'b' && binary != BINARY.end()) {
        const size_t n = p.size(0), axes = p.size(1);
        const Order left(axes, p.table(2), 1), right(axes, p.table(2), 2);
        const Numbers a = p.numbers(3, dtype), b = p.numbers(4, dtype), y = p.numbers(5, dtype);
        const auto f = binary->second;
        return [=] { for (size_t i = 0; i < n; i++) y.set(i, f(a.get(left(i)), b.get(right(i)))); };
    }
    return nullptr;
}

} // namespace

// ---- The driver's functions that cudarc calls, under the names that it asks for. Handles are numbers that nobody looks behind.

#define HANDLE(number) *handle = (void *)number; return SUCCESS

extern "C" {

int cuInit(unsigned) { return SUCCESS; }
int cuDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
int cuDeviceGetCount(int *count) { *count = 1; return SUCCESS; }
int cuDeviceGet(int *device, int) { *device = 0; return SUCCESS; }
int cuDeviceGetName(char *name, int length, int) { strncpy(name, "stand-in", length); return SUCCESS; }
int cuDeviceGetUuid_v2(void *, int) { return SUCCESS; }
int cuDeviceTotalMem_v2(size_t *bytes, int) { *bytes = (size_t)8 << 30; return SUCCESS; }
int cuDeviceGetAttribute(int *value, int attribute, int) {
    const char *cores = getenv("STAND_IN_CORES");
    switch (attribute) {
    case 16: *value = cores ? atoi(cores) : 132; break;
    case 75: *value = 9; break; // compute capability
    case 76: *value = 0; break;
    case 97: *value = 227 << 10; break; // shared memory of a block
    default: *value = 1; // 115: memory in the order of a stream
    }
    return SUCCESS;
}
int cuDevicePrimaryCtxRetain(void **handle, int) { HANDLE(1); }
int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
int cuCtxGetCurrent(void **handle) { HANDLE(1); }
int cuCtxSetCurrent(void *) { return SUCCESS; }
int cuGetErrorName(int, const char **text) { *text = "an error of the stand-in"; return SUCCESS; }
int cuGetErrorString(int, const char **text) { *text = "see above"; return SUCCESS; }

int cuDeviceGetDefaultMemPool(void **handle, int) { HANDLE(1); }
int cuMemPoolGetAttribute(void *, int, uint64_t *value) { return *value = given_bytes, SUCCESS; }
int cuDeviceGetGraphMemAttribute(int, int, uint64_t *value) { return *value = kept_bytes, SUCCESS; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { return *free = 0, *total = 0, SUCCESS; }
int cuDeviceGraphMemTrim(int) { kept_bytes = recorded_bytes; return SUCCESS; }
int cuMemAllocAsync(char **at, size_t bytes, void *) {
    if (bytes == 0) return refuse(INVALID_VALUE, "a block of nothing");
    if (!recording && (full(bytes) || beyond("STAND_IN_BLOCK", bytes))) return OUT_OF_MEMORY;
    const Block block = {(char *)(counts ? calloc(bytes, 1) : aligned_alloc(256, (bytes + 511) / 256 * 256)), bytes};
    *at = block.at;
    if (const int status = submit([=] { block.forget(); })) {
        free(block.at);
        return status;
    }
    if (recording) {
        recording->blocks.push_back(block);
        recording->held += bytes;
        recording->most = std::max(recording->most, recording->held);
    } else {
        given[block.at] = block;
        hold(given_bytes, bytes);
    }
    return SUCCESS;
}
int cuMemFreeAsync(char *at, void *) {
    if (failed()) return CAPTURE_INVALIDATED;
    if (recording) {
        for (const Block &block : recording->blocks)
            if (block.at == at) {
                recording->held -= block.bytes;
                return submit([=] { block.forget(); });
            }
        return refuse(CAPTURE_UNSUPPORTED, "a recording gives back a block of outside");
    }
    const auto entry = given.find(at);
    if (entry == given.end()) return refuse(INVALID_VALUE, "a block is given back that was not given out");
    entry->second.forget();
    hold(given_bytes, -(long)entry->second.bytes);
    free(at);
    given.erase(entry);
    return SUCCESS;
}
int cuMemcpyHtoDAsync_v2(char *to, const void *from, size_t bytes, void *) {
    if (recording) return refuse(CAPTURE_UNSUPPORTED, "a copy from the host in a recording");
    copy(to, from, bytes);
    return SUCCESS;
}
int cuMemcpyDtoHAsync_v2(void *to, const char *from, size_t bytes, void *) {
    if (recording) return refuse(CAPTURE_UNSUPPORTED, "a copy to the host in a recording");
    memcpy(to, from, bytes);
    return SUCCESS;
}
int cuMemcpyDtoDAsync_v2(char *to, const char *from, size_t bytes, void *) {
    return submit([=] { copy(to, from, bytes); });
}
int cuMemsetD8Async(char *to, unsigned char value, size_t bytes, void *) {
    return submit([=] {
        if (!left_out(bytes)) memset(to, value, bytes);
    });
}

int cuStreamCreate(void **handle, unsigned) { HANDLE(2); }
int cuStreamDestroy_v2(void *) { return SUCCESS; }
int cuStreamWaitEvent(void *, void *, unsigned) { return SUCCESS; }
int cuStreamSynchronize(void *) { return recording ? refuse(CAPTURE_UNSUPPORTED, "a recording waits") : SUCCESS; }
int cuEventCreate(void **handle, unsigned) { HANDLE(3); }
int cuEventDestroy_v2(void *) { return SUCCESS; }
int cuEventRecord(void *, void *) { return SUCCESS; }

int cuStreamBeginCapture_v2(void *, int) { recording = new Graph; return SUCCESS; }
int cuStreamEndCapture(void *, void **handle) {
    const bool keeps = !failed() && recording->held, valid = !failed() && !keeps;
    if (keeps) refuse(CAPTURE_INVALIDATED, "a recording that keeps a block could not be started again");
    *handle = valid ? recording : nullptr;
    if (!valid) delete recording;
    recording = nullptr;
    return valid ? SUCCESS : CAPTURE_INVALIDATED;
}
int cuStreamIsCapturing(void *, int *status) { *status = recording ? 1 : 0; return SUCCESS; }
int cuGraphInstantiateWithFlags(void **handle, void *graph, unsigned long long) {
    hold(recorded_bytes, ((Graph *)graph)->most);
    HANDLE(graph);
}
// The memory of a recording is taken by its upload, or by its first start.
int cuGraphUpload(void *handle, void *) {
    Graph &graph = *(Graph *)handle;
    if (!graph.there && (full(graph.most) || beyond("STAND_IN_RECORDED", graph.most))) return OUT_OF_MEMORY;
    graph.there = true;
    return SUCCESS;
}
int cuGraphLaunch(void *handle, void *stream) {
    if (const int status = cuGraphUpload(handle, stream)) return status;
    Graph &graph = *(Graph *)handle;
    graph.starts++;
    for (const Work &step : graph.steps) step();
    return SUCCESS;
}
int cuGraphExecDestroy(void *) { return SUCCESS; }
int cuGraphDestroy(void *handle) {
    Graph *graph = (Graph *)handle;
    if (getenv("STAND_IN_SAYS")) fprintf(stderr, "stand-in: a recording of %zu steps was started %d times\n", graph->steps.size(), graph->starts);
    for (const Block &block : graph->blocks) free(block.at);
    hold(recorded_bytes, -(long)graph->most);
    delete graph;
    return SUCCESS;
}

int cuModuleLoadData(void **handle, const void *) { HANDLE(4); }
int cuModuleUnload(void *) { return SUCCESS; }
int cuModuleGetFunction(void **handle, void *, const char *name) { HANDLE(new std::string(name)); }
int cuFuncSetAttribute(void *, int attribute, int value) {
    const bool fits = attribute != 8 || value <= 227 << 10;
    return fits ? SUCCESS : refuse(INVALID_VALUE, "more shared memory than a block can have");
}
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *, void **given, void **) {
    const std::string &name = *(const std::string *)function;
    launches++;
    if (counts && gx * gy * gz > 1) return submit([] {});
    if (const emulator::Kernel *kernel = emulator::Kernel::find(name.c_str())) {
        const std::vector<char> args((char *)given[0], (char *)given[0] + kernel->args_bytes);
        return submit([=] {
            const Dim3 grid = {gx, gy, gz}, block = {bx, by, bz};
            if (const int status = kernel->start(args.data(), grid, block, shared)) {
                fprintf(stderr, "stand-in: %s ends with %d\n", kernel->name, status);
                abort();
            }
        });
    }
    const Work work = candle_kernel(name, gx, Given{given});
    if (!work) return refuse(NOT_FOUND, ("no kernel " + name).c_str());
    return submit(work);
}
}
