// Stands in for the driver: one device of compute capability 9.0, emulated.
//
// It is as strict as a device may be, for its purpose is to find what would go wrong on one:
// - work in a stream runs as late as the rules allow (when somebody waits, or a stream is full), in order, on a thread of its
//   own. An asynchronous copy from pinned memory reads its source then, one from pageable memory at once;
// - every allocation begins as NaN, and ends at a page that can't be touched, as far as the alignment of 256 allows; what
//   lies between must stay as it is. Freed memory can't be touched any more;
// - pointers that kernels, copies and products get must lie in live allocations.
// What a device refuses is refused with its error; what is undefined there ends the program. Either is told on stderr.
#include "driver.h"
#include "module.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

extern "C" const char* cloze_launch(void (*kernel)(void*), void* arguments, const unsigned* grid, const unsigned* block,
                                    size_t shared_bytes, unsigned order);

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace gpu {

enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    NOT_SUPPORTED = 801,
};

void tell(const char* format, va_list values) {
    char text[1024];
    vsnprintf(text, sizeof(text), format, values);
    fprintf(stderr, "emulated GPU: %s\n", text);
}
void explain(const char* format, ...) {
    va_list values;
    va_start(values, format);
    tell(format, values);
    va_end(values);
}
void die(const char* format, ...) {
    va_list values;
    va_start(values, format);
    tell(format, values);
    va_end(values);
    abort();
}

struct Stream {
    std::deque<std::function<void()>> work;
    uint64_t put = 0;
    uint64_t done = 0;
};

struct Event {
    std::shared_ptr<Stream> stream;
    // How far the stream must come.
    uint64_t at = 0;
    std::chrono::steady_clock::time_point time;
};

struct Allocation {
    unsigned char* mapping;
    size_t mapped;
    size_t size;
};

struct Function {
    const emulator::Kernel* kernel;
    // Dynamic shared memory that a launch may ask for: 48 KiB less the kernel's static arrays, whose size is not known here. No
    // kernel has more than 8 KiB of them.
    size_t shared = 40 << 10;
};

struct Module {
    void* library;
    std::map<std::string, Function> functions;
};

struct State {
    // Guards everything here; not held while work runs.
    std::mutex mutex;
    std::condition_variable changed;
    std::map<void*, std::shared_ptr<Stream>> streams;
    std::shared_ptr<Stream> null_stream = std::make_shared<Stream>();
    std::deque<std::pair<std::shared_ptr<Stream>, uint64_t>> wanted;
    bool started = false;
    // By their addresses: what the host may still name, and what work in a stream may still touch.
    std::map<uintptr_t, Allocation> live;
    std::map<uintptr_t, Allocation> open;
    std::deque<std::pair<void*, size_t>> closed;
    std::map<uintptr_t, size_t> pinned;
    std::set<Event*> events;
    std::set<Module*> modules;
    std::set<Function*> functions;
    uint64_t total = 0;
    uint64_t used = 0;
    uint64_t used_high = 0;
    uint64_t threshold = 0;
    bool initialized = false;
    int retained = 0;
};

// Never destroyed: threads may still call when the program ends.
State& state() {
    static State* all = new State;
    return *all;
}
typedef std::unique_lock<std::mutex> Lock;

thread_local void* context = nullptr;
char the_context, the_pool;

bool has_context() { return context != nullptr; }

constexpr size_t GRANULE = 256;
size_t rounded(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

// --- Streams ---------------------------------------------------------------------------------------------------------

thread_local bool on_device_thread = false;

// Runs the stream's work up to that place, on the device's thread.
void advance(Lock& lock, Stream& stream, uint64_t to) {
    while (stream.done < to) {
        std::function<void()> next = std::move(stream.work.front());
        stream.work.pop_front();
        lock.unlock();
        next();
        next = nullptr;
        lock.lock();
        stream.done++;
    }
}

void device_thread() {
    on_device_thread = true;
    State& all = state();
    Lock lock(all.mutex);
    for (;;) {
        all.changed.wait(lock, [&] { return !all.wanted.empty(); });
        auto [stream, to] = all.wanted.front();
        all.wanted.pop_front();
        advance(lock, *stream, to);
        all.changed.notify_all();
    }
}

void wait_for(Lock& lock, std::shared_ptr<Stream> stream, uint64_t to) {
    State& all = state();
    if (on_device_thread) return advance(lock, *stream, to);
    if (stream->done >= to) return;
    if (!all.started) {
        all.started = true;
        std::thread(device_thread).detach();
    }
    all.wanted.emplace_back(stream, to);
    all.changed.notify_all();
    all.changed.wait(lock, [&] { return stream->done >= to; });
}

void wait_for_all(Lock& lock) {
    std::vector<std::shared_ptr<Stream>> streams = {state().null_stream};
    for (auto& [handle, stream] : state().streams) streams.push_back(stream);
    for (auto& stream : streams) wait_for(lock, stream, stream->put);
}

// The null stream, the legacy and the thread's one are one here; all that cudarc creates don't wait for it.
std::shared_ptr<Stream> shared_stream(void* handle) {
    if (reinterpret_cast<uintptr_t>(handle) <= 2) return state().null_stream;
    auto found = state().streams.find(handle);
    if (found == state().streams.end()) {
        explain("%p is no stream", handle);
        return nullptr;
    }
    return found->second;
}

Stream* stream_of(void* handle) {
    Lock lock(state().mutex);
    return shared_stream(handle).get();
}

void put(Lock& lock, const std::shared_ptr<Stream>& stream, std::function<void()> work) {
    // As many launches as a device keeps before the host has to wait.
    constexpr size_t MOST = 1024;
    stream->work.push_back(std::move(work));
    stream->put++;
    if (stream->work.size() >= MOST) wait_for(lock, stream, stream->put - MOST / 2);
}

void enqueue(Stream* stream, std::function<void()> work) {
    State& all = state();
    Lock lock(all.mutex);
    if (stream == all.null_stream.get()) return put(lock, all.null_stream, std::move(work));
    put(lock, all.streams.at(stream), std::move(work));
}

// --- Memory ----------------------------------------------------------------------------------------------------------

// Bytes, or with K, M or G behind them; an H100's memory is more than most machines that emulate one have.
uint64_t total_memory() {
    const char* asked = getenv("CLOZE_EMULATED_MEMORY");
    if (!asked) return uint64_t(4) << 30;
    char* end = nullptr;
    const uint64_t number = strtoull(asked, &end, 10);
    const int shift = *end == 'K' ? 10 : *end == 'M' ? 20 : *end == 'G' ? 30 : 0;
    if (number == 0 || end[shift != 0] != 0) die("CLOZE_EMULATED_MEMORY=%s is no amount of memory, as 512M is", asked);
    return number << shift;
}

// The live allocation that `at` lies in or ends; null if there is none.
const Allocation* holding(uintptr_t at, uintptr_t* start) {
    auto& live = on_device_thread ? state().open : state().live;
    auto next = live.upper_bound(at);
    if (next == live.begin()) return nullptr;
    --next;
    *start = next->first;
    return at <= next->first + next->second.size ? &next->second : nullptr;
}

void check_live(uintptr_t at, size_t bytes, const char* what) {
    uintptr_t start = 0;
    const Allocation* memory = holding(at, &start);
    if (!memory) die("%s: %p is no live memory of the device", what, reinterpret_cast<void*>(at));
    if (bytes > start + memory->size - at) {
        die("%s: %zu bytes from byte %zu of an allocation of %zu", what, bytes, size_t(at - start), memory->size);
    }
}
void must_be_live(const void* start, size_t bytes, const char* what) {
    Lock lock(state().mutex);
    check_live(reinterpret_cast<uintptr_t>(start), bytes, what);
}

int allocate(uint64_t* out, size_t size) {
    State& all = state();
    Lock lock(all.mutex);
    if (!context) return INVALID_CONTEXT;
    if (size == 0) {
        explain("an allocation of no bytes");
        return INVALID_VALUE;
    }
    const size_t room = rounded(size, GRANULE);
    if (all.used + room > all.total) return OUT_OF_MEMORY;
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    const size_t inner = rounded(room, page);
    void* mapping = mmap(nullptr, inner + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) return OUT_OF_MEMORY;
    unsigned char* begin = static_cast<unsigned char*>(mapping) + page;
    if (mprotect(begin, inner, PROT_READ | PROT_WRITE) != 0) die("the system has no memory for an allocation of %zu", size);
    memset(begin, 0xFF, inner);
    const uintptr_t start = reinterpret_cast<uintptr_t>(begin) + inner - room;
    all.open[start] = all.live[start] = {static_cast<unsigned char*>(mapping), inner + 2 * page, size};
    all.used += room;
    all.used_high = std::max(all.used_high, all.used);
    *out = start;
    return SUCCESS;
}

// Closes memory that is out of the list already. Its addresses are not used again for long.
void close_memory(uintptr_t start, Allocation memory) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    const unsigned char* inner = memory.mapping + page;
    const unsigned char* end = memory.mapping + memory.mapped - page;
    const unsigned char* first = reinterpret_cast<const unsigned char*>(start);
    auto intact = [](const unsigned char* from, const unsigned char* to) {
        return std::all_of(from, to, [](unsigned char byte) { return byte == 0xFF; });
    };
    if (!intact(inner, first) || !intact(first + memory.size, end)) {
        die("something wrote beside an allocation of %zu bytes", memory.size);
    }
    // At the same place, in one step.
    mmap(memory.mapping, memory.mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    constexpr size_t KEPT = 8192;
    Lock lock(state().mutex);
    state().open.erase(start);
    auto& closed = state().closed;
    closed.emplace_back(memory.mapping, memory.mapped);
    if (closed.size() > KEPT) {
        munmap(closed.front().first, closed.front().second);
        closed.pop_front();
    }
}

int take_out(uint64_t start, Allocation* memory) {
    State& all = state();
    auto found = all.live.find(start);
    if (found == all.live.end()) die("freed: %p, which is no live allocation", reinterpret_cast<void*>(start));
    *memory = found->second;
    all.live.erase(found);
    all.used -= rounded(memory->size, GRANULE);
    return SUCCESS;
}

bool is_pinned(const void* host, size_t bytes) {
    auto& pinned = state().pinned;
    const uintptr_t at = reinterpret_cast<uintptr_t>(host);
    auto next = pinned.upper_bound(at);
    if (next == pinned.begin()) return false;
    --next;
    return at + bytes <= next->first + next->second;
}

// --- Kernels ---------------------------------------------------------------------------------------------------------

// A launch with its own copy of the arguments.
struct Launch {
    const emulator::Kernel* kernel;
    std::vector<unsigned char> bytes;
    std::vector<void*> arguments;
    unsigned grid[3], block[3];
    size_t shared;

    static void thread(void* self) {
        Launch* launch = static_cast<Launch*>(self);
        launch->kernel->call(launch->arguments.data());
    }
    void run() {
        if (const char* fault = cloze_launch(thread, this, grid, block, shared, 0)) die("kernel %s: %s", kernel->name, fault);
    }
};

}  // namespace gpu

using namespace gpu;

// What the header calls CUresult is an int here, and every handle a pointer.

EXPORT int cuInit(unsigned) {
    Lock lock(state().mutex);
    if (!state().initialized) state().total = total_memory();
    state().initialized = true;
    return SUCCESS;
}
EXPORT int cuDriverGetVersion(int* version) {
    *version = 13000;
    return SUCCESS;
}
EXPORT int cuDeviceGetCount(int* count) {
    if (!state().initialized) return NOT_INITIALIZED;
    *count = 1;
    return SUCCESS;
}
EXPORT int cuDeviceGet(int* device, int ordinal) {
    if (!state().initialized) return NOT_INITIALIZED;
    if (ordinal != 0) return INVALID_DEVICE;
    *device = 0;
    return SUCCESS;
}
EXPORT int cuDeviceGetName(char* name, int length, int device) {
    if (device != 0) return INVALID_DEVICE;
    snprintf(name, size_t(length), "emulated device (no GPU)");
    return SUCCESS;
}
EXPORT int cuDeviceTotalMem_v2(size_t* bytes, int device) {
    if (device != 0) return INVALID_DEVICE;
    *bytes = state().total;
    return SUCCESS;
}
EXPORT int cuDeviceGetAttribute(int* value, int attribute, int device) {
    if (device != 0) return INVALID_DEVICE;
    // By the numbers of CUdevice_attribute; the values of an H100.
    static const std::map<int, int> known = {
        {1, 1024},    // MAX_THREADS_PER_BLOCK
        {8, 49152},   // MAX_SHARED_MEMORY_PER_BLOCK
        {10, 32},     // WARP_SIZE
        {16, 132},    // MULTIPROCESSOR_COUNT
        {39, 2048},   // MAX_THREADS_PER_MULTIPROCESSOR
        {75, 9},      // COMPUTE_CAPABILITY_MAJOR
        {76, 0},      // COMPUTE_CAPABILITY_MINOR
        {97, 232448}, // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        {115, 1},     // MEMORY_POOLS_SUPPORTED
    };
    auto found = known.find(attribute);
    if (found == known.end()) die("the device's attribute %d is not in tests/cuda_host/driver.cpp", attribute);
    *value = found->second;
    return SUCCESS;
}
EXPORT int cuDevicePrimaryCtxRetain(void** out, int device) {
    if (device != 0) return INVALID_DEVICE;
    Lock lock(state().mutex);
    state().retained++;
    *out = &the_context;
    return SUCCESS;
}
EXPORT int cuDevicePrimaryCtxRelease_v2(int) {
    Lock lock(state().mutex);
    return --state().retained < 0 ? INVALID_CONTEXT : SUCCESS;
}
EXPORT int cuCtxSetCurrent(void* wanted) {
    if (wanted && wanted != &the_context) return INVALID_CONTEXT;
    context = wanted;
    return SUCCESS;
}
EXPORT int cuCtxGetCurrent(void** out) {
    *out = context;
    return SUCCESS;
}
EXPORT int cuCtxSynchronize() {
    if (!context) return INVALID_CONTEXT;
    Lock lock(state().mutex);
    wait_for_all(lock);
    return SUCCESS;
}

EXPORT int cuStreamCreate(void** out, unsigned) {
    if (!context) return INVALID_CONTEXT;
    Lock lock(state().mutex);
    auto stream = std::make_shared<Stream>();
    state().streams[stream.get()] = stream;
    *out = stream.get();
    return SUCCESS;
}
EXPORT int cuStreamDestroy_v2(void* handle) {
    Lock lock(state().mutex);
    auto stream = shared_stream(handle);
    if (!stream || stream == state().null_stream) return INVALID_HANDLE;
    wait_for(lock, stream, stream->put);
    state().streams.erase(handle);
    return SUCCESS;
}
EXPORT int cuStreamSynchronize(void* handle) {
    Lock lock(state().mutex);
    auto stream = shared_stream(handle);
    if (!stream) return INVALID_HANDLE;
    wait_for(lock, stream, stream->put);
    return SUCCESS;
}
EXPORT int cuStreamIsCapturing(void*, int* status) {
    *status = 0;
    return SUCCESS;
}
EXPORT int cuEventCreate(void** out, unsigned) {
    if (!context) return INVALID_CONTEXT;
    Lock lock(state().mutex);
    Event* event = new Event;
    state().events.insert(event);
    *out = event;
    return SUCCESS;
}
EXPORT int cuEventDestroy_v2(void* handle) {
    Lock lock(state().mutex);
    Event* event = static_cast<Event*>(handle);
    if (!state().events.erase(event)) return INVALID_HANDLE;
    // Work that records it must not find it gone.
    if (event->stream) wait_for(lock, event->stream, event->at);
    delete event;
    return SUCCESS;
}
EXPORT int cuEventRecord(void* handle, void* stream_handle) {
    Lock lock(state().mutex);
    Event* event = static_cast<Event*>(handle);
    auto stream = shared_stream(stream_handle);
    if (!stream || !state().events.count(event)) return INVALID_HANDLE;
    event->stream = stream;
    event->at = stream->put + 1;
    put(lock, stream, [event] { event->time = std::chrono::steady_clock::now(); });
    return SUCCESS;
}
EXPORT int cuEventSynchronize(void* handle) {
    Lock lock(state().mutex);
    Event* event = static_cast<Event*>(handle);
    if (!state().events.count(event)) return INVALID_HANDLE;
    if (event->stream) wait_for(lock, event->stream, event->at);
    return SUCCESS;
}
// The first answer is no, as it would be; so that who asks again and again gets on, the work is done then.
EXPORT int cuEventQuery(void* handle) {
    Lock lock(state().mutex);
    Event* event = static_cast<Event*>(handle);
    if (!state().events.count(event)) return INVALID_HANDLE;
    if (!event->stream || event->stream->done >= event->at) return SUCCESS;
    wait_for(lock, event->stream, event->at);
    return NOT_READY;
}
EXPORT int cuEventElapsedTime(float* milliseconds, void* from, void* to) {
    Lock lock(state().mutex);
    Event *start = static_cast<Event*>(from), *end = static_cast<Event*>(to);
    if (!state().events.count(start) || !state().events.count(end) || !start->stream || !end->stream) return INVALID_HANDLE;
    if (start->stream->done < start->at || end->stream->done < end->at) return NOT_READY;
    *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
    return SUCCESS;
}
EXPORT int cuEventElapsedTime_v2(float* milliseconds, void* from, void* to) {
    return cuEventElapsedTime(milliseconds, from, to);
}
EXPORT int cuStreamWaitEvent(void* stream_handle, void* handle, unsigned) {
    Lock lock(state().mutex);
    Event* event = static_cast<Event*>(handle);
    auto stream = shared_stream(stream_handle);
    if (!stream || !state().events.count(event)) return INVALID_HANDLE;
    if (!event->stream) return SUCCESS;
    put(lock, stream, [other = event->stream, at = event->at] {
        Lock lock(state().mutex);
        advance(lock, *other, at);
    });
    return SUCCESS;
}
EXPORT int cuLaunchHostFunc(void* stream_handle, void (*function)(void*), void* data) {
    Lock lock(state().mutex);
    auto stream = shared_stream(stream_handle);
    if (!stream) return INVALID_HANDLE;
    put(lock, stream, [function, data] { function(data); });
    return SUCCESS;
}

EXPORT int cuMemAlloc_v2(uint64_t* out, size_t size) { return allocate(out, size); }
EXPORT int cuMemAllocAsync(uint64_t* out, size_t size, void* stream) {
    return stream_of(stream) ? allocate(out, size) : INVALID_HANDLE;
}
EXPORT int cuMemFree_v2(uint64_t start) {
    Allocation memory;
    {
        Lock lock(state().mutex);
        if (!context) return INVALID_CONTEXT;
        take_out(start, &memory);
        wait_for_all(lock);
    }
    close_memory(start, memory);
    return SUCCESS;
}
EXPORT int cuMemFreeAsync(uint64_t start, void* handle) {
    Lock lock(state().mutex);
    if (!context) return INVALID_CONTEXT;
    auto stream = shared_stream(handle);
    if (!stream) return INVALID_HANDLE;
    Allocation memory;
    take_out(start, &memory);
    put(lock, stream, [start, memory] { close_memory(start, memory); });
    return SUCCESS;
}
EXPORT int cuMemGetInfo_v2(size_t* available, size_t* total) {
    if (!context) return INVALID_CONTEXT;
    Lock lock(state().mutex);
    *available = state().total - state().used;
    *total = state().total;
    return SUCCESS;
}
EXPORT int cuDeviceGetDefaultMemPool(void** pool, int device) {
    if (device != 0) return INVALID_DEVICE;
    *pool = &the_pool;
    return SUCCESS;
}
EXPORT int cuDeviceGetMemPool(void** pool, int device) { return cuDeviceGetDefaultMemPool(pool, device); }
EXPORT int cuMemPoolGetAttribute(void* pool, int attribute, void* value) {
    if (pool != &the_pool) return INVALID_HANDLE;
    Lock lock(state().mutex);
    // By the numbers of CUmemPool_attribute.
    uint64_t found = 0;
    switch (attribute) {
        case 4: found = state().threshold; break;
        case 5: case 7: found = state().used; break;
        case 6: case 8: found = state().used_high; break;
        default: explain("the pool's attribute %d", attribute); return INVALID_VALUE;
    }
    memcpy(value, &found, sizeof(found));
    return SUCCESS;
}
EXPORT int cuMemPoolSetAttribute(void* pool, int attribute, void* value) {
    if (pool != &the_pool) return INVALID_HANDLE;
    Lock lock(state().mutex);
    uint64_t wanted;
    memcpy(&wanted, value, sizeof(wanted));
    if (attribute == 4) state().threshold = wanted;
    else if (attribute == 8 && wanted == 0) state().used_high = 0;
    else {
        explain("the pool's attribute %d can't be set to that", attribute);
        return INVALID_VALUE;
    }
    return SUCCESS;
}

EXPORT int cuMemHostAlloc(void** out, size_t bytes, unsigned) {
    if (!context) return INVALID_CONTEXT;
    if (bytes == 0) return INVALID_VALUE;
    Lock lock(state().mutex);
    if (posix_memalign(out, 4096, bytes) != 0) return OUT_OF_MEMORY;
    memset(*out, 0xFF, bytes);
    state().pinned[reinterpret_cast<uintptr_t>(*out)] = bytes;
    return SUCCESS;
}
EXPORT int cuMemFreeHost(void* host) {
    Lock lock(state().mutex);
    if (!state().pinned.erase(reinterpret_cast<uintptr_t>(host))) return INVALID_VALUE;
    // As the driver, which waits for whoever may still use it.
    wait_for_all(lock);
    free(host);
    return SUCCESS;
}

EXPORT int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* handle) {
    if (!context) return INVALID_CONTEXT;
    if (bytes == 0) return SUCCESS;
    Lock lock(state().mutex);
    auto stream = shared_stream(handle);
    if (!stream) return INVALID_HANDLE;
    check_live(to, bytes, "a copy to the device");
    void* target = reinterpret_cast<void*>(to);
    if (is_pinned(from, bytes)) {
        put(lock, stream, [=] { memcpy(target, from, bytes); });
        return SUCCESS;
    }
    std::vector<unsigned char> aside(static_cast<const unsigned char*>(from), static_cast<const unsigned char*>(from) + bytes);
    // More than this does not fit aside: the driver waits for the stream.
    const bool waits = bytes > 64 << 10;
    put(lock, stream, [target, aside = std::move(aside)] { memcpy(target, aside.data(), aside.size()); });
    if (waits) wait_for(lock, stream, stream->put);
    return SUCCESS;
}
EXPORT int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* handle) {
    if (!context) return INVALID_CONTEXT;
    if (bytes == 0) return SUCCESS;
    Lock lock(state().mutex);
    auto stream = shared_stream(handle);
    if (!stream) return INVALID_HANDLE;
    check_live(from, bytes, "a copy from the device");
    const void* source = reinterpret_cast<const void*>(from);
    const bool pinned = is_pinned(to, bytes);
    put(lock, stream, [=] { memcpy(to, source, bytes); });
    if (!pinned) wait_for(lock, stream, stream->put);
    return SUCCESS;
}
EXPORT int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* handle) {
    if (!context) return INVALID_CONTEXT;
    if (bytes == 0) return SUCCESS;
    Lock lock(state().mutex);
    auto stream = shared_stream(handle);
    if (!stream) return INVALID_HANDLE;
    check_live(to, bytes, "a copy on the device, to");
    check_live(from, bytes, "a copy on the device, from");
    if (to < from + bytes && from < to + bytes) die("a copy on the device onto itself");
    put(lock, stream, [=] { memcpy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes); });
    return SUCCESS;
}
EXPORT int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void* handle) {
    if (!context) return INVALID_CONTEXT;
    if (bytes == 0) return SUCCESS;
    Lock lock(state().mutex);
    auto stream = shared_stream(handle);
    if (!stream) return INVALID_HANDLE;
    check_live(to, bytes, "memory to be set");
    put(lock, stream, [=] { memset(reinterpret_cast<void*>(to), value, bytes); });
    return SUCCESS;
}
// Those without a stream run in the null stream, for which the other streams here do not wait.
EXPORT int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) {
    const int result = cuMemcpyHtoDAsync_v2(to, from, bytes, nullptr);
    return result ? result : cuStreamSynchronize(nullptr);
}
EXPORT int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) {
    const int result = cuMemcpyDtoHAsync_v2(to, from, bytes, nullptr);
    return result ? result : cuStreamSynchronize(nullptr);
}
EXPORT int cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t bytes) { return cuMemcpyDtoDAsync_v2(to, from, bytes, nullptr); }
EXPORT int cuMemsetD8_v2(uint64_t to, unsigned char value, size_t bytes) { return cuMemsetD8Async(to, value, bytes, nullptr); }

// The image names a shared object: see bin/nvcc.
EXPORT int cuModuleLoadData(void** out, const void* image) {
    if (!context) return INVALID_CONTEXT;
    const char* text = static_cast<const char*>(image);
    const char intro[] = "emulated device: ";
    if (strncmp(text, intro, strlen(intro)) != 0) return INVALID_IMAGE;
    text += strlen(intro);
    const std::string path(text, strcspn(text, "\n"));
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) die("the kernels do not load: %s", dlerror());
    auto* kernels = static_cast<const emulator::Kernel*>(dlsym(library, "cloze_kernels"));
    if (!kernels) die("%s is no file of kernels", path.c_str());
    Module* module = new Module{library, {}};
    Lock lock(state().mutex);
    for (; kernels->name; kernels++) {
        Function& function = module->functions[kernels->name];
        function.kernel = kernels;
        state().functions.insert(&function);
    }
    state().modules.insert(module);
    *out = module;
    return SUCCESS;
}
EXPORT int cuModuleUnload(void* handle) {
    Lock lock(state().mutex);
    Module* module = static_cast<Module*>(handle);
    if (!state().modules.erase(module)) return INVALID_HANDLE;
    wait_for_all(lock);
    for (auto& [name, function] : module->functions) state().functions.erase(&function);
    dlclose(module->library);
    delete module;
    return SUCCESS;
}
EXPORT int cuModuleGetFunction(void** out, void* handle, const char* name) {
    Lock lock(state().mutex);
    Module* module = static_cast<Module*>(handle);
    if (!state().modules.count(module)) return INVALID_HANDLE;
    auto found = module->functions.find(name);
    if (found == module->functions.end()) {
        explain("there is no kernel %s", name);
        return NOT_FOUND;
    }
    *out = &found->second;
    return SUCCESS;
}
EXPORT int cuFuncSetAttribute(void* handle, int attribute, int value) {
    Lock lock(state().mutex);
    Function* function = static_cast<Function*>(handle);
    if (!state().functions.count(function)) return INVALID_HANDLE;
    // MAX_DYNAMIC_SHARED_SIZE_BYTES
    if (attribute != 8) die("the kernels' attribute %d is not in tests/cuda_host/driver.cpp", attribute);
    if (value < 0 || value > 227 << 10) {
        explain("kernel %s: %d bytes of shared memory are more than there are", function->kernel->name, value);
        return INVALID_VALUE;
    }
    function->shared = size_t(value);
    return SUCCESS;
}
EXPORT int cuLaunchKernel(void* handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                          unsigned block_z, unsigned shared, void* stream_handle, void** arguments, void** extra) {
    if (!context) return INVALID_CONTEXT;
    Lock lock(state().mutex);
    Function* function = static_cast<Function*>(handle);
    auto stream = shared_stream(stream_handle);
    if (!stream || !state().functions.count(function)) return INVALID_HANDLE;
    const emulator::Kernel* kernel = function->kernel;
    auto refused = [&](const char* why) {
        explain("kernel %s: grid (%u, %u, %u), block (%u, %u, %u), %u bytes of shared memory: %s", kernel->name, grid_x,
                grid_y, grid_z, block_x, block_y, block_z, shared, why);
        return INVALID_VALUE;
    };
    if (extra || (kernel->count && !arguments)) return refused("arguments in a form that is not emulated");
    const uint64_t threads = uint64_t(block_x) * block_y * block_z;
    if (threads == 0 || threads > 1024 || block_z > 64) return refused("no size of a block");
    if (grid_x == 0 || grid_y == 0 || grid_z == 0 || grid_x > INT32_MAX || grid_y > 65535 || grid_z > 65535) {
        return refused("no size of a grid");
    }
    if (shared > function->shared) return refused("more shared memory than the kernel was allowed");
    auto launch = std::make_shared<Launch>();
    *launch = {kernel, {}, {}, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared};
    std::vector<size_t> places;
    for (size_t i = 0; i < kernel->count; i++) {
        const emulator::Parameter parameter = kernel->parameters[i];
        const auto* from = static_cast<const unsigned char*>(arguments[i]);
        if (parameter.is_pointer) {
            uintptr_t at;
            memcpy(&at, from, sizeof(at));
            const std::string what = std::string("kernel ") + kernel->name + ", argument " + std::to_string(i);
            if (at) check_live(at, 0, what.c_str());
        }
        places.push_back(launch->bytes.size());
        launch->bytes.insert(launch->bytes.end(), from, from + parameter.size);
        launch->bytes.resize(rounded(launch->bytes.size(), 16));
    }
    for (size_t place : places) launch->arguments.push_back(launch->bytes.data() + place);
    put(lock, stream, [launch] { launch->run(); });
    return SUCCESS;
}

static const char* name_of(int error) {
    switch (error) {
        case SUCCESS: return "CUDA_SUCCESS";
        case INVALID_VALUE: return "CUDA_ERROR_INVALID_VALUE";
        case OUT_OF_MEMORY: return "CUDA_ERROR_OUT_OF_MEMORY";
        case NOT_INITIALIZED: return "CUDA_ERROR_NOT_INITIALIZED";
        case NO_DEVICE: return "CUDA_ERROR_NO_DEVICE";
        case INVALID_DEVICE: return "CUDA_ERROR_INVALID_DEVICE";
        case INVALID_IMAGE: return "CUDA_ERROR_INVALID_IMAGE";
        case INVALID_CONTEXT: return "CUDA_ERROR_INVALID_CONTEXT";
        case INVALID_HANDLE: return "CUDA_ERROR_INVALID_HANDLE";
        case NOT_FOUND: return "CUDA_ERROR_NOT_FOUND";
        case NOT_READY: return "CUDA_ERROR_NOT_READY";
        case NOT_SUPPORTED: return "CUDA_ERROR_NOT_SUPPORTED";
        default: return nullptr;
    }
}
EXPORT int cuGetErrorName(int error, const char** name) {
    *name = name_of(error);
    return *name ? SUCCESS : INVALID_VALUE;
}
EXPORT int cuGetErrorString(int error, const char** text) {
    *text = error == OUT_OF_MEMORY ? "out of memory" : name_of(error);
    return *text ? SUCCESS : INVALID_VALUE;
}

// Named by code that nothing here runs.
#define MISSING(name) \
    EXPORT int name() { die("%s is not in tests/cuda_host/driver.cpp", #name); }
MISSING(cuCtxDestroy_v2)
MISSING(cuMemcpyPeerAsync)
MISSING(cuModuleLoad)
